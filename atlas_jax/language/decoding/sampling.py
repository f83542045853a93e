"""Draws the next id of each row from scores, and says how likely it was and whether it ends the row.

Scores pass, in this order: the repetition penalty, the temperature, min-p, top-k, and top-p over what the
others leave. The settings are traced, so that changing them compiles nothing; they are those of all rows, or
each row has its own.
"""
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.language.decoding.sampler import SamplingOptions

_NOT_DRAWN = -1e30  # Finite, so that differences of such scores are numbers.
_KEY_BITS = 64


class SamplingParams(NamedTuple):
  """Sampling settings as arrays, all [] or all [B]; "off" is a value that changes nothing."""

  temperature: Any  # float32; 0 takes the likeliest id
  top_k: Any  # int32; V is off
  top_p: Any  # float32; 1 is off
  min_p: Any  # float32; 0 is off
  penalty: Any  # float32; 1 is off

  @classmethod
  def of(cls, options: SamplingOptions, vocab_size: int) -> "SamplingParams":
    """Takes them from options.

    Raises:
      ValueError: if top_k is larger than the vocabulary.
    """
    top_k = vocab_size if options.top_k is None else options.top_k
    if top_k > vocab_size:
      raise ValueError(f"config.sampler.top_k={top_k} is more than the model's vocabulary of {vocab_size} "
                       "ids; lower it, or set it to None for all of them")

    def off(value, nothing):
      return np.float32(nothing if value is None else value)

    return cls(np.float32(options.temperature), np.int32(top_k), off(options.top_p, 1), off(options.min_p, 0),
               np.float32(options.repetition_penalty))


class Drawn(NamedTuple):
  """The id drawn in each row, and its log-probabilities."""

  token_B: jax.Array  # int32
  sampler_logprob_B: jax.Array  # in the distribution it was drawn from, 0 where that has one id only
  full_logprob_B: jax.Array  # in the distribution over all ids, tempered unless the temperature is 0


def root_words(seed: int) -> np.ndarray:
  """Returns the two words of the key that all draws of a seed come from, uint32.

  Raises:
    ValueError: if the seed is negative or takes more than 64 bits.
  """
  if not 0 <= seed < 2**_KEY_BITS:
    raise ValueError(f"seed={seed} must lie in 0..2**{_KEY_BITS} - 1")
  return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def row_keys(words, position_B, number_B):
  """Returns a key per row, of the seed's words, the place of its prompt and the completion's number alone."""
  # Named, so that a seed draws the same whatever jax_default_prng_impl is set to.
  root = jax.random.wrap_key_data(words, impl="threefry2x32")
  return jax.vmap(lambda place, number: jax.random.fold_in(jax.random.fold_in(root, place), number))(
      position_B, number_B)


def text_key(seed: int):
  """Returns the key of a text of its own, [1]: that of the first completion of the first prompt."""
  first_B = np.zeros(1, np.int32)
  return row_keys(root_words(seed), first_B, first_B)


def uniforms(key_B, at):
  """Returns two numbers in [0, 1) per row, of its key and the position `at` alone: a pair of [B] arrays.

  Args:
    key_B: of `row_keys`.
    at: int32, [] or [B], how many ids of the completion were drawn before.
  """

  def pair(key, at):
    return jax.random.uniform(jax.random.fold_in(key, at), (2,))

  both = jax.vmap(pair, in_axes=(0, 0 if jnp.ndim(at) else None))(key_B, at)
  return both[:, 0], both[:, 1]


def seen_ids(tokens_BT, count_B, vocab_size: int):
  """Returns the ids among the first count_B tokens of each row, as `draw` takes them: seen_BV, bool."""
  rows, width = tokens_BT.shape
  # Padding becomes id V, which is out of range and dropped.
  token_BT = jnp.where(jnp.arange(width)[None] < count_B[:, None], tokens_BT, vocab_size)
  return jnp.zeros((rows, vocab_size), bool).at[jnp.arange(rows)[:, None], token_BT].set(True, mode="drop")


def is_stop(token_B, stop_E):
  """Returns which rows end with an id: is_stop_B, bool; stop_E is [E] or [B, E], -1 where there is none."""
  return jnp.any(token_B[:, None] == (stop_E if stop_E.ndim == 2 else stop_E[None]), axis=1)


def draw_at(logits_BV, key_B, at, settings: SamplingParams, seen_BV=None, *, filtered: bool) -> tuple[Drawn,
                                                                                                   Any]:
  """Draws the id at a position of each row, and returns it with the ids seen by now, None if they were None.

  Args:
    logits_BV, settings, seen_BV, filtered: see `draw`.
    key_B, at: see `uniforms`.
  """
  drawn = draw(logits_BV, uniforms(key_B, at), settings, seen_BV, filtered=filtered)
  if seen_BV is not None:
    seen_BV = seen_BV.at[jnp.arange(len(drawn.token_B)), drawn.token_B].set(True)
  return drawn, seen_BV


def draw(logits_BV, uniform_pair, settings: SamplingParams, seen_BV=None, *, filtered: bool) -> Drawn:
  """Draws one id per row.

  Args:
    logits_BV: scores, float32 or wider.
    uniform_pair: what `uniforms` gives.
    settings: the settings.
    seen_BV: bool, ids that the repetition penalty is for; None: there is no penalty, whatever its setting.
    filtered: whether top-k, top-p and min-p are looked at; False if all are off, which costs nothing.

  Returns:
    `Drawn`, log-probabilities in nats in the dtype of the scores.
  """
  dtype = logits_BV.dtype
  # At temperature 0 nothing is drawn; 1 keeps the division finite and
  # makes full_logprob that of temperature 1.
  temperature = _column(jnp.where(settings.temperature > 0, settings.temperature, 1).astype(dtype))
  full_BV = logits_BV / temperature
  drawn_BV = full_BV if seen_BV is None else penalised(logits_BV, seen_BV, settings.penalty) / temperature
  if filtered:
    drawn_BV = jnp.where(keep_mask(drawn_BV, settings), drawn_BV, jnp.asarray(_NOT_DRAWN, dtype))
  top_B = jnp.max(drawn_BV, axis=-1)
  # Weights up to a factor, the largest 1: drawing needs no more, and
  # their sum normalises the log-probability.
  weight_BV = jnp.exp(drawn_BV - top_B[:, None])
  token_B = _choose(drawn_BV, weight_BV, uniform_pair, settings.temperature)

  def pick(score_BV):
    return jnp.take_along_axis(score_BV, token_B[:, None], axis=-1)[:, 0]

  logprob_B = pick(drawn_BV) - top_B - jnp.log(jnp.sum(weight_BV, axis=-1))
  # Both distributions are one unless something is filtered or penalised, and the second pass is spared.
  full_B = logprob_B
  if filtered or seen_BV is not None:
    full_B = pick(full_BV) - jax.nn.logsumexp(full_BV, axis=-1)
  return Drawn(token_B, jnp.where(settings.temperature > 0, logprob_B, 0), full_B)


def _choose(score_BV, weight_BV, uniform_pair, temperature):
  """Returns token_B, int32: drawn where the temperature is above 0, else the first of the largest scores."""

  def drawn():
    return sample_inverse_cdf(weight_BV, *uniform_pair)

  def likeliest():
    return jnp.argmax(score_BV, axis=-1).astype(jnp.int32)

  # One temperature for all rows: a branch, so that greedy decoding draws nothing.
  if not jnp.ndim(temperature):
    return jax.lax.cond(temperature > 0, drawn, likeliest)

  # Temperatures of rows: both are computed if any row draws.
  def either():
    return jnp.where(temperature > 0, drawn(), likeliest())

  return jax.lax.cond(jnp.any(temperature > 0), either, likeliest)


def _column(setting):
  """Returns a setting in a form that broadcasts over the ids of rows."""
  return setting[:, None] if jnp.ndim(setting) else setting


def penalised(logits_BV, seen_BV, penalty):
  """Makes ids that stand in a row already less likely: positive scores are divided, negative multiplied.

  Source: Keskar et al. 2019, arXiv:1909.05858, as published libraries do it, for prompt and completion.
  """
  penalty = _column(jnp.asarray(penalty, logits_BV.dtype))
  changed_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  return jnp.where(seen_BV, changed_BV, logits_BV)


def keep_mask(logits_BV, settings: SamplingParams):
  """Returns which ids min-p, top-k and top-p leave.

  The likeliest is always left, and what equals the last one left is left too.

  No sorting: the least probability that is kept is found by bisection, one bit of the number at a time.
  """
  weight_BV = jax.nn.softmax(logits_BV, axis=-1)
  most_B = jnp.max(weight_BV, axis=-1, keepdims=True)
  # min-p is over the largest of all; top-k and top-p see only what it leaves.
  weight_BV = jnp.where(weight_BV >= _column(settings.min_p.astype(weight_BV.dtype)) * most_B, weight_BV, 0)

  def count(least_B):
    return jnp.sum(weight_BV >= least_B[:, None], axis=-1) >= settings.top_k

  least_B = _unless(settings.top_k >= weight_BV.shape[-1], weight_BV, count)
  weight_BV = jnp.where(weight_BV >= least_B[:, None], weight_BV, 0)
  # top_p of what is left, not of 1: the filters before have taken probability away.
  total_B = jnp.sum(weight_BV, axis=-1) * settings.top_p.astype(weight_BV.dtype)

  def mass(least_B):
    return jnp.sum(jnp.where(weight_BV >= least_B[:, None], weight_BV, 0), axis=-1) >= total_B

  least_B = _unless(settings.top_p >= 1, weight_BV, mass)
  # least_B is 0 where a filter is off, and an id that was filtered out has weight 0.
  return (weight_BV >= least_B[:, None]) & (weight_BV > 0)


def _unless(off, weight_BV, enough):
  """Returns the largest number per row that `enough` holds for, or zeros where the filter is off."""
  rows = weight_BV.shape[0]

  def nothing():
    return jnp.zeros((rows,), weight_BV.dtype)

  def largest():
    return _largest(enough, rows, weight_BV.dtype)

  if not jnp.ndim(off):
    return jax.lax.cond(off, nothing, largest)
  return jax.lax.cond(jnp.all(off), nothing, lambda: jnp.where(off, 0, largest()))


def _largest(enough, rows: int, dtype):
  """Finds it in [0, 1]: numbers that are not negative stand in the order of their bits."""
  bits = jnp.finfo(dtype).bits
  # Floats that are not negative have the order of their bits, read as integers; so bisecting the bits of
  # [0, 1] ends at the exact number, after 30 steps in float32, each a pass over the vocabulary.
  whole = jnp.uint32 if bits == 32 else jnp.uint64
  top = int(np.asarray(1, dtype).view(whole))

  def halve(bounds):
    low_B, high_B = bounds
    # Rounded up, or low would stand still once high is its neighbour.
    middle_B = low_B + (high_B - low_B + 1) // 2
    fits_B = enough(jax.lax.bitcast_convert_type(middle_B, dtype))
    return jnp.where(fits_B, middle_B, low_B), jnp.where(fits_B, high_B, middle_B - 1)

  start = jnp.zeros((rows,), whole), jnp.full((rows,), top, whole)
  low_B, _ = jax.lax.fori_loop(0, top.bit_length(), lambda _, bounds: halve(bounds), start)
  return jax.lax.bitcast_convert_type(low_B, dtype)


def sample_inverse_cdf(weight_BV, first_B, second_B):
  """Draws an id per row, in proportion to its weight: first a block of ids, then one inside it.

  Every weight is read once and cumulative sums stay short, so that rounding loses no rare id of a large one.

  Args:
    weight_BV: not negative, with one above 0 at least in each row.
    first_B, second_B: numbers in [0, 1).

  Returns:
    token_B, int32; its weight is above 0.
  """
  vocab_size = weight_BV.shape[-1]
  # About as many blocks as a block has ids.
  block = 2 ** round(math.log2(vocab_size) / 2)
  padded_BV = jnp.pad(weight_BV, ((0, 0), (0, -vocab_size % block)))
  blocks_BNC = padded_BV.reshape(weight_BV.shape[0], -1, block)
  chosen_B = _first_above(jnp.sum(blocks_BNC, axis=-1), first_B)
  inside_BC = jnp.take_along_axis(blocks_BNC, chosen_B[:, None, None], axis=1)[:, 0]
  return chosen_B * block + _first_above(inside_BC, second_B)


def _first_above(weight_BN, uniform_B):
  """Returns the first place where the sum of weights so far exceeds the given fraction of the whole.

  Rounding may make sums fall by a little, so places of weight 0 are passed over.
  """
  sum_BN = jnp.cumsum(weight_BN, axis=-1)
  real_BN = weight_BN > 0
  # The largest sum, not the last: then some place always lies above uniform * whole, for uniform < 1.
  whole_B = jnp.max(jnp.where(real_BN, sum_BN, 0), axis=-1)
  above_BN = real_BN & (sum_BN > (uniform_B.astype(sum_BN.dtype) * whole_B)[:, None])
  return jnp.argmax(above_BN, axis=-1).astype(jnp.int32)
