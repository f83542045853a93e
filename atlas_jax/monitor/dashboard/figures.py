"""Charts as Plotly figures, light and dark.

Colours of lines are those of Okabe and Ito, who chose them for colour-blind readers; where two of them would
be weak on white or on black, they are a little darker or lighter. Lines differ by dashes too where there are
more than there are colours, and held-out points have markers. Heat maps are cividis, made for the same readers.
"""
import plotly.graph_objects as go

from atlas_jax.monitor.dashboard.charts import BarChart, Curve, HeatMap, LineChart

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
      made = _lines(chart, dark)
    case HeatMap():
      made = _heat(chart)
    case BarChart():
      made = _bars(chart, dark)
  made.update_layout(
      template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
      font=dict(color=INK[dark], size=13), margin=dict(l=8, r=8, t=26, b=8), height=_height(chart),
      hovermode="x unified" if isinstance(chart, LineChart) else "closest", dragmode=False,
      legend=dict(orientation="h", yanchor="top", y=-0.24, x=0, title_text="", font=dict(size=12)),
      hoverlabel=dict(namelength=-1), uirevision="kept")  # A refresh keeps what the reader has zoomed to.
  made.update_xaxes(gridcolor=GRID[dark], zeroline=False, automargin=True, nticks=7, title_standoff=6)
  made.update_yaxes(gridcolor=GRID[dark], zeroline=False, automargin=True, title_standoff=6)
  return made


def color_of(number: int, dark: bool) -> str:
  """Returns a colour of the palette, which begins anew after its end."""
  palette = DARK if dark else LIGHT
  return palette[number % len(palette)]


def _height(chart) -> int:
  if isinstance(chart, HeatMap):
    return max(190, 110 + ROW_HEIGHT * len(chart.rows))
  if isinstance(chart, BarChart) and chart.across:
    return max(160, 90 + ROW_HEIGHT * len(chart.labels))
  if isinstance(chart, LineChart):
    return HEIGHT + 16 * max(0, len(chart.curves) - 4)  # The legend below grows with the curves.
  return HEIGHT


def _lines(chart: LineChart, dark: bool) -> go.Figure:
  made = go.Figure()
  for number, one in enumerate(chart.curves):
    _add_curve(made, one, number, dark)
  for level in chart.levels:
    made.add_hline(y=level.value, line=dict(color=color_of(6, dark), dash="dash", width=1.5),
                   annotation_text=level.label, annotation_position="top left",
                   annotation_font=dict(size=11, color=color_of(6, dark)))
  for place, word in chart.marks:
    made.add_vline(x=place, line=dict(color=color_of(6, dark), dash="dot", width=1.5), annotation_text=word,
                   annotation_textangle=-90, annotation_position="top right",
                   annotation_font=dict(size=11, color=color_of(6, dark)))
  made.update_xaxes(title_text=chart.x_label)
  made.update_yaxes(title_text=chart.y_label, type="log" if chart.log else "linear")
  made.update_layout(showlegend=len(chart.curves) > 1)
  return made


def _add_curve(made: go.Figure, one: Curve, number: int, dark: bool) -> None:
  number = number if one.color is None else one.color
  color = color_of(number, dark)
  dash = DASHES[number // len(LIGHT) % len(DASHES)] if one.style in ("line", "points") else STYLES[one.style]
  pointed = one.style == "points" or len(one.y) == 1
  errors = None
  if one.low is not None and one.high is not None:
    if pointed:
      errors = dict(type="data", symmetric=False, array=one.high - one.y, arrayminus=one.y - one.low,
                    thickness=1.2, width=3)
    else:
      for ends, fill in ((one.high, None), (one.low, "tonexty")):
        made.add_trace(go.Scatter(x=one.x, y=ends, mode="lines", line=dict(width=0, color=color), fill=fill,
                                  fillcolor=_faint(color), hoverinfo="skip", showlegend=False))
  made.add_trace(go.Scatter(
      x=one.x, y=one.y, name=one.label, mode="lines+markers" if pointed else "lines",
      line=dict(color=color, width=2, dash=dash), error_y=errors, marker=dict(size=6),
      hovertemplate="%{y:.4~g}"))


def _faint(color: str) -> str:
  red, green, blue = (int(color[at:at + 2], 16) for at in (1, 3, 5))
  return f"rgba({red},{green},{blue},0.22)"


def _heat(chart: HeatMap) -> go.Figure:
  low, high = chart.bounds or (None, None)
  made = go.Figure(go.Heatmap(
      x=chart.x, y=list(chart.rows), z=chart.values, zmin=low, zmax=high, colorscale="Cividis",
      hovertemplate="%{y}, " + chart.x_label + " %{x:.4~g}: %{z:.4~g}<extra></extra>",
      colorbar=dict(thickness=12, len=1.0, outlinewidth=0)))
  made.update_xaxes(title_text=chart.x_label)
  made.update_yaxes(type="category", autorange="reversed")
  return made


def _bars(chart: BarChart, dark: bool) -> go.Figure:
  ends = None
  if chart.low is not None and chart.high is not None:
    ends = dict(type="data", symmetric=False, array=chart.high - chart.values,
                arrayminus=chart.values - chart.low, color=INK[dark], thickness=1.5)
  # Blue helps and orange harms: by colour, and by the side of zero on which the bar stands.
  colors = [color_of(0 if value >= 0 else 1, dark) for value in chart.values]
  texts = [f"{value:.3g}" for value in chart.values]
  names, values = list(chart.labels), chart.values
  x, y = (values, names) if chart.across else (names, values)
  made = go.Figure(go.Bar(x=x, y=y, orientation="h" if chart.across else "v", marker_color=colors, text=texts,
                          textposition="outside" if ends is None else "inside", cliponaxis=False,
                          hovertemplate="%{text}<extra></extra>",
                          **{"error_x" if chart.across else "error_y": ends}))
  made.update_layout(bargap=0.35, showlegend=False)
  if chart.across:
    made.update_yaxes(type="category", autorange="reversed")
    made.update_xaxes(title_text=chart.y_label)
  else:
    made.update_xaxes(type="category")
    made.update_yaxes(title_text=chart.y_label)
  return made
