#!/usr/bin/env bash
# Plans every shipped full-size config for its machines and writes experiments/benchmarks/plan.md; an hour or more
# on two cores. Installs the compilers (extra plan) beside the environment that is there.
#
#   bash scripts/plan_all.sh [--only=memory_40m]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[[ -x $python ]] || python=python
"$python" -c 'import libtpu, jax_cuda12_plugin' 2>/dev/null || "$python" -m pip install -e '.[plan]'
out=experiments/benchmarks/plan.jsonl
code=0
"$python" scripts/plan_all.py --out="$out" --check "$@" || code=$?
"$python" scripts/plan_all.py --out="$out" --table=experiments/benchmarks/plan.md
exit "$code"
