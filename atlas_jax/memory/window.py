"""The last tokens before a chunk, kept so that a window of writes reaches across its border."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory.types import Token


class WindowRows(NamedTuple):
  """The last window_size - 1 real tokens, oldest first."""

  k_WK: jax.Array
  v_WM: jax.Array
  here_W: jax.Array  # float, 1 where there is a token; 0 before the text's beginning


def empty(size: int, key_dim: int, value_dim: int, dtype) -> WindowRows:
  """Returns the rows before a text's first token."""
  return WindowRows(*(jnp.zeros(shape, dtype) for shape in ((size, key_dim), (size, value_dim), (size,))))


def append(rows: WindowRows, token: Token) -> WindowRows:
  """Adds one token at the end: the whole window of that token; all but the oldest row stay for the next."""
  here = jnp.ones((), rows.here_W.dtype)
  new = WindowRows(token.k, token.v, here)
  return jax.tree.map(lambda old, x: jnp.concatenate([old, x[None].astype(old.dtype)]), rows, new)


def reach(rows: WindowRows, tokens: Token, context_CW, write_C):
  """Lays a chunk's tokens after the rows kept before it.

  Args:
    rows: W - 1 rows, W the window.
    tokens: of the chunk.
    context_CW: how much token t counts the token `lag` real tokens before it.
    write_C: 1 where the token counts.

  Returns:
    all rows (W - 1 + C of them, `here` as floats), weight_CS (of each of them in each token's window), and
    the rows to keep after the chunk.
  """
  size = rows.here_W.shape[0]
  window = context_CW.shape[1]
  own = WindowRows(tokens.k, tokens.v, write_C.astype(rows.here_W.dtype))
  every = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), rows, own)
  # Real tokens are numbered through, the last row before the chunk being 0: lags then count real tokens, and
  # padding, which repeats a number, is cut by `here`.
  order_C = jnp.cumsum(write_C.astype(jnp.int32))
  order_S = jnp.concatenate([jnp.arange(size, dtype=jnp.int32) - (size - 1), order_C])
  lag_CS = order_C[:, None] - order_S[None, :]
  inside_CS = (lag_CS >= 0) & (lag_CS < window) & (every.here_W > 0)[None, :]
  weight_CS = jnp.take_along_axis(context_CW, jnp.clip(lag_CS, 0, window - 1), axis=1)
  weight_CS = jnp.where(inside_CS, weight_CS, 0)
  # Which rows stay depends on how many tokens are real: a product with zeros and ones picks them, and where
  # none fits (a text's beginning) it leaves a row of zeros with here = 0.
  wanted_W = order_C[-1] - (size - 1) + jnp.arange(size, dtype=jnp.int32)
  pick_WS = ((order_S[None, :] == wanted_W[:, None]) & (every.here_W > 0)[None, :]).astype(every.here_W.dtype)
  keep = WindowRows(pick_WS @ every.k_WK, pick_WS @ every.v_WM, jnp.sum(pick_WS, 1))
  return every, weight_CS, keep
