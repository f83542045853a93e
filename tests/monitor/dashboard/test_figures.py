"""Charts as Plotly figures."""

import numpy as np
import pytest

from atlas_jax.monitor.dashboard import figures
from atlas_jax.monitor.dashboard.charts import BarChart, HeatMap, Level, LineChart, PlotLine

X = np.arange(4.0)


def lines(**more):
  curves = [PlotLine("a", X, X + 1, X, X + 2), PlotLine("b", X, X + 3, X, X + 9, style="points"),
            PlotLine("c", X[:1], X[:1] + 1)]
  return LineChart("Lines", curves, "step", "nats", **more)


def contrast(color, ground):
  """The ratio of luminances of WCAG 2."""
  def luminance(code):
    parts = [int(code[at:at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  high, low = sorted((luminance(color), luminance(ground)), reverse=True)
  return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_have_ranges_points_and_intervals(dark):
  made = figures.figure(lines(levels=[Level("bound", 20.0)], marks=[(2.0, "here")]), dark=dark)
  shown = [trace for trace in made.data if trace.showlegend is not False]
  assert [trace.name for trace in shown] == ["a", "b", "c"]
  assert [trace.mode for trace in shown] == ["lines", "lines+markers", "lines+markers"]
  np.testing.assert_array_equal(shown[1].error_y.array, [6, 6, 6, 6])
  assert made.layout.yaxis.range[1] > 20, "a bound is in sight"
  assert [note.text for note in made.layout.annotations] == ["bound", "here"] and len(made.layout.shapes) == 2
  palette = figures.DARK if dark else figures.LIGHT
  assert [trace.line.color for trace in shown] == list(palette[:3])


def test_more_lines_than_colours_differ_by_dashes():
  many = LineChart("Many", [PlotLine(str(number), X, X) for number in range(2 * len(figures.LIGHT))])
  styles = {(trace.line.color, trace.line.dash) for trace in figures.figure(many).data}
  assert len(styles) == 2 * len(figures.LIGHT)


@pytest.mark.parametrize(("palette", "ground"), [(figures.LIGHT, "#ffffff"), (figures.DARK, "#1a1917")])
def test_every_colour_can_be_seen_on_its_ground(palette, ground):
  assert min(contrast(color, ground) for color in palette) >= 3.0  # WCAG 2 for parts of pictures.


def test_fractions_begin_at_zero_also_where_all_are_zero():
  chart = LineChart("None right", [PlotLine("a", X, 0 * X, style="points")], y_label="fraction right")
  assert tuple(figures.figure(chart).layout.yaxis.range) == (0, 1)


def test_a_logarithmic_axis_is_one():
  made = figures.figure(lines(log=True, levels=[Level("ten", 10.0)]))
  assert made.layout.yaxis.type == "log" and made.layout.annotations[0].y == 1.0


def test_heat_maps_keep_their_rows_and_bounds():
  chart = HeatMap("Heat", X, ("layer 0", "layer 1"), np.array([[0.1, 0.2, np.nan, 0.4]] * 2),
                  bounds=(0.0, 1.0))
  (trace,) = figures.figure(chart).data
  assert trace.y == ("layer 0", "layer 1") and (trace.zmin, trace.zmax) == (0.0, 1.0)


@pytest.mark.parametrize("across", [False, True])
def test_bars_tell_help_from_harm_and_have_intervals(across):
  chart = BarChart("Bars", ["a", "b"], np.array([0.2, -0.1]), np.array([0.1, -0.3]), np.array([0.3, 0.1]),
                   across=across)
  made = figures.figure(chart)
  (trace,) = made.data
  assert trace.marker.color == (figures.LIGHT[0], figures.LIGHT[1]) and trace.text == ("0.2", "-0.1")
  ends, axis = (trace.error_x, made.layout.xaxis) if across else (trace.error_y, made.layout.yaxis)
  np.testing.assert_allclose(ends.arrayminus, [0.1, 0.2])
  assert axis.range[0] < -0.3 and axis.range[1] > 0.3
