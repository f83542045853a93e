"""What a memory rule is made of: tokens, gates, state, and the functions that turn one into the next.

Everything here belongs to one head of one row. Rows and heads are added by `vmap` in `memory.layer`.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Token(NamedTuple):
  """What one token writes and asks for; a chunk of tokens has the same fields with a leading C or T."""

  q: jax.Array  # [K] what to recall; unit norm
  k: jax.Array  # [K] the key under which v is written; unit norm
  v: jax.Array  # [M] the value to be recalled


class Gates(NamedTuple):
  """How strongly one token writes and how much of the past stays. Gates of papers: see STYLE, section 6."""

  log_retention: jax.Array  # [] log of the share of fast weights that stays, <= 0
  log_momentum: jax.Array  # [] log of the share of momentum that stays, <= 0
  write_rate: jax.Array  # [] step size of the inner descent, > 0

  @property
  def retention(self) -> jax.Array:
    """Share of the fast weights that stays, in (0, 1]."""
    return jnp.exp(self.log_retention)

  @property
  def momentum(self) -> jax.Array:
    """Share of the momentum that stays, in (0, 1]."""
    return jnp.exp(self.log_momentum)


class MemoryState(NamedTuple):
  """What changes while text is read."""

  fast: Any  # pytree of fast weights
  momentum: Any = ()  # running surprise, shaped like fast; () for rules without


class ChunkDecay(NamedTuple):
  """Gates of one chunk, accumulated: how each token's gradient weighs in each later state.

  With a, m, r, u the retention, momentum, write rate and write mask, W_t the fast weights and S_t the
  momentum after token t, W and S those before the chunk, and grad_i the gradient of token i:
    W_t = fast_C[t] W + momentum_C[t] S - sum_i mix_CC[t, i] grad_i
    S_C = momentum_keep S - sum_i momentum_weight_C[i] grad_i
  """

  fast_C: jax.Array  # share of W in each token's fast weights
  momentum_C: jax.Array  # weight of S in each token's fast weights
  mix_CC: jax.Array  # weight of token i's gradient (column) in the fast weights after token t (row)
  momentum_keep: jax.Array  # [] share of S at the chunk's end
  momentum_weight_C: jax.Array  # weight of each token's gradient in the momentum at the chunk's end


class ChunkOut(NamedTuple):
  """What reading one chunk gives beside the new state."""

  out_CM: jax.Array  # recalled values, each read after its own token's write
  surprise_C: jax.Array  # norm of each token's recall-loss gradient at the base state
  loss_C: jax.Array  # recall loss of each token at the base state: half the squared error


class MemoryRule(NamedTuple):
  """One update rule, for one head. `base` is the fast weights at the chunk's start."""

  init_fast: Callable  # key -> fast, the learned initial weights
  init: Callable  # fast -> MemoryState
  apply: Callable  # (fast, x_K) -> out_M, also with leading axes on x
  step: Callable  # (state, base, Token, Gates) -> (state, out_M): the plain form
  chunk: Callable  # (state, base, Token of C, ChunkDecay) -> (state, ChunkOut): the same for C tokens at once


class Running(NamedTuple):
  """A memory at any point of a text, also inside a chunk."""

  memory: MemoryState
  base: Any  # fast weights at the start of the current chunk
  position: jax.Array  # [] int32, tokens already read in the current chunk, in [0, chunk_size)
