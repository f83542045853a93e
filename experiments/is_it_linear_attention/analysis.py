"""Writes the study's tables and draws them: what each change does to each rule, on recall and on language.

  python -m experiments.is_it_linear_attention.analysis experiments/is_it_linear_attention/results.json
"""
import pathlib
import sys

import numpy as np
from matplotlib import figure

from experiments import arms
from experiments.is_it_linear_attention.config import RULES
from experiments.is_it_linear_attention.run import CHANGES
from experiments.rules_on_recall import task

# By setting: the fields of its table, and what each is multiplied by.
FIELDS = {
    "recall": {"val_accuracy": ("right, %", 100), "val_accuracy_from_256": ("256 tokens on, %", 100),
               "val_across_as_is": ("across the halves, %", 100), "val_across_emptied": ("emptied, %", 100),
               "train_loss_nats": ("training loss, nats", 1)},
    "language": {"val_bits_per_byte": ("bits per byte", 1), "memory_gain_swapped_nats": ("swapped, nats", 1),
                 "memory_gain_emptied_nats": ("emptied, nats", 1), "cpu_s": ("CPU-s", 1)},
}
DRAWN = {"recall": "val_accuracy", "language": "val_bits_per_byte"}


def interval(found: dict, setting: str, rule: str, change: str, field: str) -> tuple[float, float, float]:
  """Returns the mean over seeds and its 95% interval; nan where there is none."""
  scale = FIELDS[setting][field][1]
  values = [scale * value for value in arms.over_seeds(found, f"{setting}/{rule}/{change}", field)]
  return arms.interval(values) if values else (np.nan,) * 3


def cell(mean: float, low: float, high: float) -> str:
  """Writes a mean and its interval, with as many digits as its size asks for."""
  if np.isnan(mean):
    return ""
  write = lambda x: f"{x:.1f}" if abs(mean) >= 10 else f"{x:.3f}"
  return write(mean) if np.isnan(low) else f"{write(mean)} ({write(low)} to {write(high)})"


def table(found: dict, setting: str) -> str:
  """Writes a Markdown table of one setting."""
  names = [name for name, _ in FIELDS[setting].values()]
  lines = [f"| rule | change | seeds | {' | '.join(names)} |", "| --- " * (len(names) + 3) + "|"]
  for rule in RULES:
    for change in CHANGES:
      seeds = len(arms.over_seeds(found, f"{setting}/{rule}/{change}", DRAWN[setting]))
      if seeds:
        cells = [cell(*interval(found, setting, rule, change, field)) for field in FIELDS[setting]]
        lines.append(f"| {rule} | {change} | {seeds} | {' | '.join(cells)} |")
  return "\n".join(lines)


def draw(found: dict, file: pathlib.Path) -> None:
  """Draws one panel per setting, with a group of marks per rule."""
  page = figure.Figure(figsize=(13, 5), layout="constrained")
  for axes, (setting, field) in zip(page.subplots(1, 2), DRAWN.items()):
    for number, change in enumerate(CHANGES):
      found_3N = np.array([interval(found, setting, rule, change, field) for rule in RULES]).T
      position_N = np.arange(len(RULES)) + 0.11 * (number - (len(CHANGES) - 1) / 2)
      spread_2N = np.nan_to_num(np.abs(found_3N[1:] - found_3N[:1]))
      axes.errorbar(position_N, found_3N[0], yerr=spread_2N, fmt="o", markersize=5, linewidth=1,
                    label=change.replace("_", " "))
    axes.set_xticks(range(len(RULES)), list(RULES))
    axes.set_title(f"{setting}: {FIELDS[setting][field][0]}; bars: 95% over seeds")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    if setting == "recall":
      axes.axhline(100 / task.VALUES, color="gray", linestyle=":", linewidth=1)
      axes.set_ylim(-3, 103)
  page.savefig(file, dpi=110)


def main(results: str) -> None:
  """Prints the tables of a file of results and draws a picture of its name beside it."""
  path = pathlib.Path(results)
  found = arms.read(path)
  print("\n\n".join(table(found, setting) for setting in FIELDS))
  draw(found, path.with_suffix(".png"))


if __name__ == "__main__":
  main(*sys.argv[1:])
