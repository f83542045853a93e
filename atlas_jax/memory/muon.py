"""Descent whose momentum is orthogonalised before it is added: the memories of the Atlas family.

With G_t as in `descent`, NS the Newton-Schulz iteration, A_t the product of the retention gates of a chunk up
to token t, and W the weights at the chunk's start, where all gradients are taken:

  S_t = m_t S_{t-1} - G_t
  per_token: W_t = a_t W_{t-1} + r_t NS(S_t),   y_t = f(W_t; q_t)
  chunk_end: W_t = A_t W,                       y_t = f(W; q_t)
  hybrid:    W_t = A_t W,                       y_t = f(W_t + r_t s_t S_t; q_t)

In the last two a full chunk adds rbar NS(S_C), rbar the mean write rate of its real tokens: one
orthogonalisation per chunk instead of C. s_t brings each matrix of S_t to the norm that NS aims at. No S_t is
formed for it: |S_t| follows from |S|, the products of S with the gradients, and those of the gradients with
each other. per_token forms every S_t, one after another: an oracle, for small widths.

Read as a stream, the memory computes the end of the chunk at every call and keeps it where the chunk is full:
a decoded token costs one orthogonalisation.
"""
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from atlas_jax.kernels.newton_schulz import newton_schulz
from atlas_jax.memory import descent, gates, objectives
from atlas_jax.memory import flops as formulas
from atlas_jax.memory.nets import FIELD
from atlas_jax.memory.types import ChunkOut, GateStarts, MemoryRule, MemoryState

MODES = ("chunk_end", "hybrid", "per_token")


class MuonExtra(NamedTuple):
  """State beside fast weights and momentum."""

  rows: Any  # of the window; () without one
  rate_sum: jax.Array  # [] write rates of the chunk's tokens so far; 0 with per_token
  number: jax.Array  # [] float, how many they are


class PreparedMuon(NamedTuple):
  """All of a chunk that needs no memory."""

  ready: descent.PreparedChunk  # for write rate 1; in mode "chunk_end" surprise_CC's last row alone
  rate_C: jax.Array  # write rates; 0 at padding


def check_steps(ns_steps: int):
  """Refuses an iteration without steps."""
  if ns_steps < 1:
    raise ValueError(f"{FIELD}.ns_steps={ns_steps} must be at least 1")


def orthogonalize(matrix, ns_steps: int):
  """Brings the singular values of [inputs, outputs] near 1, or sqrt(outputs / inputs) where that is more."""
  rows, columns = matrix.shape
  # Muon's scale: with more outputs than inputs, such singular values take a root mean square of 1 to 1.
  return newton_schulz(matrix, steps=ns_steps) * math.sqrt(max(1, columns / rows))


def make(net, *, lift, mode: str, ns_steps: int, window_size: int | None,
         surprise_max: float | None, fade_to: str, starts: GateStarts) -> MemoryRule:
  """Makes a rule from a network and a feature map; see the rules `atlas` and `atlas_plus`.

  Raises:
    ValueError: if an option is out of range.
  """
  if mode not in MODES:
    raise ValueError(f"{FIELD}.mode={mode!r} is unknown; known are {', '.join(MODES)}")
  check_steps(ns_steps)
  rule = descent.make(net, lift=lift, window_size=window_size, surprise_max=surprise_max,
                      reads="chunk" if mode == "chunk_end" else "token", fade_to=fade_to, starts=starts)
  form = descent.Descent(net, lift, objectives.l2, True, window_size, surprise_max, fade_to=fade_to)

  def bind(function):
    return functools.partial(function, form)

  rule = rule._replace(start=bind(start), step=functools.partial(step, form, mode, ns_steps),
                       flops=functools.partial(flops, form, mode, ns_steps))
  if mode == "per_token":
    return one_by_one(rule)
  return rule._replace(prepare=functools.partial(prepare, form, mode),
                       chunk=functools.partial(chunk, form, mode), close=functools.partial(close, ns_steps))


def one_by_one(rule: MemoryRule) -> MemoryRule:
  """Leaves a rule only its plain form."""
  return MemoryRule(init=rule.init, step=rule.step, start=rule.start, apply=rule.apply, gates=rule.gates,
                    starts=rule.starts, flops=rule.flops)


def flops(form: descent.Descent, mode: str, ns_steps: int, chunk_size: int) -> float:
  """Counts the FLOPs of one token: tokens write the momentum alone, and its orthogonal form the weights."""
  turned = formulas.orthogonalization(form.net, ns_steps=ns_steps,
                                      tokens=1 if mode == "per_token" else chunk_size)
  return (formulas.gradients(form.net, chunk_size, hebbian=False, window_size=form.window_size)
          + formulas.writes(form.net, momentum=False)
          + formulas.reads(form.net, chunk_size, momentum=True, own_chunk=mode != "chunk_end") + turned)


def start(form: descent.Descent, learned) -> MemoryState:
  """Starts with no momentum, an empty window and no rate."""
  state = descent.start(form, learned)
  zero = jnp.zeros((), jax.tree.leaves(learned.fast)[0].dtype)
  return state._replace(kept=MuonExtra(state.kept, zero, zero))


def target_norm(shape) -> float:
  """Returns the Frobenius norm of a matrix [inputs, outputs] with the singular values NS aims at."""
  rows, columns = shape
  # min(rows, columns) singular values, all of size sqrt(max(1, columns / rows)).
  return math.sqrt(min(rows, columns) * max(1, columns / rows))


def norm(square):
  """Takes the root; its gradient at 0, and at what rounding put below 0, is 0."""
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def step(form: descent.Descent, mode: str, ns_steps: int, slow, state: MemoryState, base, token,
         token_gates, place):
  """Reads one token: the plain form."""
  del place
  grad, rows = descent.token_surprise(form, slow, base, state.kept.rows, token, token_gates.more)
  # Gradients enter S without the write rate: Newton-Schulz divides by the norm, and a common factor is lost.
  momentum = jax.tree.map(lambda s, g: token_gates.momentum * s - g, state.momentum, grad)
  fast = descent.faded(state, token_gates.retention)
  weights = base
  if mode == "hybrid":
    size = {name: target_norm(s.shape) / (norm(jnp.sum(s * s)) + 1e-7) for name, s in momentum.items()}
    weights = {name: w + token_gates.write_rate * size[name] * momentum[name] for name, w in fast.items()}
  elif mode == "per_token":
    weights = fast = {name: w + token_gates.write_rate * orthogonalize(momentum[name], ns_steps)
                      for name, w in fast.items()}
  kept = state.kept._replace(rows=rows)
  if mode != "per_token":
    # The rates of a chunk's tokens make the mean rate of its one step, see `close`.
    kept = MuonExtra(rows, kept.rate_sum + token_gates.write_rate, kept.number + 1)
  after = state._replace(fast=fast, momentum=momentum, kept=kept)
  return after, descent.apply(form, slow, weights, token.q)


def prepare(form: descent.Descent, mode: str, slow, tokens, token_gates, write_C, position_C) -> PreparedMuon:
  """Does for a chunk all that needs no memory; the rate acts on the orthogonalised sum, not on gradients."""
  rate_C = token_gates.write_rate * write_C.astype(token_gates.write_rate.dtype)
  ready = descent.prepare(form, slow, tokens, token_gates, write_C, position_C)
  # The weights and scores of `descent.prepare` have the rate inside and are replaced; under jit the compiler
  # drops them.
  one_C = jnp.ones_like(rate_C)
  decay = gates.chunk_decay(token_gates.log_retention, token_gates.log_momentum, one_C, write_C)
  if mode == "chunk_end":
    # Reads are from the base here: S is needed at the chunk's end alone, and a scan keeps what is prepared.
    decay = decay._replace(surprise_CC=decay.surprise_CC[-1:])
  return PreparedMuon(ready._replace(decay=decay, score_CC=()), rate_C)


def chunk(form: descent.Descent, mode: str, slow, state: MemoryState, base, prepared: PreparedMuon):
  """Reads a chunk; equal to `step` token by token from the same base."""
  ready = prepared.ready
  found, weight_CS, rows = descent.chunk_surprise(form, slow, base, state.kept.rows, ready)
  surprise_CS = ready.decay.surprise_CC
  if form.window_size is not None:
    surprise_CS = surprise_CS @ weight_CS
  if mode == "chunk_end":
    out_CM = form.net.apply(slow, base, ready.tokens.q, descent.lifted_queries(ready))
  else:
    out_CM = read_hybrid(form, slow, state, found, surprise_CS, prepared)
  decay = ready.decay
  size = ready.tokens.k.shape[0]
  fast = descent.faded(state, decay.fast_C[-1])
  faded = jax.tree.map(lambda s: decay.keep_C[-1] * s, state.momentum)
  momentum = descent.add_gradients(faded, found, surprise_CS[-1])
  count = jnp.sum(ready.write_C.astype(state.kept.number.dtype))
  kept = MuonExtra(rows, state.kept.rate_sum + jnp.sum(prepared.rate_C), state.kept.number + count)
  out = ChunkOut(out_CM, found.norm_C[-size:], found.loss_C[-size:])
  return state._replace(fast=fast, momentum=momentum, kept=kept), out


def momentum_square(momentum, inputs_SP, grads_SM, keep_C, surprise_CS):
  """Returns |S_t|^2 of one weight for S_t = keep_C[t] S - sum_i surprise_CS[t, i] inputs_i grads_i^T."""
  # With E_i = x_i g_i^T: <E_i, E_j> = (x_i . x_j)(g_i . g_j) and <S, E_i> = x_i^T S g_i. The square
  # so expanded forms no S_t; rounding may bring it below 0, which `norm` takes for 0.
  gram_SS = (inputs_SP @ inputs_SP.T) * (grads_SM @ grads_SM.T)
  along_S = jnp.sum((inputs_SP @ momentum) * grads_SM, -1)
  square_C = keep_C * keep_C * jnp.sum(momentum * momentum) - 2 * keep_C * (surprise_CS @ along_S)
  return square_C + jnp.sum((surprise_CS @ gram_SS) * surprise_CS, -1)


def read_hybrid(form: descent.Descent, slow, state: MemoryState, found, surprise_CS, prepared: PreparedMuon):
  """Recalls with each token's own weights, none of which is ever formed."""
  ready = prepared.ready
  decay = prepared.ready.decay

  def product(name, u):
    inputs_SP = found.inputs[name]
    grads_SM = found.grads[name]
    momentum = state.momentum[name]
    square_C = momentum_square(momentum, inputs_SP, grads_SM, decay.keep_C, surprise_CS)
    # S_t scaled to the norm of its orthogonal form stands for it: no iteration per token.
    rate_C = prepared.rate_C * target_norm(momentum.shape) / (norm(square_C) + 1e-7)
    moved = (decay.keep_C[:, None] * u) @ momentum - (surprise_CS * (u @ inputs_SP.T)) @ grads_SM
    out = descent.recalled(state, name, decay.fast_C, u) + rate_C[:, None] * moved
    return checkpoint_name(out, "memory_product")

  return form.net.forward(product, slow, ready.tokens.q, descent.lifted_queries(ready))


def close(ns_steps: int, slow, state: MemoryState, base) -> MemoryState:
  """Adds the orthogonalised momentum to the weights of a chunk that is full; nothing if no token was real."""
  del slow, base
  # Without a real token the sum is 0, hence the rate, and the weights stay.
  rate = state.kept.rate_sum / jnp.maximum(state.kept.number, 1)
  fast = jax.tree.map(lambda w, s: w + rate * orthogonalize(s, ns_steps), state.fast, state.momentum)
  zero = jnp.zeros_like(rate)
  return state._replace(fast=fast, kept=MuonExtra(state.kept.rows, zero, zero))
