#!/usr/bin/env bash
# Kills, double starts and damaged files in their long form: some hours on two cores. Prints one JSON object each.
#
#   bash scripts/faults.sh [FOLDER]     FOLDER holds the runs; left out: runs/faults
#
# KILLS=200, STARTS=50 and MUTATIONS=10000 change how many. Exits 0 only if nothing was lost, harmed, or let through.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
python=.venv/bin/python
[[ -e $python ]] || fail "there is no .venv; run scripts/test.sh or scripts/quickstart.sh once"

folder=${1:-runs/faults}
export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 NPROC=1
failed=0
"$python" -m tests.faults.mutations --count="${MUTATIONS:-10000}" || failed=1
"$python" -m tests.faults.starts --count="${STARTS:-50}" --workdir="$folder/starts" || failed=1
"$python" -m tests.faults.kills --count="${KILLS:-200}" --workdir="$folder/kills" || failed=1
exit "$failed"
