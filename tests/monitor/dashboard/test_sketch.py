"""Line charts as HTML: the same points, ranges and words as in the figures."""

import base64
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from atlas_jax.monitor.dashboard import figures, sketch
from atlas_jax.monitor.dashboard.charts import Level, LineChart, PlotLine

X = np.arange(5.0)


def plot_of(made):
  """The picture in a sketch, as a tree."""
  (source,) = re.findall(r"base64,([^\"]+)", made)
  return xml.fromstring(base64.b64decode(source))


def polylines(made):
  return [one for one in plot_of(made).iter() if one.tag.endswith("polyline")]


def curve_points(made, color):
  (line,) = [one for one in polylines(made) if one.get("stroke") == color and one.get("stroke-width") == "2"]
  return np.array([[float(part) for part in pair.split(",")] for pair in line.get("points").split()])


@pytest.mark.parametrize("dark", [False, True])
def test_a_curve_runs_from_corner_to_corner(dark):
  made = sketch.sketch(LineChart("Loss <b>", [PlotLine("a", X, 2 * X)], "step", "nats"), dark=dark)
  points = curve_points(made, figures.color_of(0, dark))
  assert points[0, 0] == 0 and points[-1, 0] == sketch.SIDE
  # Higher values stand further up, and a straight line stays straight.
  np.testing.assert_allclose(np.diff(points[:, 1]), points[1, 1] - points[0, 1], atol=0.2)
  assert points[0, 1] > points[-1, 1] >= 0
  assert f"height:{figures.HEIGHT}px" in made and 'aria-label="Loss &lt;b&gt;"' in made
  assert ">nats<" in made and ">step<" in made and ">8<" in made


def test_a_logarithmic_axis_spaces_powers_of_ten_evenly():
  made = sketch.sketch(LineChart("P", [PlotLine("a", X, 10.0**X)], log=True))
  points = curve_points(made, figures.color_of(0, False))
  np.testing.assert_allclose(np.diff(points[:, 1]), points[1, 1] - points[0, 1], atol=0.2)
  assert ">1000<" in made and ">10000<" in made


def test_ranges_points_and_levels_are_drawn_and_several_curves_are_named():
  curves = [PlotLine("a", X, X + 1, X, X + 2), PlotLine("b & c", X, X, style="points")]
  made = sketch.sketch(LineChart("Two", curves, levels=[Level("bound", 3.0)]))
  tags = [one.tag.rpartition("}")[2] for one in plot_of(made).iter()]
  assert tags.count("polygon") == 1
  assert len([one for one in polylines(made) if one.get("stroke-width") == "6"]) == len(X)
  assert len([one for one in polylines(made) if one.get("stroke-dasharray") == "4 4"]) == 1
  assert "b &amp; c" in made


@pytest.mark.parametrize("values", [np.zeros(5), np.full(1, 3.0), np.array([1e-12, 2e-12]),
                                    np.array([-5.0, 1e9])])
@pytest.mark.parametrize("log", [False, True])
def test_values_of_any_range_have_finite_places(values, log):
  made = sketch.sketch(LineChart("Any", [PlotLine("a", np.arange(len(values)), values)], log=log))
  numbers = [float(part) for one in polylines(made) for part in re.findall(r"[-\d.]+", one.get("points"))]
  assert np.isfinite(numbers).all() and "nan" not in made


def test_fractions_begin_at_zero_as_in_the_figure():
  chart = LineChart("F", [PlotLine("a", X, np.full(5, 0.5))], y_label="fraction right")
  low, high = figures.fixed_range(chart)
  points = curve_points(sketch.sketch(chart), figures.color_of(0, False))
  np.testing.assert_allclose(points[:, 1], sketch.SIDE * (high - 0.5) / (high - low), atol=0.1)
