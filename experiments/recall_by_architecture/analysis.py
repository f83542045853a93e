"""Draws the study: right answers of every arm, as it is and under the controls, and needles by length.

  python -m experiments.recall_by_architecture.analysis experiments/recall_by_architecture/results.json
"""
import pathlib
import sys

import numpy as np
from matplotlib import figure

from experiments import arms
from experiments.recall_by_architecture.config import LONGEST
from experiments.recall_by_architecture.run import ARMS

WAYS = {"": "as it is", "emptied_": "emptied", "swapped_": "swapped", "writes_off_": "writes off"}
LENGTHS = (LONGEST, 4 * LONGEST, 16 * LONGEST)


def percent(found: dict, arm: str, field: str) -> tuple[float, float, float]:
  """Returns the mean over seeds and its 95% interval, in percent; nan where there is none."""
  values = [100 * value for value in arms.over_seeds(found, arm, field)]
  return arms.interval(values) if values else (np.nan,) * 3


def draw(found: dict, file: pathlib.Path) -> None:
  """Draws a panel for each task, and one of needles by length."""
  shown = [arm.name for arm in ARMS if arms.over_seeds(found, arm.name, "recall_mqar_accuracy")]
  page = figure.Figure(figsize=(14, 4.5), layout="constrained")
  *panels, curves = page.subplots(1, 3)
  for axes, task in zip(panels, ("mqar", "niah")):
    for number, (way, words) in enumerate(WAYS.items()):
      told = np.array([percent(found, name, f"recall_{task}_{way}accuracy") for name in shown])
      place = np.arange(len(shown)) + 0.2 * (number - 1.5)
      spread = np.nan_to_num(np.abs(told[:, 1:].T - told[:, 0]))
      axes.bar(place, told[:, 0], width=0.2, yerr=spread, label=words)
    axes.set_xticks(range(len(shown)), shown)
    axes.set(title=task, ylim=(0, 100), ylabel="right answers, percent; bars: 95% over seeds")
    axes.legend(fontsize="small")
  for name in shown:
    told = [percent(found, name, f"recall_niah_length_{length}_accuracy")[0] for length in LENGTHS]
    curves.plot(LENGTHS, told, "o-", label=name)
  curves.axvline(LONGEST, color="gray", linestyle=":", label="longest in training")
  curves.set_xscale("log", base=2)
  curves.set(title="needles by length", xlabel="tokens", ylim=(0, 100))
  curves.legend(fontsize="small")
  page.savefig(file, dpi=110)


def main(results: str) -> None:
  """Reads the file of results and writes a picture of its name beside it."""
  path = pathlib.Path(results)
  draw(arms.read(path), path.with_suffix(".png"))


if __name__ == "__main__":
  main(*sys.argv[1:])
