"""Kills runs of every recipe at random points until they are through, and compares them with runs left alone.

  python -m tests.faults.kills --count=200 --workdir=runs/kills

A run is started again after each kill, until it ends; then the next run of its recipe begins, until all have
been killed `count` times together. Each run that ends must have the rows of the one that was never killed:
every step once, and every number but those of clocks. Of two processes one is killed, at random.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
SHORT = {
  "optim.steps": 12, "optim.warmup_steps": 2, "checkpoint.every_steps": 3, "train.eval_every_steps": 4,
  "train.log_every_steps": 1, "monitor.tensorboard": False, "monitor.progress": False,
}  # fmt: skip
NO_TEXT = {"eval.sample_tokens": 0, "eval.baselines": False}
MEMORY = ["--config=configs/memory_40m.py:smoke,pretrain", "--config.data.batch_rows=8"]


class Job(NamedTuple):
  """A kind of run."""

  flags: list[str]
  processes: int = 1
  before: str | None = None  # the job whose finished run it starts from


JOBS = {
  "memory_lm": Job([*MEMORY, *(f"--config.{name}={value}" for name, value in NO_TEXT.items())]),
  "trm": Job(["--config=configs/trm_sudoku.py:smoke"]),
  "sft": Job(["--config=configs/sft.py:smoke"]),
  "ranked": Job(["--config=configs/atlas_ranked.py:smoke"]),
  "grpo": Job(["--config=configs/grpo_arithmetic.py:smoke"]),
  "gkd": Job(["--config=configs/gkd.py:smoke"], before="sft"),
  "two": Job([*MEMORY, *(f"--config.{name}={value}" for name, value in NO_TEXT.items())], processes=2),
}


class Count(NamedTuple):
  """What came of a job."""

  kills: int
  runs: int  # that came to their end after kills
  faults: list[str]


def rows_of(workdir: pathlib.Path) -> list[dict]:
  """Reads the rows of a run without what clocks say."""
  lines = (workdir / "metrics.jsonl").read_text().split("\n")
  rows = [json.loads(line) for line in lines if line]
  timed = lambda name: name.startswith(("perf/", "system/")) or name.endswith(("seconds", "_s"))
  return [{name: value for name, value in row.items() if not timed(name)} for row in rows]


def command_of(job: Job, workdir: pathlib.Path, root: pathlib.Path) -> list[str]:
  """Writes the command line of a run; `root` holds the finished runs of other jobs."""
  flags = [*job.flags, *(f"--config.{name}={value}" for name, value in SHORT.items()), f"--workdir={workdir}"]
  if job.before is not None:
    flags.append(f"--config.distill.teacher={root / job.before / 'whole'}")
  if job.processes > 1:
    return ["bash", "scripts/launch_local.sh", str(job.processes), *flags]
  return [sys.executable, "-m", "atlas_jax.main", *flags]


def start(command: list[str], log) -> subprocess.Popen:
  """Starts a run in a process group of its own."""
  env = {**os.environ, "ATLAS_PYTHON": sys.executable, "JAX_NUM_CPU_DEVICES": "1"}
  return subprocess.Popen(
    command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
  )


def victims(process: subprocess.Popen, processes: int) -> list[int]:
  """Lists the processes that may be killed: the run itself, or those that the launcher has started."""
  if processes == 1:
    return [process.pid]
  found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
  return [int(pid) for pid in found.stdout.split()]


def kill_one(process: subprocess.Popen, processes: int, draw: random.Random) -> bool:
  """Kills a process of a run; False if it had ended."""
  chosen = victims(process, processes)
  if process.poll() is not None or not chosen:
    return False
  os.kill(draw.choice(chosen), signal.SIGKILL)
  process.wait(timeout=120)
  return True


def differences(workdir: pathlib.Path, whole: list[dict]) -> list[str]:
  """Compares a run with one that was never killed."""
  rows = rows_of(workdir)
  steps, wanted = [row["step"] for row in rows], [row["step"] for row in whole]
  if steps != wanted:
    return [f"{workdir}: has rows of steps {steps}, not {wanted}"]
  return [
    f"{workdir}: step {one['step']}: {name} is {one.get(name)}, not {other.get(name)}"
    for one, other in zip(rows, whole)
    for name in sorted(one.keys() | other.keys())
    if one.get(name) != other.get(name)
  ]


def run_job(name: str, root: pathlib.Path, count: int, seed: int) -> Count:
  """Kills runs of a job `count` times."""
  job, draw, folder = JOBS[name], random.Random(f"{name} {seed}"), root / name
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "log.txt").open("a") as log:
    began = time.monotonic()
    code = start(command_of(job, folder / "whole", root), log).wait()
    longest_s = time.monotonic() - began
    if code:
      return Count(0, 0, [f"{folder}/whole ended with {code}; see {folder}/log.txt"])
    whole, kills, runs, faults, stuck = rows_of(folder / "whole"), 0, 0, [], 0
    workdir = folder / "run_0"
    while kills < count or workdir.exists():
      process = start(command_of(job, workdir, root), log)
      if kills < count:
        try:
          process.wait(timeout=draw.uniform(0, 1.05 * longest_s))
        except subprocess.TimeoutExpired:
          if kill_one(process, job.processes, draw):
            kills += 1
            continue
      code, stuck = process.wait(timeout=60 + 10 * longest_s), stuck + 1
      if code and stuck < 3:  # The other process of a killed one may hold its port a moment longer.
        faults.append(f"{workdir} ended with {code} without being killed")
        continue
      faults += differences(workdir, whole)
      runs, stuck = runs + 1, 0
      shutil.rmtree(workdir)
      workdir = folder / f"run_{runs}"
  print(f"{name}: {kills} kills, {runs} runs, {len(faults)} faults", file=sys.stderr, flush=True)
  return Count(kills, runs, faults)


def main(argv: list[str] | None = None) -> int:
  """Runs what the command line asks for; prints one JSON object. Returns 1 if anything differed."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--count", type=int, default=200, help="kills, over all jobs together")
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--jobs", default=",".join(JOBS))
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--parallel", type=int, default=2, help="jobs at the same time")
  asked = parser.parse_args(argv)
  names, root = asked.jobs.split(","), asked.workdir.absolute()
  shutil.rmtree(root, ignore_errors=True)
  shares = {name: asked.count // len(names) + (i < asked.count % len(names)) for i, name in enumerate(names)}
  found: dict[str, Count] = {}
  with concurrent.futures.ThreadPoolExecutor(asked.parallel) as pool:
    first = [name for name in names if JOBS[name].before is None]
    for wave in (first, [name for name in names if name not in first]):
      waiting = {name: pool.submit(run_job, name, root, shares[name], asked.seed) for name in wave}
      found |= {name: each.result() for name, each in waiting.items()}
  faults = [fault for count in found.values() for fault in count.faults]
  print(json.dumps({
    "kills": sum(count.kills for count in found.values()),
    "runs": sum(count.runs for count in found.values()),
    "by_job": {name: [count.kills, count.runs] for name, count in found.items()},
    "faults": faults,
  }, indent=1))  # fmt: skip
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
