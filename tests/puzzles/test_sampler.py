"""The samplers: the reference program's order bit for bit, and our own, which any place can be reached in."""
import json
import pathlib

import numpy as np
import pytest

from atlas_jax.puzzles import puzzle_set, sampler
from atlas_jax.puzzles.sampler import BatchPlace

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "trm" / "arc_builder.npz"
START = BatchPlace(0, 0)


@pytest.fixture(scope="module")
def built():
  return np.load(FIXTURE)


@pytest.fixture(scope="module")
def toy(built):
  """The five tasks of the fixture, 65 puzzles of unlike sizes."""
  parts = {name: built[f"train/{name}"] for name in ("inputs", "labels", "puzzle_indices", "group_indices")}
  return puzzle_set.of_arrays(
    parts["inputs"], parts["labels"], vocab_size=12, identity={}, puzzle_starts=parts["puzzle_indices"],
    group_starts=parts["group_indices"])


def puzzles_of_sizes(*groups):
  """A set whose group i has puzzles with groups[i] examples."""
  sizes = [size for group in groups for size in group]
  tokens = np.zeros((sum(sizes), 1), np.uint8)
  return puzzle_set.of_arrays(
    tokens, tokens, vocab_size=1, identity={}, puzzle_starts=np.cumsum([0, *sizes]),
    group_starts=np.cumsum([0, *map(len, groups)]))


UNLIKE = ([2, 2, 2, 2], [5], [1, 3], [4, 4, 2])
SINGLE = ([1, 1, 1], [1], [1, 1], [1, 1, 1, 1])
ALIKE = ([3, 3], [3], [3, 3, 3], [3])


def batches(drawn, count, place=START):
  found = []
  for _ in range(count):
    examples, place = drawn.batch(place)
    found.append(examples)
  return found, place


def counter(train, batch_rows=7, seed=3):
  return sampler.CounterSampler(train, batch_rows=batch_rows, seed=seed)



def test_the_reference_order_is_drawn_bit_for_bit(built, toy):
  puzzles = sampler.original_draws(toy.group_starts, 1, 4)
  groups = np.searchsorted(toy.group_starts, puzzles, side="right") - 1
  np.testing.assert_array_equal(groups, built["sampler/group_order"])
  legacy, start = np.random.RandomState(99), 0
  for i in range(int(built["sampler/n_batches"])):
    examples, start = sampler.original_batch(toy.puzzle_starts, puzzles, start, 8, legacy)
    np.testing.assert_array_equal(examples, built[f"sampler/batch{i}_examples"])
    np.testing.assert_array_equal(toy.puzzles_of(examples), built[f"sampler/batch{i}_puzzles"])
    assert start == built[f"sampler/batch{i}_next_start"]


def test_the_original_sampler_takes_the_reference_draws_and_drops_short_batches(built, toy):
  drawn = sampler.OriginalSampler(toy, batch_rows=8, seed=0, epochs_per_iteration=4)
  place = START
  for i in range(6):
    examples, place = drawn.batch(place)
    np.testing.assert_array_equal(toy.puzzles_of(examples), built[f"sampler/batch{i}_puzzles"])
    next_start = int(built[f"sampler/batch{i}_next_start"])
    assert place == (BatchPlace(0, next_start) if i < 5 else BatchPlace(1, 0))
  assert drawn.steps_of(4) == 6


@pytest.mark.parametrize("seed", [0, 8])
def test_original_steps_are_those_taken_until_the_epochs_are_over(toy, seed):
  drawn = sampler.OriginalSampler(toy, batch_rows=8, seed=seed, epochs_per_iteration=3)
  place, count = START, 0
  while place.epoch < 5:
    place, count = drawn.batch(place)[1], count + 1
  assert drawn.steps_of(15) == count


def test_original_steps_need_whole_iterations(toy):
  drawn = sampler.OriginalSampler(toy, batch_rows=8, seed=0, epochs_per_iteration=4)
  with pytest.raises(ValueError, match="epochs=6 is not a multiple of epochs_per_iteration=4"):
    drawn.steps_of(6)


@pytest.mark.parametrize("groups", [UNLIKE, SINGLE, ALIKE])
def test_every_epoch_draws_each_group_once(groups):
  train = puzzles_of_sizes(*groups)
  examples = np.concatenate(batches(counter(train, batch_rows=40), 40)[0])
  puzzles = counter(train)._draws(0, 30).reshape(30, 4)
  found = np.sort(np.searchsorted(train.group_starts, puzzles, side="right") - 1, axis=1)
  np.testing.assert_array_equal(found, np.tile(np.arange(4), (30, 1)))
  assert set(train.puzzles_of(examples)) == set(range(train.n_puzzles))


def test_puzzles_of_a_group_and_orders_of_groups_are_drawn_evenly():
  train = puzzles_of_sizes([1, 1, 1], [1], [1, 1], [1])
  draws = counter(train)._draws(0, 6000).reshape(6000, 4)
  shares = np.bincount(draws.reshape(-1), minlength=7) / 6000
  np.testing.assert_allclose(shares, [1 / 3] * 3 + [1] + [1 / 2] * 2 + [1], atol=0.03)
  first = np.bincount(np.searchsorted(train.group_starts, draws[:, 0], side="right") - 1) / 6000
  np.testing.assert_allclose(first, [1 / 4] * 4, atol=0.03)


def test_examples_inside_a_puzzle_come_in_every_order():
  train = puzzles_of_sizes([3], [1])
  orders = set()
  for examples in batches(counter(train, batch_rows=4), 60)[0]:
    orders.add(tuple(examples[examples < 3].tolist()))
  assert {order for order in orders if len(order) == 3} == {
    (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}


@pytest.mark.parametrize("groups", [UNLIKE, SINGLE, ALIKE])
def test_batches_are_packed_greedily_across_epochs(groups):
  train = puzzles_of_sizes(*groups)
  drawn, n = counter(train), len(groups)
  sizes, place = np.diff(train.puzzle_starts), START
  puzzles = drawn._draws(0, 200)
  for _ in range(100):
    draw, left = place.epoch * n + place.draw, 7
    examples, place = drawn.batch(place)
    assert len(examples) == 7
    while left:
      taken = examples[7 - left:][:sizes[puzzles[draw]]]
      assert set(train.puzzles_of(taken)) == {puzzles[draw]} and len(set(taken.tolist())) == len(taken)
      left, draw = left - len(taken), draw + 1
    assert place == BatchPlace(*divmod(draw, n))


def test_a_batch_may_be_larger_than_many_epochs():
  train = puzzles_of_sizes([1], [2])
  drawn = counter(train, batch_rows=30_000)
  examples, place = drawn.batch(START)
  assert len(examples) == 30_000 and place == BatchPlace(10_000, 0)
  assert np.bincount(examples).tolist() == [10_000] * 3


@pytest.mark.parametrize("groups", [UNLIKE, SINGLE, ALIKE])
@pytest.mark.parametrize("kind", ["counter", "original"])
def test_a_batch_follows_from_its_place_alone(groups, kind):
  train = puzzles_of_sizes(*groups)
  fields = dict(batch_rows=7, seed=3, epochs_per_iteration=5 if kind == "original" else None)
  drawn = sampler.make(kind, train, **fields)
  found, _ = batches(drawn, 60)
  for step in (59, 0, 17, 33):
    fresh = sampler.make(kind, train, **fields)
    place = BatchPlace(*json.loads(json.dumps(fresh.skip(START, step))))
    np.testing.assert_array_equal(sampler.make(kind, train, **fields).batch(place)[0], found[step])
    assert fresh.skip(place, 60 - step) == drawn.skip(START, 60)


@pytest.mark.parametrize("groups", [UNLIKE, SINGLE, ALIKE])
def test_pages_and_slabs_change_nothing(groups, monkeypatch):
  train = puzzles_of_sizes(*groups)
  expected, end = batches(counter(train), 50)
  steps = counter(train).steps_of(90)
  monkeypatch.setattr(sampler, "PAGE_DRAWS", 1)
  monkeypatch.setattr(sampler, "SLAB_DRAWS", 9)
  found, place = batches(counter(train), 50)
  np.testing.assert_array_equal(found, expected)
  assert place == end and counter(train).steps_of(90) == steps


@pytest.mark.parametrize("groups", [UNLIKE, SINGLE, ALIKE])
@pytest.mark.parametrize("epochs", [0, 1, 2, 13, 250])
def test_steps_are_the_batches_that_fit_into_the_epochs(groups, epochs):
  drawn = counter(puzzles_of_sizes(*groups))
  place, count = START, 0
  while (place := drawn.batch(place)[1]) <= BatchPlace(epochs, 0):
    count += 1
  assert drawn.steps_of(epochs) == count


def test_planned_steps_of_the_reference_are_off_where_puzzle_sizes_differ():
  unlike, alike = puzzles_of_sizes(*UNLIKE), puzzles_of_sizes(*SINGLE)
  assert sampler.original_steps(alike, batch_rows=8, epochs=1000) == counter(alike, 8).steps_of(1000) == 500
  # Stored puzzles have 27 / 10 examples in the mean, draws (2 + 5 + 2 + 10 / 3) / 4.
  assert sampler.original_steps(unlike, batch_rows=48, epochs=10_000) == 2250
  assert 2400 < counter(unlike, 48).steps_of(10_000) < 2570


def test_steps_of_a_long_run_hold_little_at_a_time():
  # 3.4 million draws are more than three slabs.
  train = puzzles_of_sizes(*[[3, 3, 3], [5, 5], [2], [4, 4, 4, 2]] * 16)
  drawn = counter(train, batch_rows=1000)
  steps = drawn.steps_of(53_000)
  mean = 53_000 * 16 * (3 + 5 + 2 + 3.5)
  assert mean / 1002.5 < steps < mean / 1000
  assert drawn.skip(START, steps) <= BatchPlace(53_000, 0) < drawn.skip(START, steps + 1)


def test_seeds_differ_and_all_64_bits_count():
  train = puzzles_of_sizes(*UNLIKE)
  seeds = (0, 1, 2**63, 2**64 - 1)
  found = {tuple(np.concatenate(batches(counter(train, seed=seed), 9)[0])) for seed in seeds}
  assert len(found) == 4


@pytest.mark.parametrize("fields, message", [
  (dict(seed=-1), "seed=-1 must be at least 0"),
  (dict(batch_rows=0), "batch_rows=0 must be at least 1"),
  (dict(kind="random"), "sampler='random' is unknown; there are 'counter' and 'original'"),
  (dict(kind="original"), "sampler='original' needs epochs_per_iteration, got None"),
  (dict(epochs_per_iteration=3), "sampler='counter' does not take epochs_per_iteration, got 3"),
  (dict(kind="original", epochs_per_iteration=0), "epochs_per_iteration=0 must be at least 1"),
  (dict(kind="original", epochs_per_iteration=1, batch_rows=11), "only 10 examples, less than batch_rows=11"),
  (dict(train=puzzles_of_sizes([1], [], [2])), "group .* needs one puzzle or more, but group 1 has none"),
  (dict(train=puzzles_of_sizes([1, 0], [2])), "puzzle .* needs one example or more, but puzzle 1 has none"),
  (dict(train=puzzles_of_sizes()), "every group to train on needs one puzzle or more, but there is no group"),
])
def test_what_cannot_be_drawn_is_refused(fields, message):
  given = {"kind": "counter", "train": puzzles_of_sizes(*UNLIKE), "batch_rows": 7, "seed": 3, **fields}
  with pytest.raises(ValueError, match=message):
    sampler.make(given.pop("kind"), given.pop("train"), **given)
