"""Line charts as plain HTML, which a browser shows at once.

A browser needs two to four seconds to load Plotly, however small its figures are. The first charts of a page
are sent as sketches too: each is seen until its Plotly figure is drawn, which then takes its place (`STYLE`).
"""
import base64
import html
import math
from collections.abc import Sequence

import numpy as np

from atlas_jax.monitor.dashboard import figures
from atlas_jax.monitor.dashboard.charts import LineChart, PlotLine

# A box holds a sketch and its figure, which must have its width while it waits. Browsers without :has() show
# the figure alone, as soon as it is there.
STYLE = """.sketch { display: none; }
@supports selector(:has(a)) {
  [class*="-sketched"]:has(.sketch) { position: relative; }
  [class*="-sketched"]:not(:has(.main-svg)) .sketch { display: block; }
  [class*="-sketched"]:has(.sketch):not(:has(.main-svg)) .stElementContainer:not(:has(.sketch)) {
    position: absolute; width: 100%; visibility: hidden; }
  [class*="-sketched"]:has(.main-svg) .stElementContainer:has(.sketch) { display: none; }
}"""
LEFT_REM, RIGHT_REM, TOP_PX, BOTTOM_PX = 4.5, 0.5, 14, 72
SIDE = 1_000  # The plot's own width and height, which the page stretches to its place.
TICKS = 6  # At most, about.


def sketch(chart: LineChart, *, dark: bool = False) -> str:
  """Returns a chart as HTML, as high as its figure and as wide as the page lets it be."""
  x_range = _range([one.x for one in chart.curves])
  y_range = _y_range(chart)
  ink = figures.INK[dark]
  # As in the figure, the legend grows below the plot.
  bottom = BOTTOM_PX + figures.height(chart) - figures.HEIGHT
  drawn = [_curve(one, number, x_range, y_range, chart.log, dark) for number, one in enumerate(chart.curves)]
  drawn += [_line([(0, height), (SIDE, height)], figures.color_of(6, dark), "4 4")
            for level in chart.levels if 0 <= (height := _y(level.value, y_range, chart.log)) <= SIDE]
  y_ticks = [(tick, _y(tick, y_range, chart.log) / SIDE) for tick in _ticks(y_range, chart.log)]
  grid = "".join(_line([(0, SIDE * at), (SIDE, SIDE * at)], figures.GRID[dark]) for _, at in y_ticks)
  words = [_words(f"{tick:g}", f"right:calc(100% - {LEFT_REM - 0.5}rem);top:calc({TOP_PX}px + {at:.4f} * "
                  f"(100% - {TOP_PX + bottom}px));transform:translateY(-50%)") for tick, at in y_ticks]
  for tick in _ticks(x_range, False):
    at = (tick - x_range[0]) / (x_range[1] - x_range[0])
    words.append(_words(_short(tick), f"left:calc({LEFT_REM}rem + {at:.4f} * (100% - "
                        f"{LEFT_REM + RIGHT_REM}rem));bottom:{bottom - 20}px;transform:translateX(-50%)"))
  words.append(_words(chart.x_label, f"left:50%;bottom:{bottom - 42}px;transform:translateX(-50%)"))
  words.append(_words(chart.y_label, "left:0;top:50%;writing-mode:vertical-rl;transform:rotate(180deg) "
                      "translateY(50%)"))
  # One curve has no legend, as in the figure.
  words.append(_legend(chart.curves, dark) if len(chart.curves) > 1 else "")
  plot = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none">'
          f'{grid}{"".join(drawn)}</svg>')
  # As a picture: Streamlit takes elements of SVG out of HTML.
  source = f"data:image/svg+xml;base64,{base64.b64encode(plot.encode()).decode()}"
  return (f'<div class="sketch" role="img" aria-label="{html.escape(chart.title)}" style="position:relative;'
          f'height:{figures.height(chart)}px;color:{ink};font-size:13px"><img alt="" src="{source}" '
          f'style="position:absolute;left:{LEFT_REM}rem;top:{TOP_PX}px;'
          f'width:calc(100% - {LEFT_REM + RIGHT_REM}rem);height:calc(100% - {TOP_PX + bottom}px)">'
          f'{"".join(words)}</div>')


def _curve(one: PlotLine, number: int, x_range, y_range, log: bool, dark: bool) -> str:
  color = figures.color_of(number if one.color is None else one.color, dark)
  x = SIDE * (one.x - x_range[0]) / (x_range[1] - x_range[0])
  drawn = ""
  if one.low is not None and one.high is not None:
    ends = [*zip(x, _y(one.high, y_range, log)), *zip(x[::-1], _y(one.low[::-1], y_range, log))]
    drawn = f'<polygon points="{_points(ends)}" fill="{color}" fill-opacity="0.22" />'
  dash = {"dash": "8 5", "dot": "2 4"}.get(one.style, "")
  line = _line([*zip(x, _y(one.y, y_range, log))], color, dash, 2)
  if one.style != "points" and len(one.y) > 1:
    return drawn + line
  # A line of no length with round ends is a dot whatever the stretch of the plot.
  dots = (_line([(at, height), (at + 0.01, height)], color, "", 6) for at, height in
          zip(x, _y(one.y, y_range, log)))
  return drawn + line + "".join(dots)


def _line(points: Sequence[tuple[float, float]], color: str, dash: str = "", width: float = 1) -> str:
  return (f'<polyline points="{_points(points)}" fill="none" stroke="{color}" stroke-width="{width}" '
          f'stroke-linecap="round" stroke-dasharray="{dash}" style="vector-effect:non-scaling-stroke" />')


def _points(points: Sequence[tuple[float, float]]) -> str:
  return " ".join(f"{x:.1f},{y:.1f}" for x, y in points if math.isfinite(x) and math.isfinite(y))


def _y(value, y_range: tuple[float, float], log: bool):
  """Returns how far below the plot's top a value stands, or each of some values."""
  if log:
    value = np.log10(np.maximum(value, 1e-300))
  return SIDE * (y_range[1] - value) / (y_range[1] - y_range[0])


def _range(values: Sequence[np.ndarray], room: float = 0.0) -> tuple[float, float]:
  """Returns the least and the largest of all finite values, apart and with some room."""
  whole = np.concatenate([np.asarray(part, float) for part in values])
  whole = whole[np.isfinite(whole)]
  low, high = (float(whole.min()), float(whole.max())) if len(whole) else (0.0, 1.0)
  if low == high:
    return low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
  return low - room * (high - low), high + room * (high - low)


def _y_range(chart: LineChart) -> tuple[float, float]:
  """Returns the range of the upright axis, of logarithms where the axis is one of them."""
  parts = [part for one in chart.curves for part in (one.y, one.low, one.high) if part is not None]
  parts.append(np.array([level.value for level in chart.levels]))
  if chart.log:
    return _range([np.log10(part[part > 0]) for part in parts], 0.05)
  given = figures.fixed_range(chart)
  return (given[0], given[1]) if given else _range(parts, 0.05)


def _ticks(ends: tuple[float, float], log: bool) -> list[float]:
  """Returns round numbers within a range: powers of ten, or multiples of 1, 2 or 5 times one."""
  low, high = ends
  if log:
    powers = range(math.floor(low), math.ceil(high) + 1)
    digits = (1, 2, 5) if high - low < 2 else (1,)
    return [digit * 10.0**power for power in powers for digit in digits
            if low <= math.log10(digit) + power <= high]
  size = 10.0**math.floor(math.log10((high - low) / TICKS))
  step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= TICKS)
  return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(number: float) -> str:
  for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if abs(number) >= 10 * size or (abs(number) >= size and number % size == 0):
      return f"{number / size:g}{letter}"
  return f"{number:g}"


def _words(text: str, place: str) -> str:
  return f'<div style="position:absolute;white-space:nowrap;{place}">{html.escape(text)}</div>'


def _legend(curves: Sequence[PlotLine], dark: bool) -> str:
  shown = "".join(
      f'<span style="margin-right:1rem;white-space:nowrap"><b style="color:'
      f'{figures.color_of(number if one.color is None else one.color, dark)}">&#9473;</b> '
      f"{html.escape(one.label)}</span> " for number, one in enumerate(curves))
  return f'<div style="position:absolute;left:0;bottom:0;font-size:12px">{shown}</div>'
