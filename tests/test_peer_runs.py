"""Two processes agree or are refused, wait for the slow one, and end in one line when the other is gone."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from atlas_jax.checkpoint import Checkpoints
from tests import program

FAULTS = program.ROOT / "tests/peer_faults"
ABORT = re.compile("SIGABRT|core dumped|Check failure|terminate called|Fatal Python error|Traceback")


def free_port():
  """Returns a port that nobody listens on."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


class Pair:
  """Two processes of one device each, started as a launcher would; `own` holds what each has for itself."""

  def __init__(self, flags, own=({}, {}), count=2):
    self.started, self.outputs = [], []
    port = free_port()
    for process in range(2)[-count:]:
      mine = dict(own[process])
      joined = mine.pop("joined", "flags")
      cwd = mine.pop("cwd", program.ROOT)
      command = [sys.executable, "-m", "atlas_jax.main", *flags, *mine.pop("flags", ())]
      if joined == "flags":
        command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={process}"]
      path = os.pathsep.join(map(str, (FAULTS, mine.pop("code", program.ROOT))))
      env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
             "PYTHONPATH": path, **cluster(joined, process, port), **mine}  # fmt: skip
      pipe = subprocess.PIPE
      self.started.append(subprocess.Popen(command, cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True))

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for process in self.started:
      process.kill()
      process.communicate()

  def end(self, which, timeout=240):
    """Waits for one of them and returns what it left."""
    out, err = self.started[which].communicate(timeout=timeout)
    return program.Done(self.started[which].returncode, out, err)


def cluster(launcher, process, port):
  """Returns the variables that a launcher sets for one of two tasks on one machine."""
  if launcher == "slurm":
    names = {"STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": process, "LOCALID": process, "JOB_ID": port}
    variables = {f"SLURM_{name}": str(value) for name, value in names.items()}
    return {**variables, "JAX_COORDINATOR_PORT": str(port)}
  if launcher == "ompi":
    names = {"SIZE": 2, "RANK": process, "LOCAL_RANK": process, "LOCAL_SIZE": 2}
    uri = f"{port * 4096}.0;tcp://127.0.0.1:{port}"
    variables = {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in names.items()}
    return {**variables, "OMPI_MCA_orte_hnp_uri": uri, "JAX_COORDINATOR_PORT": str(port)}
  return {}


def line_of(done):
  """Returns the one line of a process that failed, and checks that nothing else complains."""
  lines = [line for line in done.err.splitlines() if line.startswith("atlas_jax: ")]
  assert done.code == 1 and done.out == "" and len(lines) == 1, done
  assert not ABORT.search(done.err), done.err
  return lines[0]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """A folder of texts to train on."""
  return program.write_texts(tmp_path_factory.mktemp("corpus") / "texts")


def tiny(texts, workdir, **fields):
  """Flags of a run without memory, whose programs compile fast."""
  fields = {"model__memory_mix": "none", **fields}
  config = f"--config={program.ROOT}/configs/memory_40m.py:smoke,pretrain"
  return [config, *program.tiny(texts, **fields)[1:], f"--workdir={workdir}"]


def other_code(tmp_path, texts):
  """A copy of the package with one line more, and another learning rate."""
  folder = tmp_path / "code"
  ignored = shutil.ignore_patterns("__pycache__")
  shutil.copytree(program.ROOT / "atlas_jax", folder / "atlas_jax", ignore=ignored)
  (folder / "tests").symlink_to(program.ROOT / "tests")
  with (folder / "atlas_jax/step.py").open("a") as file:
    file.write("\n# Another version.\n")
  return {"code": folder, "cwd": folder, "flags": ["--config.optim.lr=0.05"]}


def other_data(tmp_path, texts):
  """A folder of the same name with other texts."""
  there = tmp_path / "there"
  shutil.copytree(texts, there / texts.name)
  (there / texts.name / "000.txt").write_text("Other words.")
  return {"cwd": there}


def other_devices(tmp_path, texts):
  """Two devices where the first process has one."""
  return {"JAX_NUM_CPU_DEVICES": "2"}


DIFFERENT = [
  ("flags", other_code, "config.optim.lr is 0.001 in process 0 and 0.05 in process 1; the code (atlas_jax/)"),
  ("slurm", other_data, "the data's fingerprint is "),
  ("ompi", other_devices, "the number of devices per process is 1 in process 0 and 2 in process 1"),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("joined, other, words", DIFFERENT)
def test_processes_that_differ_are_refused_by_all_before_anything_is_compiled(
  joined, other, words, texts, tmp_path
):
  flags = tiny(texts.name, tmp_path / "run", hosts__join_s=200)
  alike = {"joined": joined, "cwd": texts.parent}
  own = (alike, {**alike, **other(tmp_path, texts)})
  with Pair(flags, own) as pair:
    lines = [line_of(pair.end(which)) for which in (0, 1)]
  assert lines[0] == lines[1] and words in lines[0], lines
  assert "start all with the same command" in lines[0]
  assert not (tmp_path / "run/checkpoints").exists() and not (tmp_path / "run/metrics.jsonl").exists()


@pytest.fixture(scope="module")
def patient(texts, tmp_path_factory):
  """Two processes, of which one sleeps where it compiles: the next test runs meanwhile."""
  workdir = tmp_path_factory.mktemp("patient") / "run"
  flags = tiny(texts, workdir, optim__steps=2)
  with Pair(flags, ({}, {"ATLAS_TEST_FAULT": "compile:jit_step:sleep=35"})) as pair:
    yield pair, workdir


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("patient")
def test_a_process_that_compiles_for_longer_than_the_limit_is_named(texts, tmp_path):
  flags = tiny(texts, tmp_path / "run", hosts__wait_s=8)
  with Pair(flags, ({}, {"ATLAS_TEST_FAULT": "compile:jit_step:sleep=100"})) as pair:
    lines = [line_of(pair.end(which)) for which in (0, 1)]
  for line in lines:
    assert "process 1 of this run lives, and did not come to 'jit_step' within 8 s" in line
    assert "config.hosts.wait_s" in line


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_compiles_for_longer_than_a_collective_waits_is_waited_for(patient):
  pair, workdir = patient
  ends = [pair.end(which) for which in (0, 1)]
  assert [end.code for end in ends] == [0, 0], ends
  assert list(program.losses(workdir)) == [1, 2]


KILLED = [(0, "compile:jit_step:SIGKILL", 2), (1, "read:held_out:SIGKILL", 2), (0, "save:4:SIGKILL", 2)]


@pytest.fixture(scope="module")
def begun(texts, tmp_path_factory):
  """A run of two processes that was stopped at its second step."""
  workdir = tmp_path_factory.mktemp("begun") / "run"
  with Pair(tiny(texts, workdir, optim__steps=2)) as pair:
    assert [pair.end(which).code for which in (0, 1)] == [0, 0]
  return workdir


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim, fault, kept", KILLED)
def test_who_loses_a_process_ends_with_one_line_and_a_checkpoint(victim, fault, kept, begun, texts, tmp_path):
  workdir = shutil.copytree(begun, tmp_path / "run")
  own = [{}, {}]
  own[victim] = {"ATLAS_TEST_FAULT": fault}
  flags = tiny(texts, workdir, train__eval_every_steps=4, checkpoint__every_steps=2)
  with Pair(flags, own) as pair:
    killed = pair.end(victim)
    start = time.monotonic()
    line = line_of(pair.end(1 - victim))
  assert killed.code == -signal.SIGKILL and time.monotonic() - start < 15
  assert f"process {victim} of 2" in line and "ended without a word: it was killed" in line
  assert "the same command goes on from there" in line
  assert int(Checkpoints(workdir, read_only=True).newest_good().name) >= kept


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_is_named_within_the_configured_time(victim, begun, texts, tmp_path):
  workdir = shutil.copytree(begun, tmp_path / "run")
  own = [{}, {}]
  own[victim] = {"ATLAS_TEST_FAULT": "compile:jit_step:SIGSTOP"}
  with Pair(tiny(texts, workdir, hosts__silent_s=5), own) as pair:
    line = line_of(pair.end(1 - victim))
    pair.started[victim].send_signal(signal.SIGCONT)
    woken = pair.end(victim)
  assert f"process {victim} of 2" in line and "was silent for 5 s (config.hosts.silent_s)" in line
  assert f": {workdir}/checkpoints/2; the same command goes on from there" in line
  assert "was silent for 5 s" in line_of(woken)
  assert Checkpoints(workdir, read_only=True).newest_good() == workdir / "checkpoints/2"


ABSENT = [(1, "process 1 did not reach process 0 at --coordinator=127.0.0.1:"),
          (0, "process 1 of 2 did not come within 3 s (config.hosts.join_s)")]  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("alone, words", ABSENT)
def test_who_finds_nobody_says_so_in_time(alone, words, texts, tmp_path):
  flags = [*tiny(texts, tmp_path / "run", hosts__join_s=3), "--num_processes=2", f"--process_id={alone}"]
  done = program.spawn_main(*flags, f"--coordinator=127.0.0.1:{free_port()}")
  assert words in line_of(done)


REFUSED = [
  ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "SLURM says by SLURM_NTASKS=4 that this is task 0 of several"),
  ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "--num_processes=2 and its own number, here "
   "--process_id=1"),
]  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("variables, words", REFUSED)
def test_tasks_that_cannot_be_joined_are_refused(variables, words, texts, tmp_path, monkeypatch):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  flags = [*program.tiny(texts), f"--workdir={tmp_path}/run"]
  line = program.refused(program.run(*flags))
  assert words in line and "--num_processes=1" in line
  assert not pathlib.Path(tmp_path / "run").exists()
