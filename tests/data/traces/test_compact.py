"""The compact form: nothing is lost, little is written, and what is damaged is refused."""

import json

import hypothesis
import pytest
from hypothesis import strategies

from atlas_jax.data.traces import compact
from atlas_jax.data.traces.jsonl import TraceReader
from tests.data.traces import sessions

VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.integers(-5, 10**20) | strategies.sampled_from(["", "short", "a text of more than sixteen"]),
    lambda inner: strategies.lists(inner, max_size=3)
    | strategies.dictionaries(strategies.sampled_from(["a", "b", "longer name"]), inner, max_size=3),
    max_leaves=12)


@hypothesis.given(strategies.lists(VALUES, max_size=6))
@hypothesis.settings(deadline=None, max_examples=80)
def test_any_values_come_back_with_their_types_and_orders(values):
  for window, shapes in ((2**18, 2**12), (3, 1)):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(compact, "WINDOW", window)
      patch.setattr(compact, "SHAPES", shapes)
      encoder, decoder = compact.CompactEncoder(), compact.CompactDecoder()
      for value in values:
        again = decoder.decode(json.loads(json.dumps(encoder.encode(value))))
        assert json.dumps(again) == json.dumps(value)


def test_files_are_converted_both_ways_and_read_alike(tmp_path):
  source = sessions.FIXTURES / "export_all.jsonl"
  small, plain = tmp_path / "small.jsonl", tmp_path / "plain.jsonl"
  assert compact.pack(sessions.exported(), small) == 4
  assert compact.unpack((one.trace.to_json() for one in TraceReader(str(small), strict=True)), plain) == 4
  assert plain.read_text() == source.read_text()


def test_the_compact_form_takes_less_than_fifteen_percent_of_the_bytes(tmp_path):
  source = (sessions.FIXTURES / "export_all.jsonl").stat().st_size
  packed = tmp_path / "small.jsonl.gz"
  compact.pack(sessions.exported(), packed)
  assert packed.stat().st_size < 0.15 * source
  again = tmp_path / "again.jsonl.gz"
  compact.pack(sessions.exported(), again)
  assert packed.read_bytes() == again.read_bytes()


def test_an_export_of_many_sessions_takes_less_than_fifteen_percent_without_packing(tmp_path):
  both = sessions.exported()[1::2]
  rows = [sessions.with_metadata({**both[one % 2], "task": f"Task number {one}",
                                  "final_answer": f"{one} bar"}, session_id=one) for one in range(60)]
  plain, small = tmp_path / "plain.jsonl", tmp_path / "small.jsonl"
  compact.unpack(rows, plain)
  compact.pack(rows, small)
  assert small.stat().st_size < 0.15 * plain.stat().st_size
  assert [one.trace.to_json() for one in TraceReader(str(small), strict=True)] == rows


@pytest.mark.parametrize("line", [
    [-5], [-1, 2], [], ["x"], [7, 1], [1, "a", [1, 2]], [1, 2, [1]], [1, "a", 3], {"a": 1}, [2, 1],
])
def test_a_line_that_refers_to_nothing_is_refused(line):
  with pytest.raises(ValueError):
    compact.CompactDecoder().decode(line)


def test_references_that_double_a_text_are_stopped(tmp_path):
  file = tmp_path / "bomb.jsonl"
  lines = [compact.HEADER, [0, "x" * 60]] + [[0, [-number], [-number]] for number in range(2, 60)]
  sessions.write(file, lines)
  reader = TraceReader(str(file), max_reject_frac=1.0)
  assert list(reader) == [] and reader.report.rejects["json"] > 20


def test_a_file_of_another_version_is_refused_whole(tmp_path):
  file = tmp_path / "later.jsonl"
  sessions.write(file, [{**compact.HEADER, "version": 2}, [0, "x"]])
  with pytest.raises(ValueError, match="later.jsonl: is a compact file of version 2, and this"):
    list(TraceReader(str(file), max_reject_frac=1.0))
