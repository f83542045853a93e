"""Writes the study's tables and draws them: accuracy of every rule by distance, and without its memory.

  python -m experiments.rules_on_recall.analysis experiments/rules_on_recall/results.json
"""
import pathlib
import sys

import numpy as np
from matplotlib import figure

from experiments import arms
from experiments.rules_on_recall import task
from experiments.rules_on_recall.recipe import DISTANCES, WAYS

BAR = 90.0  # Percent.
SHORTEST = 6  # The same pair never stands twice in a row.
SPANS = {f"val_accuracy_from_{first}": f"{max(first, SHORTEST)} {end}" for first, end in zip(
    DISTANCES, [*(f"to {following - 1}" for following in DISTANCES[1:]), "on"])}
FAR = f"val_accuracy_from_{DISTANCES[-1]}"


def names_of(found: dict) -> list[str]:
  """Lists the arms, the best at the largest distance first."""
  names = {key.rpartition("/")[0] for key in found}
  return sorted(names, key=lambda name: -np.mean(arms.over_seeds(found, name, FAR)))


def percent(found: dict, name: str, field: str) -> tuple[float, float, float]:
  """Returns the mean over seeds and its 95% interval, in percent."""
  values = [100 * value for value in arms.over_seeds(found, name, field)]
  return arms.interval(values) if values else (np.nan,) * 3


def cell(found: dict, name: str, field: str) -> str:
  """Writes one mean and, of several seeds, its interval; nothing where there is none."""
  mean, low, high = percent(found, name, field)
  if np.isnan(mean):
    return ""
  return f"{mean:.1f}" if np.isnan(low) else f"{mean:.1f} ({max(low, 0):.1f} to {min(high, 100):.1f})"


def table(found: dict, fields: dict[str, str]) -> str:
  """Writes a Markdown table of percents; `fields` gives the columns' names."""
  lines = [f"| rule | width | floats per head | seeds | {' | '.join(fields.values())} |",
           "| --- " * (len(fields) + 4) + "|"]
  for name in names_of(found):
    row = next(row for key, row in found.items() if key.rpartition("/")[0] == name)
    seeds = len(arms.over_seeds(found, name, "val_accuracy"))
    cells = [name, str(row.get("width", "")), str(row.get("floats_per_head", "")), str(seeds)]
    lines.append(f"| {' | '.join(cells + [cell(found, name, field) for field in fields])} |")
  return "\n".join(lines)


def tables(found: dict) -> str:
  """Writes all tables: by distance and way of reading, and by number of pairs."""
  far = {"val_accuracy": "all", **SPANS}
  ways = {f"val_across_{way}": way.replace("_", " ") for way in WAYS}
  pairs = {f"val_accuracy_pairs_{count}": f"{count} pairs" for count in task.PAIRS}
  pairs |= {f"val_accuracy_pairs_{count}_from_{DISTANCES[-1]}": f"{count} pairs, {DISTANCES[-1]} on"
            for count in task.PAIRS}
  passed = [name for name in names_of(found) if percent(found, name, FAR)[0] > BAR]
  told = f"{len(passed)} above {BAR:.0f}% at {DISTANCES[-1]} tokens and more: {', '.join(passed)}"
  return "\n\n".join([table(found, far), table(found, ways), table(found, pairs), told])


def draw(found: dict, file: pathlib.Path) -> None:
  """Draws accuracy by distance, and across the halves in every way of reading."""
  names = names_of(found)[::-1]
  page = figure.Figure(figsize=(13, 7.5), layout="constrained")
  left, right = page.subplots(1, 2, sharey=True)
  by_way = {f"val_across_{way}": way.replace("_", " ") for way in WAYS}
  for axes, fields, title in ((left, SPANS, "by tokens since the pair was shown last"),
                              (right, by_way, "pairs shown last in the first half, read in the second")):
    for number, (field, label) in enumerate(fields.items()):
      found_3N = np.array([percent(found, name, field) for name in names]).T
      position_N = np.arange(len(names)) + 0.18 * (number - (len(fields) - 1) / 2)
      spread_2N = np.clip(np.nan_to_num(np.abs(found_3N[1:] - found_3N[:1])), 0, 100)
      axes.errorbar(found_3N[0], position_N, xerr=spread_2N, fmt="o", markersize=4, linewidth=1, label=label)
    axes.axvline(100 / task.VALUES, color="gray", linestyle=":", linewidth=1)
    axes.axvline(BAR, color="gray", linestyle="--", linewidth=1)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("right answers, percent; bars: 95% over seeds; dotted: chance")
    axes.set_title(title)
    axes.legend(loc="center", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
  left.set_yticks(np.arange(len(names)), names)
  page.savefig(file, dpi=110)


def main(results: str) -> None:
  """Prints the tables of a file of results and draws a picture of its name beside it."""
  path = pathlib.Path(results)
  found = {key: row for key, row in arms.read(path).items() if "," not in key}
  print(tables(found))
  draw(found, path.with_suffix(".png"))


if __name__ == "__main__":
  main(*sys.argv[1:])
