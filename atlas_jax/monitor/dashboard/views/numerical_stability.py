"""Numerical Stability: gradients and updates by group, spikes of the loss, and what was not finite."""
import re
from collections.abc import Mapping

import numpy as np

from atlas_jax.monitor import thinning
from atlas_jax.monitor.dashboard import charts
from atlas_jax.monitor.dashboard.charts import Grid, LineChart, Missing, Part, Tile, Tiles
from atlas_jax.monitor.dashboard.views import View
from atlas_jax.monitor.run_folder import RunFolder

TITLE, ORDER = "Numerical Stability", 4
# Title -> how the metrics of its groups are called; those of older runs last.
GROUPS = {
    "Gradient norm by group": (r"train/grad_norm/(\w+)$", r"grad/norm/(\w+)$"),
    "Update norm by group": (r"train/update_norm/(\w+)$",),
    "Update over weight by group": (r"update/to_weight_ratio/(\w+)$",),
    "Parameter norm by group": (r"train/param_norm/(\w+)$",),
}
WINDOW = 50  # Losses that a spike is compared with.
SPIKE = 6.0  # Median absolute deviations above the median of the window,
LEAST = 0.1  # and a rise of so much of that median at least.
LISTED = 200  # Newest spikes and rows that are listed.


def parts(view: View) -> list[Part]:
  """Returns the page of a run."""
  run, axis = view.run, view.axis
  if run is None or not run.metrics.names:
    return [Missing("This run has no metrics yet.", "The page follows.")]
  steps = spikes(*thinning.finite(*run.metrics.series("train/loss_nats")))
  found = charts.present(
      _tiles(run, steps),
      charts.lines(run, "Gradient norm, of all parameters", {"grad/norm": "norm", "train/grad_norm": "norm"},
                   axis,
                   levels=_clip(run), log=_is_positive(run, "grad/norm")))
  for title, patterns in GROUPS.items():
    chart = by_group(run, title, patterns, axis)
    found += [] if chart is None else [chart]
  found += charts.present(
      charts.lines(run, "Skipped updates, in all", {"train/skipped_updates": "skipped"}, axis),
      charts.lines(run, "Parameters that an update changed", {"update/changed_frac": "fraction"}, axis),
      _spike_table(run, steps), not_finite(run))
  if not any(isinstance(part, LineChart) and "Update norm" in part.title for part in found):
    found.append(Missing("No norms of updates by group.", "monitor.group_norms writes them; "
                         "older runs have the ratio of update to weight alone."))
  return found


def by_group(run: RunFolder, title: str, patterns, axis: str) -> LineChart | None:
  """Returns a chart of the metrics that the first pattern with any finds, labelled by group."""
  for pattern in patterns:
    names = {name: found[1] for name in run.metrics.names if (found := re.match(pattern, name))}
    if names:
      positive = all(_is_positive(run, name) for name in names)
      return charts.lines(run, title, names, axis, log=positive)
  return None


def _is_positive(run: RunFolder, name: str) -> bool:
  value = thinning.finite(*run.metrics.series(name))[1]
  return bool(len(value)) and bool((value > 0).all())


def spikes(step: np.ndarray, loss: np.ndarray) -> np.ndarray:
  """Returns the places of losses that lie far above those before them, [spikes], int64.

  A loss is a spike if it lies by more than six median absolute deviations, and by a tenth, above the median
  of the 50 before it; with fewer before it, it is none. Of a spike's neighbours the first counts.

  Args:
    step: of each loss, [points].
    loss: finite, [points].
  """
  if len(loss) <= WINDOW:
    return np.empty(0, np.int64)
  # Only what is a tenth above the lowest median around can be one: few windows are sorted, of 1e6 rows.
  starts = np.arange(0, len(loss), WINDOW)
  medians = np.array([np.median(loss[max(0, start - WINDOW):start + WINDOW]) for start in starts])
  around = np.minimum(medians, np.roll(medians, 1))
  around[0] = medians[0]
  likely = np.flatnonzero(loss > np.repeat(around, WINDOW)[:len(loss)] * (1 + LEAST / 2))
  found: list[int] = []
  for place in likely[likely >= WINDOW]:
    before = loss[place - WINDOW:place]
    middle = np.median(before)
    spread = np.median(np.abs(before - middle))
    bound = middle + max(SPIKE * spread, LEAST * abs(middle))
    if loss[place] > bound and (not found or place > found[-1] + WINDOW // 5):
      found.append(int(place))
  return np.array(found, np.int64)


def _tiles(run: RunFolder, places: np.ndarray) -> Tiles:
  tiles = [Tile("Loss spikes", str(len(places)), "",
                f"above {SPIKE:.0f} deviations of {WINDOW} losses before")]
  for name, label in (("grad/norm", "Gradient norm"), ("train/skipped_updates", "Skipped updates"),
                      ("train/skipped_in_row", "Skipped in a row")):
    value = run.metrics.last(name)
    if value is not None:
      tiles.append(Tile(label, f"{value:.4g}"))
  tiles.append(Tile("Numbers not finite", f"{sum(counts_not_finite(run).values()):,}", "",
                    "null in metrics.jsonl"))
  return Tiles(tiles)


def _clip(run: RunFolder) -> list[charts.Level]:
  norm = run.setting("optim.clip_norm")
  return [charts.Level(f"clipped above {norm:g}", norm)] if isinstance(norm, int | float) and norm > 0 else []


def _spike_table(run: RunFolder, places: np.ndarray) -> Grid | None:
  if not len(places):
    return None
  step, loss = thinning.finite(*run.metrics.series("train/loss_nats"))
  shown = places[-LISTED:][::-1]
  return Grid("Loss spikes", {"step": step[shown].astype(int).tolist(), "loss": loss[shown].tolist(),
                              "median before": [float(np.median(loss[at - WINDOW:at])) for at in shown]})


def counts_not_finite(run: RunFolder) -> Mapping[str, int]:
  """Returns how many numbers of each metric were not finite, those with none left out."""
  found = {}
  for name in run.metrics.names:
    count = int(np.count_nonzero(~np.isfinite(run.metrics.series(name)[1])))
    if count:
      found[name] = count
  return found


def not_finite(run: RunFolder) -> Grid | None:
  """Returns the metrics that were not finite at some step, with the first and last of these steps."""
  counts = counts_not_finite(run)
  if not counts:
    return None
  columns: dict[str, list] = {"metric": [], "times": [], "first step": [], "last step": []}
  for name, count in counts.items():
    step, value = run.metrics.series(name)
    lost = step[~np.isfinite(value)]
    for column, entry in zip(columns, (name, count, int(lost[0]), int(lost[-1]))):
      columns[column].append(entry)
  return Grid("Not finite", columns, "eval/collapsed is null while it cannot be said.")
