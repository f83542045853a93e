"""Charts: what of a run's metrics is drawn, and the numbers that can be downloaded."""

import json

import numpy as np
import pytest

from atlas_jax.monitor.dashboard import charts
from atlas_jax.monitor.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
  with (tmp_path / "metrics.jsonl").open("w") as out:
    for step in range(1, 1_001):
      row = {"step": step, "train/loss": 5.0 if step == 500 else 1.0, "train/tokens_seen": 10 * step}
      if step % 100 == 0:
        row |= {"val/loss": 2.0, "val/loss_low": 1.5, "val/loss_high": 2.5 + step / 1_000,
                "eval/gate/layer_00": 0.5, "eval/gate/layer_10": step / 1_000}
      if step % 200 == 0:
        row |= {"eval/gate/layer_02": 0.1}
      out.write(json.dumps(row) + "\n")
  found = RunFolder(tmp_path, "run")
  found.look()
  return found


def test_a_long_line_is_a_mean_over_its_range_and_keeps_its_spike(run):
  curve = charts.curve(run, "train/loss", "training", "step")
  assert len(curve.y) <= 2 * charts.MEANS and curve.high.max() == 5.0 and curve.low.min() == 1.0
  assert curve.y.max() < 5.0 and (np.diff(curve.x) > 0).all()


def test_evaluations_are_points_with_their_intervals(run):
  curve = charts.curve(run, "val/loss", "held out", "tokens", style="points")
  np.testing.assert_array_equal(curve.x, np.arange(1_000, 10_001, 1_000))
  np.testing.assert_array_equal(curve.low, [1.5] * 10)
  assert curve.high[-1] == 3.5


def test_what_a_run_did_not_write_is_no_chart(run):
  assert charts.curve(run, "nothing", "", "step") is None
  assert charts.curve(run, "train/loss", "", "hours") is None, "this run has no times"
  assert charts.lines(run, "None", {"nothing": "a"}, "step") is None
  assert charts.layer_map(run, "None", "nothing", "step") is None
  assert len(charts.lines(run, "One", {"nothing": "a", "train/loss": "b"}, "step").curves) == 1


def test_layers_stand_in_the_order_of_their_numbers(run):
  found = charts.layer_map(run, "Gates", "eval/gate", "step")
  assert found.rows == ("layer 0", "layer 2", "layer 10")
  assert found.values.shape == (3, 10) and np.isnan(found.values[1]).sum() == 5
  np.testing.assert_allclose(found.values[2], np.arange(0.1, 1.05, 0.1))


def test_the_numbers_of_a_chart_can_be_read_back(run):
  lines = charts.table(charts.lines(run, "Two", {"train/loss": "a", "val/loss": ("b", "points")}, "step"))
  assert list(lines) == ["curve", "step", "value", "low", "high"] and set(lines["curve"]) == {"a", "b"}
  assert len({len(column) for column in lines.values()}) == 1
  by_layer = charts.table(charts.layer_map(run, "Gates", "eval/gate", "tokens"))
  assert by_layer["row"][10] == "layer 2" and by_layer["tokens seen"][9] == 10_000
  assert len(by_layer["value"]) == 30
  bars = charts.table(charts.BarChart("Bars", ["a<br>b"], np.array([1.0]), np.array([0.5]), np.array([2.0])))
  assert bars == {"name": ["a b"], "value": [1.0], "low": [0.5], "high": [2.0]}
