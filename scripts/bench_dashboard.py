"""Measures the dashboard's reading: a metrics file of many rows opened, followed, and made into pictures.

  python scripts/bench_dashboard.py [--rows=1000000] [--metrics=24] [--folder=FOLDER] [--json]

A file of so many rows is written once, in the folder (a temporary one by default): `--metrics` numbers in
each row, and an evaluation every 1,000 rows. Then it is read as the dashboard reads it, in this process:

  open_s      first look at the file, and all figures of Live Training
  refresh_s   20 rows are appended, and the same is done again, while the rest of the file is still being read
  follow_s    the same once all of it is read
  whole_s     reading the rest of the file, in as many looks of 0.08 s as that takes
  one_go_s    reading all of it at once, without a sample first

Refreshes are the median and the largest of 20. Needs the extra "dashboard".
"""
import argparse
import json
import pathlib
import random
import statistics
import tempfile
import time

from atlas_jax.files import closed_pipe
from atlas_jax.monitor.dashboard import charts, figures
from atlas_jax.monitor.dashboard.views import View, live_training
from atlas_jax.monitor.run_folder import RunFolder
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


def names_of(metrics: int) -> list[str]:
  """Returns names for the numbers that rows have besides the five of `row_of`."""
  return [f"train/number_{number:02}" for number in range(max(0, metrics - 5))]


def write_file(file: pathlib.Path, rows: int, metrics: int) -> None:
  """Writes a metrics file, unless it is there."""
  if file.exists():
    return
  draw = random.Random(0)
  names = names_of(metrics)
  file.parent.mkdir(parents=True, exist_ok=True)
  with file.open("w") as out:
    for step in range(1, rows + 1):
      out.write(json.dumps(row_of(step, names, draw)) + "\n")


def page(run: RunFolder) -> int:
  """Reads what is new and makes the figures of Live Training; returns how many."""
  run.look()
  parts = live_training.parts(View(run, (run,), "step"))
  return sum(bool(figures.figure(part)) for part in parts
             if isinstance(part, charts.LineChart | charts.BarChart | charts.HeatMap))


def refreshes(run: RunFolder, step: int, names: list[str]) -> dict[str, float]:
  """Returns the seconds of refreshes that find new rows each."""
  draw, took = random.Random(1), []
  for _ in range(FOLLOWED):
    with (run.path / "metrics.jsonl").open("a") as out:
      for _ in range(FOLLOWED):
        step += 1
        out.write(json.dumps(row_of(step, names, draw)) + "\n")
    begun = time.perf_counter()
    page(run)
    took.append(time.perf_counter() - begun)
  return {"median": round(statistics.median(took), 4), "largest": round(max(took), 4)}


def measure(folder: pathlib.Path, rows: int, names: list[str]) -> dict:
  """Returns what is measured of a file; it grows by the rows of the refreshes."""
  file = folder / "metrics.jsonl"
  begun = time.perf_counter()
  run = RunFolder(folder)
  drawn = page(run)
  found: dict = {"rows": rows, "bytes": file.stat().st_size, "open_s": round(time.perf_counter() - begun, 3),
                 "figures": drawn, "fraction_read_at_first": round(run.metrics.fraction, 4)}
  found["refresh_s"] = refreshes(run, rows, names)
  begun = time.perf_counter()
  while run.metrics.fraction < 1:
    run.look()
  found["whole_s"] = round(time.perf_counter() - begun, 3)
  found["follow_s"] = refreshes(run, rows + FOLLOWED**2, names)
  begun = time.perf_counter()
  Metrics(file, large=2**62).look(seconds=1e9)
  found["one_go_s"] = round(time.perf_counter() - begun, 3)
  return found


@closed_pipe.quiet
def main() -> None:
  """Writes the file, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--metrics", type=int, default=24)
  parser.add_argument("--folder")
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    run = pathlib.Path(args.folder or temporary) / f"rows_{args.rows}_{args.metrics}"
    write_file(run / "metrics.jsonl", args.rows, args.metrics)
    found = measure(run, args.rows, names_of(args.metrics))
  print(json.dumps(found) if args.json else "\n".join(f"{name:16} {value}" for name, value in found.items()))


if __name__ == "__main__":
  main()
