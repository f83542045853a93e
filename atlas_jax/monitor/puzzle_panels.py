"""The panels of a report on a recursive model that solves puzzles."""
import re

import numpy as np

from atlas_jax.monitor.clock import rate_text
from atlas_jax.monitor.curves import QUIET, TRAIN, VAL, Series, draw_lines, finish, legend_below

SEEN = "train/supervision_steps_seen"  # A run that writes it has these panels.
UPDATES = "updates"
PASS = re.compile(r"ARC/pass@(\d+)$")


def names_of(series: Series) -> tuple[str, ...]:
  """Returns which panels a run's report has; those on ARC have attempts in place of tokens."""
  # ARC counts tasks by attempts; accuracy by tokens says little of a grid that must be right in every cell.
  third = "pass_at_k" if any(PASS.match(name) for name in series) else "accuracy"
  return ("puzzle_loss", "exact_accuracy", third, "steps", "halting", "rate")


def headline(series: Series) -> str:
  """Returns how long a run was, and what it reached."""
  parts = [f"{series[SEEN][0][-1]:,.0f} updates"]
  for name, count, words in (("ARC/pass@2", "ARC/n_tasks", "held-out tasks solved in two attempts"),
                             ("eval/all/exact_accuracy", "eval/all/count", "held-out puzzles solved")):
    # The first that was written: ARC tasks are solved in attempts, other puzzles in one.
    if name in series:
      number = f"{series[count][1][-1]:,.0f} " if count in series else ""
      parts.append(f"{series[name][1][-1]:.1%} of {number}{words}")
      break
  return "  ·  ".join(parts)


def _draw_puzzle_loss(axes, series: Series) -> None:
  drawn = draw_lines(axes, series, {
      "train/lm_loss": ("tokens, in training", TRAIN, "-"),
      "eval/all/lm_loss": ("tokens, held out", VAL, "-o"),
      "train/q_halt_loss": ("halting, in training", QUIET, "-"),
      "eval/all/q_halt_loss": ("halting, held out", VAL, ":o")})
  _finish(axes, "Loss of tokens and of the halting decision", "nats", drawn, "no train/lm_loss")
  if drawn:
    # Without the first steps, whose loss is so high that the rest would be a line at the bottom.
    axes.set_ylim(0, 1.05 * max(np.quantile(y, 0.98) for y in drawn) or 1)


def _draw_fraction(axes, series: Series, kind: str, title: str, y_label: str) -> None:
  lines = {f"recent/{kind}": ("in training", TRAIN, "-"), f"eval/all/{kind}": ("held out", VAL, "-o")}
  drawn = draw_lines(axes, series, lines, ending="{:.1%}")
  _finish(axes, title, y_label, drawn, f"no recent/{kind}")
  if drawn:
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter("{x:.0%}")


def _draw_exact_accuracy(axes, series: Series) -> None:
  _draw_fraction(axes, series, "exact_accuracy", "Puzzles solved, every token right", "fraction of puzzles")


def _draw_accuracy(axes, series: Series) -> None:
  _draw_fraction(axes, series, "accuracy", "Tokens right", "fraction of tokens")


def _draw_halting(axes, series: Series) -> None:
  _draw_fraction(axes, series, "q_halt_accuracy", "Halting decision right", "fraction of puzzles")


def _draw_pass(axes, series: Series) -> None:
  # Here, since importing it takes long and only runs that draw need it.
  import matplotlib
  names = sorted((int(found[1]), name) for name in series if (found := PASS.match(name)))
  colors = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, max(1, len(names)))).tolist()
  lines = {name: (f"pass@{tries}", color, "-o") for (tries, name), color in zip(names, colors)}
  drawn = draw_lines(axes, series, lines, ending="{:.1%}")
  _finish(axes, "Held-out ARC tasks solved within K attempts", "fraction of tasks", drawn, "no ARC/pass@*")
  if drawn:
    axes.set_ylim(0, min(1.03, 1.3 * max(y.max() for y in drawn)) or 1)
    axes.yaxis.set_major_formatter("{x:.0%}")


def _draw_steps(axes, series: Series) -> None:
  drawn = draw_lines(axes, series, {
      "recent/steps": ("until halting, in training", TRAIN, "-"),
      "eval/all/steps": ("for an answer, held out", VAL, "-o")})
  _finish(axes, "Supervision steps on a puzzle", "steps, mean", drawn, "no recent/steps")
  if drawn:
    axes.set_ylim(0, 1.15 * max(y.max() for y in drawn))


def _draw_rate(axes, series: Series) -> None:
  drawn = draw_lines(axes, series, {"train/lr": ("learning rate", TRAIN, "-")}, ending="{:.2g}")
  if drawn and (speed := series.get("perf/supervision_steps_per_s")) is not None:
    # Speed has another unit and size, so it has an axis of its own on the right.
    other = axes.twinx()
    other.plot(*speed, color=QUIET, linewidth=1.5)
    other.set_ylim(0, 1.3 * np.quantile(speed[1], 0.95) or 1)
    other.set_ylabel("speed, supervision steps per second", fontsize=11, color=QUIET)
    other.spines["top"].set_visible(False)
    # An empty line puts speed into the legend of the left axis, where the other label is.
    axes.plot([], [], color=QUIET, linewidth=1.5, label=f"speed, median: {rate_text(np.median(speed[1]))}")
  _finish(axes, "Learning rate and speed", "learning rate", drawn, "no train/lr")
  if drawn:
    axes.set_ylim(0, 1.3 * drawn[0].max() or 1)
    axes.yaxis.set_major_formatter("{x:g}")


def _finish(axes, title: str, y_label: str, drawn: list, missing: str) -> None:
  """Finishes a panel with its legend below, where no curve can be."""
  finish(axes, title, UPDATES, y_label, bool(drawn), missing)
  if drawn:
    legend_below(axes)


PANELS = {"puzzle_loss": _draw_puzzle_loss, "exact_accuracy": _draw_exact_accuracy,
          "accuracy": _draw_accuracy, "pass_at_k": _draw_pass, "steps": _draw_steps,
          "halting": _draw_halting, "rate": _draw_rate}
