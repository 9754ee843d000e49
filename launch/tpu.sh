#!/usr/bin/env bash
# Rent a Cloud TPU slice, train on all its hosts, fetch the run, give the slice back.
#
#   launch/tpu.sh --name=NAME --zone=ZONE --type=v5litepod-16 [--runtime=v2-alpha-tpuv5-lite] [--spot]
#       [--project=PROJECT] [--bucket=BUCKET] [--to=DIR] [--keep] [--dry-run]
#       -- --config=configs/moco.py:v2,paper --workdir=/mnt/bucket/moco
#
# The slice is a queued resource, of one host or of a pod's many. A bucket is mounted on every host
# at /mnt/bucket: a run on several hosts, or one that outlives a lost slice, keeps its workdir there.
# A run that was interrupted (85) or whose slice was taken away is started again, on a new slice if
# need be; every other code is final. --keep leaves the slice, to be given back by
# `gcloud compute tpus queued-resources delete NAME --zone=ZONE --force`.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
read_arguments "$@"
only_flags name zone type runtime spot project bucket to keep
need_workdir
name=$(flag name) zone=$(flag zone) type=$(flag type) bucket=$(flag bucket) to=$(flag to runs)
for one in name zone type; do
  [ -n "${!one}" ] || refuse "give --$one=; --help shows the command"
done
tpus=(gcloud compute tpus)
where=(--zone="$zone") spot=() keep=""
project=$(flag project)
[ -z "$project" ] || where+=(--project="$project")
for word in "${FLAGS[@]}"; do
  case $word in --spot) spot=(--spot) ;; --keep) keep=yes ;; esac
done
runtime=$(flag runtime v2-alpha-tpuv5-lite)

for word in "${PROGRAM[@]}"; do
  case $word in --workdir=?*) workdir=${word#*=} ;; esac
done
case $workdir in /*) ;; *) workdir=jaxequi/$workdir ;; esac # the run starts in that folder

state() {
  "${tpus[@]}" queued-resources describe "$name" "${where[@]}" --format='value(state.state)' \
    2>/dev/null || true
}
give_back() {
  act "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
}
rent() {
  act "${tpus[@]}" queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" ${spot[@]+"${spot[@]}"}
}
on_all() {
  act "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

# Returns once the slice is there: asks for it, and again for one that was lost.
hold() {
  if [ -n "$DRY_RUN" ]; then
    rent
    return
  fi
  while true; do
    case $(state) in
      ACTIVE) return ;;
      "") rent ;;
      FAILED | SUSPENDED) give_back && rent ;;
      *) sleep "${POLL_SECONDS:-30}" ;;
    esac
  done
}

# Copies the code of the last commit to every host and installs it there.
setup() {
  local folder mount=""
  folder=/tmp/jaxequi
  [ -n "$DRY_RUN" ] || folder=$(mktemp -d)
  if [ -n "$bucket" ]; then
    mount="sudo mkdir -p /mnt/bucket && sudo chown \$USER /mnt/bucket && {
      mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs $(quoted "$bucket") /mnt/bucket; } && "
  fi
  act git -C "$REPOSITORY" archive --output="$folder/jaxequi.tar" HEAD &&
    act "${tpus[@]}" tpu-vm scp "$folder/jaxequi.tar" "$name:" "${where[@]}" --worker=all &&
    on_all "${mount}mkdir -p jaxequi && tar -xf jaxequi.tar -C jaxequi && cd jaxequi && {
      test -x .venv/bin/python || python3 -m venv .venv; } && .venv/bin/pip install -q -e '.[tpu]'"
}

# Returns the exit code of the hosts. gcloud's own says only that some host failed, so that each
# host prints its own; where none could, the slice went away under the run.
train() {
  local run log code
  run="cd jaxequi; .venv/bin/python -m jaxequi.main $(quoted "${PROGRAM[@]}"); echo \"exit code \$?\""
  if [ -n "$DRY_RUN" ]; then
    on_all "$run"
    return
  fi
  log=$(mktemp)
  on_all "$run" | tee "$log" || true
  code=$(sed -n 's/^exit code \([0-9]*\)$/\1/p' "$log" | sort -n | tail -n 1)
  [ -n "$code" ] || code=$([ "$(state)" = ACTIVE ] && echo 1 || echo "$INTERRUPTED")
  return "$code"
}

while true; do
  hold
  code=0
  if ! setup; then
    [ "$(state)" = ACTIVE ] && refuse "the code could not be installed on $name, which is left as it is"
    continue
  fi
  train || code=$?
  [ "$code" -eq "$INTERRUPTED" ] || break
done
act mkdir -p "$to"
act "${tpus[@]}" tpu-vm scp --recurse "$name:$workdir" "$to" "${where[@]}" --worker=0
[ -n "$keep" ] || give_back
exit "$code"
