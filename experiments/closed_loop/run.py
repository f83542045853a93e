"""Runs the arms of the study and keeps their rows, one of each arm, seed and round; what is there stays.

  python -m experiments.closed_loop.run --workdir=runs/closed_loop \
    --out=experiments/closed_loop/results.json

See the README for what the arms are.
"""
import argparse
import json
import pathlib
from collections.abc import Callable

from experiments import arms
from experiments.adaptive_teacher.run import commit
from experiments.closed_loop import free, lessons, loop

ROUNDS = 3
# Arm -> rounds, where that is not those of the loop.
FEWER = {"shuffled": 1, **{name: 1 for name, rules in loop.RULES.items() if not rules.has_gate}}
ARMS: dict[str, Callable[[loop.Seed, int], dict[str, dict]]] = {
    **{name: lambda seed, rounds, name=name: loop.rows(seed, name, min(rounds, FEWER.get(name, rounds)))
       for name in loop.RULES},
    "broken": loop.broken_row, "free": free.rows, "mixed": free.mixed_row, "bound": free.bound_row,
    "answers": lambda seed, rounds: free.rows(seed, rounds, arm="answers"), "lessons": lessons.rows,
    "lessons_shuffled": lambda seed, rounds: lessons.rows(seed, rounds, arm="lessons_shuffled")}


def main(argv: list[str] | None = None, execute: loop.Execute = loop.spawn) -> None:
  """Runs what is missing.

  Args:
    argv: the command line; None: the program's.
    execute: runs a program of this project; raises if it fails.
  """
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--arms", default=",".join(ARMS))
  parser.add_argument("--seeds", default="3,4,5")
  parser.add_argument("--rounds", type=int, default=ROUNDS)
  parser.add_argument("--smoke", action="store_true", help="tiny models, which learn nothing")
  asked = parser.parse_args(argv)
  if unknown := [name for name in asked.arms.split(",") if name not in ARMS]:
    parser.error(f"--arms has {', '.join(unknown)}; known are {', '.join(ARMS)}")
  for number in map(int, asked.seeds.split(",")):
    seed = loop.Seed(asked.workdir, number, execute=execute, smoke=asked.smoke)
    for arm in asked.arms.split(","):
      found = arms.read(asked.out)
      if any(row["arm"] == arm and row["seed"] == number for row in found.values()):
        continue
      made = {name: {**row, "commit": commit(), **arms.machine()}
              for name, row in ARMS[arm](seed, asked.rounds).items()}
      asked.out.write_text(json.dumps({**arms.read(asked.out), **made}, indent=1) + "\n")


if __name__ == "__main__":
  main()
