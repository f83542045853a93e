"""Writes the table of the study into its README, and draws what was learnt over the updates.

  python -m experiments.adaptive_teacher.analysis experiments/adaptive_teacher/results.json

Picture and README stand beside the results; of the README the part between the comments TABLE is written.
"""
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import figure
from scipy import special

from atlas_jax.evals import bootstrap
from experiments import arms

SAYS = {
    "start": "the teacher before it learns: any hint",
    "teacher_200": "the teacher after 200 updates of GRPO",
    "placebo_200": "its hints, each to another question",
    "teacher": "**the teacher after 500 updates of GRPO**",
    "placebo": "its hints, each to another question",
    "fixed": "one hint for all questions, the best of eight",
    "unlinked": "GRPO with answers that the letters have nothing to do with",
    "alone_400": "no teacher: 400 updates of GRPO on the student itself",
    "alone": "no teacher: 2,000 updates of GRPO on the student itself",
    "taught": "no teacher: the student, tuned on what it answered with hints",
    "right": "the right hint for every question, a bound",
}
HEADER = ("arm", "what", "seeds", "right without", "right with", "lift, points", "over seeds", "NDR",
          "McNemar p", "hint tokens", "CPU s")
MARKS = ("<!-- TABLE -->", "<!-- END -->")


def rows_of(found: Mapping[str, dict], arm: str) -> list[dict]:
  """Returns the rows of an arm in the order of their seeds; of fixed hints the best one of each seed."""
  if arm == "fixed":
    named = [(name, row) for name, row in found.items() if row["arm"] == "fixed"]
    seeds = sorted({int(name.rpartition("/")[2]) for name, _ in named})
    return [max((row for name, row in named if name.endswith(f"/{seed}")), key=lambda row: row["accuracy"])
            for seed in seeds]
  named = sorted((int(name.rpartition("/")[2]), row) for name, row in found.items()
                 if name.rpartition("/")[0] == arm)
  return [row for _, row in named]


def changes(rows: Sequence[dict]) -> np.ndarray:
  """Returns how each question of all seeds changed: 1 better, 0 the same, -1 worse."""
  bits = lambda name: np.array([int(digit) for row in rows for digit in row[name]])
  return bits("right") - bits("right_before")


def mcnemar(change_N: np.ndarray) -> float:
  """Returns the two-sided exact p of as many gains and losses, if either were as likely."""
  gained = int((change_N > 0).sum())
  lost = int((change_N < 0).sum())
  return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5))) if gained + lost else 1.0


def cells(arm: str, rows: Sequence[dict]) -> list[str]:
  """Writes the cells of an arm: means over seeds, intervals over the questions and over the seeds."""
  change_N = changes(rows)
  ones_N = np.ones(len(change_N))
  low, high = bootstrap.interval_of_mean(change_N, ones_N)
  ndr_N = change_N >= 0
  ndr_low, ndr_high = bootstrap.interval_of_mean(ndr_N, ones_N)
  mean = lambda name: np.mean([row[name] for row in rows])
  _, t_low, t_high = arms.interval([row["lift"] for row in rows])
  over_seeds = "" if np.isnan(t_low) else f"{100 * t_low:+.1f} to {100 * t_high:+.1f}"
  p = mcnemar(change_N)
  spent = [row["cpu_s"] for row in rows if "cpu_s" in row]
  return [arm, SAYS[arm], str(len(rows)), f"{mean('accuracy_before'):.1%}", f"{mean('accuracy'):.1%}",
          f"{100 * change_N.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})", over_seeds,
          f"{ndr_N.mean():.3f} ({ndr_low:.3f} to {ndr_high:.3f})", f"{p:.0e}" if p < 0.001 else f"{p:.3f}",
          f"{mean('hint_tokens'):.1f}", f"{np.mean(spent):.0f}" if spent else ""]


def table(found: Mapping[str, dict]) -> str:
  """Writes a Markdown table of the arms that have been run."""
  lines = [f"| {' | '.join(HEADER)} |", "| --- " * len(HEADER) + "|"]
  lines += [f"| {' | '.join(cells(arm, rows))} |" for arm in SAYS if (rows := rows_of(found, arm))]
  return "\n".join(lines)


def draw(found: Mapping[str, dict], path: pathlib.Path) -> None:
  """Draws held-out accuracy over the updates, a line for each seed of the arms that have a curve."""
  picture = figure.Figure(figsize=(7, 4), layout="constrained")
  axes = picture.subplots()
  colours = {"teacher": "C0", "unlinked": "C1", "alone": "C2"}
  for arm, colour in colours.items():
    for number, row in enumerate(rows_of(found, arm)):
      values = next(iter(row["curve"].values()))
      steps = [int(step) for step in values]
      axes.plot(steps, [*values.values()], color=colour, label=None if number else SAYS[arm].strip("*"))
  before = [row["accuracy_before"] for row in rows_of(found, "teacher")]
  for number, value in enumerate(before):
    axes.axhline(value, color="grey", linestyle=":", label=None if number else "the student without hints")
  axes.set(xlabel="updates", ylabel="held-out questions answered right", ylim=(0, 1.02))
  axes.legend(fontsize=8)
  picture.savefig(path, dpi=110)


def write_table(readme: pathlib.Path, text: str) -> None:
  """Puts a table between the marks of a README.

  Raises:
    ValueError: if the README lacks the marks.
  """
  before, begin, rest = readme.read_text().partition(MARKS[0])
  _, end, after = rest.partition(MARKS[1])
  if not begin or not end:
    raise ValueError(f"{readme} lacks {MARKS[0]} or {MARKS[1]}; put both where the table belongs")
  readme.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main(out: pathlib.Path) -> None:
  """Writes the table and the picture beside the results."""
  found = arms.read(out)
  text = table(found)
  write_table(out.parent / "README.md", text)
  draw(found, out.parent / "curves.png")
  print(text)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
