"""Accuracy of the likeliest token on trained and on held-out rows, against logits of one long pass."""
import functools

import jax
import numpy as np
import pytest

from atlas_jax.evals import accuracy
from atlas_jax.models import head, placement
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from tests import oracles
from tests.evals.documents import Documents, joined, lm_and_params, nats, random_documents

LENGTHS = (150, 30, 7, 141, 3)


def held_out(**fields):
  return Documents(random_documents(LENGTHS), **(dict(rows=4, segment_len=24) | fields))


def trained_on(made=None):
  found = held_out(seed=5)
  if made is not None:
    made.append(found)
  return found


@functools.lru_cache
def measure(devices=1, kind="softmax", block_tokens=None, **mesh):
  model, _ = lm_and_params()
  return accuracy.make(model, trained_on, held_out, meshes.make(**mesh, devices=jax.devices()[:devices]),
                       kind=kind, block_tokens=block_tokens)


@functools.lru_cache
def long_pass():
  """The held-out text as one segment: the batch, hidden vectors and logits of every target."""
  model, params = lm_and_params()
  batch = joined(held_out())

  @jax.jit
  def read(tokens_BT, doc_BT):
    hidden_BTD = model.apply({"params": params}, tokens_BT, model.zero_state(4), doc_BT=doc_BT,
                             mode="packed").hidden_BTD
    return hidden_BTD, head.logits(params, hidden_BTD)

  return batch, *read(batch["tokens_BT"], batch["doc_BT"])


def test_held_out_rows_are_scored_as_in_one_long_pass():
  batch, _, logits_BTV = long_pass()
  counted_BT = batch["weight_BT"] > 0
  scalars = measure()(Trained(lm_and_params()[1]), step=7).scalars
  hits = np.argmax(logits_BTV, -1)[counted_BT] == batch["targets_BT"][counted_BT]
  loss = nats(logits_BTV, batch["targets_BT"])[counted_BT].mean()
  assert scalars[accuracy.HELD_OUT] == pytest.approx(hits.mean())
  assert scalars["eval/held_out_loss_nats"] == pytest.approx(loss, rel=2e-6)
  assert 0 < scalars[accuracy.TRAIN] < 1 and set(scalars) == {
      f"eval/{split}_{name}" for split in ("train", "held_out") for name in ("accuracy", "loss_nats")}


def test_blocks_of_tokens_change_nothing_and_stablemax_changes_the_loss_alone():
  params = lm_and_params()[1]
  whole = measure()(Trained(params), step=7).scalars
  blocks = measure(block_tokens=10)(Trained(params), step=7).scalars
  np.testing.assert_allclose(list(blocks.values()), list(whole.values()), rtol=2e-6)
  other = measure(kind="stablemax", block_tokens=10)(Trained(params), step=7).scalars
  batch, hidden_BTD, _ = long_pass()
  counted_BT = batch["weight_BT"] > 0
  hidden_ND, target_N = hidden_BTD[counted_BT], batch["targets_BT"][counted_BT]
  nll = oracles.stablemax_nll(hidden_ND, head.head_weights(params), target_N)
  assert other["eval/held_out_loss_nats"] == pytest.approx(nll.mean(), rel=1e-5)
  assert other[accuracy.HELD_OUT] == whole[accuracy.HELD_OUT]


def test_of_training_rows_as_many_places_are_read_as_of_held_out_ones():
  model, params = lm_and_params()
  made = []
  mesh = meshes.make(devices=jax.devices()[:1])
  run = accuracy.make(model, functools.partial(trained_on, made), held_out, mesh)
  run(Trained(params), step=0)
  assert made[0].step == held_out()._plan.steps_per_epoch and made[0].closed


def test_eight_devices_give_what_one_gives():
  params = lm_and_params()[1]
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  split = jax.device_put(params, placement.shardings(mesh, params))
  one = measure()(Trained(params), step=0).scalars
  eight = measure(devices=8, data=2, fsdp=2, tensor=2)(Trained(split), step=0).scalars
  np.testing.assert_allclose([eight[name] for name in one], list(one.values()), rtol=1e-5)


def test_rows_without_a_counted_token_are_refused():
  with pytest.raises(ValueError, match="the held-out rows have no token that counts"):
    accuracy.scalars({}, "held_out")
