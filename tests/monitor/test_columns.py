"""Metrics as columns, the same by pyarrow and by Python."""

import json
import sys

import numpy as np
import pytest

from atlas_jax.monitor import columns

ROWS = [
  {"step": 1, "train/loss": 2.5, "count": 3, "perf/x": 1e-3},
  {"step": 2, "train/loss": None, "count": 4},
  {"step": 3, "train/loss": 2, "eval/late": 0.5, "perf/x": 2.0},
]


def lines(rows):
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


def long_lines(count=400):
  """More than the few kilobytes below which Python parses anyway; a metric of its own in a late row."""
  rows = [{"step": step, "train/loss": 1 / step, "count": step} for step in range(1, count + 1)]
  rows[10]["train/loss"] = None
  rows[300]["eval/late"] = 0.25
  del rows[50]["count"]
  return rows


def test_points_are_where_a_row_has_the_metric_and_null_is_nan():
  found = columns.parse(lines(ROWS))
  assert found.rows == 3 and found.damaged == 0
  np.testing.assert_array_equal(found.points["train/loss"].value, [2.5, np.nan, 2.0])
  np.testing.assert_array_equal(found.points["perf/x"].row, [0, 2])
  np.testing.assert_array_equal(found.points["eval/late"].row, [2])


def test_pyarrow_and_python_give_the_same_points(monkeypatch):
  data = lines(long_lines())
  by_arrow = columns.parse(data)
  assert columns._by_arrow(data, ()) is not None, "the fast way was not taken"
  monkeypatch.setitem(sys.modules, "pyarrow.json", None)
  by_python = columns.parse(data)
  assert by_arrow.rows == by_python.rows == 400
  assert by_arrow.points.keys() == by_python.points.keys()
  for name, points in by_python.points.items():
    np.testing.assert_array_equal(by_arrow.points[name].row, points.row)
    np.testing.assert_array_equal(by_arrow.points[name].value, points.value)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "null"])
def test_what_is_not_finite_is_nan_both_ways(text):
  data = lines(long_lines()).replace(b'"count": 7}', f'"count": {text}}}'.encode())
  for found in (columns.parse(data), columns._by_python(data)):
    assert np.isnan(found.points["count"].value[6]) and found.rows == 400


def test_damaged_lines_are_counted_and_the_rest_is_read():
  good = lines(long_lines())
  for bad in (b'{"step": 1, "train/lo\n', b"[1, 2]\n", b'{"train/loss": 2.0}\n', b"\xff\xfe\n",
              b'{"step": null}\n'):
    found = columns.parse(good + bad)
    assert (found.rows, found.damaged) == (400, 1), bad


def test_values_that_are_no_numbers_are_no_points():
  found = columns.parse(lines([{"step": 1, "note": "words", "list": [1, 2], "inside": {"a": 1},
                                "ok": 1}] * 200))
  assert sorted(found.points) == ["ok", "step"] and found.rows == 200


def test_columns_grow_and_keep_what_was_there():
  held = columns.Columns()
  for start in range(0, 4_000, 500):
    held.add(lines([{"step": start + at, "dense": start + at, **({"rare": at} if at % 250 == 0 else {})}
                    for at in range(500)]))
  assert held.count == 4_000 and held.names == ("dense", "rare")
  np.testing.assert_array_equal(held.series("dense"), [np.arange(4_000)] * 2)
  step, value = held.series("rare")
  np.testing.assert_array_equal(step, np.arange(0, 4_000, 250))
  np.testing.assert_array_equal(value, [0, 250] * 8)
  np.testing.assert_array_equal(held.series("rare", first=3_501)[0], [3_750])
  np.testing.assert_array_equal(held.series("dense", first=3_998)[1], [3_998, 3_999])


def test_a_metric_that_begins_late_and_pauses_keeps_its_rows():
  held = columns.Columns()
  held.add(lines([{"step": 1}, {"step": 2, "a": 1.0}, {"step": 3, "a": 2.0}]))
  held.add(lines([{"step": 4}, {"step": 5, "a": 3.0}]))
  np.testing.assert_array_equal(held.series("a"), [[2, 3, 5], [1.0, 2.0, 3.0]])
  np.testing.assert_array_equal(held.points("a").row, [1, 2, 4])


def test_the_last_row_can_be_taken_back():
  held = columns.Columns()
  held.add(lines([{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0, "b": 5.0}]))
  held.drop_last()
  assert held.count == 1 and held.names == ("a",)
  held.add(lines([{"step": 2, "a": 3.0, "c": 4.0}]))
  np.testing.assert_array_equal(held.series("a"), [[1, 2], [1.0, 3.0]])
  np.testing.assert_array_equal(held.series("c"), [[2], [4.0]])


def test_the_newest_finite_value_is_found_behind_many_that_are_not():
  held = columns.Columns()
  assert held.newest("a") is None
  held.add(lines([{"step": 1, "a": 7.0}, *({"step": step, "a": None} for step in range(2, 10_000))]))
  assert held.newest("a") == 7.0
