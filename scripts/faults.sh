#!/usr/bin/env bash
# Kills, double starts, damaged files, and a server that is attacked, worn and killed, in their long form: some hours
# on two cores. Prints one JSON object each.
#
#   bash scripts/faults.sh [FOLDER]     FOLDER holds the runs; left out: runs/faults
#
# KILLS=200, TASK_KILLS=10, STARTS=50, MUTATIONS=10000, ATTACKS=10000, REQUESTS=10000 and SERVER_KILLS=20 change how many.
# Exits 0 only if nothing was lost, harmed, or let through.
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
"$python" -m tests.faults.slurm --count="${TASK_KILLS:-10}" --workdir="$folder/slurm" || failed=1
"$python" -m tests.language.serve.attack --count="${ATTACKS:-10000}" --workdir="$folder/attack" || failed=1
"$python" -m tests.language.serve.endurance --count="${REQUESTS:-10000}" --workdir="$folder/endurance" || failed=1
"$python" -m tests.language.serve.kills --count="${SERVER_KILLS:-20}" --workdir="$folder/serve_kills" || failed=1
exit "$failed"
