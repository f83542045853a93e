#!/usr/bin/env bash
# Checks this project on the accelerator of this machine, in under ten minutes and without a network.
#
#   bash scripts/hardware_check.sh
#   bash scripts/hardware_check.sh --tiny --out=runs/hardware_check.json
#
# Kernels against their references, a small step against the CPU's, speed and memory of training steps, and how far
# they are from the plan. It writes one JSON file into experiments/benchmarks/hardware/, to be committed; --tiny checks
# the check itself on a CPU. Exits 0 only if all checks pass. ATLAS_PYTHON chooses the interpreter, CUDA_VISIBLE_DEVICES the GPU.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit; fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

python=${ATLAS_PYTHON:-$root/.venv/bin/python}
if ! command -v "$python" >/dev/null; then
  echo "hardware_check: no interpreter at $python; run scripts/quickstart.sh once, or set ATLAS_PYTHON" >&2
  exit 2
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
exec "$python" scripts/hardware_check.py "$@"
