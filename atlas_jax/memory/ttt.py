"""Descent whose step also depends on a token's place in its chunk: the scaffold of the TTT rules.

  W_t = W_base - place_rate[j_t] sum of r_i clip(grad_i) over the chunk's real tokens i up to t
  y_t = f(W_t; q_t)

grad_i is the gradient of token i's recall loss at W_base, j_t the place of token t in its chunk, padding
counted. The sum is carried as `momentum` and starts anew with each chunk; nothing is forgotten on purpose.
With `rope`, queries and keys, also where f adds them to its output, are turned by their place, which `apply`
alone does not know: it recalls as at place 0.

Source: Sun et al. 2024, arXiv:2407.04620, sections 2.4 to 2.7.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory import descent, features, objectives
from atlas_jax.memory.nets import Net
from atlas_jax.memory.types import (
  ChunkDecay,
  ChunkOut,
  Gates,
  GateStarts,
  Learned,
  MemoryRule,
  MemoryState,
  Token,
)

ROPE_BASE = 10_000.0


class TTTForm(NamedTuple):
  """Settings of one rule's descent."""

  descent: descent.Descent
  chunk_size: int
  rope: bool


class PreparedTTT(NamedTuple):
  """All of a chunk that needs no memory."""

  dual: descent.PreparedChunk  # tokens turned by their places, and the weights of their gradients
  last_rate: jax.Array  # [] place rate of the last real token
  wrote: jax.Array  # [] bool, whether there is a real token


def make(net: Net, *, key_dim: int, chunk_size: int, rope: bool, surprise_max: float | None,
         starts: GateStarts, start_std: float | None = None) -> MemoryRule:
  """Makes a rule whose memory is `net`, which sees the keys as they are; `start_std` as for `init`.

  Raises:
    ValueError: if surprise_max is out of range.
  """
  objectives.check_bound(surprise_max)
  inner = descent.Descent(net, features.make("none", key_dim=key_dim), objectives.l2, momentum=True,
                          surprise_max=surprise_max)
  form = TTTForm(inner, chunk_size, rope)

  def bind(function):
    return functools.partial(function, form)

  return MemoryRule(
      init=functools.partial(init, form, start_std), start=functools.partial(descent.start, inner),
      apply=functools.partial(descent.apply, inner), still=bind(still), step=bind(step),
      prepare=bind(prepare), chunk=bind(chunk), close=close, uses=("write_rate",), starts=starts,
      flops=functools.partial(descent.flops, inner._replace(momentum=False)))  # It is the writes themselves.


def turn(x, place):
  """Turns coordinate i together with coordinate i + K // 2, by place * base^(-i / (K // 2)).

  Args:
    x: [..., K]; the last of an odd number of coordinates stays.
    place: [...] int32.
  """
  half = x.shape[-1] // 2
  # Radians per place, as in rotary embeddings; places begin anew with each chunk.
  speed = ROPE_BASE ** (-jnp.arange(half, dtype=x.dtype) / max(half, 1))
  angle = place[..., None].astype(x.dtype) * speed.reshape(*(1,) * place.ndim, half)
  cos = jnp.cos(angle)
  sin = jnp.sin(angle)
  low = x[..., :half]
  high = x[..., half:2 * half]
  return jnp.concatenate([low * cos - high * sin, high * cos + low * sin, x[..., 2 * half:]], axis=-1)


def turned(form: TTTForm, tokens: Token, place) -> Token:
  """Turns queries and keys by their places, if the rule does so."""
  if not form.rope:
    return tokens
  return tokens._replace(q=turn(tokens.q, place), k=turn(tokens.k, place))


def init(form: TTTForm, start_std: float | None, key) -> Learned:
  """Draws the learned parameters; the steps of a chunk start as a mean of gradients would have them.

  Args:
    form: of the rule.
    start_std: deviation of the fast weights' starts; None: unit gain.
    key: of the draw.
  """
  learned = descent.init(form.descent, key)
  if start_std is not None:
    scaled = jax.tree.map(lambda w: start_std * w.shape[0] ** 0.5 * w, learned.fast)
    learned = learned._replace(fast=scaled)
  # 1 / j at the j-th place makes the sum of j gradients their mean; learned from there.
  place_rate_C = 1 / jnp.arange(1, form.chunk_size + 1, dtype=jnp.float32)
  return learned._replace(slow=learned.slow | {"place_rate": place_rate_C})


def moved(base, total, rate):
  """Returns the weights a step of that size away from the base."""
  return jax.tree.map(lambda w, s: w - rate * s, base, total)


def still(form: TTTForm, slow, base, q_CK, position_C):
  """Reads a chunk that writes nothing: queries are turned all the same."""
  return descent.apply(form.descent, slow, base, turn(q_CK, position_C) if form.rope else q_CK)


def step(form: TTTForm, slow, state: MemoryState, base, token: Token, gates: Gates, place):
  """Reads one token: the plain form."""
  token = turned(form, token, place)
  grad = descent.token_gradient(form.descent, slow, base, token.k, token.v, gates.more)
  total = jax.tree.map(lambda s, g: s + gates.write_rate * g, state.momentum, grad)
  # From the base at every token, not from the token before: a place's rate weighs the whole sum so far.
  fast = moved(base, total, slow["place_rate"][place])
  return state._replace(fast=fast, momentum=total), descent.apply(form.descent, slow, fast, token.q)


def prepare(form: TTTForm, slow, tokens: Token, gates: Gates, write_C, position_C) -> PreparedTTT:
  """Does for a chunk all that needs no memory."""
  tokens = turned(form, tokens, position_C)
  rate_C = gates.write_rate * write_C.astype(gates.write_rate.dtype)
  place_rate_C = slow["place_rate"][position_C]
  mix_CC = jnp.tril(place_rate_C[:, None] * rate_C[None, :])
  # In the fast weights of a token, the sum before the chunk counts like the chunk's own gradients.
  one_C = jnp.ones_like(rate_C)
  # `read` adds momentum_C S, `add_gradients` subtracts, and the sum here is of +r grad: hence the signs.
  decay = ChunkDecay(one_C, -place_rate_C, mix_CC, one_C, -rate_C[None, :])
  score_CC = mix_CC * (tokens.q @ tokens.k.T)
  dual = descent.PreparedChunk(tokens, (), decay, score_CC, gates.more, write_C)
  # The state is that of the last real token, at the rate of its place.
  last = jnp.max(jnp.where(write_C.astype(bool), jnp.arange(rate_C.shape[0], dtype=jnp.int32), -1))
  return PreparedTTT(dual, place_rate_C[jnp.maximum(last, 0)], last >= 0)


def chunk(form: TTTForm, slow, state: MemoryState, base, ready: PreparedTTT):
  """Reads a chunk; equal to `step` token by token from the same base."""
  found, _, _ = descent.chunk_surprise(form.descent, slow, base, (), ready.dual)
  decay = ready.dual.decay
  # Inside a chunk state.fast is the last token's W; every token starts from the base.
  before = state._replace(fast=base)
  out_CM = descent.read(form.descent, slow, before, found, decay.fast_C, decay.momentum_C, decay.mix_CC,
                        ready.dual, ready.dual.score_CC)
  total = descent.add_gradients(state.momentum, found, decay.surprise_CC[-1])
  after = moved(base, total, ready.last_rate)
  fast = jax.tree.map(lambda new, old: jnp.where(ready.wrote, new, old), after, state.fast)
  return state._replace(fast=fast, momentum=total), ChunkOut(out_CM, found.norm_C, found.loss_C)


def close(slow, state: MemoryState, base) -> MemoryState:
  """Starts the sum anew; the weights of the chunk's last token are the next base."""
  del slow, base
  return state._replace(momentum=jax.tree.map(jnp.zeros_like, state.momentum))
