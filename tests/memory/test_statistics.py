"""Statistics of a memory's use: the losses of recall, which compare across rules."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import statistics
from atlas_jax.memory.layer import NO_DOC
from tests.helpers import SHIFTED, tiny_memory, tiny_rule


def losses(rule, recalled, values, real):
  found = statistics._recall_losses(rule, *(jnp.asarray(x, jnp.float32) for x in (recalled, values, real)))
  return [float(x) for x in found]


def test_losses_are_means_over_real_tokens_and_heads():
  values = np.array([[[[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [5.0, 5.0]]]])  # [1 row, 2 heads, 2 tokens, 2]
  recalled = np.array([[[[1.0, 1.0], [9.0, 9.0]], [[0.0, 0.0], [9.0, 9.0]]]])
  rule, _ = tiny_rule("delta")
  # The second token is padding. Errors 1 and 1, values of square 1 and 1, halved, over two heads.
  assert losses(rule, recalled, values, [[1.0, 0.0]]) == [0.5, 0.5]
  assert losses(rule, values, values, [[1.0, 1.0]]) == [0.0, pytest.approx((1 + 4 + 1 + 50) / 2 / 4)]
  assert losses(rule, recalled, values, [[0.0, 0.0]]) == [0.0, 0.0]


def test_a_rule_that_aims_at_directions_is_asked_for_no_length():
  draw = np.random.default_rng(0)
  values = draw.normal(size=(2, 3, 4, 5))
  rule, _ = tiny_rule("linear_attention")
  error, zero = losses(rule, 70 * values, values, np.ones((2, 4)))
  assert error < 1e-6 * zero
  opposite, _ = losses(rule, -70 * values, values, np.ones((2, 4)))
  assert opposite == pytest.approx(zero)  # No length suits it: the best is zero.


@pytest.mark.parametrize("rate", [1e-6, 0.5])
def test_a_memory_that_is_not_written_recalls_as_well_as_answering_zero(rate):
  options = dict(SHIFTED, options={"momentum": False}, heads=1, write_rate_init=rate, write_rate_max=1.0)
  layer, params, x_BTD = tiny_memory(noise=0.0, **options)
  doc_BT = jnp.zeros((2, 12), jnp.int32)
  last_B = jnp.full(2, NO_DOC, jnp.int32)
  read = jax.jit(functools.partial(layer.apply, mode="packed"))
  _, _, stats = read({"params": params}, x_BTD, layer.zero_state(2), doc_BT, last_B, None)
  ratio = stats["recall_loss_after"] / stats["recall_loss_zero"]
  assert stats["recall_loss_zero"] == pytest.approx(0.5, rel=1e-3)  # Values have norm one.
  assert ratio == pytest.approx(1, abs=1e-4) if rate < 1e-3 else ratio < 0.9
