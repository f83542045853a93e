#!/usr/bin/env bash
# Installs atlas_jax into .venv and trains the small model of configs/memory_40m.py on the CPU, in minutes.
#
#   bash scripts/quickstart.sh [FLAGS OF MAIN]     for example --config.optim.steps=40
#
# Safe to run again: the installation is kept, and a stopped run goes on from its newest checkpoint.
# PYTHON=/path/to/python chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

python=.venv/bin/python
if [[ ! -e .venv ]]; then
  python=$(find_python) || fail "no Python 3.11 or newer found; install one (Debian, Ubuntu: apt install python3 python3-venv) or set PYTHON"
fi
make_venv .venv "$python"
install .venv "" $(lock_of .venv)
# Large arrays in huge pages: without them a step on a CPU takes two fifths longer, faulting in small ones.
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
exec .venv/bin/python -m atlas_jax.main --config=configs/memory_40m.py:cpu --workdir=runs/quickstart "$@"
