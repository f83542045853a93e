"""Evaluations are left between two batches, and their numbers are made anew; counted, not timed."""

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import closing, train
from atlas_jax.evals import Eval, EvalOut, examples, held_out, stopping
from tests import runs
from tests.helpers import quick_compilation

BATCHES = 5


class Batches:
  """A source of few batches, which asks its run to stop while one is read."""

  def __init__(self, asks_at=None):
    self.read, self.asks_at = 0, asks_at

  def next(self, params):
    """Returns a batch of ones."""
    if self.read == BATCHES:
      raise StopIteration
    self.read += 1
    if self.read == self.asks_at:
      runs.ask_to_stop()
    return {"tokens_BT": np.ones((2, 3), np.int32), "weight_BT": np.ones((2, 3), np.float32)}

  def close(self):
    """Frees nothing."""


def test_nothing_stops_what_nobody_may_stop():
  stopping.check()
  assert not stopping.active()
  assert len([*held_out.batches(Batches())]) == BATCHES


def test_batches_end_where_the_program_is_asked():
  read = []
  with stopping.stoppable(lambda: len(read) == 2), pytest.raises(stopping.EvalStopped):
    for batch in held_out.batches(Batches()):
      read.append(batch)
  assert len(read) == 2 and not stopping.active()


def test_a_sequence_is_left_between_two_parts():
  assert [*stopping.parts([1, 2, 3, 4, 5], 2)] == [[1, 2], [3, 4], [5]]
  read = []
  with stopping.stoppable(lambda: len(read) == 1), pytest.raises(stopping.EvalStopped):
    read.extend(stopping.parts("abc", 1))
  assert read == ["a"]


def test_a_run_leaves_its_evaluation_at_the_next_batch_and_makes_all_of_it_when_it_goes_on(tmp_path):
  config = runs.toy_config()
  sources = []

  def loss(asks_at):
    def source():
      sources.append(Batches(asks_at))
      return sources[-1]

    score = lambda params, batch, frozen: -jnp.ones_like(batch["weight_BT"]) + 0 * params["mlp"]["bias"]
    return {"loss": Eval(examples.make(score, source, runs.one_device()), "every"),
            "later": Eval(lambda trained, **given: EvalOut({"val/later": float(len(sources))}), "every")}

  def start(asks_at=None):
    recipe = runs.toy_recipe(config, evals=loss(asks_at))
    return train.run(config, recipe, runs.one_device(), tmp_path)

  with quick_compilation():
    assert start(asks_at=2) == {}
    assert [one.read for one in sources] == [2] and "val/later" not in runs.rows_of(tmp_path)[-1]
    summary = start()
  assert [one.read for one in sources] == [2, BATCHES]
  assert (summary["val_loss_nats"], summary["val_tokens"], summary["val_later"]) == (1.0, 30.0, 2.0)


def test_several_processes_are_asked_between_evaluations_alone(monkeypatch):
  monkeypatch.setattr(closing.jax, "process_count", lambda: 2)
  with closing._stoppable(lambda: True):
    assert not stopping.active()
