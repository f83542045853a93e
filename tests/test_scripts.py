"""The shell scripts do what their heads say; stand-ins for Python make the tests quick."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Stands in for `python -m atlas_jax.main` and for the one-liners that the launcher runs.
PROCESS = """
import os, signal, sys, time
if sys.argv[1] == "-c":
  exec(sys.argv[2])
  sys.exit()
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[3:])
me, folder = flags["process_id"], flags["workdir"]
def stop(*_):
  open(f"{folder}/stopped_{me}", "w").close()
  sys.exit(int(flags.get("exit_on_term", 0)))
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("process", me, "of", flags["num_processes"], "at", flags["coordinator"], flush=True)
if "local_devices" in flags:
  print("device", flags["local_devices"], flush=True)
with open(f"{folder}/pid_{me}", "w") as out:
  out.write(str(os.getpid()))
if flags.get("fail") == me:
  sys.exit(3)
if flags.get("kill") == me:
  os.kill(os.getpid(), signal.SIGKILL)
if "after" in flags:  # Fails as soon as that process is dead, whoever has noticed it.
  while not os.path.exists(f"{folder}/pid_{flags['after']}"):
    time.sleep(0.001)
  time.sleep(0.02)
  sys.exit(1)
time.sleep(float(flags["seconds"]))
"""


@pytest.fixture
def launch(tmp_path):
  """Yields a function that starts the launcher with stand-ins.

  What is left of it is killed after the test.
  """
  (tmp_path / "process.py").write_text(PROCESS)
  stand_in = tmp_path / "python"
  stand_in.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -S "{tmp_path}/process.py" "$@"\n')
  stand_in.chmod(0o755)
  started = []

  def start(count, *flags):
    command = ["bash", "scripts/launch_local.sh", str(count), f"--workdir={tmp_path}", *flags]
    environment = {**os.environ, "ATLAS_PYTHON": str(stand_in)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


def wait_for(*paths):
  """Waits until all the files hold something."""
  deadline = time.monotonic() + 20
  while not all(path.exists() and path.read_text() for path in paths):
    assert time.monotonic() < deadline, paths
    time.sleep(0.02)


def is_alive(pid):
  """Returns whether a process still runs; one that has ended and waits for its parent does not."""
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
  except OSError:
    return False


def test_launched_processes_share_an_address_and_only_the_first_prints(launch, tmp_path):
  process = launch(3, "--seconds=0")
  out, _ = process.communicate(timeout=30)
  assert process.returncode == 0
  assert out.startswith("process 0 of 3 at 127.0.0.1:")
  assert len(out.splitlines()) == 1
  logs = [(tmp_path / f"process_{i}.log").read_text() for i in (1, 2)]
  addresses = {line.split()[-1] for line in (out, *logs)}
  assert len(addresses) == 1


@pytest.mark.parametrize("platform, devices", [("cuda", ["0", "1"]), ("cpu", [])])
def test_on_gpus_each_process_takes_one(launch, tmp_path, monkeypatch, platform, devices):
  monkeypatch.setenv("JAX_PLATFORMS", platform)
  out, _ = launch(2, "--seconds=0").communicate(timeout=30)
  lines = out.splitlines() + (tmp_path / "process_1.log").read_text().splitlines()
  assert [line.split()[1] for line in lines if line.startswith("device ")] == devices


DEATHS = [("--kill=1", "was ended by SIGKILL"), ("--fail=1", "ended with exit code 3")]


@pytest.mark.parametrize("flag, how", DEATHS)
def test_a_death_stops_the_others_and_is_named(launch, tmp_path, flag, how):
  start = time.monotonic()
  process = launch(3, "--seconds=100", flag)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 1
  assert time.monotonic() - start < 15
  where, line = err.strip().splitlines()
  assert where == f"launch_local: the other processes log to {tmp_path}/process_*.log"
  assert f"process 1 of 3 {how}" in line
  assert "same command resumes from the newest checkpoint" in line
  assert not any(is_alive(path.read_text()) for path in tmp_path.glob("pid_*"))


def test_the_process_that_was_killed_is_named_also_if_another_fails_of_it_at_once(launch):
  for _ in range(3):  # Who is seen first is a matter of milliseconds.
    process = launch(2, "--seconds=100", "--kill=1", "--after=1")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "process 1 of 2 was ended by SIGKILL" in err.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process(launch, tmp_path, number):
  process = launch(2, "--seconds=100")
  wait_for(tmp_path / "pid_0", tmp_path / "pid_1")
  process.send_signal(number)
  process.communicate(timeout=30)
  assert process.returncode == 0
  assert (tmp_path / "stopped_0").exists() and (tmp_path / "stopped_1").exists()


def test_the_launcher_asks_for_a_number():
  done = subprocess.run(["bash", "scripts/launch_local.sh", "--x"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert "number of processes, got '--x'" in done.stderr


@pytest.fixture
def clone(tmp_path):
  """Copies what the installing scripts read; PATH holds a few tools that every Linux has, and no Python."""
  for name in ("setup.py", "pyproject.toml"):
    shutil.copy(ROOT / name, tmp_path)
  shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
  (tmp_path / "bin").mkdir()
  for tool in ("bash", "basename", "cat", "cksum", "dirname", "rm"):
    (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
  return tmp_path


def write_python(path, body):
  """Writes a stand-in for an interpreter."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
  path.chmod(0o755)


def run_script(clone, name, *arguments):
  """Runs a script of the clone from another folder."""
  environment = {"PATH": str(clone / "bin"), "HOME": str(clone)}
  command = [str(clone / "bin/bash"), str(clone / "scripts" / name), *arguments]
  return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_without_python_one_line_says_what_to_install(clone, script):
  done = run_script(clone, script)
  assert done.returncode == 1
  lines = [line for line in done.stderr.splitlines() if "getconf" not in line]
  assert len(lines) == 1
  assert "no Python 3.11 or newer found" in lines[0] and "apt install" in lines[0]


def test_an_old_python_is_passed_over(clone):
  write_python(clone / "bin/python3", "exit 1")
  write_python(clone / "bin/python3.12", "[[ $2 == *version_info* ]] && exit 0; exit 1")
  done = run_script(clone, "quickstart.sh")
  assert done.returncode == 1
  assert "python3.12 lacks the venv module" in done.stderr and "python3-venv" in done.stderr


def test_a_broken_environment_is_named(clone):
  (clone / ".venv").mkdir()
  done = run_script(clone, "quickstart.sh")
  assert done.returncode == 1
  assert ".venv is broken or older" in done.stderr


def test_quickstart_installs_once_and_passes_flags_on(clone):
  write_python(clone / ".venv/bin/python", f'echo "$*" >>"{clone}/calls"')
  main = "-m atlas_jax.main --config=configs/memory_40m.py:cpu --workdir=runs/quickstart"
  assert run_script(clone, "quickstart.sh").returncode == 0
  calls = (clone / "calls").read_text()
  assert "-m uv pip install" in calls and calls.splitlines()[-1] == main
  (clone / "calls").unlink()
  assert run_script(clone, "quickstart.sh", "--config.optim.steps=40").returncode == 0
  calls = (clone / "calls").read_text()
  assert "pip" not in calls and calls.splitlines()[-1] == f"{main} --config.optim.steps=40"
  (clone / "setup.py").write_text("# changed")
  (clone / "calls").unlink()
  run_script(clone, "quickstart.sh")
  assert "-m uv pip install" in (clone / "calls").read_text()


def test_quickstart_falls_back_to_pip(clone):
  body = f'echo "$*" >>"{clone}/calls"; [[ $* == *" uv"* || $* == *uv.txt* ]] && exit 1; exit 0'
  write_python(clone / ".venv/bin/python", body)
  done = run_script(clone, "quickstart.sh")
  assert done.returncode == 0
  assert "using pip" in done.stderr
  assert any("-m pip install" in c and "--editable" in c for c in (clone / "calls").read_text().splitlines())
