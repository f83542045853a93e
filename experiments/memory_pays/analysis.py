"""Draws the study: bits per byte of every arm, and what memory saves by position in the document.

  python -m experiments.memory_pays.analysis experiments/memory_pays/quickstart.json
"""
import pathlib
import sys

import numpy as np
from matplotlib import figure

from experiments import arms
from experiments.memory_pays.run import ARMS

LOSS = "val_loss_nats_by_position_"


def by_position(found: dict, arm: str, prefix: str) -> tuple[list[int], list[float]]:
  """Returns the first position of each bucket and the mean over seeds of what stands under that prefix."""
  names = sorted({name for key, row in found.items() if key.rpartition("/")[0] == arm for name in row
                  if name.startswith(prefix) and not name.endswith(("_low", "_high"))})
  starts = [int(name.removeprefix(prefix).partition("-")[0]) for name in names]
  return starts, [float(np.mean(arms.over_seeds(found, arm, name))) for name in names]


def draw(found: dict, file: pathlib.Path) -> None:
  """Draws both panels."""
  page = figure.Figure(figsize=(13, 5), layout="constrained")
  bars, curves = page.subplots(1, 2)
  shown = [arm for arm in ARMS if arms.over_seeds(found, arm.name, "val_bits_per_byte")]
  for at, arm in enumerate(shown):
    values = arms.over_seeds(found, arm.name, "val_bits_per_byte")
    bars.barh(at, np.mean(values), color="tab:blue" if arm.name == "memory" else "tab:gray")
    bars.plot(values, [at] * len(values), "k.", markersize=5)
    bars.text(0.05, at, f"{np.mean(values):.3f}", va="center", color="white")
  gzip = arms.over_seeds(found, "memory", "gzip_bits_per_byte")
  if gzip:
    bars.axvline(gzip[0], color="black", linestyle=":", label=f"gzip -9, {gzip[0]:.3f}")
    bars.legend(loc="lower right")
  bars.set_yticks(range(len(shown)), [arm.name for arm in shown])
  bars.invert_yaxis()
  bars.set(xlabel="bits per held-out byte; dots are seeds", xlim=(0, 2.7))
  for name in ("baseline", "static", "memory"):
    starts, nats = by_position(found, name, LOSS)
    curves.plot(starts, nats, "o-", label=f"loss, {name}")
  for name in ("emptied", "swapped"):
    starts, nats = by_position(found, "memory", f"memory_gain_{name}_nats_by_position_")
    curves.plot(starts, nats, "o--", label=f"what memory saves: {name}")
  curves.set_xscale("symlog", base=2, linthresh=64)
  curves.set(xlabel="bytes into the document (start of bucket)", ylabel="nats per byte", ylim=(0, None))
  curves.legend(loc="lower left", fontsize="small")
  page.savefig(file, dpi=110)


def main(results: str) -> None:
  """Reads the file of results and writes a picture of its name beside it."""
  path = pathlib.Path(results)
  draw(arms.read(path), path.with_suffix(".png"))


if __name__ == "__main__":
  main(*sys.argv[1:])
