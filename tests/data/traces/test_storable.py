"""Values that every store takes: what is replaced, what is cut, and nothing twice."""

import hashlib
import json
import math

import hypothesis
import pytest
from hypothesis import strategies

from atlas_jax.data.traces import storable
from atlas_jax.data.traces.record import Trace

TEXTS = strategies.text(strategies.characters(exclude_categories=())) | strategies.sampled_from(
    ["\x00", "a\ud800", "\udfffb", "x" * 300_000, "\U0001f600" * 70_000])
SCALARS = strategies.none() | strategies.booleans() | strategies.floats() | TEXTS | strategies.integers(
    -10**45, 10**45)
VALUES = strategies.recursive(
    SCALARS, lambda inner: strategies.lists(inner, max_size=3)
    | strategies.dictionaries(strategies.text(max_size=3), inner, max_size=3), max_leaves=8)


def nested(depth, kind=list):
  value = 1
  for _ in range(depth):
    value = [value] if kind is list else {"a": value}
  return value


def deepest(value):
  inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
  return 0 if inner is None else 1 + max(map(deepest, inner), default=0)


@hypothesis.given(VALUES, strategies.integers(0, 14))
@hypothesis.settings(deadline=None, max_examples=100)
def test_what_comes_out_can_be_stored_and_stays_as_it_is(value, depth):
  for _ in range(depth):
    value = [value]
  found, count = storable.storable(value)
  written = storable.dumps(found)
  assert "\x00" not in written and "\\u0000" not in written
  written.encode()  # No half of a character.
  assert json.loads(written) == found and deepest(found) <= storable.MOST_DEPTH + 1
  assert storable.storable(found) == (found, 0)
  assert (count == 0) == storable.is_storable(value)
  assert count or found is value


def test_characters_and_numbers_are_replaced_and_counted():
  found, count = storable.storable({"a\x00": "x\ud83d\x00", "n": [math.nan, math.inf, 10**41, 1e41, 2.5]})
  assert found == {"a\ufffd": "x\ufffd\ufffd", "n": [None, None, None, None, 2.5]} and count == 7


@pytest.mark.parametrize("kind", [list, dict])
def test_what_lies_too_deep_is_cut_to_its_size_and_hash(kind):
  fits, cut = nested(storable.MOST_DEPTH, kind), nested(storable.MOST_DEPTH + 1, kind)
  assert storable.storable(fits) == (fits, 0)
  found, count = storable.storable(cut)
  for _ in range(storable.MOST_DEPTH):
    found = found[0] if kind is list else found["a"]
  inner = storable.dumps(nested(1, kind)).encode()
  assert found == {"truncated": len(inner), "sha256": hashlib.sha256(inner).hexdigest()} and count == 1


def test_a_text_is_cut_by_its_bytes_and_not_by_its_characters():
  short, long = "é" * 128_000, "é" * 128_001
  assert storable.storable(short) == (short, 0)
  assert storable.storable(long) == (
      {"truncated": 256_002, "sha256": hashlib.sha256(long.encode()).hexdigest()}, 1)


@pytest.mark.parametrize("value, words", [
    ({1: 2}, "no text"), ({"a": {2}}, "set"), ({"a\x00": 1, "a\ud800": 2}, "two names that differ only"),
    ({"n" * 300_000: 1}, "a name of 300000 characters"),
])
def test_what_is_no_json_or_would_lose_a_field_is_refused(value, words):
  with pytest.raises(ValueError, match=words):
    storable.storable(value)


def test_depth_counts_from_the_fields_of_records_and_steps():
  deep = nested(storable.MOST_DEPTH)
  row = {"task": "t", "x": deep, "steps": [{"y": deep}]}
  assert Trace.from_json(row).to_json() == row
  found = Trace.from_json({**row, "steps": [{"y": [deep]}], "sanitized": 2})
  assert found.sanitized == found.to_json()["sanitized"] == 3
  assert Trace.from_json(found.to_json()) == found


def test_a_record_of_a_file_equals_that_of_a_database():
  row = json.loads('{"task": "a\\u0000\\ud800", "final_answer": null, "x": [NaN, 1e22, -0.0], "steps": []}')
  first = Trace.from_json(row)
  # As jsonb prints numbers: without an exponent and without a negative zero.
  again = Trace.from_json(json.loads(storable.dumps(first.to_json()).replace("1e+22", str(10**22))
                                     .replace("-0.0", "0.0")))
  assert again == first and again.sha256 == first.sha256 and first.sanitized == 3
  assert first.sha256 == Trace.from_json(dict(reversed(first.to_json().items()))).sha256
  assert first.sha256 != first.changed(task="b").sha256
