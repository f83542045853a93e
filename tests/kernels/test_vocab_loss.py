"""The vocabulary loss: both forms against loops, their gradients, blocks that do not divide, large logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.kernels.vocab_loss import vocab_loss
from tests import oracles
from tests.helpers import assert_close

TOKENS, D, V = 7, 5, 11
BLOCKS = [None, 1, 3, 7, 16]


def inputs(dtype="float32", scale=1.0):
  draw = np.random.default_rng(0)
  hidden_ND, head_DV = (
    jnp.asarray(scale * draw.normal(size=shape), dtype) for shape in ((TOKENS, D), (D, V))
  )
  return hidden_ND, head_DV, jnp.asarray([0, 10, 3, 3, 5, 9, 0], jnp.int32)


@pytest.mark.core
@pytest.mark.parametrize("block_tokens", BLOCKS)
def test_the_loss_equals_the_loop(x64, block_tokens):
  nll_N = vocab_loss(*inputs("float64"), block_tokens=block_tokens)
  assert nll_N.shape == (TOKENS,)
  assert_close(nll_N, oracles.vocab_loss(*inputs("float64")))


@pytest.mark.parametrize("block_tokens", [None, 3])
def test_gradients_are_the_softmax_minus_the_target(x64, block_tokens):
  hidden_ND, head_DV, target_N = inputs("float64")
  weight_N = jnp.arange(1.0, TOKENS + 1)
  total = lambda hidden, head: jnp.sum(
    weight_N * vocab_loss(hidden, head, target_N, block_tokens=block_tokens)
  )
  logits_NV = np.asarray(hidden_ND @ head_DV)
  error_NV = np.exp(logits_NV) / np.exp(logits_NV).sum(1, keepdims=True)
  error_NV[np.arange(TOKENS), target_N] -= 1
  error_NV *= np.asarray(weight_N)[:, None]
  assert_close(
    jax.jit(jax.grad(total, (0, 1)))(hidden_ND, head_DV),
    (error_NV @ np.asarray(head_DV).T, np.asarray(hidden_ND).T @ error_NV),
  )


@pytest.mark.parametrize("block_tokens", [None, 3])
def test_large_logits_stay_finite(block_tokens):
  hidden_ND, head_DV, target_N = inputs(scale=100.0)
  total = lambda hidden, head: jnp.sum(vocab_loss(hidden, head, target_N, block_tokens=block_tokens))
  value, gradient = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden_ND, head_DV)
  assert np.isfinite(value) and all(np.isfinite(x).all() for x in gradient)


@pytest.mark.parametrize("block_tokens", [None, 3])
def test_bfloat16_vectors_give_a_float32_loss(block_tokens):
  hidden_ND, head_DV, target_N = inputs()
  nll_N = vocab_loss(hidden_ND.astype(jnp.bfloat16), head_DV, target_N, block_tokens=block_tokens)
  assert nll_N.dtype == jnp.float32
  assert_close(nll_N, oracles.vocab_loss(hidden_ND, head_DV, target_N), tolerance=2e-2)


def test_equal_logits_cost_the_log_of_the_vocabulary():
  nll_N = vocab_loss(jnp.zeros((TOKENS, D)), jnp.ones((D, V)), inputs()[2])
  assert_close(nll_N, np.full(TOKENS, np.log(V)))


def test_blocks_hold_the_logits_of_one_block_in_both_passes():
  """Compiled memory: all logits would be 4096 x 512 floats, a block is a sixteenth of them."""
  hidden_ND, head_DV, target_N = jnp.zeros((4096, 8)), jnp.zeros((8, 512)), jnp.zeros(4096, jnp.int32)

  def temp_bytes(block_tokens):
    total = functools.partial(vocab_loss, block_tokens=block_tokens)
    gradient = jax.jit(jax.grad(lambda hidden, head: jnp.sum(total(hidden, head, target_N)), (0, 1)))
    return gradient.lower(hidden_ND, head_DV).compile().memory_analysis().temp_size_in_bytes

  assert temp_bytes(None) > 4096 * 512 * 4
  assert temp_bytes(256) < 4096 * 512 * 4 / 4


def test_wrong_forms_are_refused():
  with pytest.raises(ValueError, match="known are"):
    vocab_loss(*inputs(), impl="fused")
  with pytest.raises(ValueError, match="block_tokens"):
    vocab_loss(*inputs(), impl="chunked")
