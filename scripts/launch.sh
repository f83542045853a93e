#!/usr/bin/env bash
# Trains in N processes on this machine, with settings as key=value.
#
#   bash scripts/launch.sh N CONFIG key=value ...
#   bash scripts/launch.sh 2 configs/sft.py:cpu optim.steps=100 workdir=runs/sft
#
# Keys are fields of the config (docs/configuration.md); one that does not exist is refused with the nearest
# that does. Left out, workdir is results/NAME. One process takes all devices that JAX finds; of several each takes one
# GPU, or all are on the CPU (JAX_PLATFORMS=cpu, or no GPU). Signals and exit codes are those of launch_local.sh.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit; fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "launch: $*" >&2; }
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  say "the first argument is the number of processes, got '${1:-}'; for example: bash scripts/launch.sh 2 configs/sft.py:cpu"
  exit 2
fi
count=$1
shift
python=${ATLAS_PYTHON:-$root/.venv/bin/python}
if ! command -v "$python" >/dev/null; then
  say "no interpreter at $python; run scripts/quickstart.sh once, or set ATLAS_PYTHON"
  exit 2
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
mapfile -d '' -t flags < <("$python" "$root/scripts/launch_words.py" "$@")
wait $! || exit $?

if ((count == 1)); then exec "$python" -m atlas_jax.main "${flags[@]}"; fi
if [[ -z ${JAX_PLATFORMS:-} ]] && compgen -G "/dev/nvidia[0-9]*" >/dev/null; then export JAX_PLATFORMS=cuda; fi
exec bash "$root/scripts/launch_local.sh" "$count" "${flags[@]}"
