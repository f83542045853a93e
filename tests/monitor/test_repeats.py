"""Batches that come again are counted, across a resume too."""

import json

import numpy as np
import pytest

from atlas_jax.monitor import repeats
from atlas_jax.monitor.repeats import METRIC, Repeats

pytestmark = pytest.mark.core


def batch(seed):
  """A batch of two arrays."""
  draw = np.random.default_rng(seed)
  tokens_BT = draw.integers(0, 99, (4, 8)).astype(np.int32)
  return {"tokens_BT": tokens_BT, "weight_BT": np.ones((4, 8), np.float32)}


def counted(made, seeds):
  """What a row says of batches with these seeds."""
  for seed in seeds:
    made.take(batch(seed))
    made.observe()
  return made.row()


def test_new_batches_are_none_and_known_ones_are_counted():
  made = Repeats()
  assert counted(made, range(10)) == {METRIC: 0.0}
  assert counted(made, [10, 3, 11, 3]) == {METRIC: 0.5}
  assert made.row() == {}


def test_a_batch_that_is_taken_ahead_counts_when_its_update_is_observed():
  made = Repeats()
  made.take(batch(0))
  made.take(batch(0))
  made.observe()
  assert made.row() == {METRIC: 0.0}
  made.observe()
  assert made.row() == {METRIC: 1.0}


def test_only_the_last_ones_are_remembered():
  made = Repeats()
  counted(made, range(repeats.REMEMBERED + 1))
  assert counted(made, [0]) == {METRIC: 0.0} and counted(made, [repeats.REMEMBERED]) == {METRIC: 1.0}


def test_the_same_rows_in_another_order_are_another_batch():
  one = batch(0)
  other = {name: array[::-1] for name, array in one.items()}
  assert repeats.key_of(one) != repeats.key_of(other)
  assert repeats.key_of(one) == repeats.key_of({name: array.copy() for name, array in one.items()})
  assert repeats.key_of(one) != repeats.key_of({"other": one["tokens_BT"], "weight_BT": one["weight_BT"]})


def test_a_restored_count_goes_on():
  made, whole = Repeats(), Repeats()
  for each in (made, whole):
    for seed in (0, 1, 0):
      each.take(batch(seed))
      each.observe()
  again = Repeats(json.loads(json.dumps(made.saved())))
  assert counted(again, [1, 2]) == counted(whole, [1, 2]) == {METRIC: 0.4}
