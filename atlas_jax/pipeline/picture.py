"""The picture of a report: accuracies before and after with their intervals, beside those of the controls."""
import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

from atlas_jax.files import write

TEACHING = {"baseline_accuracy": "student\nalone", "placebo_accuracy": "guidance of\nanother question",
            "fixed_accuracy": "one fixed\nhint", "accuracy": "with\nguidance"}
OTHERS = {"val_accuracy": "accuracy"}
TITLES = {"before": "before", "after_sft": "after supervised tuning", "after": "after"}
WARNING = "#b03a2e"
LINE_CHARS = 90
COLOURS = {"before": "#9aa5b1", "after_sft": "#7fb7be", "after": "#2f6f8f"}


def draw(found: Mapping[str, Any], target: pathlib.Path) -> bool:
  """Draws a report into a PNG file; returns False, and draws nothing, where it has no accuracy."""
  made = found["evaluations"]
  names = {f"teaching_{name}": words for name, words in TEACHING.items()} | OTHERS
  shown = {name: words for name, words in names.items()
           if any(name in one["metrics"] for one in made.values())}
  if not shown:
    return False
  from matplotlib.backends.backend_agg import FigureCanvasAgg  # Slow to import, and of no use to a plan.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(1.6 + 1.6 * len(shown), 3.8), dpi=120, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  width = 0.8 / len(made)
  for number, (name, one) in enumerate(made.items()):
    for place, metric in enumerate(shown):
      if (value := one["metrics"].get(metric)) is None:
        continue
      low, high = (one["metrics"].get(f"{metric}_{end}") for end in ("low", "high"))
      errors = None if low is None or high is None else [[value - max(0.0, low)], [min(1.0, high) - value]]
      axes.bar(place + (number - (len(made) - 1) / 2) * width, value, 0.92 * width, color=COLOURS[name],
               yerr=errors, capsize=3, label=TITLES[name] if place == 0 else None)
  axes.set_xticks(range(len(shown)), list(shown.values()))
  axes.set_ylim(0, 1.05)
  axes.set_ylabel("accuracy on held-out questions")
  axes.set_title(f"{found['recipe']}: intervals of 95%", fontsize=10)
  # A picture is shown without its report: what makes its bars doubtful stands on it, too.
  if lines := [textwrap.fill(line, LINE_CHARS) for line in found["caveats"]]:
    figure.supxlabel("\n".join(lines), fontsize=8, color=WARNING)
  axes.legend(frameon=False, loc="upper left")
  with write.placed(target) as part:
    figure.savefig(part, format="png")
  return True
