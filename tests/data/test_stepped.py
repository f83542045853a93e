"""The skeleton of sources: rows of processes, batches by number, threads, places, and one of one's own."""

import json

import numpy as np
import pytest

from atlas_jax.data import stepped
from atlas_jax.data.stepped import IndexedSource, ListedSource, rows_of

B = 6


class Squares(IndexedSource):
  """A row names its step and its number in the whole batch."""

  def __init__(self, *, index=0, count=1, steps=None, threads=0, **settings):
    super().__init__({"seed": 1, **settings}, rows_of(B, index, count), steps=steps, threads=threads)

  def read_row(self, step, row):
    return {"position_T": np.array([step, row]), "square": np.array(step**2)}

  def origin(self, step, row):
    return f"{step}@{row}"


class Items(ListedSource):
  """Each row is the number of its item."""

  def __init__(self, *, count=10, batch_rows=4, seed=3):
    mine = rows_of(batch_rows, 0, 1)
    super().__init__({"fingerprint": "f"}, mine, count=count, batch_rows=batch_rows, seed=seed)

  def read_row(self, step, row):
    item = self.item(step, row)
    return {"item_G": np.array([-1 if item is None else item])}


def test_the_rows_of_all_processes_are_those_of_the_batch_in_their_order():
  assert [row for index in range(3) for row in rows_of(B, index, 3)] == list(range(B))
  assert rows_of(B, 1, 2) == range(3, 6)


@pytest.mark.parametrize("rows, count", [(6, 4), (0, 1), (-2, 2)])
def test_rows_that_do_not_divide_are_refused_with_their_field(rows, count):
  message = f"config.eval.batch_rows={rows} does not divide by the {count} processes; take a multiple of "
  with pytest.raises(ValueError, match=message):
    rows_of(rows, 0, count, field="config.eval.batch_rows")


def test_arrays_of_rows_get_the_axis_of_rows_in_front():
  rows = [{"tokens_GT": np.zeros((2, 5)), "score_G": np.ones(2), "mean_reward": np.ones(())}] * 3
  assert {name: array.shape for name, array in stepped.stacked(rows).items()} == {
    "tokens_BGT": (3, 2, 5), "score_BG": (3, 2), "mean_reward_B": (3,)}  # fmt: skip


@pytest.mark.parametrize("threads", [0, 2])
def test_a_source_gives_its_rows_step_by_step_and_ends(threads):
  one = Squares(index=1, count=2, steps=12, threads=threads)
  batches = [one.next() for _ in range(12)]
  for step, batch in enumerate(batches):
    assert batch["position_BT"].tolist() == [[step, row] for row in (3, 4, 5)]
    assert one.provenance(step) == [f"{step}@{row}" for row in (3, 4, 5)]
    np.testing.assert_array_equal(one.batch(step)["position_BT"], batch["position_BT"])
  with pytest.raises(StopIteration):
    one.next()
  one.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_a_restored_source_goes_on_on_other_processes_though_batches_were_prepared(threads):
  one = Squares()
  for _ in range(5):
    one.next()
  state = json.loads(json.dumps(one.state()))
  other = Squares(index=1, count=3, threads=threads, steps=7)
  other.next()
  other.restore(state)
  assert [other.next()["position_BT"].tolist() for _ in range(2)] == [[[s, 2], [s, 3]] for s in (5, 6)]
  with pytest.raises(StopIteration):
    other.next()
  other.close()


def test_a_state_is_a_copy_and_settings_equal_what_comes_back_from_a_file():
  one = Squares(sizes=(1, 2), parts={"a": 1})
  state = one.state()
  state["parts"]["a"] = 2
  assert one.state() == {"step": 0, "seed": 1, "sizes": [1, 2], "parts": {"a": 1}}
  one.restore(json.loads(json.dumps(Squares(sizes=(1, 2), parts={"a": 1}).state())))


def test_settings_that_no_file_holds_are_refused_at_once():
  with pytest.raises(TypeError, match="not JSON serializable"):
    Squares(draw=np.random.default_rng(0))


@pytest.mark.parametrize("saved, message", [
  (dict(seed=2), "settings: seed=2 then, 1 now; resume"),
  (dict(seed=2, fingerprint="?"), "settings: seed=2 then, 1 now; resume"),
  (dict(fingerprint="?"), "settings: fingerprint='\\?' then, 'f' now; resume"),
  (dict(data={"files": 3, "python": "3"}), "text.files=3 then, 2 now; text.python='3' then, None now;"),
  (dict(data=None), "settings: text.files=None then, 2 now;"),
])  # fmt: skip
def test_a_place_of_others_is_refused_by_what_tells_most(saved, message):
  now = {"seed": 1, "fingerprint": "f", "data": {"files": 2}}
  stepped.check_place({**now, "step": 9, "more": 0}, now, nested={"data": "text."})
  with pytest.raises(ValueError, match=message):
    stepped.check_place({**now, "step": 9, **saved}, now, nested={"data": "text."})


def test_a_refused_place_leaves_the_source_where_it_was():
  one = Squares()
  one.next()
  with pytest.raises(ValueError, match="seed=2 then"):
    one.restore({"step": 4, "seed": 2})
  assert one.step == 1


def test_items_come_in_another_order_in_every_epoch_and_none_is_left_out():
  one = Items()
  found = [item for _ in range(5) for item in one.next()["item_BG"].ravel().tolist()]
  epochs = [found[:10], found[10:]]
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1]
  assert (one.steps_per_epoch, one.steps_of(2), one.steps_of(3)) == (3, 5, 8)
  assert one.state() == {"step": 5, "fingerprint": "f", "seed": 3, "batch_rows": 4}


def test_without_a_seed_items_are_read_once_in_order_and_the_last_rows_are_empty():
  once = Items(seed=None)
  found = [item for _ in range(3) for item in once.next()["item_BG"].ravel().tolist()]
  assert found == [*range(10), -1, -1]
  with pytest.raises(StopIteration):
    once.next()
