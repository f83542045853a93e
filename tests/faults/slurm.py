"""Kills tasks of jobs of a pretended SLURM at random moments, and compares them with runs left alone.

  python -m tests.faults.slurm --count=10 --workdir=runs/slurm

A job of four tasks is handed in by scripts/launch.py and queued again after each kill of one of its tasks,
until it ends; jobs follow each other until there were `count` kills. Each must have the rows of a job that
was never killed, every number but those of clocks, the losses of one process up to rounding, and an account
of time that sums to the time since its first start.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

from tests import fake_slurm, program
from tests.faults import kills

TASKS = 4
SHORT = {"model__memory_mix": "none", "optim__steps": 12, "checkpoint__every_steps": 2,
         "train__log_every_steps": 1, "hosts__join_s": 60}  # fmt: skip
ROUNDING = 1e-5  # Sums over processes are taken in another order than within one.
SLACK_S = 2.0  # Until bash, srun and Python have begun, and behind the last row.


class Job(threading.Thread):
  """A job: handed in, and run to its end.

  Args:
    texts: what is trained on.
    folder: of the job; the run is in `folder/run`.
  """

  def __init__(self, texts: pathlib.Path, folder: pathlib.Path):
    super().__init__(daemon=True)
    self.workdir, self.state = folder / "run", folder / "slurm"
    self.ended: fake_slurm.Ended | None = None
    fake_slurm.install(self.state)
    words = [*program.tiny(texts, **SHORT), f"--nodes={TASKS}", "--devices=0", "--restarts=1000", "--submit"]
    self._env = {**os.environ, "FAKE_SLURM": str(self.state), "ATLAS_PYTHON": sys.executable,
                 "PATH": f"{self.state}/bin{os.pathsep}{os.environ['PATH']}", "JAX_NUM_CPU_DEVICES": "1",
                 "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # fmt: skip
    command = [sys.executable, "scripts/launch.py", "slurm", *words, f"--workdir={self.workdir}"]
    subprocess.run(command, cwd=kills.ROOT, env=self._env, check=True, capture_output=True)

  def run(self):
    """Runs the job; see `fake_slurm.run`."""
    self.ended = fake_slurm.run(self.state, self._env)

  def kill_one(self, draw: random.Random) -> bool:
    """Kills a task, and waits until the job begins again or ends; False if no task was there."""
    listed = self.state / "tasks"
    try:
      chosen = int(draw.choice(listed.read_text().split()))
      os.kill(chosen, signal.SIGKILL)
    except (FileNotFoundError, IndexError, ProcessLookupError):
      return False
    while self.is_alive() and listed.exists() and str(chosen) in listed.read_text().split():
      time.sleep(0.05)
    return True


def faults_of(job: Job, whole: list[dict], alone: dict[int, float], began_s: float) -> list[str]:
  """Returns where a job differs from the one that was never killed, from one process, and from the clock."""
  if job.ended is None or job.ended.code:
    return [f"{job.workdir}: ended as {job.ended}"]
  found = kills.differences(job.workdir, whole)
  losses = program.losses(job.workdir)
  if losses.keys() != alone.keys() or max(abs(losses[step] - alone[step]) for step in alone) > ROUNDING:
    found.append(f"{job.workdir}: the losses are {losses}, those of one process {alone}")
  account = json.loads((job.workdir / "time.json").read_text())
  counted_s, passed_s = sum(account["totals"].values()), account["wall_s"] - began_s
  if abs(counted_s - passed_s) > SLACK_S + 0.01 * passed_s:
    found.append(f"{job.workdir}: the account sums to {counted_s:.1f} s of {passed_s:.1f} s")
  return found


def kill_through(job: Job, kills_left: int, longest_s: float, draw: random.Random) -> tuple[int, float]:
  """Kills tasks of a job until it ends.

  Returns:
    how many, and when the first start began that left an account.
  """
  count, began_s = 0, time.time()
  job.start()
  while job.is_alive():
    if count < kills_left:
      job.join(draw.uniform(0, 1.05 * longest_s))
      if job.is_alive() and job.kill_one(draw):
        count += 1
        if not (job.workdir / "time.json").exists():
          began_s = time.time()  # A start that was killed before its first heartbeat has left nothing.
    else:
      job.join()
  return count, began_s


def main(argv: list[str] | None = None) -> int:
  """Runs what the command line asks for; prints one JSON object. Returns 1 if anything differed."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--count", type=int, default=10, help="kills, over all jobs together")
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  asked = parser.parse_args(argv)
  root, draw = asked.workdir.absolute(), random.Random(asked.seed)
  shutil.rmtree(root, ignore_errors=True)
  texts = program.write_texts(root / "texts")
  one = program.spawn_main(*program.tiny(texts, **SHORT), f"--workdir={root}/alone", JAX_NUM_CPU_DEVICES="1")
  undisturbed, began_s = Job(texts, root / "whole"), time.monotonic()
  undisturbed.start()
  undisturbed.join()
  longest_s = time.monotonic() - began_s
  if one.code or undisturbed.ended != (0, 1):
    print(f"a run left alone ended with {one.code} or {undisturbed.ended}; see {root}", file=sys.stderr)
    return 1
  whole, alone = kills.rows_of(undisturbed.workdir), program.losses(root / "alone")
  count, jobs, starts, faults = 0, 0, 0, []
  while count < asked.count:
    job = Job(texts, root / f"job_{jobs}")
    killed, began_s = kill_through(job, asked.count - count, longest_s, draw)
    faults += faults_of(job, whole, alone, began_s)
    count, jobs, starts = count + killed, jobs + 1, starts + (job.ended.starts if job.ended else 0)
  print(json.dumps({"kills": count, "jobs": jobs, "starts": starts, "one_run_s": round(longest_s, 1),
                    "faults": faults}, indent=1))  # fmt: skip
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
