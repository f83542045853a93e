"""The panel of a report that shows how fast a run was."""
import re

import numpy as np

from atlas_jax.monitor.clock import rate_text
from atlas_jax.monitor.curves import TRAIN, Series, finish, legend_below, mark, short_number

NAME = "speed"
RATE = re.compile(r"perf/(?!.*flops)(\w+)_per_s$")
FRACTION = "perf/flops_fraction_of_peak"


def names_of(series: Series) -> tuple[str, ...]:
  """Returns the panel's name, if the run wrote a speed."""
  return (NAME,) if _rate(series) else ()


def _rate(series: Series) -> str | None:
  return next((name for name in series if RATE.match(name)), None)


def draw(axes, series: Series) -> None:
  """Draws the speed; its label has the median, and that of the fraction of the devices' peak."""
  name = _rate(series)
  if name is None:
    finish(axes, "Speed", "", "", False, "no perf/*_per_s")
    return
  unit = RATE.match(name)[1].replace("_", " ")  # type: ignore[index]  # `_rate` has matched it.
  values = series[name][1]
  label = f"{rate_text(np.median(values))} {unit}/s (median)"
  # In words: the fraction goes with the speed, and its curve would lie on this one.
  if FRACTION in series:
    label += f", {np.median(series[FRACTION][1]):.1%} of the peak"
  # Not smoothed: evaluations and waits are what one looks for.
  axes.plot(*series[name], color=TRAIN, linewidth=1.3, **mark(values), label=label)
  axes.set_ylim(0, 1.2 * np.quantile(values, 0.98) or 1)
  finish(axes, "Speed", series.x_label, f"{unit} per second", True, "")
  axes.yaxis.set_major_formatter(short_number)
  legend_below(axes)


PANELS = {NAME: draw}
