"""The panel of a report that shows where the time of a run went."""
from atlas_jax.monitor.curves import QUIET, TRAIN, Series, finish
from atlas_jax.monitor.ledger import KINDS

NAME = "time"


def names_of(series: Series) -> tuple[str, ...]:
  """Returns whether a run has an account of its time."""
  return (NAME,) if f"perf/time_{KINDS[0]}_s" in series else ()


def draw(axes, series: Series) -> None:
  """Draws the seconds of each kind since the first start, up to the last row of metrics."""
  # Each row has the totals since the first start, so the last one is all that is needed.
  seconds = {kind: float(series[f"perf/time_{kind}_s"][1][-1]) for kind in KINDS
             if f"perf/time_{kind}_s" in series}
  finish(axes, f"Where {sum(seconds.values()):,.0f} s went", "", "", bool(seconds), "no perf/time_*")
  if not seconds:
    return
  whole = max(sum(seconds.values()), 1e-9)
  kinds = list(seconds)
  values = list(seconds.values())
  bars = axes.barh(range(len(kinds)), values, color=[TRAIN if kind == "step" else QUIET for kind in kinds])
  axes.bar_label(bars, [f"{value / whole:.0%}" for value in values], padding=4, fontsize=11)
  axes.set_yticks(range(len(kinds)), kinds)
  # Bars are drawn from the bottom up; turned round, they stand in the order of KINDS.
  axes.invert_yaxis()
  axes.set_xlim(0, 1.15 * max(*values, 1e-9))
  axes.set_xlabel("seconds", fontsize=11)
  axes.grid(visible=False)


PANELS = {NAME: draw}
