"""Splits: sessions and questions stay whole, and the original's orders for comparison."""

import json

import pytest

from atlas_jax.data.traces import split
from atlas_jax.data.traces.record import Trace
from tests.data.traces import sessions

CASES = json.loads((sessions.FIXTURES / "splits_seed42.json").read_text())["cases"]


@pytest.mark.parametrize("count", sorted(CASES, key=int))
def test_the_original_order_of_rows_is_repeated(count):
  assert split.legacy(int(count)) == (CASES[count]["train"], CASES[count]["eval"])


def test_the_original_holds_out_nothing_with_a_fraction_of_zero_and_cannot_split_a_row():
  assert split.legacy(5, held_out_frac=0) == (CASES["5"]["shuffled"], None)
  with pytest.raises(ValueError, match="one side of 1 rows empty"):
    split.legacy(1)


def test_sessions_that_ask_the_same_stay_together():
  rows = [sessions.session(number, task=f"  Question\n{number % 20} ") for number in range(60)]
  found = [Trace.from_json(row) for row in rows]
  sides = split.sides([split.place(one) for one in found], 0.3)
  assert {sides[number] for number in range(60)} == {True, False}
  assert all(sides[number] == sides[number % 20] for number in range(60))


def test_a_learning_key_keeps_its_family_together_and_sessions_without_one_go_by_task():
  keyed, other = (Trace.from_json(sessions.session(number, learning_key="k")) for number in (1, 2))
  alone = Trace.from_json(sessions.session(3))
  assert split.key(keyed, "learning_key") == split.key(other, "learning_key") == "key:k"
  assert split.key(alone, "learning_key") == split.key(alone) != split.key(keyed)
  assert split.key(Trace.from_json(sessions.session(4, task=" "))) == "session:4"
  with pytest.raises(ValueError, match="split_by='step'"):
    split.key(alone, "step")


def test_the_side_follows_from_the_seed_of_the_split():
  found = [Trace.from_json(sessions.session(number)) for number in range(40)]
  drawn = [split.sides([split.place(one, seed=seed) for one in found], 0.5) for seed in (42, 42, 43)]
  assert drawn[0] == drawn[1] != drawn[2]
