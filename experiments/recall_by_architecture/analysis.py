"""Draws the study: right answers of every architecture, as it is and under the controls, and by length.

  python -m experiments.recall_by_architecture.analysis runs/recall.json
"""
import pathlib
import sys

import numpy as np
from matplotlib import figure

from experiments import arms
from experiments.recall_by_architecture.run import ARMS, LENGTHS, TASKS, WAYS


def percent(found: dict, arm: str, field: str) -> tuple[float, float, float]:
  """Returns the mean over seeds and its 95% interval, in percent; nan where there is none."""
  values = [100 * value for value in arms.over_seeds(found, arm, field)]
  return arms.interval(values) if values else (np.nan,) * 3


def draw(found: dict, file: pathlib.Path) -> None:
  """Draws, for each task that has results, a panel of the ways to read and one of lengths."""
  arms_of = {task: [arm.name for arm in ARMS if arms.over_seeds(found, arm.name, f"recall_{task}_accuracy")]
             for task in TASKS}
  tasks = [task for task in TASKS if arms_of[task]]  # Others have not been run.
  page = figure.Figure(figsize=(13, 4 * len(tasks)), layout="constrained")
  for task, (bars, curves) in zip(tasks, page.subplots(len(tasks), 2, squeeze=False)):
    shown = arms_of[task]
    for number, (way, words) in enumerate(WAYS.items()):
      means = np.array([percent(found, name, f"recall_{task}_{way}accuracy") for name in shown])
      spread = np.nan_to_num(np.abs(means[:, 1:].T - means[:, 0]))
      bars.bar(np.arange(len(shown)) + 0.2 * (number - 1.5), means[:, 0], width=0.2, yerr=spread, label=words)
    bars.set_xticks(range(len(shown)), [name.removesuffix(f"_{task}") for name in shown])
    bars.set(title=task, ylim=(0, 105), ylabel="right answers, percent; bars: 95% over seeds")
    for name in shown:
      means = [percent(found, name, f"recall_{task}_{length}_accuracy")[0] for length in LENGTHS[task]]
      lengths = [int(length.rpartition("_")[2]) for length in LENGTHS[task]]
      curves.plot(lengths, means, "o-", label=name.removesuffix(f"_{task}"))
    curves.set_xscale("log", base=2)
    curves.set(title=f"{task} by {LENGTHS[task][0].partition('_')[0]}", xlabel="tokens; first: in training",
               ylim=(0, 105))
    bars.legend(fontsize="small", ncols=len(WAYS), loc="upper center", bbox_to_anchor=(0.5, -0.08))
    curves.legend(fontsize="small", loc="center right")
  page.savefig(file, dpi=110)


def main(results: str) -> None:
  """Reads the file of results and writes a picture of its name beside it."""
  path = pathlib.Path(results)
  draw(arms.read(path), path.with_suffix(".png"))


if __name__ == "__main__":
  main(*sys.argv[1:])
