"""Series, colours, lines and panels for all pictures of a run's numbers."""
from collections.abc import Mapping
from typing import Any

import numpy as np

TRAIN = "#2b6cb0"
VAL = "#c05621"
QUIET = "#6b7280"
MORE = ("#2f855a", "#805ad5", "#b7791f", "#0987a0", "#b83280")  # For lines that are none of these.
SMOOTHED_FROM_POINTS = 40
SCHEDULED = ("train/lr",)  # Set, not measured: there is nothing to smooth.
ENDING_ROWS = 5  # One batch says little: what a run ended with is the mean of so many rows at most,
ENDING_PARTS = 10  # and of the last tenth of them, over which little changes.
STEADY_POINTS = 5  # The last points average over at least so many before them.


class Series(dict):
  """name -> (x, y): tokens seen, or steps in a run that did not count them, and finite values."""

  x_label = "tokens seen"


def draw_lines(axes, series: Series, lines: Mapping[str, tuple[str, Any, str]], *,
               ending: str = "{:.3g}") -> list[np.ndarray]:
  """Draws metrics as lines; long ones without markers are smoothed, single points marked.

  Labels say what a metric ended with, see `ended`; those with markers are of evaluations.

  Args:
    axes: of matplotlib.
    series: of the run.
    lines: name -> (label, colour, style) of those to draw, if the run wrote them.
    ending: how labels say what it ended with.

  Returns:
    The values of each line drawn.
  """
  drawn = []
  for name, (label, color, style) in lines.items():
    if name in series:
      x, y = series[name]
      # An evaluation is a mean already, and a scheduled value is exact: their last value stands for itself.
      last = y[-1] if "o" in style or name in SCHEDULED else ended(y)
      if len(y) >= SMOOTHED_FROM_POINTS and "o" not in style and name not in SCHEDULED:
        axes.plot(x, y, color=color, alpha=0.25, linewidth=1)
        y = smooth(y)
      axes.plot(x, y, style, color=color, linewidth=2, markersize=5, **mark(y, style),
                label=f"{label}: {ending.format(last)}")
      drawn.append(y)
  return drawn


def ended(values) -> float:
  """Returns what a metric of training ended with, in pictures and summary alike.

  It is the mean of the last tenth of its rows, of five at most and of one at least.
  """
  return float(np.mean(values[-min(ENDING_ROWS, max(1, len(values) // ENDING_PARTS)):]))


def mark(values: np.ndarray, style: str = "") -> dict[str, str]:
  """Returns a line of one point, which else cannot be seen, its marker."""
  return {"marker": "o"} if len(values) == 1 and "o" not in style else {}


def cut_top(axes, *drawn: np.ndarray) -> None:
  """Cuts the few highest values of long lines off, those of the first steps, so that the rest can be read."""
  low = min(values.min() for values in drawn)
  top = max(values.max() for values in drawn)
  high = max(np.quantile(values, 0.98) for values in drawn)
  # Only where the highest 2% take more than half of the picture.
  if top - low > 2 * (high - low) > 0:
    axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))


def legend_below(axes, *others) -> None:
  """Puts the legend of a panel, and of the axes on its right, below it, where no curve can be."""
  pairs = [pair for one in (axes, *others) for pair in zip(*one.get_legend_handles_labels())]
  handles, labels = zip(*pairs)
  axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, fontsize=10.5,
              ncols=2 if len(labels) < 5 else 3, handlelength=1.5, columnspacing=1.2)


def finish(axes, title: str, x_label: str, y_label: str, drawn: bool, missing: str) -> None:
  """Sets the title and labels of a panel; one that nothing was drawn on says what the run did not write."""
  axes.set_title(title, fontsize=13, loc="left")
  axes.spines[["top", "right"]].set_visible(False)
  if not drawn:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, f"{missing} in metrics.jsonl", ha="center", va="center", color=QUIET, fontsize=12,
              transform=axes.transAxes)
    return
  axes.set_xlabel(x_label, fontsize=11)
  axes.set_ylabel(y_label, fontsize=11)
  axes.grid(axis="y", alpha=0.3)
  axes.set_axisbelow(True)
  if x_label:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(short_number)
    axes.legend(frameon=False, fontsize=11)


def short_number(value: float, position: int = 0) -> str:
  """Writes 1.5k for 1500; as a formatter of matplotlib it is handed a position too."""
  del position
  for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:.4g}{letter}"
  return f"{value:.4g}"


def smooth(values: np.ndarray) -> np.ndarray:
  """Averages every point with as many before as after it, so that a falling curve is not late."""
  # A running sum, so that the mean of any stretch is one difference, and long runs are drawn at once.
  n = len(values)
  sums = np.concatenate([[0.0], np.cumsum(values)])
  # As far to the left as to the right: towards the ends the stretch shrinks, down to the point alone. The
  # last points are widened to the left again, since what a run ended with is read from them.
  reach = np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]), max(3, n // 50))
  reach[-STEADY_POINTS:] = np.maximum(reach[-STEADY_POINTS:], STEADY_POINTS)
  first = np.maximum(np.arange(n) - reach, 0)
  last = np.minimum(np.arange(n) + reach + 1, n)
  return (sums[last] - sums[first]) / (last - first)
