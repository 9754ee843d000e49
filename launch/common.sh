# Sourced by the scripts beside it: the command line, and running a command or only telling it.
# shellcheck shell=bash disable=SC2034 # what is set here is read there

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
INTERRUPTED=85 # jaxequi's exit code of a run that is saved: the same command goes on

DRY_RUN=""
FLAGS=()   # before `--`: for the cluster
PROGRAM=() # after it: for jaxequi.main

refuse() {
  printf 'launch: %s\n' "$1" >&2
  exit 2
}

# A command as one line that a shell reads back as the same words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command; with --dry-run it prints the line and does nothing.
act() {
  if [ -n "$DRY_RUN" ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# Splits `[--dry-run] [FLAG...] -- ARGUMENTS of jaxequi.main`; --help prints the script's head.
read_arguments() {
  local word rest=""
  for word in "$@"; do
    if [ -n "$rest" ]; then
      PROGRAM+=("$word")
    else
      case $word in
        --) rest=yes ;;
        --dry-run) DRY_RUN=yes ;;
        -h | --help)
          sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0" | sed '/^set -/d'
          exit 0
          ;;
        *) FLAGS+=("$word") ;;
      esac
    fi
  done
  [ "${#PROGRAM[@]}" -gt 0 ] || refuse "no -- before the arguments of jaxequi.main; --help says more"
}

# What starts again by itself has to find its folder again.
need_workdir() {
  for word in "${PROGRAM[@]}"; do
    case $word in --workdir=?*) return ;; esac
  done
  refuse "give --workdir=FOLDER after --: the run that starts again goes on in it"
}

# The value of a flag NAME among FLAGS, or a default; flags are written --NAME=VALUE.
flag() {
  local word value=${2-}
  for word in ${FLAGS[@]+"${FLAGS[@]}"}; do
    case $word in "--$1="*) value=${word#*=} ;; esac
  done
  printf '%s' "$value"
}

# Refuses a flag that is none of those named.
only_flags() {
  local word name
  for word in ${FLAGS[@]+"${FLAGS[@]}"}; do
    for name in "$@"; do
      case $word in "--$name" | "--$name="?*) continue 2 ;; esac
    done
    refuse "unknown flag '$word': there are ${*/#/--}, each as --NAME=VALUE"
  done
}
