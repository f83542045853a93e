"""The puzzle source: same batches on any number of processes and threads and after a restart."""
import dataclasses
import json
import re

import numpy as np
import pytest

from atlas_jax.puzzles import puzzle_set, source

SIZES = ([2, 2, 2], [5], [1, 3], [4, 4, 2])
T = 6


def tiny_set(name="tiny", **fields):
  """Four groups, nine puzzles of unlike sizes, 25 examples; their tokens name the example."""
  sizes = [size for group in SIZES for size in group]
  inputs = np.arange(25)[:, None] + np.zeros((1, T), int)
  labels = np.where(np.arange(T) < 2, 0, inputs)
  return puzzle_set.of_arrays(
    inputs, labels, vocab_size=25, identity={"name": name, "seed": 7, "shape": (25, T)},
    puzzle_starts=np.cumsum([0, *sizes]), group_starts=np.cumsum([0, *map(len, SIZES)]),
    puzzle_ids=np.arange(1, 10), n_ids=10, **fields)


def drawing_set():
  """The same set, with noise wherever the reader hands a generator."""
  plain = tiny_set()

  def read(examples, draw=None):
    inputs, labels = plain.read(examples)
    return (inputs, labels) if draw is None else (inputs + draw.integers(0, 1000, inputs.shape), labels)

  return dataclasses.replace(plain, read=read)


def tiny_source(train=None, **fields):
  return source.PuzzleSource(train or tiny_set(), **{**dict(batch_rows=8, seed=3, threads=0), **fields})


ORIGINAL = dict(sampler="original", epochs_per_iteration=5)
KINDS = pytest.mark.parametrize("fields", [
  {}, ORIGINAL, dict(train=drawing_set(), fresh_shift=True)], ids=["counter", "original", "fresh"])


def take(served, count):
  return [served.next(None) for _ in range(count)]


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, array in actual.items():
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_arrays_have_the_promised_types_and_labels():
  batch = tiny_source().next(None)
  types = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
  assert types == {"inputs_BT": ((8, T), "int32"), "labels_BT": ((8, T), "int32"), "ids_B": ((8,), "int32")}
  expected = batch["inputs_BT"].copy()
  expected[:, :2] = -100
  expected[expected == 0] = -100
  np.testing.assert_array_equal(batch["labels_BT"], expected)
  np.testing.assert_array_equal(batch["ids_B"], tiny_set().ids_of(batch["inputs_BT"][:, 0]))


@KINDS
@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_read_the_batch_of_one(fields, count):
  whole = take(tiny_source(**fields), 20)
  parts = [take(tiny_source(process_index=i, process_count=count, **fields), 20) for i in range(count)]
  for step, batch in enumerate(whole):
    assert_same({name: np.concatenate([part[step][name] for part in parts]) for name in batch}, batch)


@KINDS
def test_threads_change_nothing(fields):
  threaded = tiny_source(threads=3, **fields)
  for actual, expected in zip(take(threaded, 40), take(tiny_source(**fields), 40)):
    assert_same(actual, expected)
  threaded.close()


@KINDS
@pytest.mark.parametrize("steps", [0, 1, 13, 300])
def test_a_restored_source_gives_the_very_next_batch(fields, steps):
  running = tiny_source(threads=2, **fields)
  take(running, steps)
  state = json.loads(json.dumps(running.state()))
  expected = take(running, 4)
  halves = [tiny_source(process_index=i, process_count=2, threads=i, **fields) for i in range(2)]
  for half in halves:
    half.next(None)
    half.restore(state)
  for batch in expected:
    parts = [half.next(None) for half in halves]
    assert_same({name: np.concatenate([part[name] for part in parts]) for name in batch}, batch)
  for half in halves:
    assert half.state() == running.state()
    half.close()
  running.close()


@KINDS
def test_any_step_can_be_read_without_moving(fields):
  expected = take(tiny_source(**fields), 600)
  served = tiny_source(process_index=1, process_count=2, **fields)
  for step in (599, 0, 257, 256, 255, 3):
    assert_same(served.batch(step), {name: array[4:] for name, array in expected[step].items()})
  assert served.step == 0
  assert_same(served.next(None), {name: array[4:] for name, array in expected[0].items()})


def test_there_is_no_step_before_the_first():
  with pytest.raises(IndexError, match="there is no step -1"):
    tiny_source().batch(-1)


def test_fresh_batches_differ_at_each_step_and_seed_and_frozen_ones_do_not():
  train = drawing_set()
  fresh, again, other = (tiny_source(train, fresh_shift=True, seed=seed) for seed in (3, 3, 4))
  frozen = tiny_source(train)
  noise = fresh.next(None)["inputs_BT"] - frozen.next(None)["inputs_BT"]
  later = fresh.next(None)["inputs_BT"] - frozen.next(None)["inputs_BT"]
  assert noise.any() and (noise != later).any()
  assert_same(again.batch(1), fresh.batch(1))
  elsewhere = other.next(None)["inputs_BT"] - tiny_source(train, seed=4).next(None)["inputs_BT"]
  assert (elsewhere != noise).any()


@KINDS
def test_provenance_names_the_example_of_each_row(fields):
  running = tiny_source(process_index=1, process_count=2, **fields)
  batches = take(running, 30)
  resumed = tiny_source(process_index=1, process_count=2, **fields)
  resumed.restore(running.state())
  puzzles = tiny_set()
  for served in (running, resumed):
    for step in (29, 2, 17, 0):
      origins = served.provenance(step)
      assert all(re.fullmatch(r".+@\d+", origin) for origin in origins)
      examples = np.array([int(origin.split("@")[1]) for origin in origins])
      np.testing.assert_array_equal(batches[step]["ids_B"], puzzles.ids_of(examples))
      labels = batches[step]["labels_BT"][:, -1]
      np.testing.assert_array_equal(np.where(labels == -100, 0, labels), examples)


def test_provenance_takes_the_best_name_there_is():
  names = tuple(f"id{i}" for i in range(10))
  groups = ("one", "two", "three", "four")
  assert source.puzzle_name(tiny_set(names=names, group_names=groups), 4) == "id5"
  assert source.puzzle_name(tiny_set(group_names=groups), 4) == "three"
  assert source.puzzle_name(tiny_set(), 4) == "puzzle4"


@pytest.mark.parametrize("fields, message", [
  (dict(seed=4), "seed=3 then, 4 now"),
  (dict(batch_rows=4), "batch_rows=8 then, 4 now"),
  (ORIGINAL, "sampler='counter' then, 'original' now; epochs_per_iteration=None then, 5 now"),
  (dict(fresh_shift=True), "fresh_shift=False then, True now"),
  (dict(train=tiny_set("other")), "puzzles.name='tiny' then, 'other' now"),
])
def test_a_place_of_other_puzzles_or_settings_is_refused_by_name(fields, message):
  state = json.loads(json.dumps(tiny_source().state()))
  with pytest.raises(ValueError, match=message):
    tiny_source(**fields).restore(state)


def test_a_place_with_another_digest_is_refused():
  with pytest.raises(ValueError, match="fingerprint='?.*then"):
    tiny_source().restore({**tiny_source().state(), "fingerprint": "?"})


@pytest.mark.parametrize("fields, end", [({}, [10, 0]), (ORIGINAL, [2, 0])])
def test_steps_of_epochs_are_those_that_a_run_takes(fields, end):
  served = tiny_source(**fields)
  steps = served.steps_of(10)
  take(served, steps)
  assert served.state()["place"] <= end
  served.next(None)
  assert served.state()["place"] > end


@pytest.mark.parametrize("fields, message", [
  (dict(process_count=3), "batch_rows=8 does not divide by the 3 processes"),
  (dict(batch_rows=0), "batch_rows=0 does not"),
  (dict(sampler="random"), "sampler='random' is unknown"),
])
def test_a_setting_that_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    tiny_source(**fields)


@pytest.mark.parametrize("count, batch_rows", [(1, 8), (2, 8), (4, 8), (1, 5), (1, 40)])
def test_evaluation_reads_every_example_once_and_pads_at_the_end(count, batch_rows):
  test = tiny_set()
  parts = [source.EvalBatches(test, batch_rows, process_index=i, process_count=count) for i in range(count)]
  steps = [len(part) for part in parts]
  assert set(steps) == {-(-25 // batch_rows)} and all(len(list(part)) == steps[0] for part in parts)
  whole = [{name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts)]
  assert all(array.shape[0] == batch_rows and array.dtype == np.int32
             for batch in whole for array in batch.values())
  joined = {name: np.concatenate([batch[name] for batch in whole]) for name in whole[0]}
  padding = len(joined["example_B"]) - 25
  examples = np.arange(25)
  np.testing.assert_array_equal(joined["example_B"], [*examples, *[-1] * padding])
  np.testing.assert_array_equal(joined["puzzle_B"], [*test.puzzles_of(examples), *[-1] * padding])
  np.testing.assert_array_equal(joined["ids_B"], [*test.ids_of(examples), *[0] * padding])
  np.testing.assert_array_equal(joined["inputs_BT"][:25], test.read(examples)[0])
  assert not joined["inputs_BT"][25:].any() and (joined["labels_BT"][25:] == -100).all()
  assert (joined["labels_BT"][:25, :2] == -100).all()


def test_evaluation_can_end_early():
  batches = list(source.EvalBatches(tiny_set(), 8, max_examples=11))
  assert np.concatenate([batch["example_B"] for batch in batches]).tolist() == [*range(11), *[-1] * 5]


def test_evaluation_rows_must_divide_by_the_processes():
  with pytest.raises(ValueError, match="batch_rows=8 does not divide .*; take a multiple of 3"):
    source.EvalBatches(tiny_set(), 8, process_count=3)
