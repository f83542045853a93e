#!/usr/bin/env bash
# Installs atlas_jax[dev] and runs every check: the core tests on a second Python, ruff, mypy, the whole suite.
#
#   bash scripts/test.sh [PYTEST ARGUMENTS]     for example tests/memory -k causal
#
# Exits 0 only if all of them pass. The second line (Python 3.12, jax 0.11) is skipped where there is no Python 3.12.
# PYTHON=/path/to/python chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
workers=$((cores < 8 ? cores : 8))
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 HF_HUB_OFFLINE=1
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/atlas_jax/xla}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
unset PYTHONDONTWRITEBYTECODE  # The processes that tests start would compile a thousand modules again, each.
# Arrays of a step lie where those of the last one lay, in place of new pages from the system every time.
export MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=134217728
export NPROC=1  # One XLA thread per pytest worker.
failed=()

python=.venv/bin/python
if [[ ! -e .venv ]]; then
  # The oldest supported Python has the oldest jax, so new API shows here first.
  python=$(find_python 3.11 || find_python) ||
    fail "no Python 3.11 or newer found; install one (Debian, Ubuntu: apt install python3 python3-venv) or set PYTHON"
fi
make_venv .venv "$python"
install .venv dev $(lock_of .venv dev)

if python_fits .venv/bin/python 3.12; then
  say "the core tests on Python 3.12 are part of the suite below: .venv has that version"
elif second=$(find_python 3.12); then
  make_venv .venv312 "$second"
  install .venv312 dev $(lock_of .venv312 dev)
  say "core tests on Python 3.12"
  status=0
  .venv312/bin/python -m pytest -q -n "$workers" --dist worksteal -p no:cacheprovider -m core "$@" || status=$?
  # 5: the arguments select no core test.
  if [[ $status != 0 && ! ($status == 5 && $# -gt 0) ]]; then failed+=("the core tests on Python 3.12"); fi
else
  say "skipping the core tests on Python 3.12: no such interpreter here"
fi

.venv/bin/python -m ruff check --output-format concise . || failed+=("ruff check")
.venv/bin/python -m mypy || failed+=("mypy")
if [[ ${#failed[@]} -gt 0 ]]; then say "failed so far: $(printf '%s; ' "${failed[@]}")running the suite all the same"; fi

.venv/bin/python -m pytest -n "$workers" --dist worksteal --durations=20 "$@" || failed+=("the suite")
for what in "${failed[@]}"; do say "failed: $what"; done
exit $((${#failed[@]} > 0))
