"""One deployment of a round's teacher by `atlas deploy`, behind our own server, and what the canary decides.

  python -m experiments.closed_loop.proof --workdir=runs/closed_loop --seed=3 --round=1 --tasks=96

The sessions of the study are answered in one process; here the same tasks go to the server. A row is printed:
whether answers agree with those of the process, what became of the version, and after how many pairs.
"""
import argparse
import asyncio
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

from atlas_jax.runtime import settings as settings_of
from atlas_jax.runtime.assembly import Assembly
from atlas_jax.runtime.session import SessionSpec
from experiments import arms
from experiments.adaptive_teacher.models import Writer
from experiments.closed_loop import config as settings
from experiments.closed_loop import loop, models, runtime, sessions


@functools.cache
def _student() -> models.Together:
  run = pathlib.Path(os.environ[runtime.RUNS]) / "student"
  return models.Together(Writer(run), max_tokens=settings.ANSWER_TOKENS)


@functools.cache
def _teacher() -> models.Together:
  return models.Together(Writer(pathlib.Path(os.environ[runtime.TEACHER])), max_tokens=settings.HINT_TOKENS)


async def student(messages: list) -> str:
  """Answers as the student of the study."""
  return await _student().write(messages[-1]["content"])


async def teacher_before(messages: list) -> str:
  """Writes a hint as the teacher before the one that is deployed."""
  return await _teacher().write(messages[-1]["content"])


def deployed(output: pathlib.Path) -> str:
  """Runs `atlas deploy`; returns what it says.

  Raises:
    RuntimeError: if it refuses, with what it said.
  """
  done = subprocess.run([sys.executable, "-m", "atlas_jax.runtime.cli", "deploy", str(output),
                         f"--config={runtime.__file__}", "--canary=1.0"], text=True, capture_output=True,
                        check=False)
  if done.returncode:
    raise RuntimeError(f"atlas deploy ended with {done.returncode}: {done.stderr[-2_000:]}")
  return done.stdout.strip()


async def at_work(given: list[sessions.Given], approaches: list[str]) -> tuple[list, list]:
  """Has tasks done, a wave after the other; returns the results and the deployments."""
  made = Assembly(settings_of.load(runtime.__file__), create=True)
  found = []
  async with made:
    for first in range(0, len(given), sessions.WAVE):
      part = list(enumerate(given))[first:first + sessions.WAVE]
      found += await asyncio.gather(*(made.run(SessionSpec(
          f"proof-{time.time_ns()}-{place}", one.problem.prompt, ground_truth=one.truth,
          tags=(one.problem.extra["tag"],), approach=approaches[place])) for place, one in part))
      await asyncio.gather(*made._compared, return_exceptions=True)
    listed = await made.store.deployments("teacher")
  return found, listed


def main(argv: list[str] | None = None) -> dict:
  """Deploys, runs tasks, and rolls back what is left; returns and prints the row."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=3)
  parser.add_argument("--round", type=int, default=1)
  parser.add_argument("--output", type=pathlib.Path, help="of another pipeline than that of the round")
  parser.add_argument("--tasks", type=int, default=96)
  parser.add_argument("--out", type=pathlib.Path, help="results that get the row")
  parser.add_argument("--name", default="deployed", help="of the row")
  asked = parser.parse_args(argv)
  folder = asked.workdir / str(asked.seed)
  before = folder / "start" if asked.round == 1 else folder / "loop" / f"round_{asked.round - 1}" / "train"
  os.environ |= {runtime.RUNS: str(asked.workdir), runtime.TEACHER: str(before)}
  output = asked.output or folder / "loop" / f"round_{asked.round}"
  said = deployed(output)
  seed = loop.Seed(asked.workdir, asked.seed, execute=loop.spawn)
  given = seed.held_out[:asked.tasks]
  probes = [f"{one.problem.prompt}?" for one in given]
  approaches = seed.student.write(probes, max_tokens=settings.PROBE_TOKENS)
  began = time.monotonic()
  found, listed = asyncio.run(at_work(given, approaches))
  seconds = time.monotonic() - began
  by_version: dict[str, list[int]] = {}
  for task, one in zip(given, found, strict=True):
    by_version.setdefault(str(one.versions["teacher"])[:12], []).append(int(one.answer == task.truth))
  row = {"arm": asked.name, "seed": asked.seed, "round": asked.round, "said": said,
         "seconds": round(seconds, 1), "tasks": len(given),
         "right": "".join(str(int(one.answer == task.truth)) for task, one in zip(given, found, strict=True)),
         "by_version": {name: {"tasks": len(bits), "right": sum(bits)} for name, bits in by_version.items()},
         "state": listed[-1].state, "decision": listed[-1].metadata.get("decision")}
  print(json.dumps(row))
  if asked.out is not None:
    rows = {**arms.read(asked.out), f"{asked.name}/{asked.seed}/{asked.round}": row}
    asked.out.write_text(json.dumps(rows, indent=1) + "\n")
  subprocess.run([sys.executable, "-m", "atlas_jax.runtime.cli", "rollback", f"--config={runtime.__file__}"],
                 check=False, stdout=subprocess.DEVNULL)
  subprocess.run([sys.executable, "-m", "atlas_jax.runtime.cli", "rollback", f"--config={runtime.__file__}",
                  "--stop"], check=False, stdout=subprocess.DEVNULL)
  return row


if __name__ == "__main__":
  main()
