#!/usr/bin/env bash
# One training run as a SLURM job, one task per machine; queued again until the run is finished.
#
# Filled by: python scripts/launch.py slurm --nodes=N --config=FILE. By hand: mkdir -p {{logs}}; sbatch THIS_FILE
# The program finds the others by SLURM's variables. {{notice_s}} s before its time is over, and when it is preempted, it
# saves and ends with exit code 75, and the job is queued again. A task that is killed ends the others, with the newest
# checkpoint to go on from; then the job is queued again, too, up to {{restarts}} times. An error of the program is not.
#SBATCH --job-name={{name}}
#SBATCH --nodes={{nodes}}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={{cpus}}
#SBATCH --gpus-per-node={{devices}} #[gpu]
#SBATCH --partition={{partition}} #[partition]
#SBATCH --account={{account}} #[account]
#SBATCH --time={{time}}
#SBATCH --signal=USR1@{{notice_s}}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --chdir={{here}}
#SBATCH --output={{logs}}/%x_%j.log
set -uo pipefail
root={{root}}
python=${ATLAS_PYTHON:-$root/.venv/bin/python}
flags=({{flags}})
logs={{logs}}
restarts={{restarts}}

say() { echo "slurm: $*" >&2; }
mkdir -p "$logs"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export JAX_PLATFORMS=cpu #[cpu]
# srun does not take this from the job by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-{{cpus}}}

# scancel, and SLURM where it requeues by itself, end this script, too; the notice of --signal reaches the tasks alone.
ended=
trap 'ended=1' TERM

# Tasks end each other: one that ends first, as when all have saved, must not have the others killed.
srun --kill-on-bad-exit=0 --wait=600 --open-mode=append --output="$logs/%x_%j_task%t.log" \
  "$python" -m atlas_jax.main "${flags[@]}"
status=$?

if ((status == 0)); then
  say "finished"
  exit 0
fi
if [[ -n $ended ]]; then
  say "ended by SLURM with exit code $status; the same file goes on"
  exit "$status"
fi
before=${SLURM_RESTART_COUNT:-0}
if ((status == 75)); then
  say "saved (start $((before + 1))); queued again"
elif ((status > 128 && before < restarts)); then
  say "a task was killed (exit code $status, start $((before + 1))); queued again"
else
  say "ended with exit code $status; the logs of the tasks are $logs/*_task*.log"
  exit "$status"
fi
scontrol requeue "$SLURM_JOB_ID" || say "the job could not be queued again; submit this file once more"
exit "$status"
