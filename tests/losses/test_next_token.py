"""The language-model loss: means over counted tokens, padding, blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses.next_token import next_token_loss
from tests import oracles
from tests.helpers import assert_close, assert_grads, assert_same_bits

B, T, D, V = 2, 6, 5, 11
WEIGHT = np.array([[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1]], np.float32)


def inputs(dtype="float32"):
  draw = np.random.default_rng(0)
  targets_BT = jnp.asarray(draw.integers(0, V, size=(B, T)), jnp.int32)
  return (
    jnp.asarray(draw.normal(size=(B, T, D)), dtype),
    jnp.asarray(draw.normal(size=(D, V)), dtype),
    targets_BT,
  )


@pytest.mark.core
@pytest.mark.parametrize("block_tokens", [None, 5])
def test_the_loss_is_the_mean_over_counted_tokens(x64, block_tokens):
  hidden_BTD, head_DV, targets_BT = inputs("float64")
  loss, weight, nll_BT = next_token_loss(
    hidden_BTD, head_DV, targets_BT, jnp.asarray(WEIGHT), block_tokens=block_tokens
  )
  expected_BT = np.stack(
    [oracles.vocab_loss(hidden, head_DV, targets) for hidden, targets in zip(hidden_BTD, targets_BT)]
  )
  assert_close(nll_BT, expected_BT)
  assert_close(loss, expected_BT[WEIGHT == 1].mean())
  assert float(weight) == 9


def test_what_stands_at_padding_changes_neither_loss_nor_gradient():
  hidden_BTD, head_DV, targets_BT = inputs()
  padding_BT = WEIGHT == 0

  @jax.jit
  def run(hidden_BTD, targets_BT):
    return jax.value_and_grad(
      lambda hidden, head: next_token_loss(hidden, head, targets_BT, jnp.asarray(WEIGHT))[0], (0, 1)
    )(hidden_BTD, head_DV)

  dirty = run(jnp.where(padding_BT[..., None], 7.0, hidden_BTD), jnp.where(padding_BT, 0, targets_BT))
  clean = run(hidden_BTD, targets_BT)
  assert_close(dirty, clean)
  assert_same_bits(dirty[0], clean[0])
  assert not np.asarray(clean[1][0])[padding_BT].any(), "padding receives a gradient"


def test_two_halves_weighed_by_their_counts_give_the_whole():
  hidden_BTD, head_DV, targets_BT = inputs()
  whole, total, _ = next_token_loss(hidden_BTD, head_DV, targets_BT, jnp.asarray(WEIGHT))
  parts = [
    next_token_loss(hidden_BTD[b : b + 1], head_DV, targets_BT[b : b + 1], jnp.asarray(WEIGHT[b : b + 1]))
    for b in range(B)
  ]
  assert_close(sum(loss * weight for loss, weight, _ in parts) / total, whole)


def test_a_batch_of_padding_has_loss_zero_and_finite_gradients():
  hidden_BTD, head_DV, targets_BT = inputs()
  total = lambda hidden: next_token_loss(hidden, head_DV, targets_BT, jnp.zeros((B, T)))[0]
  loss, gradient = jax.value_and_grad(total)(hidden_BTD)
  assert float(loss) == 0
  assert not np.asarray(gradient).any()


@pytest.mark.parametrize("block_tokens", [None, 5])
def test_stablemax_scores_tokens_as_its_definition_says(x64, block_tokens):
  hidden_BTD, head_DV, targets_BT = inputs("float64")
  how = {"kind": "stablemax", "block_tokens": block_tokens}
  loss, _, nll_BT = next_token_loss(hidden_BTD, head_DV, targets_BT, jnp.asarray(WEIGHT), **how)
  expected_BT = np.stack(
    [oracles.stablemax_nll(hidden, head_DV, targets) for hidden, targets in zip(hidden_BTD, targets_BT)]
  )
  assert_close(nll_BT, expected_BT)
  assert_close(loss, expected_BT[WEIGHT == 1].mean())

  total = lambda given: next_token_loss(*given, targets_BT, jnp.asarray(WEIGHT), **how)[0]
  assert_grads(total, (hidden_BTD, head_DV), jax.grad(total)((hidden_BTD, head_DV)))


def test_stablemax_by_blocks_never_holds_all_logits():
  hidden_BTD, targets_BT = jnp.zeros((2, 64, 4)), jnp.zeros((2, 64), jnp.int32)
  loss = lambda head: next_token_loss(
    hidden_BTD, head, targets_BT, jnp.ones((2, 64)), kind="stablemax", block_tokens=16
  )[0]
  program = str(jax.make_jaxpr(jax.grad(loss))(jnp.zeros((4, 51))))
  assert "16,51]" in program and "128,51]" not in program


def test_stablemax_has_finite_gradients_at_large_logits_of_either_sign():
  hidden_BTD = jnp.full((1, 2, 1), 1e4)
  head_DV = jnp.array([[1.0, -1.0, 0.0]])
  total = lambda head, targets: next_token_loss(
    hidden_BTD, head, targets, jnp.ones((1, 2)), kind="stablemax"
  )[0]
  for target in range(3):
    loss, grad = jax.value_and_grad(total)(head_DV, jnp.full((1, 2), target, jnp.int32))
    assert np.isfinite(loss) and np.isfinite(grad).all()


def test_an_unknown_kind_is_refused():
  hidden_BTD, head_DV, targets_BT = inputs()
  with pytest.raises(ValueError, match="kind='sparsemax' is unknown; known are softmax, stablemax"):
    next_token_loss(hidden_BTD, head_DV, targets_BT, jnp.asarray(WEIGHT), kind="sparsemax")
