"""Content of pages, as plain data: charts, tiles, tables, pictures, what is missing. No library draws here.

A view returns a list of these. `figures` makes Plotly figures of charts, `render` puts all on a page, and the
numbers of a chart can be downloaded as they are here.
"""
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.monitor import thinning
from atlas_jax.monitor.run_folder import RunFolder

SMOOTHED_FROM = 60  # Points from which on a line is drawn over its range, as means of buckets.
MEANS = 120  # Buckets of these means.


class PlotLine(NamedTuple):
  """A line; arrays are [points], finite."""

  label: str
  x: np.ndarray
  y: np.ndarray
  low: np.ndarray | None = None  # Ends of intervals or ranges, if there are any.
  high: np.ndarray | None = None
  style: str = "line"  # "line", "dash", "dot", or "points" for a line with its points marked
  color: int | None = None  # of the palette; None: by its place among the curves


class Level(NamedTuple):
  """A line across a chart, such as a bound."""

  label: str
  value: float


class LineChart(NamedTuple):
  """Curves over a common axis."""

  title: str
  curves: Sequence[PlotLine]
  x_label: str = "step"
  y_label: str = ""
  levels: Sequence[Level] = ()
  note: str = ""
  log: bool = False
  marks: Sequence[tuple[float, str]] = ()  # Places on the x axis with a word each.


class HeatMap(NamedTuple):
  """A matrix over two axes."""

  title: str
  x: np.ndarray  # [columns]
  rows: Sequence[str]
  values: np.ndarray  # [rows, columns], NaN where there is none
  x_label: str = "step"
  note: str = ""
  bounds: tuple[float, float] | None = None  # of the colours; None: of the values


class BarChart(NamedTuple):
  """A number for each name, with intervals if they are known."""

  title: str
  labels: Sequence[str]
  values: np.ndarray
  low: np.ndarray | None = None
  high: np.ndarray | None = None
  y_label: str = ""
  note: str = ""
  across: bool = False  # Whether bars lie, for long names.


class Tile(NamedTuple):
  """A number with a name."""

  label: str
  value: str
  change: str = ""
  hint: str = ""


class Tiles(NamedTuple):
  """Numbers side by side."""

  tiles: Sequence[Tile]


class ProgressBar(NamedTuple):
  """A bar: how far something is."""

  fraction: float
  words: str


class Grid(NamedTuple):
  """A table, by column; all columns are equally long."""

  title: str
  columns: Mapping[str, Sequence[Any]]
  note: str = ""


class Picture(NamedTuple):
  """A picture file of the run."""

  title: str
  path: pathlib.Path
  note: str = ""


class Board(NamedTuple):
  """A grid of cells."""

  caption: str
  colors: Sequence[Sequence[str]]  # of the cells, row by row, such as "#ffffff"
  texts: Sequence[Sequence[str]]  # written into them; "" for nothing
  hints: Sequence[Sequence[str]]  # shown where the pointer is


class BoardRow(NamedTuple):
  """Grids side by side, with their cells as columns of a table."""

  title: str
  boards: Sequence[Board]
  columns: Mapping[str, Sequence[Any]]
  note: str = ""


class Words(NamedTuple):
  """A sentence."""

  words: str
  kind: str = "caption"  # "caption", "info", "warning", "error" or "heading"


class Missing(NamedTuple):
  """Something that a run does not have, and what would write it."""

  what: str
  remedy: str


Part = (LineChart | HeatMap | BarChart | BoardRow | Tiles | ProgressBar | Grid | Picture | Words | Missing)


def x_label(run: RunFolder, axis: str) -> str:
  """Returns the words of an axis."""
  return {"step": "step", "tokens": f"{run.unit} seen", "hours": "hours since the first start"}[axis]


def curve(run: RunFolder, name: str, label: str, axis: str, *, style: str = "line",
          color: int | None = None) -> PlotLine | None:
  """Returns a metric of a run as a curve; None if no row has a finite number of it.

  A long one is thinned so that its lowest and highest values stay; a long line of training is drawn as means,
  over the range of the values.
  """
  step, value = thinning.finite(*run.metrics.series(name))
  if not len(value):
    return None
  if style != "points" and len(value) >= SMOOTHED_FROM:
    found = thinning.band(step, value, MEANS)
    return _placed(run, PlotLine(label, found.x, found.mean, found.low, found.high, style, color), axis)
  low_high = (run.metrics.series(f"{name}_{end}") for end in ("low", "high"))
  ends = [y for _, y in low_high]
  if all(len(end) == len(value) for end in ends):
    found_curve = PlotLine(label, step, value, ends[0], ends[1], style, color)
  else:
    found_curve = PlotLine(label, *thinning.thin(step, value), style=style, color=color)
  return _placed(run, found_curve, axis)


def _placed(run: RunFolder, found: PlotLine, axis: str) -> PlotLine | None:
  x = run.x(found.x, axis)
  return found._replace(x=x) if np.isfinite(x).all() else None


def lines(run: RunFolder, title: str, names: Mapping[str, Any], axis: str,
          **more) -> LineChart | None:
  """Returns a chart of those of some metrics that a run wrote; None if it wrote none.

  Args:
    run: whose metrics.
    title: of the chart.
    names: metric -> label, or (label, style).
    axis: of `run_folder.AXES`.
    more: fields of LineChart.
  """
  curves = []
  for name, label in names.items():
    words, style = (label, "line") if isinstance(label, str) else label
    if (found := curve(run, name, words, axis, style=style)) is not None:
      curves.append(found)
  return LineChart(title, curves, x_label(run, axis), **more) if curves else None


def layers_of(run: RunFolder, prefix: str) -> dict[int, str]:
  """Returns the metrics PREFIX/layer_NN of a run, by layer, in order."""
  found = {}
  for name in run.metrics.names:
    head, _, layer = name.rpartition("/layer_")
    if head == prefix and layer.isdigit():
      found[int(layer)] = name
  return dict(sorted(found.items()))


def layer_map(run: RunFolder, title: str, prefix: str, axis: str, **more) -> HeatMap | None:
  """Returns a metric of all layers over time; None if the run wrote it of none.

  Args:
    run: whose metrics.
    title: of the chart.
    prefix: of the metric, such as "eval/raw_gate_mean".
    axis: of `run_folder.AXES`.
    more: fields of HeatMap.
  """
  rows = {}
  for layer, name in layers_of(run, prefix).items():
    step, value = thinning.finite(*run.metrics.series(name))
    if len(value):
      found = thinning.band(step, value, min(len(value), MEANS))
      rows[f"layer {layer}"] = found.x, found.mean
  if not rows:
    return None
  columns = np.unique(np.concatenate([x for x, _ in rows.values()]))
  values = np.full((len(rows), len(columns)), np.nan)
  for number, (x, y) in enumerate(rows.values()):
    values[number, np.searchsorted(columns, x)] = y
  x = run.x(columns, axis)
  return HeatMap(title, x, tuple(rows), values, x_label(run, axis), **more) if np.isfinite(x).all() else None


def table(chart: LineChart | HeatMap | BarChart) -> dict[str, list]:
  """Returns the numbers that a chart shows, as columns of a table."""
  match chart:
    case LineChart():
      return _table_of_lines(chart)
    case HeatMap():
      rows, columns = chart.values.shape
      return {"row": [name for name in chart.rows for _ in range(columns)],
              chart.x_label: chart.x.tolist() * rows, "value": chart.values.ravel().tolist()}
    case BarChart():
      found = {"name": [label.replace("<br>", " ") for label in chart.labels], "value": chart.values.tolist()}
      if chart.low is not None and chart.high is not None:
        found |= {"low": chart.low.tolist(), "high": chart.high.tolist()}
      return found


def _table_of_lines(chart: LineChart) -> dict[str, list]:
  found: dict[str, list] = {"curve": [], chart.x_label: [], "value": [], "low": [], "high": []}
  for one in chart.curves:
    nothing = [None] * len(one.y)
    found["curve"] += [one.label] * len(one.y)
    found[chart.x_label] += one.x.tolist()
    found["value"] += one.y.tolist()
    found["low"] += nothing if one.low is None else one.low.tolist()
    found["high"] += nothing if one.high is None else one.high.tolist()
  return found


def present(*parts: Part | None) -> list[Part]:
  """Returns the parts that there are."""
  return [part for part in parts if part is not None]
