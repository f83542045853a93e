"""Measures the dashboard's reading: a metrics file of many rows opened, followed, and made into pictures.

  python scripts/bench_dashboard.py [--rows=1000000] [--metrics=24] [--folder=FOLDER] [--json]

A file of so many rows is written once, in the folder (a temporary one by default): `--metrics` numbers in each
row, and an evaluation every 1,000 rows. Then it is read as the dashboard reads it, in this process:

  open_s      first look at the file, and all figures of Live Training
  refresh_s   20 rows are appended, and the same is done again, while the rest of the file is still being read
  follow_s    the same once all of it is read; median and largest of 20 each
  whole_s     reading all of the file, in as many looks as that takes

--whole reads the file at once, without a sample first. Needs the extra "dashboard".
"""
import argparse
import json
import pathlib
import random
import statistics
import tempfile
import time

from atlas_jax.monitor.streams import Metrics

EVALUATED = 1_000  # Rows from one evaluation to the next.
FOLLOWED = 20  # Refreshes that are measured, and rows that each finds.


def row_of(step: int, names: list[str], draw: random.Random) -> dict:
  """Returns a row with a number for each name."""
  row = {"step": step, "train/loss_nats": 2 + 3 / step + 0.1 * draw.random(),
         "train/tokens_seen": 8_192 * step, "perf/tokens_per_s": 2e5 * (0.9 + 0.1 * draw.random()),
         "perf/time_step_s": 0.5 * step, "perf/time_start_s": 30.0}
  row |= {name: draw.random() for name in names}
  if step % EVALUATED == 0:
    row |= {"val/loss_nats": 2.1 + 3 / step, "eval/raw_gate_mean/layer_01": draw.random()}
  return row


def write_file(file: pathlib.Path, rows: int, metrics: int) -> None:
  """Writes a metrics file, unless it is there."""
  if file.exists():
    return
  draw = random.Random(0)
  names = [f"train/number_{number:02}" for number in range(max(0, metrics - 5))]
  file.parent.mkdir(parents=True, exist_ok=True)
  with file.open("w") as out:
    for step in range(1, rows + 1):
      out.write(json.dumps(row_of(step, names, draw)) + "\n")


def main() -> None:
  """Writes the file, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--metrics", type=int, default=24)
  parser.add_argument("--folder")
  parser.add_argument("--whole", action="store_true")
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    run = pathlib.Path(args.folder or temporary) / f"rows_{args.rows}_{args.metrics}"
    write_file(run / "metrics.jsonl", args.rows, args.metrics)
    found = measure(run, args.rows, whole=args.whole)
  print(json.dumps(found) if args.json else "\n".join(f"{name:16} {value}" for name, value in found.items()))
