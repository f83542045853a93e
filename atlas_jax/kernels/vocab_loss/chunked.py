"""The vocabulary loss by blocks of tokens: logits of one block at a time, recomputed in the backward pass."""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from atlas_jax.kernels.vocab_loss import reference


def map_blocks(score: Callable, arrays: tuple, *, block_tokens: int | None):
  """Applies a function to blocks of tokens, one after another, and recomputes each in the backward pass.

  Args:
    score: blocks of the arrays -> a pytree of arrays with one number per token; tokens do not meet in it.
    arrays: every one leads with N, the tokens (N here counts tokens).
    block_tokens: tokens of a block; None: all of them, and nothing is recomputed.

  Returns:
    The result of `score` for all N tokens.

  Raises:
    ValueError: if block_tokens is not positive.
  """
  count = arrays[0].shape[0]
  if block_tokens is None:
    return score(*arrays)
  if block_tokens < 1:
    raise ValueError(f"config.loss.block_tokens={block_tokens} is no number of tokens; set 1 or more, or "
                     "None for all at once")
  blocks = -(-count // block_tokens)
  pad = blocks * block_tokens - count

  def split(x):
    # Added tokens are zeros with target 0; their scores are cut below, hence have no gradient.
    x = jnp.pad(x, ((0, pad), *((0, 0),) * (x.ndim - 1)))
    # Block i takes tokens i, i + blocks, ...: every device keeps its own tokens.
    return jnp.moveaxis(x.reshape(block_tokens, blocks, *x.shape[1:]), 1, 0)

  # Without it the loop would keep what each block needs for its backward pass, all logits after all.
  one = jax.checkpoint(lambda xs: score(*xs))
  out = jax.lax.map(one, tuple(split(x) for x in arrays))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1)[:count], out)


def vocab_loss(hidden_ND, head_DV, target_N, *, temperature=1.0, block_tokens: int):
  """Scores targets by blocks of tokens; arguments as in the package. A last block not full is padded."""

  def score(hidden, target):
    return reference.vocab_loss(hidden, head_DV, target, temperature=temperature)

  return map_blocks(score, (hidden_ND, target_N), block_tokens=block_tokens)
