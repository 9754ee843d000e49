#!/usr/bin/env bash
# Submit a run to Slurm: one process a GPU, warned a minute before the end, requeued when it is saved.
#
#   launch/slurm.sh [--dry-run] [SBATCH FLAGS] -- --config=configs/sie.py:sie,paper --workdir=DIR
#   launch/slurm.sh --partition=gpu --nodes=2 --gpus-per-node=8 --cpus-per-task=10 --time=48:00:00 \
#       --output=DIR/log_%j.out -- --config=configs/moco.py:v2,paper --workdir=DIR
#
# Flags before -- are sbatch's, written --NAME=VALUE; one node with one GPU where none says more. The
# workdir is on a disk that all nodes see. jaxequi is in the environment that submits.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
read_arguments "$@"
need_workdir
for word in ${FLAGS[@]+"${FLAGS[@]}"}; do
  case $word in
    --signal=* | --requeue | --no-requeue) refuse "$word is set by this script" ;;
    --gpus-per-task*) refuse "$word hides a node's GPUs from each other: use --gpus-per-node" ;;
    --wrap*) refuse "$word: the command goes after --" ;;
    --*) ;;
    *) refuse "unknown argument '$word': sbatch's flags are written --NAME=VALUE" ;;
  esac
done
gpus=$(flag gpus-per-node 1)

# The warning goes to the processes, which save and leave with 85; then the job is queued again.
job=$(
  cat <<BATCH
#!/bin/bash
cd $(quoted "$REPOSITORY") || exit 2
srun --kill-on-bad-exit=0 $(quoted "$(command -v python3)" -m jaxequi.main "${PROGRAM[@]}")
code=\$?
if [ "\$code" -eq $INTERRUPTED ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
BATCH
)
command=(sbatch --job-name=jaxequi --nodes=1 --gpus-per-node="$gpus" --ntasks-per-node="${gpus##*:}"
  --open-mode=append ${FLAGS[@]+"${FLAGS[@]}"} --signal=USR1@60 --requeue)
if [ -n "$DRY_RUN" ]; then
  quoted "${command[@]}"
  printf ' <<\\BATCH\n%s\nBATCH\n' "$job"
else
  "${command[@]}" <<<"$job"
fi
