"""Makes the tables and the picture of the study from what `run` left.

  python -m experiments.alive.analysis experiments/alive/results.json
"""
import json
import pathlib
import statistics
import sys

from matplotlib import figure

TOKENS = (0, 4_096, 16_384, 65_536)
LIMITS = {"norm": (0.01, 100), "write": (0.01, None), "loss": (None, 0.99)}
LABELS = {"norm": "|W| over its start", "write": "one write: how far a read moves, of its length",
          "loss": "loss on returning pairs, of answering zero"}
LEAST = 1e-10  # Left edge of the picture; what is below is drawn there.


def values(rows: list[dict], field: str, at: int) -> list[float]:
  """Returns a field after TOKENS[at] for every seed, the norm over its start; not finite: infinity."""
  found = [row[field][at] for row in rows]
  if field == "norm":
    found = [None if x is None else x / row["norm"][0] for x, row in zip(found, rows, strict=True)]
  return [float("inf") if x is None else x for x in found]


def short(x: float) -> str:
  """Writes a number with two digits."""
  return "not finite" if x == float("inf") else f"{x:.2g}".replace("e-0", "e-").replace("e+0", "e")


def cell(rows: list[dict], field: str, at: int = -1) -> str:
  """Writes the median and, where they differ, the range over seeds."""
  found = values(rows, field, at)
  low, middle, high = (short(f(found)) for f in (min, statistics.median, max))
  return middle if low == high else f"{middle} ({low} to {high})"


def table(rows: list[dict], arms: tuple[tuple[str, float], ...], fields: tuple[str, ...]) -> str:
  """Makes a table of rules by arms."""
  heads = [f"{arm}{', alike keys' if likeness else ''}" for arm, likeness in arms]
  heads = [f"{head}: {field}" if len(fields) > 1 else head for head in heads for field in fields]
  lines = [f"| rule | {' | '.join(heads)} |"]
  lines.append("| --- " * (1 + len(arms) * len(fields)) + "|")
  for name in sorted({row["rule"] for row in rows}):
    cells = []
    for arm, likeness in arms:
      of = [row for row in rows if (row["rule"], row["arm"], row["likeness"]) == (name, arm, likeness)]
      cells += [cell(of, field) if of else "" for field in fields]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def draw(rows: list[dict], file: pathlib.Path) -> None:
  """Draws every rule before and after, one panel per figure, with the limits of the requirement."""
  names = sorted({row["rule"] for row in rows}, reverse=True)
  page = figure.Figure(figsize=(14, 7), layout="constrained")
  for axes, (field, label) in zip(page.subplots(1, 3, sharey=True), LABELS.items(), strict=True):
    for arm, mark, colour in (("before", "x", "tab:red"), ("together", "o", "tab:blue")):
      for y, name in enumerate(names):
        of = [row for row in rows if (row["rule"], row["arm"], row["likeness"]) == (name, arm, 0.0)]
        found = [min(max(x, LEAST), 1e3) for x in values(of, field, -1)]
        axes.plot(found, [y] * len(found), mark, color=colour, markersize=5, alpha=0.7,
                  label={"before": "as shipped", "together": "now"}[arm] if y == 0 else None)
    for limit in filter(None, LIMITS[field]):
      axes.axvline(limit, color="black", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel=label, yticks=range(len(names)), yticklabels=names)
    axes.grid(alpha=0.3)
  page.legend(*page.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
  page.suptitle("After 65,536 tokens, three seeds; dashed: the limits of a living memory")
  page.savefig(file, dpi=100)


def main(path: str) -> None:
  """Prints the tables and draws the picture beside the file."""
  rows = json.loads(pathlib.Path(path).read_text())["rows"]
  rows.sort(key=lambda row: (row["rule"], row["seed"]))
  has = {row["rule"] for row in rows if (row["arm"], row["likeness"]) == ("together", 0.0)}
  # Rules without the other options have their own gates as the only cure.
  rows += [row | {"arm": "together"} for row in rows if row["arm"] == "gates" and row["rule"] not in has]
  plain = [row for row in rows if row["likeness"] == 0.0]
  arms = tuple((arm, 0.0) for arm in ("before", "gates", "start", "net", "together"))
  for field in ("norm", "write", "loss"):
    print(f"{LABELS[field]}:\n\n{table(plain, arms, (field,))}\n")
  print("Alike keys, and write rates at their bounds:\n")
  print(table(rows, (("before", 0.5), ("together", 0.5), ("bound", 0.0), ("bound", 0.5)), ("norm", "loss")))
  draw(rows, pathlib.Path(path).with_name("alive.png"))


if __name__ == "__main__":
  main(sys.argv[1])
