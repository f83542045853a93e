#!/usr/bin/env bash
# Trains a policy beside a generation server of its own, on this machine.
#
#   bash scripts/launch_with_server.sh N_SERVER N_TRAIN CONFIG key=value ...
#   bash scripts/launch_with_server.sh 1 1 configs/grpo_arithmetic.py:cpu workdir=runs/grpo_server
#
# scripts/launch_with_server.py says what the numbers are and what it starts and stops.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit; fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${ATLAS_PYTHON:-$root/.venv/bin/python}
if ! command -v "$python" >/dev/null; then
  echo "launch_with_server: no interpreter at $python; run scripts/quickstart.sh once, or set ATLAS_PYTHON" >&2
  exit 2
fi
export ATLAS_PYTHON=$python PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" "$root/scripts/launch_with_server.py" "$@"
