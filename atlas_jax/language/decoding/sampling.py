"""Draws the next id of each row from scores, and says how likely it was.

Scores pass, in this order: the repetition penalty, the temperature, min-p, top-k, and top-p over what the
others leave. The settings are traced, so that changing them compiles nothing.
"""
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.language.decoding.sampler import Options

_NOT_DRAWN = -1e30  # Finite, so that differences of such scores are numbers.
_KEY_BITS = 64


class Knobs(NamedTuple):
  """How ids are drawn, as [] arrays; "off" is a value that changes nothing."""

  temperature: Any  # float32; 0 takes the likeliest id
  top_k: Any  # int32; V is off
  top_p: Any  # float32; 1 is off
  min_p: Any  # float32; 0 is off
  penalty: Any  # float32; 1 is off

  @classmethod
  def of(cls, options: Options, vocab_size: int) -> "Knobs":
    """Takes them from options.

    Raises:
      ValueError: if top_k is larger than the vocabulary.
    """
    top_k = vocab_size if options.top_k is None else options.top_k
    if top_k > vocab_size:
      raise ValueError(f"config.sampler.top_k={top_k} is more than the model's vocabulary of {vocab_size} "
                       "ids; lower it, or set it to None for all of them")
    off = lambda value, nothing: np.float32(nothing if value is None else value)
    return cls(np.float32(options.temperature), np.int32(top_k), off(options.top_p, 1), off(options.min_p, 0),
               np.float32(options.repetition_penalty))


class Drawn(NamedTuple):
  """What was drawn in each row."""

  token_B: jax.Array  # int32
  sampler_logprob_B: jax.Array  # in the distribution it was drawn from, 0 where that has one id only
  full_logprob_B: jax.Array  # in the distribution over all ids, tempered unless the temperature is 0


def root_words(seed: int) -> np.ndarray:
  """Gives the two words of the key that all draws of a seed come from, uint32.

  Raises:
    ValueError: if the seed is negative or takes more than 64 bits.
  """
  if not 0 <= seed < 2**_KEY_BITS:
    raise ValueError(f"seed={seed} must lie in 0..2**{_KEY_BITS} - 1")
  return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def row_keys(words, place_B, number_B):
  """Gives a key per row, of the seed's words, the place of its prompt and the completion's number alone."""
  root = jax.random.wrap_key_data(words, impl="threefry2x32")
  return jax.vmap(lambda place, number: jax.random.fold_in(jax.random.fold_in(root, place), number))(
      place_B, number_B)


def uniforms(key_B, at):
  """Gives two numbers in [0, 1) per row, of its key and the position `at` alone: a pair of [B] arrays."""
  both = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, at), (2,)))(key_B)
  return both[:, 0], both[:, 1]


def draw(logits_BV, uniform_pair, knobs: Knobs, seen_BV=None, *, filtered: bool) -> Drawn:
  """Draws one id per row.

  Args:
    logits_BV: scores, float32 or wider.
    uniform_pair: what `uniforms` gives.
    knobs: the settings.
    seen_BV: bool, ids that the repetition penalty is for; None: there is no penalty, whatever its setting.
    filtered: whether top-k, top-p and min-p are looked at; False if all are off, which costs nothing.

  Returns:
    `Drawn`, log-probabilities in nats in the dtype of the scores.
  """
  dtype = logits_BV.dtype
  heat = jnp.where(knobs.temperature > 0, knobs.temperature, 1).astype(dtype)
  full_BV = logits_BV / heat
  drawn_BV = full_BV if seen_BV is None else penalised(logits_BV, seen_BV, knobs.penalty) / heat
  if filtered:
    drawn_BV = jnp.where(kept(drawn_BV, knobs), drawn_BV, jnp.asarray(_NOT_DRAWN, dtype))
  top_B = jnp.max(drawn_BV, axis=-1)
  share_BV = jnp.exp(drawn_BV - top_B[:, None])
  token_B = jax.lax.cond(
      knobs.temperature > 0, lambda: invert(share_BV, *uniform_pair),
      lambda: jnp.argmax(drawn_BV, axis=-1).astype(jnp.int32))
  pick = lambda score_BV: jnp.take_along_axis(score_BV, token_B[:, None], axis=-1)[:, 0]
  logprob_B = pick(drawn_BV) - top_B - jnp.log(jnp.sum(share_BV, axis=-1))
  full_B = logprob_B
  if filtered or seen_BV is not None:
    full_B = pick(full_BV) - jax.nn.logsumexp(full_BV, axis=-1)
  return Drawn(token_B, jnp.where(knobs.temperature > 0, logprob_B, 0), full_B)


def penalised(logits_BV, seen_BV, penalty):
  """Makes ids that stand in a row already less likely: positive scores are divided, negative multiplied.

  Source: Keskar et al. 2019, arXiv:1909.05858, as published libraries do it, for prompt and completion.
  """
  penalty = jnp.asarray(penalty, logits_BV.dtype)
  changed_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  return jnp.where(seen_BV, changed_BV, logits_BV)


def kept(logits_BV, knobs: Knobs):
  """Says which ids min-p, top-k and top-p leave; the likeliest always, and equals of the last one left too.

  No sorting: the least share that is left is found by halving, one bit of the number at a time.
  """
  share_BV = jax.nn.softmax(logits_BV, axis=-1)
  most_B = jnp.max(share_BV, axis=-1, keepdims=True)
  share_BV = jnp.where(share_BV >= knobs.min_p.astype(share_BV.dtype) * most_B, share_BV, 0)
  count = lambda least_B: jnp.sum(share_BV >= least_B[:, None], axis=-1) >= knobs.top_k
  least_B = _unless(knobs.top_k >= share_BV.shape[-1], share_BV, count)
  share_BV = jnp.where(share_BV >= least_B[:, None], share_BV, 0)
  total_B = jnp.sum(share_BV, axis=-1) * knobs.top_p.astype(share_BV.dtype)
  mass = lambda least_B: jnp.sum(jnp.where(share_BV >= least_B[:, None], share_BV, 0), axis=-1) >= total_B
  least_B = _unless(knobs.top_p >= 1, share_BV, mass)
  return (share_BV >= least_B[:, None]) & (share_BV > 0)


def _unless(off, share_BV, enough):
  """Gives the largest number per row that `enough` holds for, or zeros where the filter is off."""
  rows = share_BV.shape[0]
  nothing = lambda: jnp.zeros((rows,), share_BV.dtype)
  return jax.lax.cond(off, nothing, lambda: _largest(enough, rows, share_BV.dtype))


def _largest(enough, rows: int, dtype):
  """Finds it in [0, 1]: numbers that are not negative stand in the order of their bits."""
  bits = jnp.finfo(dtype).bits
  whole = jnp.uint32 if bits == 32 else jnp.uint64
  top = int(np.asarray(1, dtype).view(whole))

  def halve(bounds):
    low_B, high_B = bounds
    middle_B = low_B + (high_B - low_B + 1) // 2
    fits_B = enough(jax.lax.bitcast_convert_type(middle_B, dtype))
    return jnp.where(fits_B, middle_B, low_B), jnp.where(fits_B, high_B, middle_B - 1)

  start = jnp.zeros((rows,), whole), jnp.full((rows,), top, whole)
  low_B, _ = jax.lax.fori_loop(0, top.bit_length(), lambda _, bounds: halve(bounds), start)
  return jax.lax.bitcast_convert_type(low_B, dtype)


def invert(share_BV, first_B, second_B):
  """Draws an id per row, in proportion to its share: first a block of ids, then one inside it.

  Two steps look at each share once and at few sums, and a large vocabulary loses no rare id to rounding.

  Args:
    share_BV: not negative, with one above 0 at least in each row.
    first_B, second_B: numbers in [0, 1).

  Returns:
    token_B, int32; its share is above 0.
  """
  vocab_size = share_BV.shape[-1]
  block = 2 ** round(math.log2(vocab_size) / 2)
  padded_BV = jnp.pad(share_BV, ((0, 0), (0, -vocab_size % block)))
  blocks_BNC = padded_BV.reshape(share_BV.shape[0], -1, block)
  chosen_B = _first_above(jnp.sum(blocks_BNC, axis=-1), first_B)
  inside_BC = jnp.take_along_axis(blocks_BNC, chosen_B[:, None, None], axis=1)[:, 0]
  return chosen_B * block + _first_above(inside_BC, second_B)


def _first_above(share_BN, uniform_B):
  """Gives the first place where the sum of shares so far exceeds the given part of the whole.

  Rounding may make sums fall by a little, so places of no share are passed over.
  """
  sum_BN = jnp.cumsum(share_BN, axis=-1)
  real_BN = share_BN > 0
  whole_B = jnp.max(jnp.where(real_BN, sum_BN, 0), axis=-1)
  above_BN = real_BN & (sum_BN > (uniform_B.astype(sum_BN.dtype) * whole_B)[:, None])
  return jnp.argmax(above_BN, axis=-1).astype(jnp.int32)
