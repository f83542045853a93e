"""Scores tokens block by block, so that what a vocabulary needs is never there for all of them at once."""
from collections.abc import Callable

import jax
import jax.numpy as jnp


def map_blocks(score: Callable, arrays: tuple, *, block_tokens: int | None):
  """Applies a function to blocks of tokens, one after another, and recomputes each in the backward pass.

  Args:
    score: blocks of the arrays -> a pytree of arrays with one number per token; tokens do not meet in it.
    arrays: every one leads with N, the tokens (N here counts tokens).
    block_tokens: tokens of a block; None: all of them, and nothing is recomputed.

  Returns:
    What `score` gives, for all N tokens.

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
    x = jnp.pad(x, ((0, pad), *((0, 0),) * (x.ndim - 1)))
    # Block i takes tokens i, i + blocks, ...: every device keeps its own tokens.
    return jnp.moveaxis(x.reshape(block_tokens, blocks, *x.shape[1:]), 1, 0)

  one = jax.checkpoint(lambda xs: score(*xs))
  out = jax.lax.map(one, tuple(split(x) for x in arrays))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1)[:count], out)
