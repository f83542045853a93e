"""Reading a file while another process writes it."""

import json
import os

import numpy as np
import pytest

from atlas_jax.monitor import streams
from atlas_jax.monitor.streams import Lines, Metrics
from atlas_jax.monitor.writer import MetricsWriter


def row(step, **values):
  return json.dumps({"step": step, **values}) + "\n"


def add(file, text):
  with file.open("a") as out:
    out.write(text)


@pytest.fixture
def file(tmp_path):
  return tmp_path / "metrics.jsonl"


def test_only_new_bytes_are_read(file):
  add(file, row(1, a=1.0))
  metrics = Metrics(file)
  assert metrics.look() and not metrics.look()
  add(file, row(2, a=2.0))
  assert metrics._tail.look(2**20).start == len(row(1, a=1.0))


def test_a_run_that_starts_later_is_there_once_it_has(file):
  metrics = Metrics(file)
  assert not metrics.look() and metrics.names == () and metrics.row() == {} and metrics.last("a") is None
  add(file, row(1, a=1.0))
  assert metrics.look() and metrics.names == ("a",) and metrics.row() == {"step": 1, "a": 1.0}


def test_a_half_written_line_waits_for_its_end(file):
  metrics = Metrics(file)
  whole = row(1, a=1.0)
  for at in range(len(whole)):
    add(file, whole[at])
    metrics.look()
    assert metrics.count == (at == len(whole) - 1)
  assert metrics.damaged == 0


def test_what_is_not_finite_is_nan_and_damaged_lines_are_counted(file):
  add(file, row(1, a=None) + "not json\n" + '{"step": 2, "a": NaN}\n' + row(3, a=3.0))
  metrics = Metrics(file)
  metrics.look()
  np.testing.assert_array_equal(metrics.series("a"), [[1, 2, 3], [np.nan, np.nan, 3.0]])
  assert metrics.damaged == 1 and metrics.last("a") == 3.0


def test_numbers_that_join_the_last_row_are_read_with_it(tmp_path, file):
  metrics = Metrics(file)
  with MetricsWriter(tmp_path, tensorboard=False) as writer:
    writer.write(1, {"a": 1.0})
    writer.write(2, {"a": 2.0})
    metrics.look()
    assert metrics.row() == {"step": 2, "a": 2.0}
    writer.write(2, {"val/b": 5.0})
    metrics.look()
    assert metrics.row() == {"step": 2, "a": 2.0, "val/b": 5.0} and metrics.count == 2
    writer.write(2, {"c": 6.0})
    writer.write(3, {"a": 3.0})
    metrics.look()
  assert metrics.count == 3 and metrics.row(1) == {"step": 2, "a": 2.0, "val/b": 5.0, "c": 6.0}
  np.testing.assert_array_equal(metrics.series("a"), [[1, 2, 3], [1.0, 2.0, 3.0]])


def test_a_last_row_that_is_taken_back_and_not_yet_there_again_stays(file):
  add(file, row(1, a=1.0) + row(2, a=2.0))
  metrics = Metrics(file)
  metrics.look()
  file.write_text(row(1, a=1.0) + '{"step": 2, "a"')  # In place: the same file, as its writer does it.
  assert not metrics.look() and metrics.count == 2
  add(file, ': 2.0, "b": 1.0}\n')
  metrics.look()
  assert metrics.row() == {"step": 2, "a": 2.0, "b": 1.0}


def test_rows_that_a_resumed_run_drops_are_forgotten(tmp_path, file):
  with MetricsWriter(tmp_path, tensorboard=False) as writer:
    for step in range(1, 9):
      writer.write(step, {"a": float(step)})
  metrics = Metrics(file)
  metrics.look()
  with MetricsWriter(tmp_path, tensorboard=False, resume_step=3) as writer:
    metrics.look()
    np.testing.assert_array_equal(metrics.series("a")[0], [1, 2, 3])
    writer.write(4, {"a": 40.0})
  metrics.look()
  np.testing.assert_array_equal(metrics.series("a"), [[1, 2, 3, 4], [1.0, 2.0, 3.0, 40.0]])


def test_a_file_that_is_written_over_or_removed_is_read_anew(file):
  add(file, row(1, a=1.0) + row(2, a=2.0))
  metrics = Metrics(file)
  metrics.look()
  file.write_text(row(7, b=1.0))  # Shorter, and in place.
  metrics.look()
  assert metrics.names == ("b",) and metrics.count == 1
  file.write_text(row(1, c=1.0) + row(2, c=2.0) + row(3, c=3.0))  # Longer, and in place.
  metrics.look()
  assert metrics.names == ("c",) and metrics.count == 3
  file.unlink()
  assert metrics.look() and metrics.count == 0 and not metrics.look()


def test_a_look_ends_in_time_and_the_next_goes_on(file, monkeypatch):
  monkeypatch.setattr(streams, "PIECE_BYTES", 400)
  file.write_text("".join(row(step, a=float(step)) for step in range(1, 101)))
  metrics = Metrics(file)
  tail_look = metrics._tail.look
  monkeypatch.setattr(metrics._tail, "look", lambda: tail_look(400))
  metrics.look(seconds=0.0)
  assert 0 < metrics.count < 100
  while metrics.look(seconds=0.0):
    pass
  np.testing.assert_array_equal(metrics.series("a")[1], np.arange(1, 101))


def test_a_line_longer_than_a_piece_is_read_whole(file):
  add(file, row(1, **{f"name_{number}": number for number in range(100)}) + row(2, a=1.0))
  tail = streams.Tail(file)
  assert tail.look(most=64).data.count(b"\n") == 1
  assert tail.look(most=64).data == row(2, a=1.0).encode()


def large(file, rows=30_000):
  with file.open("w") as out:
    for step in range(1, rows + 1):
      out.write(row(step, **{"train/loss": 1.0 / step, **({"val/loss": 2.0} if step % 5_000 == 0 else {})}))


def test_a_large_file_is_seen_at_once_and_read_on(file, monkeypatch):
  monkeypatch.setattr(streams, "TAIL_BYTES", 4_000)
  monkeypatch.setattr(streams, "SAMPLE_BYTES", 500)
  monkeypatch.setattr(streams, "SAMPLES", 20)
  monkeypatch.setattr(streams.Tail, "look",
                      (lambda look: lambda self, most=20_000: look(self, most))(streams.Tail.look))
  large(file)
  metrics = Metrics(file, large=100_000)
  metrics.look(seconds=0.0)
  step, value = metrics.series("train/loss")
  assert metrics.fraction < 0.05 and 300 < len(step) < 3_000
  assert step[0] == 1 and step[-1] == 30_000 and (np.diff(step) > 0).all() and np.diff(step).max() < 2_500
  np.testing.assert_allclose(value, 1 / step)
  np.testing.assert_array_equal(metrics.series("val/loss")[0], np.arange(5_000, 30_001, 5_000))
  # While the rest is read, new rows are there at once; but for the last, which may still change.
  add(file, row(30_001, **{"train/loss": 7.0}) + row(30_002, **{"train/loss": 8.0}))
  metrics.look(seconds=0.0)
  assert metrics.last("train/loss") == 7.0 and metrics.fraction < 1
  while metrics.look(seconds=0.0):
    assert (np.diff(metrics.series("train/loss")[0]) > 0).all()
  assert metrics.fraction == 1.0 and metrics.count == 30_002
  np.testing.assert_array_equal(metrics.series("train/loss")[0], np.arange(1, 30_003))
  assert metrics.last("train/loss") == 8.0


def test_a_large_file_that_is_exchanged_is_sampled_again(file):
  large(file, rows=5_000)
  metrics = Metrics(file, large=1_000)
  metrics.look()
  other = file.with_name("other")
  large(other, rows=4_000)
  os.replace(other, file)
  while metrics.look():
    pass
  assert metrics.count == 4_000 and metrics.fraction == 1.0


def test_a_large_file_with_damaged_lines_is_read_all_the_same(file):
  large(file, rows=4_000)
  file.write_text(file.read_text() + "broken\n" + row(5_000, a=1.0))
  metrics = Metrics(file, large=1_000)
  while metrics.look():
    pass
  assert metrics.count == 4_001 and metrics.damaged == 1


def test_lines_are_followed_like_metrics(tmp_path):
  file = tmp_path / "alerts.jsonl"
  lines = Lines(file)
  assert not lines.look() and lines.rows == []
  add(file, '{"rule": "a"}\nnot json\n{"rule": "b"}\n{"rule": ')
  assert lines.look() and [one["rule"] for one in lines.rows] == ["a", "b"] and lines.damaged == 1
  add(file, '"c"}\n')
  lines.look()
  assert [one["rule"] for one in lines.rows] == ["a", "b", "c"]
  file.write_text('{"rule": "d"}\n')
  lines.look()
  assert [one["rule"] for one in lines.rows] == ["d"] and lines.damaged == 0
