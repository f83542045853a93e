"""The launchers that take key=value: what they refuse, and a policy trained beside a server of its own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from atlas_jax.parallel import signals
from tests.program import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import launch_with_server
import launch_words

CPU = {"JAX_PLATFORMS": "cpu"}
GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,4,5"}
QUIET = ["monitor.tensorboard=False", "monitor.report=False", "eval.max_problems=2"]


def test_words_become_flags_and_the_workdir_has_a_name(monkeypatch):
  monkeypatch.chdir(ROOT)
  launch = launch_words.read(["configs/sft.py:smoke", "optim.lr=1e-3", "config.seed=3", "--stopped_ok"])
  assert launch.flags() == ["--config=configs/sft.py:smoke", "--workdir=results/sft_smoke",
                            "--config.optim.lr=1e-3", "--config.seed=3", "--stopped_ok"]  # fmt: skip
  assert launch.config.optim.lr == 1e-3
  assert launch_words.read(["configs/sft.py:smoke", "output_dir=x"]).workdir == "x"
  assert launch_words.default_workdir("a/b.py:cpu,rule=titans") == "results/b_cpu_rule=titans"


WRONG = [
  ([], "the config is missing"),
  (["optim.lr=1"], "the config is missing, got 'optim.lr=1'"),
  (["configs/sftt.py"], "did you mean 'configs/sft.py'?"),
  (["configs/run/teacher_sft.yaml"], "there is no file 'configs/run/teacher_sft.yaml'"),
  (["configs/sft.py:smoke", "optim.lrr=1"], "there is no field config.optim.lrr; did you mean "
                                            "'config.optim.lr'?"),
  (["configs/sft.py:smoke", "learning_rate=1"], "did you mean 'config.optim.lr'?"),
  (["configs/sft.py:smoke", "optim.lr=fast"], "must be a number"),
  (["configs/sft.py:smoke", "policy.kl_weight=1"], "policy.kl_weight"),
  (["configs/sft.py:smoke", "offload"], "split over devices by a field, mesh.fsdp=N"),
  (["configs/sft.py:smoke", "faster"], "'faster' must be key=value"),
]


@pytest.mark.parametrize("words, said", WRONG)
def test_words_that_cannot_be_are_refused(monkeypatch, words, said):
  monkeypatch.chdir(ROOT)
  with pytest.raises(ValueError) as error:
    launch_words.read(words)
  assert said in str(error.value)


def test_what_the_launcher_sets_nobody_else_may(monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(ValueError, match="sampler.kind=native: this launcher sets it, to server; leave it out"):
    launch_words.read(["configs/grpo_arithmetic.py:smoke", "sampler.kind=native"], sampler__kind="server")


def test_gpus_are_divided_between_server_and_training():
  of_server, of_training = launch_with_server.places(1, 3, GPUS)
  assert of_server == {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "0"}
  assert of_training == {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "1,4,5"}
  assert launch_with_server.places(1, 2, CPU) == (CPU, CPU)
  assert launch_with_server.places(1, 2, {**GPUS, **CPU}) == (CPU, CPU)


CANNOT = [
  ((2, 1), CPU, "N_SERVER=2: on the CPU the server is one process"),
  ((2, 3), GPUS, "N_SERVER=2 and N_TRAIN=3 need 5 GPUs, and there are 4 here (0,1,4,5)"),
  ((0, 1), CPU, "N_SERVER=0 and N_TRAIN=1 must be at least 1"),
  ((1, 1), {"JAX_PLATFORMS": "tpu"}, "a process takes all chips of a host"),
]


@pytest.mark.parametrize("numbers, env, said", CANNOT)
def test_processes_that_cannot_be_on_this_machine_are_refused(numbers, env, said):
  with pytest.raises(ValueError) as error:
    launch_with_server.places(*numbers, env)
  assert said in str(error.value)


def test_a_server_gets_the_room_that_a_config_asks_for(monkeypatch):
  monkeypatch.chdir(ROOT)
  config = launch_words.read(["configs/grpo_arithmetic.py:cpu"]).config
  assert launch_with_server.served_fields(config) == {}
  words = ["sampler.max_tokens=5000", "data.group_size=256", "data.batch_rows=256"]
  config = launch_words.read(["configs/grpo_arithmetic.py:cpu", *words]).config
  assert launch_with_server.served_fields(config) == {
    "serve.room_tokens": 5008, "serve.max_tokens": 5000, "serve.max_completions": 256}  # fmt: skip


def test_vllm_gets_the_gpus_of_the_server(monkeypatch):
  monkeypatch.chdir(ROOT)
  started = []

  class Launcher:
    def train(self, count, flags, environment):
      started.append((count, flags, environment))
      return 0

  asked = launch_with_server.parser().parse_args(["2", "1", "--server=vllm"])
  launch = launch_words.read(["configs/grpo_arithmetic.py:smoke"], sampler__kind="vllm")
  assert launch_with_server.beside_vllm(Launcher(), asked, launch, launch_with_server.places(2, 1, GPUS)) == 0
  (count, flags, environment), = started
  assert count == 1 and environment["CUDA_VISIBLE_DEVICES"] == "4"
  command, = [flag for flag in flags if flag.startswith("--config.vllm.command=")]
  assert command.startswith("--config.vllm.command=env CUDA_VISIBLE_DEVICES=0,1 ")
  assert "--config.sampler.kind=vllm" in flags and "--config.vllm.arguments=--tensor-parallel-size 2" in flags


def start(tmp_path, *words, numbers=("1", "1")):
  """Starts the launcher; its server and training are quick rather than fast."""
  env = {**os.environ, **CPU, "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
         "ATLAS_PYTHON": sys.executable}  # fmt: skip
  command = ["bash", "scripts/launch_with_server.sh", *numbers, "configs/grpo_arithmetic.py:smoke",
             f"workdir={tmp_path}/run", *QUIET, *words]  # fmt: skip
  pipe = subprocess.PIPE
  return subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)


def processes_of(folder):
  """Lists the processes whose command line names a folder."""
  found = []
  for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
      words = file.read_bytes().decode(errors="replace")
    except OSError:  # It has ended meanwhile.
      continue
    if str(folder) in words:
      found.append(words)
  return found


def wait_until(condition, process, seconds=300):
  deadline = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    time.sleep(0.05)


def test_a_policy_trains_beside_its_server_and_a_signal_stops_both(tmp_path):
  metrics = tmp_path / "run/metrics.jsonl"
  process = start(tmp_path, "optim.steps=60", "checkpoint.every_steps=60")
  wait_until(lambda: metrics.is_file() and metrics.stat().st_size, process)
  assert len(processes_of(tmp_path)) > 2
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=400)
  assert process.returncode == signals.STOPPED, err
  assert not processes_of(tmp_path)  # The server has ended, and all that it started.
  rows = [json.loads(line) for line in metrics.read_text().splitlines()]
  gaps = [row["policy/sampler_gap_nats_max"] for row in rows if "policy/sampler_gap_nats_max" in row]
  assert gaps and max(gaps) < 1e-3  # What is trained is what the server wrote with.
  assert list((tmp_path / "run/checkpoints").glob("[0-9]*"))  # The same command goes on from there.
  assert not list((tmp_path / "run").glob(".server-*"))
  assert "POST /v1/weights 200" in (tmp_path / "run/server.log").read_text()
