"""The reach of attention in training: how far it sees in an update, and the rows in which it gives nothing.

Evaluation and serving always see the whole window. While a model is trained, only its memory can supply what
attention does not see, so that the model learns to use it.

Rows are dropped whole and not in part, as elements are in dropout: a row then has to do without attention,
and no other is scaled up for it, since evaluation has all of both. Source: ours.

Source: windows of random length in training, arXiv:2509.24552; attention that is trained late, Phan et al.
2025, arXiv:2510.00258 (there it is left out at first, here it sees little).
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Steps and the first parameters fold other numbers into the root, see `state.first`.
STREAM = 2**31 - 2


def schedule(*, kind: str, least_tokens: int | None, delay_steps: int | None, window_tokens: int,
             seed: int) -> Callable | None:
  """Makes the windows of a run.

  Args:
    kind: "full": always window_tokens. "random": for every update another, from least_tokens to
      window_tokens, log-uniform: of each octave equally often. "delayed": least_tokens for the first
      delay_steps updates, then window_tokens.
    least_tokens: the shortest window, from 1 to window_tokens.
    delay_steps: updates with the shortest window.
    window_tokens: of the model.
    seed: of the run; a window depends on it and on the update's number alone.

  Returns:
    A function of the count of finished updates, int32 [], that gives int32 []; None for "full".

  Raises:
    ValueError: if the kind is unknown. `fields` checks the others.
  """
  if kind == "full":
    return None
  if kind == "delayed":
    return lambda step: jnp.where(step < delay_steps, jnp.int32(least_tokens), jnp.int32(window_tokens))
  if kind != "random":
    raise ValueError(f"config.window.kind={kind!r} is unknown; known are full, random, delayed")

  # exp of a uniform logarithm. window_tokens + 1, because floor would else give the full
  # window only at the very end of the range; clip is for rounding at either end. The result is
  # traced, so a new window compiles nothing.
  def drawn(step):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAM), step)
    low = jnp.log(jnp.float32(least_tokens))
    high = jnp.log(jnp.float32(window_tokens + 1))
    tokens = jnp.exp(jax.random.uniform(key, minval=low, maxval=high))
    return jnp.clip(jnp.floor(tokens).astype(jnp.int32), least_tokens, window_tokens)

  return drawn


def kept_rows(rng, rows: int, drop_frac: float):
  """Draws the rows of a batch whose attention is kept, each by itself.

  Args:
    rng: a key of the update's own.
    rows: of the batch.
    drop_frac: probability that a row is dropped, in [0, 1].

  Returns:
    keep_B, float32, 1 or 0; None where none is ever dropped, and nothing is drawn.
  """
  if not drop_frac:
    return None
  return jax.random.bernoulli(rng, 1 - drop_frac, (rows,)).astype(jnp.float32)


def differing(window) -> dict:
  """Returns the fields of config.window by which a run's training differs from one with all of attention.

  They are part of what recorded figures hold for. A full window without dropped rows has none, so that files
  recorded before a field was there still hold.
  """
  named = {f"config.window.{name}": value for name, value in window.items()}
  dropped = named.pop("config.window.drop_frac")
  return (named if window.kind != "full" else {}) | ({"config.window.drop_frac": dropped} if dropped else {})
