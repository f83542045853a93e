"""Starts several runs on one directory within a second, and compares what is left with a run of its own.

  python -m tests.faults.starts --count=50 --workdir=runs/starts

One start owns the directory and comes to its end; the others are refused with a line, and harm nothing.
"""

import argparse
import json
import pathlib
import random
import shutil
import sys
import time

from tests.faults import kills


def start_together(
  workdir: pathlib.Path, root: pathlib.Path, starts: int, draw: random.Random
) -> list[tuple[int, str]]:
  """Starts a run several times within a second; gives exit codes and what each said."""
  command = kills.command_of(kills.JOBS["memory_lm"], workdir, root)
  going = []
  for i in range(starts):
    log = (root / f"{workdir.name}_{i}.txt").open("w+")
    going.append((kills.start(command, log), log))
    time.sleep(draw.uniform(0, 1.0 / starts))
  ends = []
  for process, log in going:
    code = process.wait(timeout=600)
    log.seek(0)
    ends.append((code, log.read()))
    log.close()
  return ends


def faults_of(ends: list[tuple[int, str]], workdir: pathlib.Path, whole: list[dict]) -> list[str]:
  """Returns what went wrong in a round of starts."""
  found = []
  owned = [said for code, said in ends if code == 0]
  if not owned:
    found.append(f"{workdir}: no start came to its end")
  for code, said in ends:
    if code and "is in use by process" not in said:
      found.append(f"{workdir}: a start ended with {code}: {said[-300:]}")
  return found + (kills.differences(workdir, whole) if owned else [])


def main(argv: list[str] | None = None) -> int:
  """Runs what the command line asks for; prints one JSON object. Returns 1 if anything was harmed."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--count", type=int, default=50, help="rounds of starts")
  parser.add_argument("--starts", type=int, default=2, help="starts in a round")
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  asked = parser.parse_args(argv)
  root, draw = asked.workdir.absolute(), random.Random(0)
  shutil.rmtree(root, ignore_errors=True)
  root.mkdir(parents=True)
  with (root / "log.txt").open("w") as log:
    code = kills.start(kills.command_of(kills.JOBS["memory_lm"], root / "whole", root), log).wait()
  if code:
    print(f"{root}/whole ended with {code}; see {root}/log.txt", file=sys.stderr)
    return 1
  whole, faults, refused = kills.rows_of(root / "whole"), [], 0
  for i in range(asked.count):
    ends = start_together(root / f"round_{i}", root, asked.starts, draw)
    refused += sum(code != 0 for code, _ in ends)
    faults += faults_of(ends, root / f"round_{i}", whole)
    shutil.rmtree(root / f"round_{i}", ignore_errors=True)
  print(json.dumps({"rounds": asked.count, "refused": refused, "faults": faults}, indent=1))
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
