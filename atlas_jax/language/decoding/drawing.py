"""The choice of the next id in slots: each row has its own settings, seed, penalties, bias and position.

Everything is traced, so one program serves all requests; what a row draws does not depend on the others.
Scores pass, in this order: the bias, repetition penalty, presence and frequency penalties, and then what
`sampling` does with them.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.language.decoding import sampling
from atlas_jax.language.decoding.requests import MOST_TOP, CompletionRequest
from atlas_jax.language.decoding.sampling import SamplingParams

FORBIDDEN = -1e30  # Bias of an id that may not come; finite, so that differences of scores are numbers.


class DrawState(NamedTuple):
  """All that the next draw of each row depends on besides its scores; every leaf leads with B."""

  token_B: Any  # int32, drawn last, still to be read
  at_B: Any  # int32, how many ids are drawn
  key_BE: Any  # uint32, the two words of the row's key, see `sampling.row_keys`
  settings: SamplingParams  # [B] each
  presence_B: Any  # float32
  frequency_B: Any  # float32
  bias_BV: Any  # float32
  prompt_BV: Any  # bool, ids of the prompt
  count_BV: Any  # int32, how often each id was drawn
  lists_B: Any  # bool, whether the likeliest ids are listed


class DrawnIds(NamedTuple):
  """The ids drawn in each row, and what is told of them."""

  token_B: jax.Array  # int32
  logprob_B: jax.Array  # of the model's own scores
  sampler_logprob_B: jax.Array  # in the distribution it was drawn from
  full_logprob_B: jax.Array  # in the tempered distribution over all ids
  top_BE: jax.Array  # int32, the likeliest ids; zeros unless some row lists them
  top_logprob_BE: jax.Array  # theirs
  finite_B: jax.Array  # bool, whether all scores are numbers


def start(request: CompletionRequest, number: int, vocab_size: int) -> DrawState:
  """Returns the state of one row before its first id, of NumPy arrays; `number` is the completion's."""
  options = request.sampling
  key_B = sampling.row_keys(sampling.root_words(request.seed), np.array([request.place], np.int32),
                            np.array([number], np.int32))
  settings = jax.tree.map(lambda x: np.asarray(x)[None], SamplingParams.of(options, vocab_size))
  bias_BV = np.zeros((1, vocab_size), np.float32)
  for token, bias in request.logit_bias.items():
    bias_BV[0, token] = bias
  prompt_BV = np.zeros((1, vocab_size), bool)
  prompt_BV[0, list(request.prompt)] = True
  return DrawState(
      np.zeros(1, np.int32), np.zeros(1, np.int32), np.asarray(jax.random.key_data(key_B)), settings,
      np.full(1, request.presence_penalty, np.float32), np.full(1, request.frequency_penalty, np.float32),
      bias_BV, prompt_BV, np.zeros((1, vocab_size), np.int32), np.full(1, request.top_logprobs > 0))


def empty(rows: int, vocab_size: int) -> DrawState:
  """Returns the state of rows that nobody uses: they take the likeliest id."""
  def full(dtype, *shape, value=0):
    return jnp.full((rows, *shape), value, dtype)

  settings = SamplingParams(full(jnp.float32), full(jnp.int32, value=vocab_size), full(jnp.float32, value=1),
                            full(jnp.float32), full(jnp.float32, value=1))
  return DrawState(full(jnp.int32), full(jnp.int32), full(jnp.uint32, 2), settings, full(jnp.float32),
                   full(jnp.float32), full(jnp.float32, vocab_size), full(bool, vocab_size),
                   full(jnp.int32, vocab_size), full(bool))


def draw(logits_BV, state: DrawState) -> tuple[DrawState, DrawnIds]:
  """Draws the next id of each row.

  Args:
    logits_BV: the model's scores, float32 or wider.
    state: of the rows.

  Returns:
    The state behind the draw, and what was drawn.
  """
  settings = state.settings
  seen_BV = state.prompt_BV | (state.count_BV > 0)
  scores_BV = sampling.penalised(logits_BV + state.bias_BV.astype(logits_BV.dtype), seen_BV, settings.penalty)
  times_BV = state.count_BV.astype(logits_BV.dtype)
  scores_BV = scores_BV - state.presence_B[:, None] * jnp.minimum(times_BV, 1)
  scores_BV = scores_BV - state.frequency_B[:, None] * times_BV
  keys_B = jax.random.wrap_key_data(state.key_BE, impl="threefry2x32")
  drawn, _ = sampling.draw_at(scores_BV, keys_B, state.at_B, settings, filtered=True)
  token_B = drawn.token_B
  temperature_B = jnp.where(settings.temperature > 0, settings.temperature, 1)

  def logprob(scores_BV):
    picked_B = jnp.take_along_axis(scores_BV, token_B[:, None], axis=-1)[:, 0]
    return picked_B - jax.nn.logsumexp(scores_BV, axis=-1)

  def likeliest():
    top, top_BE = jax.lax.top_k(logits_BV, min(MOST_TOP, logits_BV.shape[-1]))
    return top_BE, top - jax.nn.logsumexp(logits_BV, axis=-1)[:, None]

  def nothing():
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(likeliest))

  # A branch: what is listed changes no row's draw, and mostly nobody asks.
  top_BE, top_logprob_BE = jax.lax.cond(jnp.any(state.lists_B), likeliest, nothing)
  rows_B = jnp.arange(len(token_B), dtype=jnp.int32)
  after = state._replace(token_B=token_B, at_B=state.at_B + 1,
                         count_BV=state.count_BV.at[rows_B, token_B].add(1))
  return after, DrawnIds(token_B, logprob(logits_BV), drawn.sampler_logprob_B,
                         logprob(logits_BV / temperature_B[:, None]), top_BE, top_logprob_BE,
                         jnp.all(jnp.isfinite(logits_BV), axis=-1))


def with_allowed(bias_V: np.ndarray, allowed_V) -> np.ndarray:
  """Returns a row's bias under which only allowed ids can be drawn.

  Raises:
    ValueError: if none is allowed, or it is no bool for each id.
  """
  allowed_V = np.asarray(allowed_V)
  if allowed_V.shape != bias_V.shape or allowed_V.dtype != bool:
    raise ValueError(f"allowed gave {allowed_V.dtype} of shape {allowed_V.shape}; it must give a bool for "
                     f"each of the {bias_V.size} ids")
  if not allowed_V.any():
    raise ValueError("allowed leaves no id that may come next; it must leave one, such as a stop token")
  return np.where(allowed_V, bias_V, np.float32(FORBIDDEN))
