"""Memories whose first layer sees keys through the map phi* with phi*(q) . phi*(k) = exp(scale q . k).

phi* has no end, so the first layer is no matrix but a function: of every key, what it wrote is kept, and

  layer 1 of W_t (x) = w0_t x + sum_i exp(scale x . k_i) row_{t,i}

with w0 a matrix on the bare key, which fades but is not written. Rows are to phi* what weights are to
features: token i's gradient of layer 1 is phi*(k_i) times the cotangent of layer 1, so a token adds its
cotangent to its own row, and rows fade and gather momentum as weights do. Later layers are fast weights.

State of fixed size: a chunk sees its own rows and the last `reach_tokens` rows of the chunks before. Beside
weights, a head keeps (reach_tokens + chunk_size) (key_dim + hidden + 1) floats (2 hidden with momentum), and
the base once more of reach_tokens (key_dim + hidden + 1).

Source: Behrouz et al. 2025, Atlas, arXiv:2505.23735, section 3, where this is not worked out for deep f.
"""
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory import descent, features, nets, objectives, window
from atlas_jax.memory import flops as formulas
from atlas_jax.memory.nets import FIELD
from atlas_jax.memory.types import ChunkOut, Gates, GateStarts, Learned, MemoryRule, MemoryState, Token


class ExponentialForm(NamedTuple):
  """Settings of one rule's descent, and of how its first layer sees keys."""

  descent: descent.Descent
  scale: float
  normalize: str | None
  reach_tokens: int
  chunk_size: int


class KeyRows(NamedTuple):
  """The first layer as a function: the last tokens' keys and what each has written, oldest first."""

  k_SK: jax.Array
  fast_SF: jax.Array
  momentum_SF: Any  # () without momentum
  here_S: jax.Array  # float, 1 where there is a token; 0 before the text's beginning


class ExponentialExtra(NamedTuple):
  """State beside the weights."""

  rows: KeyRows
  window: Any  # window.Rows; () without a window


class ExponentialBase(NamedTuple):
  """A memory to recall with: its weights, the rows stacked under w0, and the rows' keys."""

  weights: dict
  k_SK: jax.Array
  here_S: jax.Array


class PreparedExponential(NamedTuple):
  """All of a chunk that needs no memory."""

  parts: descent.PreparedChunk
  own_CC: jax.Array  # exp(scale q . k) where key and query are of the chunk and the key is not later; else 0


def make(*, key_dim: int, value_dim: int, chunk_size: int, objective, depth: int, expansion: float,
         activation: str, residual: bool, scale: float | None, normalize: str | None, reach_tokens: int,
         momentum: bool, surprise_max: float | None, window_size: int | None,
         fade_to: str) -> MemoryRule:
  """Makes a rule for one head; see the rules for the arguments.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  if normalize not in (None, "sum"):
    raise ValueError(f"{FIELD}.normalize={normalize!r} is unknown; known are None, 'sum'")
  # A window of a chunk's first token reaches window_size - 1 rows back, and their rows are written once more.
  least = max(1, (window_size or 1) - 1)
  if reach_tokens < least:
    raise ValueError(f"{FIELD}.reach_tokens={reach_tokens} must be at least {least} with "
                     f"window_size={window_size}")
  if scale is not None and scale <= 0:
    raise ValueError(f"{FIELD}.scale={scale} must be positive, or None for the root of key_dim")
  scale = key_dim**0.5 if scale is None else scale
  lift = features.make("none", key_dim=key_dim)
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual)
  # Checks, gates and the learned start are those of plain descent; what meets rows is replaced below.
  rule = descent.make(net, objective=objective, momentum=momentum, lift=lift, window_size=window_size,
                      surprise_max=surprise_max, fade_to=fade_to, starts=starts_of(scale))
  form = ExponentialForm(descent.Descent(net, lift, objective, momentum, window_size, surprise_max,
                                         fade_to=fade_to), scale, normalize, reach_tokens, chunk_size)

  def bind(function):
    return functools.partial(function, form)

  return rule._replace(start=bind(start), base_of=bind(base_of), apply=bind(apply), step=bind(step),
                       prepare=bind(prepare), chunk=bind(chunk), close=bind(close), flops=bind(flops))


def flops(form: ExponentialForm, chunk_size: int) -> float:
  """Counts the FLOPs of one token: those of descent whose first layer is w0 with the kept rows under it.

  Rows need a kernel of key and query each, and are written where they stand; of the chunk's own rows a token
  sees the kernel and the gradient.
  """
  net = form.descent.net
  momentum = form.descent.momentum
  key_dim, hidden = net.shapes[0][1]
  stacked = net._replace(shapes=(("w0", (key_dim + form.reach_tokens, hidden)), *net.shapes[1:]))
  later = net._replace(shapes=net.shapes[1:])
  twice = 1 + ((form.descent.window_size or 1) - 1) / chunk_size
  kernels = 2 * key_dim * (form.reach_tokens * (twice + 1) + chunk_size)
  return (formulas.gradients(stacked, chunk_size, hebbian=form.descent.objective is objectives.dot,
                             window_size=form.descent.window_size)
          + formulas.writes(later, momentum=momentum)
          + formulas.reads(stacked, chunk_size, momentum=False, own_chunk=False) * (1 + momentum)
          + formulas.within(later, chunk_size) + 2 * chunk_size * hidden + kernels)


def starts_of(scale: float) -> GateStarts:
  """Returns gates with which one write counts, whatever the scale.

  A gradient that is bounded by 1 has a gradient of exp(-scale / 2) at most, and the key meets itself with
  exp(scale), so that a write moves layer 1 by the write rate times exp(scale / 2). With a rate of .01 for all
  scales, retention .995 and the residual, weights fell from a norm of 7.8 to 1e-8 within 4,096 tokens.
  """
  # So .3 is the most by which one write moves layer 1; .1 binds at scales below 2.2.
  rate = min(0.3 * math.exp(-scale / 2), 0.1)
  return GateStarts(retention=0.9999, write_rate=rate, write_rate_max=5 * rate)


def start(form: ExponentialForm, learned: Learned) -> MemoryState:
  """Starts without rows."""
  state = descent.start(form.descent, learned)
  # At a chunk's start the first chunk_size slots are empty. Each token pushes the first slot out and its own
  # row in at the end, so that no row of an earlier chunk is lost before the chunk is read.
  size, (inputs, hidden) = form.reach_tokens + form.chunk_size, learned.fast["w0"].shape

  def empty(*shape):
    return jnp.zeros((size, *shape), learned.fast["w0"].dtype)

  rows = KeyRows(empty(inputs), empty(hidden), empty(hidden) if form.descent.momentum else (), empty())
  return state._replace(kept=ExponentialExtra(rows, state.kept))


def close(form: ExponentialForm, slow, state: MemoryState, base) -> MemoryState:
  """Ends a chunk: of its rows and those before, the last `reach_tokens` stay."""
  del slow, base
  rows = jax.tree.map(lambda x: x.at[:form.chunk_size].set(0), state.kept.rows)
  return state._replace(kept=state.kept._replace(rows=rows))


def base_of(form: ExponentialForm, slow, state: MemoryState) -> ExponentialBase:
  """Returns the memory at a chunk's start, where the slots of the chunk's own rows are still empty."""
  del slow
  return recaller(state.fast, jax.tree.map(lambda x: x[form.chunk_size:], state.kept.rows))


def recaller(fast, rows: KeyRows) -> ExponentialBase:
  """Puts weights and rows together."""
  return ExponentialBase(fast | {"w0": jnp.concatenate([fast["w0"], rows.fast_SF])}, rows.k_SK, rows.here_S)


def kernel(form: ExponentialForm, x_K, k_SK):
  """Returns phi*(x) . phi*(k) for each key; also with leading axes on x."""
  # No maximum is taken off first, as in a softmax: rows are added to w0's product and count by absolute size.
  # Keys and queries of norm one hold the exponent to `scale`.
  return jnp.exp(form.scale * (x_K @ k_SK.T))


def normalizer(form: ExponentialForm, seen_S, other=None):
  """Returns what products with keys are multiplied by: 1, or 1 over their sum, with leading axes [.., 1].

  Args:
    seen_S: kernels of the rows, 0 where there is none; with leading axes.
    other: kernels of further rows.
  """
  total = jnp.sum(seen_S, -1, keepdims=True)
  if form.normalize is None:
    return jnp.ones_like(total)
  total = total if other is None else total + jnp.sum(other, -1, keepdims=True)
  return 1 / jnp.where(total > 0, total, 1)


def seen(form: ExponentialForm, base: ExponentialBase, x_K):
  """Returns the kernels of a memory's rows, 0 where there is none; also with leading axes on x."""
  return kernel(form, x_K, base.k_SK) * base.here_S.reshape(*(1,) * (x_K.ndim - 1), -1)


def lift(form: ExponentialForm, base: ExponentialBase, x_K):
  """Returns the input of the stacked w0; also with leading axes on x."""
  seen_S = seen(form, base, x_K)
  return jnp.concatenate([x_K, seen_S * normalizer(form, seen_S)], axis=-1)


def apply(form: ExponentialForm, slow, base: ExponentialBase, x_K):
  """Recalls what is stored under a query; leading axes are free."""
  return form.descent.net.apply(slow, base.weights, x_K, lift(form, base, x_K))


def token_gradient(form: ExponentialForm, slow, base: ExponentialBase, k_K, v_M, more):
  """Returns the bounded gradient of one token's recall loss: of the weights (0 for w0), and of layer 1."""
  lifted = lift(form, base, k_K)

  def recall(weights, tap_F):
    def product(name, u):
      return u @ weights[name] + (tap_F if name == "w0" else 0)

    return form.descent.net.forward(product, slow, k_K, lifted)

  out_M, pull = jax.vjp(recall, base.weights, jnp.zeros(base.weights["w0"].shape[1], k_K.dtype))
  grad, grad_F = pull(form.descent.objective(out_M, v_M, more)[1])
  # w0 in `base` has the rows stacked under it; its gradient belongs to rows, and w0 itself is not written.
  grad = grad | {"w0": jnp.zeros((k_K.shape[0], grad_F.shape[0]), k_K.dtype)}
  # phi*(k) . phi*(k) = exp(scale k . k): the norm of layer 1's gradient phi*(k) g^T, a matrix without end.
  square = jnp.exp(form.scale * (k_K @ k_K)) * (grad_F @ grad_F)
  square = square + sum(jnp.sum(g * g) for g in jax.tree.leaves(grad))
  return jax.tree.map(lambda g: objectives.bound(square, form.descent.surprise_max) * g, (grad, grad_F))


def step(form: ExponentialForm, slow, state: MemoryState, base: ExponentialBase, token: Token, gates: Gates,
         place):
  """Reads one token: the plain form."""
  del place
  kept = state.kept
  rows = state.kept.rows
  k_WK = token.k[None]
  v_WM = token.v[None]
  weight_W = jnp.ones((1,), token.k.dtype)
  if form.descent.window_size is not None:
    every = window.append(kept.window, token)
    k_WK = every.k_WK
    v_WM = every.v_WM
    weight_W = gates.more["context"][::-1] * every.here_W
    kept = kept._replace(window=jax.tree.map(lambda x: x[1:], every))

  def one(k_K, v_M):
    return token_gradient(form, slow, base, k_K, v_M, gates.more)

  grads, grads_WF = jax.vmap(one)(k_WK, v_WM)
  weight_W = -gates.write_rate * weight_W
  move = jax.tree.map(lambda g: jnp.tensordot(weight_W, g, axes=1), grads)

  def new(old, x):
    return jnp.concatenate([old, x[None]])[1:]

  rows = jax.tree.map(lambda x: new(x, jnp.zeros_like(x[0])), rows)
  rows = rows._replace(k_SK=rows.k_SK.at[-1].set(token.k), here_S=rows.here_S.at[-1].set(1))
  # A window's gradients go to the rows of their own tokens, which are the last ones.
  row_move = jnp.zeros_like(rows.fast_SF).at[-weight_W.shape[0]:].set(weight_W[:, None] * grads_WF)
  momentum = state.momentum
  if form.descent.momentum:
    def gather(s, g):
      return gates.momentum * s + g

    momentum = move = jax.tree.map(gather, state.momentum, move)
    row_move = gather(rows.momentum_SF, row_move)
    rows = rows._replace(momentum_SF=row_move)
  fast = jax.tree.map(jnp.add, descent.faded(state, gates.retention), move)
  rows = rows._replace(fast_SF=gates.retention * rows.fast_SF + row_move)
  out_M = apply(form, slow, recaller(fast, rows), token.q)
  return state._replace(fast=fast, momentum=momentum, kept=kept._replace(rows=rows)), out_M


def prepare(form: ExponentialForm, slow, tokens: Token, gates: Gates, write_C,
            position_C) -> PreparedExponential:
  """Does for a chunk all that needs no memory."""
  # What stands at padding counts for nothing, but its exponential may be infinite, and 0 times that is nan.
  real_C1 = write_C.astype(bool)[:, None]
  cut = jax.tree.map(lambda x: jnp.where(real_C1, x, 0), tokens)
  # A chunk that writes nothing may still be read, so that its queries stay.
  tokens = cut._replace(q=jnp.where(real_C1 | ~jnp.any(real_C1), tokens.q, 0))
  parts = descent.prepare(form.descent, slow, tokens, gates, write_C, position_C)
  allowed_CC = jnp.tril(jnp.broadcast_to(write_C.astype(bool)[None, :], (write_C.shape[0],) * 2))
  # What is masked is cut before exp, so that no gradient of it is infinite.
  log_CC = jnp.where(allowed_CC, form.scale * (tokens.q @ tokens.k.T), 0)
  return PreparedExponential(parts._replace(score_CC=()), jnp.where(allowed_CC, jnp.exp(log_CC), 0))


def surprise(form: ExponentialForm, slow, base: ExponentialBase, k_SK, v_SM, more) -> descent.Surprise:
  """Back-propagates each token's recall loss at the base; the gradient of layer 1 is as long as phi*(k)."""
  # `descent` would take the norm of layer 1's stacked input for the length of phi*(k): the bound waits.
  unbound = form.descent._replace(surprise_max=None)
  found = descent.surprise(unbound, slow, base.weights, lift(form, base, k_SK), k_SK, v_SM, more)

  def square(x):
    return jnp.sum(x * x, -1)

  square_S = jnp.exp(form.scale * square(k_SK)) * square(found.grads["w0"])
  others = [w for w in found.grads if w != "w0"]
  square_S = square_S + sum(square(found.inputs[w]) * square(found.grads[w]) for w in others)
  scale_S1 = objectives.bound(square_S, form.descent.surprise_max)[:, None]
  # Bare keys write nothing: what layer 1 learns is in the rows.
  return found._replace(inputs=found.inputs | {"w0": jnp.zeros_like(k_SK)},
                        grads=jax.tree.map(lambda x: x * scale_S1, found.grads),
                        norm_C=jnp.sqrt(jax.lax.stop_gradient(square_S)))


def chunk(form: ExponentialForm, slow, state: MemoryState, base: ExponentialBase, ready: PreparedExponential):
  """Reads a chunk; equal to `step` token by token from the same base, also from inside a grid chunk."""
  parts = ready.parts
  kept = state.kept
  decay = ready.parts.decay
  tokens = parts.tokens
  mix_CS = decay.mix_CC
  surprise_CS = decay.surprise_CC
  last = kept.window
  k_SK = tokens.k
  v_SM = tokens.v
  if form.descent.window_size is not None:
    every, weight_CS, last = window.reach(kept.window, tokens, parts.more["context"], parts.write_C)
    k_SK = every.k_WK
    v_SM = every.v_WM
    mix_CS = mix_CS @ weight_CS
    surprise_CS = surprise_CS @ weight_CS
  found = surprise(form, slow, base, k_SK, v_SM, parts.more)
  out_CM = read(form, slow, state, found, mix_CS, ready)
  size = tokens.k.shape[0]
  rows = write_rows(form, kept.rows, found.grads["w0"], parts, mix_CS[-1], surprise_CS[-1])
  after = descent.write(form.descent, state, found, decay, mix_CS[-1], surprise_CS[-1],
                        ExponentialExtra(rows, last))
  return after, ChunkOut(out_CM, found.norm_C[-size:], found.loss_C[-size:])


def read(form: ExponentialForm, slow, state: MemoryState, found: descent.Surprise, mix_CS,
         ready: PreparedExponential):
  """Recalls with each token's own weights and rows."""
  parts = ready.parts
  rows = state.kept.rows
  here = recaller(state.fast, rows)
  seen_CS = seen(form, here, parts.tokens.q)
  normalizer_C1 = normalizer(form, seen_CS, ready.own_CC)
  # A window's rows are the last of those before the chunk.
  earlier = rows.here_S.shape[0] - (mix_CS.shape[1] - ready.own_CC.shape[1])
  score_CS = mix_CS * normalizer_C1 * jnp.concatenate([seen_CS[:, earlier:], ready.own_CC], axis=1)
  # What the chunk's own rows add comes by score_CS: w0's inputs in `found` are zero (see `surprise`).
  lifted = (), jnp.concatenate([parts.tokens.q, seen_CS * normalizer_C1], axis=1)
  momentum = state.momentum
  if form.descent.momentum:
    momentum = momentum | {"w0": jnp.concatenate([momentum["w0"], rows.momentum_SF])}
  start = state.start  # Rows fade to zero.
  if start != ():
    start = start | {"w0": jnp.concatenate([start["w0"], jnp.zeros_like(rows.fast_SF)])}
  memory = MemoryState(here.weights, momentum, start=start)
  return descent.read(form.descent, slow, memory, found, parts.decay.fast_C,
                      parts.decay.momentum_C, mix_CS, parts._replace(lifted=lifted), score_CS)


def write_rows(form: ExponentialForm, rows: KeyRows, grads_SF, parts: descent.PreparedChunk, mix_S,
               surprise_S) -> KeyRows:
  """Returns the rows after a chunk; the last of `grads_SF` are the chunk's, those before a window's."""
  decay = parts.decay
  here_C = parts.write_C.astype(rows.here_S.dtype)

  def add(old_SF, weight_S):
    new_CF = jnp.zeros((here_C.shape[0], old_SF.shape[1]), old_SF.dtype)
    return jnp.concatenate([old_SF, new_CF]).at[-weight_S.shape[0]:].add(-weight_S[:, None] * grads_SF)

  fast_SF = decay.fast_C[-1] * rows.fast_SF
  momentum_SF = rows.momentum_SF
  if form.descent.momentum:
    fast_SF = fast_SF + decay.momentum_C[-1] * momentum_SF
    momentum_SF = add(decay.keep_C[-1] * momentum_SF, surprise_S)
  k_SK = jnp.concatenate([rows.k_SK, parts.tokens.k])
  every = KeyRows(k_SK, add(fast_SF, mix_S), momentum_SF, jnp.concatenate([rows.here_S, here_C]))
  # Empty slots come first, then tokens in order; as many slots as before are kept.
  keep = jnp.argsort(every.here_S, stable=True)[here_C.shape[0]:]
  return jax.tree.map(lambda x: x[keep], every)
