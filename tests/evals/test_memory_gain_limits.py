"""Memory gain at its ends: a memory made by hand to hold the answer, and one that has learned nothing."""

import functools

import jax.numpy as jnp
import numpy as np
from flax.core import freeze

from atlas_jax.evals import memory_gain
from atlas_jax.state import Trained
from tests.evals.documents import Documents, random_documents
from tests.evals.test_memory_gain import BY_POSITION, one_device
from tests.helpers import SHIFTED, tiny_lm

WIDTH = 32
PAIRS = dict(SHIFTED, options=freeze({"momentum": False}), heads=1, key_dim=WIDTH, value_dim=WIDTH,
             write_rate_max=1.0, write_rate_init=0.5)


def measured(model, params, documents, segment_len=12):
  text = lambda: Documents(documents, rows=4, segment_len=segment_len)
  return memory_gain.make(model, text, one_device())(Trained(params), step=0)


@functools.lru_cache
def by_hand():
  """A model that answers with what followed the token before: keys, values and embeddings are one-hot."""
  model, params, _ = tiny_lm(memory=PAIRS, width=WIDTH, heads=1, depth=1, noise=0.0)
  eye, block = jnp.eye(WIDTH), params["blocks"]
  memory = {**block["memory"], "qkv_kernel": eye[None, :, None], "value_kernel": eye[None, :, None],
            "conv_kernel": jnp.zeros((1, 4, 1, WIDTH)).at[:, -1].set(1),
            "gates": {"kernel": jnp.zeros((1, WIDTH, 2)), "bias": jnp.array([[-1e4, 20.0]])}}
  silent = {"attention": {**block["attention"], "out": {"kernel": jnp.zeros((1, 1, WIDTH, WIDTH))}},
            "mlp": {**block["mlp"], "out_kernel": jnp.zeros_like(block["mlp"]["out_kernel"])}}
  block = {**block, **silent, "memory": memory, "memory_out": {"kernel": 100 * eye[None, None]}}
  return model, {**params, "embed": eye, "blocks": block}


def rings(number, *, length=160, size=31):
  """Documents that go round a ring of all tokens, each in an order of its own."""
  draw = np.random.default_rng(3)
  return [np.resize(draw.permutation(size), length).astype(np.uint16) for _ in range(number)]


def test_a_memory_that_holds_the_answer_is_worth_what_it_tells():
  scalars = measured(*by_hand(), rings(8)).scalars
  for name in BY_POSITION:
    mean, low = (scalars[f"eval/memory_gain_{name}_nats{end}"] for end in ("", "_low"))
    assert mean > low > 2, name
  # From the second time round on, all is known; where the start is zero, no writes are an empty memory.
  deep = "eval/memory_gain_loss_nats_by_position/000064-000127"
  assert scalars[deep] < 0.2
  assert scalars["eval/memory_gain_writes_off_nats"] == scalars["eval/memory_gain_emptied_nats"]
  first, second = (scalars[f"eval/memory_gain_emptied_nats_by_position/{bucket}"]
                   for bucket in ("000000-000063", "000064-000127"))
  assert second > first + 1


def test_another_rows_memory_is_as_good_where_all_documents_are_alike():
  same = [rings(1)[0]] * 8
  scalars = measured(*by_hand(), same).scalars
  assert scalars["eval/memory_gain_emptied_nats"] > 2
  assert scalars["eval/memory_gain_swapped_nats"] < 0.01  # Even less: some rows have read further.


def test_an_untrained_memory_is_worth_nothing():
  """What it reads is noise, without which the loss may even be lower: no interval lies above zero."""
  model, params, _ = tiny_lm(noise=0.0)
  scalars = measured(model, params, random_documents((60,) * 24, seed=4)).scalars
  for name in BY_POSITION:
    mean, low, high = (scalars[f"eval/memory_gain_{name}_nats{end}"] for end in ("", "_low", "_high"))
    assert low < 0 and low < high and abs(mean) < 0.02, name
