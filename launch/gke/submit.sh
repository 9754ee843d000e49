#!/usr/bin/env bash
# Submit a run to a Kubernetes cluster that has JobSet: a TPU slice, or nodes with GPUs.
#
#   launch/gke/submit.sh --name=NAME --image=IMAGE --tpu=tpu-v5-lite-podslice --topology=4x4 [--chips=4]
#       [--claim=CLAIM] [--restarts=20] [--dry-run] -- --config=configs/mae.py:paper --workdir=/runs/mae
#   launch/gke/submit.sh --name=NAME --image=IMAGE --gpu=nvidia-h100-80gb --nodes=2 --gpus-per-node=8 ...
#
# The image holds jaxequi with its extra for the accelerator. The persistent volume claim, `runs` if
# none is named, is mounted at /runs on all pods: the workdir lies there. --chips are those of one host.
# A run that was interrupted (85), or whose pod was evicted, starts again; every other code is final.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/../common.sh"
read_arguments "$@"
only_flags name image tpu topology chips gpu nodes gpus-per-node claim restarts
need_workdir
name=$(flag name) image=$(flag image) tpu=$(flag tpu) gpu=$(flag gpu)
topology=$(flag topology) chips=$(flag chips 4) nodes=$(flag nodes 1) gpus=$(flag gpus-per-node 1)
restarts=$(flag restarts 20)
[ -n "$image" ] || refuse "give --image=, which holds jaxequi; --help shows the command"
[[ $name =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] ||
  refuse "--name=$name: Kubernetes takes a-z, 0-9 and -, at most 32 of them"
for one in chips nodes gpus restarts; do
  [[ ${!one} =~ ^[1-9][0-9]*$ ]] || refuse "$one=${!one}: a number from 1 on"
done
if [ -n "$tpu" ] && [ -z "$gpu" ]; then
  kind=tpu
  [[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || refuse "--topology='$topology': write it like 4x4 or 2x2x2"
  nodes=$(((${topology//x/*} + chips - 1) / chips))
elif [ -n "$gpu" ] && [ -z "$tpu" ]; then
  kind=gpu
else
  refuse "give either --tpu= with --topology=, or --gpu= with --nodes= and --gpus-per-node="
fi

# JSON is YAML: a string of JSON needs no thought about what YAML would make of it.
manifest=$(
  NAME=$name IMAGE=$image ACCELERATOR=$tpu$gpu TOPOLOGY=$topology CHIPS=$chips NODES=$nodes \
    GPUS=$gpus CLAIM=$(flag claim runs) RESTARTS=$restarts \
    python3 - "$(dirname "$0")/jobset-$kind.yaml" "${PROGRAM[@]}" <<'PYTHON'
import json, os, pathlib, string, sys

numbers = ("CHIPS", "NODES", "GPUS", "RESTARTS")
values = {k: v if k in numbers else json.dumps(v) for k, v in os.environ.items()}
# A $(...) in an argument is text, not a variable of the pod.
values["ARGUMENTS"] = json.dumps([word.replace("$(", "$$(") for word in sys.argv[2:]])
values["COORDINATOR"] = json.dumps("{0}-train-0-0.{0}:1234".format(os.environ["NAME"]))
print(string.Template(pathlib.Path(sys.argv[1]).read_text()).substitute(values), end="")
PYTHON
)
if [ -n "$DRY_RUN" ]; then
  printf 'kubectl create -f - <<\\MANIFEST\n%s\nMANIFEST\n' "$manifest"
else
  kubectl create -f - <<<"$manifest"
fi
