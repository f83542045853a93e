"""Compares windows in pairs of one seed, and draws what the memory saves by window and by position.

  python -m experiments.window.analysis experiments/window/results.json
"""
import pathlib
import sys

import numpy as np
from matplotlib import figure

from experiments import arms
from experiments.memory_pays.analysis import by_position
from experiments.window.run import WINDOWS

LEAST_START = 256  # Few bytes lie in the buckets before: the first segment of a document has no memory.
BITS, SWAPPED = "val_bits_per_byte", "memory_gain_swapped_nats"


def differences(found: dict, left: str, right: str, field: str) -> list[float]:
  """Returns a field of one arm minus that of another for each seed that both have."""
  seeds = [name.rpartition("/")[2] for name in found if name.rpartition("/")[0] == left]
  value = lambda arm, seed: found.get(f"{arm}/{seed}", {}).get(field)
  pairs = [(value(left, seed), value(right, seed)) for seed in seeds]
  return [one - other for one, other in pairs if one is not None and other is not None]


def told(values: list[float]) -> str:
  """Writes the mean of differences and its interval over seeds."""
  if not values:
    return ""
  mean, low, high = arms.interval(values)
  return f"{mean:+.3f}" if np.isnan(low) else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def table(found: dict) -> str:
  """Writes what each window changes against 64 tokens, and what the memory takes off at the same window."""
  lines = ["| window | seeds | memory, bits against 64 | no memory, bits against 64 | bits that the memory "
           "takes off | swapped against 64 |", "| --- " * 6 + "|"]
  for window, (words, _) in WINDOWS.items():
    memory, none = f"memory_{window}", f"none_{window}"
    others = window != "64"
    cells = [told(differences(found, memory, "memory_64", BITS)) if others else "",
             told(differences(found, none, "none_64", BITS)) if others else "",
             told(differences(found, none, memory, BITS)),
             told(differences(found, memory, "memory_64", SWAPPED)) if others else ""]
    if any(cells):
      seeds = len(arms.over_seeds(found, memory, BITS))
      lines.append(f"| {words} | {seeds} | {' | '.join(cells)} |")
  return "\n".join(lines)


def draw(found: dict, file: pathlib.Path) -> None:
  """Draws bits per byte and swapped gain by window, and swapped gain by position."""
  page = figure.Figure(figsize=(15, 4.8), layout="constrained")
  bits, gains, curves = page.subplots(1, 3)
  shown = [window for window in WINDOWS if arms.over_seeds(found, f"memory_{window}", BITS)]
  for at, window in enumerate(shown):
    for kind, color, shift in (("none", "tab:gray", -0.2), ("memory", "tab:blue", 0.2)):
      values = arms.over_seeds(found, f"{kind}_{window}", BITS)
      if values:
        bits.bar(at + shift, np.mean(values), width=0.4, color=color, label=kind if not at else None)
        bits.plot([at + shift] * len(values), values, "k.", markersize=5)
    values = arms.over_seeds(found, f"memory_{window}", SWAPPED)
    gains.bar(at, np.mean(values), color="tab:blue")
    gains.plot([at] * len(values), values, "k.", markersize=5)
    starts, nats = by_position(found, f"memory_{window}", f"{SWAPPED}_by_position_")
    kept = [(start, nat) for start, nat in zip(starts, nats) if start >= LEAST_START]
    curves.plot(*zip(*kept) if kept else ((), ()), "o-", label=window.replace("_", ", "))
  for axes in (bits, gains):
    axes.set_xticks(range(len(shown)), [window.replace("_", "\n") for window in shown])
    axes.set_xlabel("window in tokens; random: drawn for each update")
  bits.set(ylabel="bits per held-out byte; dots are seeds")
  bits.legend(loc="lower right", fontsize="small")
  gains.set(ylabel="swapped gain, nats per byte")
  curves.set_xscale("symlog", base=2, linthresh=64)
  curves.set(xlabel="bytes into the document (start of bucket)", ylabel="swapped gain, nats per byte")
  curves.legend(title="window", fontsize="small")
  page.savefig(file, dpi=110)


def main(results: str) -> None:
  """Prints the comparison and writes a picture of the results' name beside them."""
  path = pathlib.Path(results)
  print(table(arms.read(path)))
  draw(arms.read(path), path.with_suffix(".png"))


if __name__ == "__main__":
  main(*sys.argv[1:])
