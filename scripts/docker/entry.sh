#!/usr/bin/env bash
# Entry of the containers: trains, shows the dashboard, and at the end stops a RunPod pod if that is asked.
#
#   entry.sh [FLAGS OF MAIN]      for example --config.optim.steps=40
#   entry.sh COMMAND ...          runs the command in place of all this
#
# The environment says what is done; scripts/docker/README.md has the table. The same container started again goes on
# with the run in ATLAS_RUNS. Ends with the exit code of the training: 0 finished, 75 stopped and saved, else failed.
set -uo pipefail
app=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
say() { echo "entry: $*" >&2; }
fail() { say "$*"; exit 2; }
cd "$app" || exit 2

if [[ $# -gt 0 && $1 != -* ]]; then exec "$@"; fi

python=${ATLAS_PYTHON:-python}
runs=${ATLAS_RUNS:-$app/runs}
state=${ATLAS_STATE:-/tmp/atlas_jax_entry.state}
port=${DASHBOARD_PORT:-8501}
config=${ATLAS_CONFIG:-}
start=${ATLAS_START:-}
if [[ -z $start ]]; then
  start=train
  if [[ -z $config ]]; then
    say "ATLAS_CONFIG names no configuration, such as configs/memory_40m.py: nothing is trained, the dashboard alone is shown"
    start=dashboard
  fi
fi
case $start in train | dashboard | manual) ;; *) fail "ATLAS_START=$start must be train, dashboard or manual" ;; esac
if [[ $start == train && -z $config ]]; then fail "ATLAS_CONFIG is not set: the configuration to train, such as configs/memory_40m.py"; fi
[[ $port =~ ^[0-9]+$ ]] || fail "DASHBOARD_PORT=$port must be a number"
command -v "$python" >/dev/null || fail "there is no interpreter $python; set ATLAS_PYTHON"
mkdir -p "$runs" 2>/dev/null
[[ -d $runs && -w $runs ]] ||
  fail "ATLAS_RUNS=$runs cannot be written by user $(id -u); on the host: chown -R $(id -u) THE_FOLDER_THAT_IS_MOUNTED"
export PYTHONPATH=$app${PYTHONPATH:+:$PYTHONPATH}

# A run is named by its configuration unless ATLAS_RUN names it: configs/memory_40m.py:cpu is memory_40m_cpu.
name=${ATLAS_RUN:-}
if [[ -z $name ]]; then
  name=$(basename "${config/.py/}")
  name=${name//[^A-Za-z0-9._-]/_}
fi
workdir=$runs/$name

upload=${UPLOAD:-}
if [[ -z $upload ]]; then if [[ -n ${HF_TOKEN:-} ]]; then upload=end; else upload=never; fi; fi
case $upload in never | end | always) ;; *) fail "UPLOAD=$upload must be never, end or always" ;; esac
sinks=${ALERT_SINKS:-}
if [[ -z $sinks && -n ${TELEGRAM_BOT_TOKEN:-} && -n ${TELEGRAM_CHAT_ID:-} ]]; then sinks=log,telegram; fi

# Puts the command of the training into $train.
train=("$python" -m atlas_jax.main "--config=$config" "--workdir=$workdir" "--config.upload.when=$upload")
if [[ -n ${DATA_PATH:-} ]]; then train+=(--config.data.name=files "--config.data.path=$DATA_PATH"); fi
if [[ -n ${CUDA_DEVICE:-} ]]; then train+=("--local_devices=$CUDA_DEVICE"); fi
if [[ -n $sinks ]]; then train+=("--config.alerts.sinks=$sinks"); fi
read -ra more <<<"${ATLAS_FLAGS:-}"
train+=("${more[@]}" "$@")
if [[ ${ATLAS_DRY_RUN:-} == 1 ]]; then
  echo "${train[*]}"
  exit 0
fi

# For scripts/docker/health.py.
doing() { printf '%s\n' "$1" "$workdir" "$([[ -z $dashboard ]] || echo "$port")" >"$state.part" && mv "$state.part" "$state"; }

dashboard=
show_dashboard() {
  if [[ ${DASHBOARD:-1} == 0 ]]; then return; fi
  setsid "$python" -m atlas_jax.monitor.dashboard "--runs=$runs" "--port=$port" --address=0.0.0.0 \
    </dev/null >>"$runs/dashboard.log" 2>&1 &
  dashboard=$!
  say "the dashboard is at port $port, its log in $runs/dashboard.log"
}

# Children have process groups of their own (setsid): a Ctrl-C in a terminal then reaches them once, through this script.
child=
asked=0
# shellcheck disable=SC2329  # The trap below calls it.
on_signal() {
  asked=$((asked + 1))
  if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null; fi
}
trap on_signal TERM INT
trap '[[ -z $dashboard ]] || kill -TERM "$dashboard" 2>/dev/null' EXIT

# Waits for process $child and puts its exit code into $code, whatever signals come meanwhile.
await() {
  local before=-1 last
  code=0
  while ((before != asked)); do
    before=$asked
    wait "$child"
    last=$?
    if ((last != 127)); then code=$last; fi  # 127: it was gone already, and its code is known.
  done
  child=
}

# Stays until a signal, with the dashboard if there is one; ends with exit code $1.
stay() {
  doing "${2:-dashboard}"
  if ((asked == 0)); then
    sleep infinity &
    child=$!
    await
  fi
  exit "$1"
}

if [[ $start == manual ]]; then
  say "nothing is started (ATLAS_START=manual); for example: docker exec -it CONTAINER ${train[*]}"
  stay 0 manual
fi
show_dashboard
if [[ $start == dashboard ]]; then stay 0; fi

say "training: ${train[*]}"
doing train
setsid "${train[@]}" </dev/null &
child=$!
await
result=$code
case $result in
  0) say "the training is finished" ;;
  75) say "the training was stopped and is saved in $workdir; the same container goes on with it" ;;
  *) say "the training failed with exit code $result; its newest checkpoint is in $workdir" ;;
esac
if ((asked > 0)); then exit "$result"; fi

# A training that fails uploads by itself; one that was killed, as for want of memory, could not.
if [[ $upload == always ]] && ((result > 128)); then
  say "uploading what it has saved"
  setsid "$python" -m atlas_jax.main --mode=upload "--workdir=$workdir" --num_processes=1 </dev/null &
  child=$!
  await
  ((code == 0)) || say "the upload failed with exit code $code"
fi

if [[ -n ${RUNPOD_POD_ID:-} ]]; then
  # A pod starts a container anew that ends; so this one stays, whether its pod is being stopped or goes on.
  if [[ -n ${RUNPOD_API_KEY:-} && ${STOP_POD:-1} != 0 ]]; then
    doing dashboard
    setsid "$python" "$app/scripts/docker/stop_pod.py" "--seconds=${STOP_POD_AFTER_S:-60}" \
      "--keep_alive=$runs/keep_alive" </dev/null &
    child=$!
    await
  else
    say "the pod is not stopped (RUNPOD_API_KEY is not set, or STOP_POD=0)"
  fi
  stay "$result"
fi
if [[ ${ATLAS_AFTER:-exit} == stay ]]; then stay "$result"; fi
exit "$result"
