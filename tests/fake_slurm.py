"""A pretended SLURM: sbatch, srun and scontrol for jobs whose tasks are processes of this machine.

  FAKE_SLURM=DIR python tests/fake_slurm.py sbatch|srun|scontrol WORDS

It knows the options that job scripts of this project use, and refuses all others. A job that was handed in
waits until `run` runs it, again for each `scontrol requeue`. Needs the standard library alone.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

OF_SBATCH = set("job-name nodes ntasks-per-node cpus-per-task gpus-per-node partition account time signal "
                "requeue open-mode chdir output".split())
OF_SRUN = {"kill-on-bad-exit", "wait", "open-mode", "output"}
FIRST_PORT, PORTS = 61440, 4096  # JAX takes the port of process 0 from the number of the job.


class Ended(NamedTuple):
  """How a job ended."""

  code: int
  starts: int


def install(state: pathlib.Path) -> pathlib.Path:
  """Writes the three programs; returns the folder that belongs on PATH."""
  folder = state / "bin"
  folder.mkdir(parents=True)
  for name in ("sbatch", "srun", "scontrol"):
    script = folder / name
    script.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -S "{__file__}" {name} "$@"\n')
    script.chmod(0o755)
  return folder


def options_of(words, known, program):
  """Reads --name=value and --name; returns them, and the words behind."""
  found = {}
  for i, each in enumerate(words):
    if not each.startswith("--"):
      return found, words[i:]
    name, _, value = each[2:].partition("=")
    if name not in known:
      sys.exit(f"{program}: unrecognized option '--{name}'")
    found[name] = value
  return found, []


def free_job() -> int:
  """Returns the number of a job whose port nobody has."""
  for job in range(PORTS + os.getpid() % 1000, 2 * PORTS):
    with socket.socket() as probe:
      try:
        probe.bind(("127.0.0.1", FIRST_PORT + job % PORTS))
        return job
      except OSError:
        continue
  raise RuntimeError("no port is free")


def sbatch(words, state):
  """Takes in a job."""
  _, (path,) = options_of(words, (), "sbatch")
  lines = pathlib.Path(path).read_text().splitlines()
  assert lines[0].startswith("#!"), "sbatch: this does not look like a batch script"
  directives = [line.split(maxsplit=1)[1] for line in lines if line.startswith("#SBATCH ")]
  options, rest = options_of(directives, OF_SBATCH, "sbatch")
  assert not rest, rest
  job = free_job()
  shutil.copy(path, state / f"{job}.sh")
  (state / f"{job}.json").write_text(json.dumps(options))
  print(f"Submitted batch job {job}")


def scontrol(words, state):
  """Queues a job again."""
  what, job = words
  assert what == "requeue" and (state / f"{job}.json").exists(), words
  (state / f"{job}.requeue").touch()


def run(state: pathlib.Path, environment) -> Ended:
  """Runs the only job that was handed in, again for each time it is queued again."""
  (path,) = state.glob("*.json")
  options, job = json.loads(path.read_text()), path.stem
  nodes = int(options["nodes"])
  assert "requeue" in options and options["ntasks-per-node"] == "1", options
  whole = {**environment, "FAKE_SLURM": str(state), "PATH": f"{state}/bin{os.pathsep}{environment['PATH']}",
           "SLURM_JOB_ID": job, "SLURM_JOB_NAME": options["job-name"], "SLURM_JOB_NUM_NODES": str(nodes),
           "SLURM_NTASKS": str(nodes), "SLURM_CPUS_PER_TASK": options["cpus-per-task"]}  # fmt: skip
  log = pathlib.Path(options["chdir"], named(options["output"], whole))
  starts = 0
  while True:
    again = {"SLURM_RESTART_COUNT": str(starts)} if starts else {}
    with log.open("a") as out:  # Its folder must be there.
      command, env = ["bash", str(path.with_suffix(".sh"))], {**whole, **again}
      done = subprocess.run(command, cwd=options["chdir"], env=env, stdout=out, stderr=out, check=False)
    starts += 1
    if not (marker := state / f"{job}.requeue").exists():
      return Ended(done.returncode, starts)
    marker.unlink()


def named(pattern, env, task=""):
  """Fills in the name of a log."""
  for letter, value in (("%x", env["SLURM_JOB_NAME"]), ("%j", env["SLURM_JOB_ID"]), ("%t", str(task))):
    pattern = pattern.replace(letter, value)
  return pattern


def srun(words, state):
  """Runs a task per node, hands on signals, and ends with the highest exit code."""
  options, command = options_of(words, OF_SRUN, "srun")
  # A task that ends with an error ends no other here.
  assert options["kill-on-bad-exit"] == "0" and options["open-mode"] == "append", options
  count, tasks = int(os.environ["SLURM_NTASKS"]), []

  def forward(number, frame):
    if watched := os.environ.get("FAKE_SLURM_WATCHED"):
      shutil.copy(watched, state / "watched")
    for task in tasks:
      task.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, forward)
  # The first is looked up; that others have this machine's processes is not known to anybody.
  nodes = ",".join(["localhost", *(f"node{i:03d}" for i in range(1, count))])
  for i in range(count):
    env = {**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": "0", "SLURM_NODEID": str(i),
           "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_NUM_TASKS": str(count),
           "SLURM_STEP_NUM_NODES": str(count), "SLURM_STEP_TASKS_PER_NODE": f"1(x{count})"}  # fmt: skip
    with open(named(options["output"], env, i), "a") as log:
      tasks.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
  listed = state / "tasks"
  listed.write_text(" ".join(str(task.pid) for task in tasks))
  ended_s = None
  while any(task.poll() is None for task in tasks):
    if ended_s is None and any(task.poll() is not None for task in tasks):
      ended_s = time.monotonic()
    if ended_s is not None and time.monotonic() - ended_s > float(options["wait"]):
      for task in tasks:
        task.kill()
    time.sleep(0.05)
  listed.unlink()
  return max(128 - task.returncode if task.returncode < 0 else task.returncode for task in tasks)


if __name__ == "__main__":
  sys.exit(globals()[sys.argv[1]](sys.argv[2:], pathlib.Path(os.environ["FAKE_SLURM"])))
