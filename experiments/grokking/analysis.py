"""Draws the curves of modular addition with their phases, and writes the table.

  python -m experiments.grokking.analysis experiments/grokking/results.json
"""
import pathlib
import sys

from matplotlib import figure

from atlas_jax import config as configs
from atlas_jax.monitor import phases
from experiments import arms
from experiments.grokking.run import ARMS, rows_of

TRAIN = "eval/train_accuracy"
UNTOLD = ("insufficient_data", "no_change")


def thresholds() -> phases.Thresholds:
  """Returns those of the defaults."""
  return phases.Thresholds(**configs.default().monitor.phases)


def table(found: dict) -> str:
  """Writes a row for each run, in the order of the arms."""
  lines = ["| arm | what | seed | trained pairs right (99.9%) | held-out pairs right (95%) | at the end | "
           "phases | CPU-s |", "| --- " * 8 + "|"]
  for name, row in sorted(found.items(), key=lambda item: (list(ARMS).index(item[0].split("/")[0]), item[0])):
    arm, _, seed = name.partition("/")
    steps = [f"step {row[field]:,}" if row[field] else "never" for field in
             ("train_accuracy_999_at_step", "held_out_accuracy_95_at_step")]
    rows = rows_of(row["curve"])
    last, words = rows[-1][phases.ACCURACY], phases.in_words(phases.phases_of(rows, thresholds()))
    lines.append(f"| {arm} | {ARMS[arm].says} | {seed} | {' | '.join(steps)} | {last:.3f} at step "
                 f"{row['steps']:,} | {words} | {row['cpu_s']:.0f} |")
  return "\n".join(lines)


def draw(found: dict, file: pathlib.Path) -> None:
  """Draws accuracy and held-out loss of every run, a dotted line where a phase begins."""
  names = [name for arm in ARMS for name in found if name.split("/")[0] == arm]
  page = figure.Figure(figsize=(4.6 * len(names), 7), layout="constrained")
  columns = page.subplots(2, len(names), squeeze=False).T
  for name, (above, below) in zip(names, columns):
    rows = rows_of(found[name]["curve"])
    column = lambda metric: [row[metric] for row in rows]  # noqa: B023  Called in this turn of the loop alone.
    steps = column("step")
    above.plot(steps, column(TRAIN), color="tab:blue", label="trained on")
    above.plot(steps, column(phases.ACCURACY), color="tab:orange", label="held out")
    above.set(title=name, ylabel="accuracy", ylim=(-0.03, 1.05))
    above.legend(loc="center right", fontsize="small")
    below.plot(steps, column(phases.LOSS), color="tab:orange")
    below.set(xlabel="update", ylabel="held-out loss in nats", ylim=(0, None))
    for one in phases.changes(phases.phases_of(rows, thresholds())):
      if one.phase not in UNTOLD:
        above.axvline(one.step, color="gray", linestyle=":")
        below.axvline(one.step, color="gray", linestyle=":")
        below.text(one.step, below.get_ylim()[1], one.phase, rotation=90, va="top", ha="right", fontsize=8)
  page.savefig(file, dpi=90)


def main(file: str) -> None:
  """Prints the table and draws the picture beside the file of results."""
  path = pathlib.Path(file)
  found = arms.read(path)
  print(table(found))
  draw(found, path.with_suffix(".png"))


if __name__ == "__main__":
  main(sys.argv[1])
