"""Charts as Plotly figures, light and dark.

Colours of lines are those of Okabe and Ito, who chose them for colour-blind readers; where two of them would
be weak on white or on black, they are a little darker or lighter. Lines differ by dashes too where there are
more than there are colours, and held-out points have markers. Matrices are in cividis, made for the same
readers.
"""
import math

import numpy as np
import plotly.graph_objects as go

from atlas_jax.monitor.dashboard.charts import BarChart, HeatMap, LineChart, PlotLine

LIGHT = ("#0072b2", "#d55e00", "#008f6b", "#b0568f", "#c28100", "#3b93c9", "#5c5c5c")
DARK = ("#4fa8e0", "#ff8c42", "#2fc9a0", "#e29ac3", "#f0b429", "#8fd0f5", "#bdbdbd")
DASHES = ("solid", "dash", "dot", "dashdot")
STYLES = {"line": "solid", "points": "solid", "dash": "dash", "dot": "dot"}
GRID = {False: "rgba(110,118,130,0.22)", True: "rgba(170,180,195,0.20)"}
INK = {False: "#31333f", True: "#e6e8ec"}
HEIGHT = 340  # Pixels.
ROW_HEIGHT = 30  # Pixels of a bar that lies, or of a layer.


def figure(chart: LineChart | HeatMap | BarChart, *, dark: bool = False) -> go.Figure:
  """Returns a chart as a figure; its title is not part of it, since the page has it as a heading."""
  match chart:
    case LineChart():
      traces, layout = _lines(chart, dark)
    case HeatMap():
      traces, layout = _map(chart)
    case BarChart():
      traces, layout = _bars(chart, dark)
  axis = dict(gridcolor=GRID[dark], zeroline=False, automargin=True)
  layout |= {
      "template": "none", "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
      "font": dict(color=INK[dark], size=13), "margin": dict(l=8, r=8, t=14, b=8), "height": height(chart),
      "hovermode": "x unified" if isinstance(chart, LineChart) else "closest", "dragmode": False,
      "legend": dict(orientation="h", yanchor="top", y=-0.24, x=0, traceorder="normal", font=dict(size=12)),
      "hoverlabel": dict(namelength=-1), "uirevision": "kept",
      # A refresh keeps what the reader has zoomed to.
      "xaxis": axis | dict(nticks=7) | layout.get("xaxis", {}), "yaxis": axis | layout.get("yaxis", {})}
  # At once from a dict: each call that changes a figure costs as much as making it.
  return go.Figure(dict(data=traces, layout=layout))


def color_of(number: int, dark: bool) -> str:
  """Returns a colour of the palette, which begins anew after its end."""
  palette = DARK if dark else LIGHT
  return palette[number % len(palette)]


def height(chart) -> int:
  """Returns the height of a chart's figure, in pixels."""
  if isinstance(chart, HeatMap):
    return max(190, 110 + ROW_HEIGHT * len(chart.rows))
  if isinstance(chart, BarChart) and chart.across:
    return max(160, 90 + ROW_HEIGHT * len(chart.labels))
  if isinstance(chart, LineChart):
    return HEIGHT + 16 * max(0, len(chart.curves) - 4)  # The legend below grows with the curves.
  return HEIGHT


def _axis(words: str, **more) -> dict:
  return dict(title=dict(text=words, standoff=6), **more)


def _lines(chart: LineChart, dark: bool) -> tuple[list[dict], dict]:
  traces = [trace for number, one in enumerate(chart.curves) for trace in _traces(one, number, dark)]
  line = dict(color=color_of(6, dark), width=1.5)
  words = dict(showarrow=False, font=dict(size=11, color=color_of(6, dark)))
  shapes, notes = [], []
  for number, level in enumerate(chart.levels):
    shapes.append(dict(type="line", xref="paper", x0=0, x1=1, y0=level.value, y1=level.value,
                       line=line | dict(dash="dash")))
    # Words of levels that lie close by stand at both ends in turn, above and below.
    side = number % 2
    notes.append(words | dict(xref="paper", x=side, xanchor="right" if side else "left",
                              y=_place(level.value, chart),
                              yanchor="top" if side else "bottom", text=level.label))
  for place, word in chart.marks:
    shapes.append(dict(type="line", yref="paper", y0=0, y1=1, x0=place, x1=place,
                       line=line | dict(dash="dot")))
    notes.append(words | dict(x=place, xanchor="left", yref="paper", y=1, yanchor="top", text=word,
                              textangle=-90))
  return traces, dict(
      shapes=shapes, annotations=notes, showlegend=len(chart.curves) > 1, xaxis=_axis(chart.x_label),
      yaxis=_axis(chart.y_label, **(_log_ticks(chart) if chart.log else _range(chart))))


def _place(value: float, chart: LineChart) -> float:
  """Returns where a note stands on the axis: on a logarithmic one Plotly takes the logarithm."""
  return math.log10(value) if chart.log and value > 0 else value


def _log_ticks(chart: LineChart) -> dict:
  """Returns a logarithmic axis with ticks at 1, 2 and 5, or at whole decades where there are many."""
  values = np.concatenate([y for one in chart.curves for y in (one.y, one.low, one.high) if y is not None])
  values = values[values > 0]
  if not len(values):
    return dict(type="log")
  first, last = (math.floor(math.log10(value)) for value in (values.min(), values.max()))
  steps = (1, 2, 5) if last - first < 4 else (1,)
  ticks = [digit * 10.0**power for power in range(first, last + 2) for digit in steps]
  return dict(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def fixed_range(chart: LineChart) -> list[float] | None:
  """Returns the range of the upright axis, where it is not that of the values."""
  ends = [float(y.max()) for one in chart.curves for y in (one.y, one.high) if y is not None and len(y)]
  low = [float(y.min()) for one in chart.curves for y in (one.y, one.low) if y is not None and len(y)]
  if chart.y_label.startswith("fraction") and min(low, default=0) >= 0:
    top = 1.08 * max(ends, default=0)
    return [0, min(top, 1.05) if top > 0 else 1]
  values = [*ends, *low, *(level.value for level in chart.levels)]
  if not chart.levels or not values:
    return None
  # Plotly does not look at lines across for the range.
  room = 0.08 * (max(values) - min(values)) or 1.0
  return [min(values) - room, max(values) + room]


def _range(chart: LineChart) -> dict:
  found = fixed_range(chart)
  return {} if found is None else dict(range=found)


def _traces(one: PlotLine, number: int, dark: bool) -> list[dict]:
  number = number if one.color is None else one.color
  color = color_of(number, dark)
  dash = DASHES[number // len(LIGHT) % len(DASHES)] if one.style in ("line", "points") else STYLES[one.style]
  pointed = one.style == "points" or len(one.y) == 1
  line = dict(type="scatter", x=one.x, y=one.y, name=one.label, mode="lines+markers" if pointed else "lines",
              line=dict(color=color, width=2, dash=dash), marker=dict(size=6), hovertemplate="%{y:.4~g}")
  if one.low is None or one.high is None:
    return [line]
  if pointed:
    return [line | dict(error_y=_ends(one.y, one.low, one.high))]
  edge = dict(type="scatter", x=one.x, mode="lines", line=dict(width=0, color=color), hoverinfo="skip",
              showlegend=False)
  return [edge | dict(y=one.high), edge | dict(y=one.low, fill="tonexty", fillcolor=_faint(color)), line]


def _ends(value, low, high, **more) -> dict:
  return dict(type="data", symmetric=False, array=high - value, arrayminus=value - low, thickness=1.3,
              width=4,
              **more)


def _faint(color: str) -> str:
  red, green, blue = (int(color[at:at + 2], 16) for at in (1, 3, 5))
  return f"rgba({red},{green},{blue},0.22)"


def _map(chart: HeatMap) -> tuple[list[dict], dict]:
  low, high = chart.bounds or (None, None)
  trace = dict(type="heatmap", x=chart.x, y=list(chart.rows), z=chart.values, zmin=low, zmax=high,
               colorscale="Cividis", colorbar=dict(thickness=12, len=1.0, outlinewidth=0),
               hovertemplate="%{y}, " + chart.x_label + " %{x:.4~g}: %{z:.4~g}<extra></extra>")
  return [trace], dict(xaxis=_axis(chart.x_label), yaxis=dict(type="category", autorange="reversed"))


def _bars(chart: BarChart, dark: bool) -> tuple[list[dict], dict]:
  # Blue helps and orange harms: by colour, and by the side of zero on which the bar stands.
  colors = [color_of(0 if value >= 0 else 1, dark) for value in chart.values]
  trace = dict(type="bar", marker=dict(color=colors),
               text=[_written(chart, at) for at in range(len(chart.labels))],
               textposition="outside", cliponaxis=False, hovertemplate="%{text}<extra></extra>")
  names, numbers = dict(type="category"), _axis(chart.y_label, **_room(chart))
  if chart.low is not None and chart.high is not None:
    trace["error_x" if chart.across else "error_y"] = _ends(chart.values, chart.low, chart.high,
                                                            color=INK[dark])
    # Beside the ends of an interval there is no place for the words.
    trace |= dict(textposition="inside", insidetextanchor="start")
  if chart.across:
    trace |= dict(x=chart.values, y=list(chart.labels), orientation="h")
    return [trace], dict(bargap=0.35, xaxis=numbers, yaxis=names | dict(autorange="reversed"))
  trace |= dict(x=list(chart.labels), y=chart.values)
  return [trace], dict(bargap=0.35, xaxis=names, yaxis=numbers)


def _written(chart: BarChart, at: int) -> str:
  return f"{chart.values[at]:,.0f}" if abs(chart.values[at]) >= 1_000 else f"{chart.values[at]:.3g}"


def _room(chart: BarChart) -> dict:
  """Returns the range of the numbers, with zero in it and room for words behind the bars."""
  low = chart.values if chart.low is None else np.minimum(chart.low, chart.values)
  high = chart.values if chart.high is None else np.maximum(chart.high, chart.values)
  least, most = min(0.0, float(low.min(initial=0))), max(0.0, float(high.max(initial=0)))
  if least == most:
    return dict(range=[0, 1])
  return dict(range=[1.15 * least, 1.15 * most])
