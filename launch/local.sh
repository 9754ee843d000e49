#!/usr/bin/env bash
# Install for the accelerator that is here and train; one machine with any number of chips.
#
#   launch/local.sh [--dry-run] [--venv=DIR] -- --config=configs/sie.py --workdir=runs/sie
#
# Nothing starts again by itself: an interrupted run says how it goes on.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
read_arguments "$@"
only_flags venv
venv=$(flag venv .venv)

cd "$REPOSITORY"
extra=""
if command -v nvidia-smi >/dev/null; then
  extra="[cuda]"
elif compgen -G "${DEVICES:-/dev}/accel*" >/dev/null || compgen -G "${DEVICES:-/dev}/vfio/[0-9]*" >/dev/null; then
  extra="[tpu]"
fi
if [ ! -x "$venv/bin/python" ]; then
  act python3 -m venv "$venv"
  act "$venv/bin/python" -m pip install --quiet -e ".$extra"
fi
act exec "$venv/bin/python" -m jaxequi.main "${PROGRAM[@]}"
