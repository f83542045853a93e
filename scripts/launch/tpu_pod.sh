#!/usr/bin/env bash
# One training run on all workers of a TPU pod, started again until it is finished.
#
# Filled by: python scripts/launch.py tpu_pod --nodes=N --tpu=NAME --zone=ZONE --workdir=SHARED --config=FILE
# Runs where gcloud is set up. Each worker has the repository in {{folder}} with its .venv (pip install -e ".[tpu]"), and
# the workdir on a file system that all of them see. The program finds the others by what the pod says of itself. A run
# that was saved is started again, and up to {{restarts}} times one of which a worker was killed or did not answer.
# Exit codes: 0 finished, 75 the pod is gone or was preempted (create it again, and run this file again), else failed.
set -uo pipefail
tpu={{tpu}}
zone={{zone}}
workers={{nodes}}
restarts={{restarts}}
# A worker says how it ended: the exit code of gcloud is that of one connection.
# shellcheck disable=SC2016  # Its parts in $ are the worker's.
command={{command}}

say() { echo "tpu_pod: $*" >&2; }
failures=0
# Counts a start that ended neither well nor saved; ends where there were too many.
count_failure() {
  failures=$((failures + 1))
  if ((failures > restarts)); then
    say "given up behind $restarts starts after failures"
    exit "$1"
  fi
}

while true; do
  said=$(gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="$command" </dev/null | tee /dev/stderr)
  mapfile -t codes < <(grep -o 'atlas_jax ended with [0-9]*' <<<"$said" | grep -o '[0-9]*$')
  if ((${#codes[@]} < workers)); then
    state=$(gcloud compute tpus tpu-vm describe "$tpu" --zone="$zone" --format='value(state)')
    say "${#codes[@]} of $workers workers answered, and $tpu is ${state:-unknown}"
    if [[ $state != READY ]]; then exit 75; fi
    count_failure 75
    continue
  fi
  worst=0
  for code in "${codes[@]}"; do if ((code > worst)); then worst=$code; fi; done
  if ((worst == 0)); then
    say "finished"
    exit 0
  fi
  if ((worst == 75)); then
    say "saved; started again"
  elif ((worst > 128)); then
    say "a worker was killed (exit code $worst); started again"
    count_failure "$worst"
  else
    say "a worker ended with exit code $worst; its log is {{logs}}/worker_*.log"
    exit "$worst"
  fi
done
