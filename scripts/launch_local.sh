#!/usr/bin/env bash
# Runs N processes of one training run on this machine, joined over loopback.
#
#   bash scripts/launch_local.sh N FLAGS OF MAIN
#   bash scripts/launch_local.sh 2 --config=configs/memory_40m.py:cpu --workdir=runs/two
#
# Process 0 prints here, the others into WORKDIR/process_I.log. SIGTERM and SIGINT reach all of them, so that they
# save and stop, and this script ends with 75 (run again); a second one kills. When one process dies, the others are stopped within seconds.
# ATLAS_PYTHON chooses the interpreter; JAX_PLATFORMS is cpu unless it is set. With cuda each process takes one GPU.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit; fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

exec 3>&2  # Where this script speaks, also after its own standard error is closed to bash's job notices.
say() { echo "launch_local: $*" >&3; }

if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  say "the first argument is the number of processes, got '${1:-}'; for example: bash scripts/launch_local.sh 2 --config=..."
  exit 2
fi
count=$1
shift
python=${ATLAS_PYTHON:-$root/.venv/bin/python}
if ! command -v "$python" >/dev/null; then
  say "no interpreter at $python; run scripts/quickstart.sh once, or set ATLAS_PYTHON"
  exit 2
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

workdir=
previous=
for argument in "$@"; do
  case $argument in --workdir=* | -workdir=*) workdir=${argument#*=} ;; esac
  case $previous in --workdir | -workdir) workdir=$argument ;; esac
  previous=$argument
done
if [[ -n $workdir ]]; then mkdir -p "$workdir"; else workdir=$(mktemp -d); fi
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# Job control gives every process a group of its own: a signal from the terminal comes once, through this script.
set -m
pids=()
for ((i = 0; i < count; i++)); do
  flags=("$@" "--coordinator=127.0.0.1:$port" "--num_processes=$count" "--process_id=$i")
  # Where nothing says otherwise, every process would take every GPU.
  if [[ $JAX_PLATFORMS == cuda* && $count -gt 1 && -z ${JAX_LOCAL_DEVICE_IDS:-} && "$*" != *-local_devices* ]]; then
    flags+=("--local_devices=$i")
  fi
  if ((i == 0)); then
    "$python" -m atlas_jax.main "${flags[@]}" </dev/null 2>&3 &
  else
    "$python" -m atlas_jax.main "${flags[@]}" </dev/null >>"$workdir/process_$i.log" 2>&1 &
  fi
  pids+=($!)
done
((count == 1)) || say "the other processes log to $workdir/process_*.log"
exec 2>/dev/null

signal_all() { for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done; }
running() { kill -0 "$1" 2>/dev/null; }
any_running() { for pid in "${pids[@]}"; do if running "$pid"; then return 0; fi; done; return 1; }

signals=0
on_signal() {
  signals=$((signals + 1))
  if ((signals > 1)); then signal_all KILL; else signal_all TERM; fi
}
trap on_signal TERM INT
trap 'signal_all KILL' EXIT

# Waits up to $1 seconds for all processes to end.
await_end() {
  local tenths=$(($1 * 10))
  while ((tenths-- > 0)) && any_running; do sleep 0.1; done
}

# Prints how a process with exit status $1 ended.
describe() {
  if (($1 > 128)); then echo "was ended by SIG$(kill -l $(($1 - 128))) (exit code $1)"; else echo "ended with exit code $1"; fi
}

declare -A ended=()
# Notes the exit status of process $1 once it has ended; fails while it runs.
note_end() {
  if [[ -n ${ended[$1]:-} ]]; then return 0; fi
  if running "${pids[$1]}"; then return 1; fi
  local status=0
  wait "${pids[$1]}" 2>/dev/null || status=$?
  ended[$1]=$status
}

stopped=75  # What a process ends with that was asked to stop, and can go on.
# Puts into $found the process whose end explains the others': one that a signal ended, else the first that
# failed; nothing while none has.
find_culprit() {
  local i first=
  for ((i = 0; i < count; i++)); do
    if ! note_end "$i" || ((ended[$i] == 0 || ended[$i] == stopped)); then continue; fi
    if ((ended[$i] > 128)); then first=$i; break; fi
    first=${first:-$i}
  done
  found=$first
}

while ((${#ended[@]} < count)); do
  find_culprit  # A process that loses another may end in the same moment: who was killed counts.
  if [[ -n $found ]]; then
    status=${ended[$found]}
    await_end 5  # The others say by themselves what they lost, or which error is common to all.
    signal_all TERM
    await_end 3  # Not longer: they may wait for the dead one.
    signal_all KILL
    where=
    if ((found > 0)); then where=" (its log: $workdir/process_$found.log)"; fi
    say "process $found of $count $(describe "$status")$where; the others were stopped. The same command resumes from the newest checkpoint, if one was written."
    exit 1
  fi
  sleep 0.1
done
trap - EXIT
for status in "${ended[@]}"; do ((status == 0)) || exit "$stopped"; done
