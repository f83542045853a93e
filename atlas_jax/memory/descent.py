"""Gradient descent on a recall loss, token by token or a chunk at once: the scaffold of most rules.

  grad_i = gradient of the loss of token i at the chunk's base
  G_t = grad_t, or the sum of context_{t,lag} grad_{t-lag} over a window of real tokens
  S_t = m_t S_{t-1} - r_t G_t      (without momentum: S_t = -r_t G_t)
  A_t = a_t A_{t-1} + (1 - a_t) A_start + S_t      (fade_to "zero": without A_start, as in the papers)
  y_t = f(W_t; q_t)

W_t is A_t, A_t times a scale set at the chunk's start, or (reads "chunk") the base. Since the gradient of a
dense weight is an outer product of the weight's input and a gradient, a chunk is computed in dual form: no
gradient of a token or a chunk ever exists as a matrix of its own.

Source: Behrouz et al. 2025, Titans, arXiv:2501.00663, Eq. 9-18; Sun et al. 2024, arXiv:2407.04620, section
2.5; the window is of Atlas, arXiv:2505.23735, Eq. 9.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from atlas_jax.memory import features, gates, objectives, window
from atlas_jax.memory import flops as formulas
from atlas_jax.memory.nets import FIELD, Net
from atlas_jax.memory.types import (
  ChunkDecay,
  ChunkOut,
  Gates,
  GateSpec,
  Learned,
  LiftedToken,
  MemoryRule,
  MemoryState,
  Token,
)


class Descent(NamedTuple):
  """Settings of one rule's descent."""

  net: Net
  lift: features.FeatureMap
  objective: Callable  # see `objectives`
  momentum: bool
  window_size: int | None = None  # None: each token's own gradient, without a context gate
  surprise_max: float | None = None  # bound on the norm of a token's gradient over all weights
  derive: Callable | None = None  # (slow, fast) -> Base: weights that are not the fast ones themselves
  reads: str = "token"
  fade_to: str = "zero"  # "zero", or "start": the weights with which the text began


class ChunkBase(NamedTuple):
  """Weights derived from the fast ones at a chunk's start."""

  weights: Any  # like fast
  scale: Any = ()  # dict name -> [] by which fast weights are multiplied while the chunk is read; () for none


class PreparedChunk(NamedTuple):
  """All of a chunk that needs no memory."""

  tokens: Token
  lifted: Any  # (key_CP, query_CP); () where the feature map leaves keys as they are
  decay: ChunkDecay  # without a window, surprise_CC is its last row alone
  score_CC: Any  # mix_CC times the products of lifted queries and keys; () with a window
  more: Any  # the rule's own gates
  write_C: jax.Array


class Surprise(NamedTuple):
  """Gradients of recall losses as outer products: of weight w, inputs[w][t] and grads[w][t]."""

  inputs: dict
  grads: dict
  norm_C: jax.Array  # before the bound
  loss_C: jax.Array


def make(net: Net, *, objective=objectives.l2, momentum=True, lift: features.FeatureMap,
         window_size: int | None = None, surprise_max: float | None = None, derive=None, reads="token",
         fade_to: str = "zero", **rule_fields) -> MemoryRule:
  """Makes a rule of descent; `rule_fields` are fields of MemoryRule to replace.

  Raises:
    ValueError: if window_size, surprise_max or fade_to is out of range.
  """
  check_fade(fade_to)
  objectives.check_bound(surprise_max)
  if window_size is not None and window_size < 1:
    raise ValueError(f"{FIELD}.window_size={window_size} must be at least 1; 1 sees the token alone")
  form = Descent(net, lift, objective, momentum, window_size, surprise_max, derive, reads, fade_to)

  def bind(function):
    return functools.partial(function, form)

  rule = MemoryRule(
      lift=lift.lift if lift.parts else None,
      init=bind(init), start=bind(start), apply=bind(apply), step=bind(step), prepare=bind(prepare),
      chunk=bind(chunk), base_of=bind(base_of), gates=context_gate(window_size), reads=reads,
      aims="direction" if objective is objectives.dot else "value",
      uses=("log_retention", "log_momentum", "write_rate") if momentum else ("log_retention", "write_rate"),
      flops=bind(flops))
  return rule._replace(**rule_fields)


def flops(form: Descent, chunk_size: int) -> float:
  """Counts the FLOPs of one token: gradients at the base, writes and reads."""
  return (formulas.gradients(form.net, chunk_size, hebbian=form.objective is objectives.dot,
                             window_size=form.window_size)
          + formulas.writes(form.net, momentum=form.momentum)
          + formulas.reads(form.net, chunk_size, momentum=form.momentum, own_chunk=form.reads == "token"))


def check_fade(fade_to: str):
  """Refuses a name of weights that retention cannot fade to."""
  if fade_to not in ("zero", "start"):
    raise ValueError(f"{FIELD}.fade_to={fade_to!r} is unknown; known are zero, start")


def context_gate(window_size: int | None) -> tuple[GateSpec, ...]:
  """Returns the gates of a window: how much a token counts each of the last tokens, itself first."""
  return () if window_size is None else (GateSpec("context", window_size),)


def init(form: Descent, key) -> Learned:
  """Draws the learned parameters."""
  of_net, of_lift = jax.random.split(key)
  return Learned(form.net.init_fast(of_net), form.net.init_slow() | form.lift.init(of_lift))


def start(form: Descent, learned: Learned) -> MemoryState:
  """Starts with no momentum and an empty window."""
  momentum = jax.tree.map(jnp.zeros_like, learned.fast) if form.momentum else ()
  kept: Any = ()
  if form.window_size is not None:
    dtype = jax.tree.leaves(learned.fast)[0].dtype
    kept = window.empty(form.window_size - 1, form.lift.key_dim, form.net.value_dim, dtype)
  return MemoryState(learned.fast, momentum, kept, learned.fast if form.fade_to == "start" else ())


def faded(state: MemoryState, retention):
  """Returns fast weights of which the fraction `retention` stays; the rest is of those they fade to."""
  if state.start == ():
    return jax.tree.map(lambda w: retention * w, state.fast)
  # Fading twice is fading by the product: b (a W + (1 - a) W0) + (1 - b) W0 = ab W + (1 - ab) W0. So a whole
  # chunk fades in one step, by the product of its gates.
  return jax.tree.map(lambda w, start: retention * w + (1 - retention) * start, state.fast, state.start)


def base_of(form: Descent, slow, state: MemoryState):
  """Returns the weights at which the next chunk's gradients are taken."""
  return state.fast if form.derive is None else form.derive(slow, state.fast)


def weights_of(base):
  """Returns the weights of a base."""
  return base.weights if isinstance(base, ChunkBase) else base


def apply(form: Descent, slow, base, x_K):
  """Recalls what is stored under a query; leading axes are free."""
  return form.net.apply(slow, weights_of(base), x_K, form.lift.queries(slow, x_K))


def token_gradient(form: Descent, slow, weights, k_K, v_M, more):
  """Returns the bounded gradient of one token's recall loss: the plain form."""

  def recall(weights):
    return form.net.apply(slow, weights, k_K, form.lift.keys(slow, k_K))

  out_M, pull = jax.vjp(recall, weights)
  # The objective's own gradient is fed back, the loss is not differentiated: that of `lp` has a smooth sign,
  # which is not quite the derivative of its loss.
  _, grad_M = form.objective(out_M, v_M, more)
  grad = pull(grad_M)[0]
  # One norm over all weights: bounds of their own would change the gradient's direction.
  square = jnp.stack([jnp.sum(g * g) for g in jax.tree.leaves(grad)]).sum()
  scale = objectives.bound(square, form.surprise_max)
  return jax.tree.map(lambda g: scale * g, grad)


def token_surprise(form: Descent, slow, weights, kept, token: Token, more):
  """Returns the gradient that one token writes, over its window if there is one, and the rows to keep."""
  own = token_gradient(form, slow, weights, token.k, token.v, more)
  if form.window_size is None:
    return own, kept
  every = window.append(kept, token)
  # Rows are kept oldest first; the context gate counts from the token itself backwards.
  weight_W = more["context"][::-1] * every.here_W
  one = functools.partial(token_gradient, form, slow, weights, more=more)
  each = jax.vmap(one)(every.k_WK, every.v_WM)
  total = jax.tree.map(lambda g: jnp.tensordot(weight_W, g, axes=1), each)
  return total, jax.tree.map(lambda x: x[1:], every)


def step(form: Descent, slow, state: MemoryState, base, token: Token, gates: Gates, place):
  """Reads one token: the plain form."""
  del place
  grad, kept = token_surprise(form, slow, weights_of(base), state.kept, token, gates.more)
  move = jax.tree.map(lambda g: -gates.write_rate * g, grad)
  momentum = state.momentum
  if form.momentum:
    # Titans Eq. 14, then Eq. 13 below: the new momentum enters whole, retention acts on the old weights.
    momentum = move = jax.tree.map(lambda s, g: gates.momentum * s + g, state.momentum, move)
  fast = jax.tree.map(jnp.add, faded(state, gates.retention), move)
  weights = fast
  if form.reads == "chunk":
    weights = weights_of(base)
  elif isinstance(base, ChunkBase) and base.scale != ():
    weights = jax.tree.map(lambda w, s: w * s, fast, base.scale)
  after = state._replace(fast=fast, momentum=momentum, kept=kept)
  return after, apply(form, slow, weights, token.q)


def prepare(form: Descent, slow, tokens: Token | LiftedToken, token_gates: Gates, write_C,
            position_C) -> PreparedChunk:
  """Does for a chunk all that needs no memory."""
  del position_C
  lifted: Any = ()
  if form.lift.parts:
    if isinstance(tokens, LiftedToken):
      key_CP = tokens.key
      query_CP = tokens.query
    else:
      key_CP = form.lift.keys(slow, tokens.k)
      query_CP = form.lift.lift(slow, tokens.q)
    lifted = (key_CP, form.lift.weighed(slow, query_CP))
  log_momentum_C = token_gates.log_momentum if form.momentum else None
  decay = gates.chunk_decay(token_gates.log_retention, log_momentum_C, token_gates.write_rate, write_C)
  score_CC: Any = ()
  if form.window_size is None:
    decay = decay._replace(surprise_CC=decay.surprise_CC[-1:])  # What a scan keeps costs memory.
    if form.reads == "token":
      key_CP, query_CP = lifted or (tokens.k, tokens.q)
      # The first layer's inputs are the lifted keys, which no memory changes: its [C, C] scores for the whole
      # text precede the loop over chunks. With a window, rows of earlier chunks meet the queries too.
      score_CC = decay.mix_CC * (query_CP @ key_CP.T)
  return PreparedChunk(Token(tokens.q, tokens.k, tokens.v), lifted, decay, score_CC, token_gates.more,
                       write_C)


def lifted_keys(ready: PreparedChunk):
  """Returns a chunk's lifted keys, [C, P]."""
  return ready.lifted[0] if ready.lifted else ready.tokens.k


def lifted_queries(ready: PreparedChunk):
  """Returns a chunk's lifted queries, [C, P]."""
  return ready.lifted[1] if ready.lifted else ready.tokens.q


def surprise(form: Descent, slow, weights, key_CP, k_CK, v_CM, more) -> Surprise:
  """Back-propagates the recall loss of each token at the base weights, in one pass for all."""
  # A tap is a zero added to a product. Its gradient is the cotangent g_t of the weight's output, and with the
  # input u_t kept beside it the weight's gradient for token t is u_t g_t^T. The weights are constants of this
  # pass: differentiating by them would add up the tokens, and per token it would make C matrices of each.
  def recall(taps):
    inputs = {}

    def product(name, u):
      inputs[name] = u
      return checkpoint_name(u @ weights[name], "memory_product") + taps[name]

    return form.net.forward(product, slow, k_CK, key_CP), inputs

  taps = {name: jnp.zeros((k_CK.shape[0], shape[1]), k_CK.dtype) for name, shape in form.net.shapes}
  out_CM, pull, inputs = jax.vjp(recall, taps, has_aux=True)
  loss_C, grad_CM = form.objective(out_CM, v_CM, more)
  grads = {w: checkpoint_name(grad, "memory_grad") for w, grad in pull(grad_CM)[0].items()}
  # An outer product's norm is the product of the norms.
  square_C = jnp.zeros_like(loss_C)
  for w in grads:
    square_C += jnp.sum(inputs[w] * inputs[w], -1) * jnp.sum(grads[w] * grads[w], -1)
  scale_C = objectives.bound(square_C, form.surprise_max)
  if form.surprise_max is not None:
    grads = {w: grad * scale_C[:, None] for w, grad in grads.items()}
  norm_C = jnp.sqrt(jax.lax.stop_gradient(square_C))  # A metric; the root has no gradient at 0.
  return Surprise(inputs, grads, norm_C, loss_C)


def chunk_surprise(form: Descent, slow, weights, kept, ready: PreparedChunk):
  """Finds a chunk's gradients, with the rows of a window before it.

  Returns:
    the Surprise of all S rows (without a window, those of the chunk), weight_CS (of each row's gradient in
    what each token writes; () without a window), and the rows to keep.
  """
  tokens = ready.tokens
  if form.window_size is None:
    return surprise(form, slow, weights, lifted_keys(ready), tokens.k, tokens.v, ready.more), (), kept
  every, weight_CS, keep = window.reach(kept, tokens, ready.more["context"], ready.write_C)
  # Tokens before the chunk are back-propagated anew: what they wrote then was a gradient at another base.
  before_WP = form.lift.keys(slow, kept.k_WK)
  key_CP = lifted_keys(ready)
  key_SP = jnp.concatenate([before_WP.astype(key_CP.dtype), key_CP])
  return surprise(form, slow, weights, key_SP, every.k_WK, every.v_WM, ready.more), weight_CS, keep


def recalled(state: MemoryState, name: str, fast_C, u_CP):
  """Returns products with a weight of which each token finds its own fraction left, fast_C."""
  # Scaling the input instead of the product leaves the backward pass nothing to recompute.
  out_CF = (fast_C[:, None] * u_CP) @ state.fast[name]
  if state.start == ():
    return out_CF
  return out_CF + ((1 - fast_C)[:, None] * u_CP) @ state.start[name]


def read(form: Descent, slow, state: MemoryState, found: Surprise, fast_C, momentum_C, mix_CS,
         ready: PreparedChunk, score_CC=(), scale=()):
  """Recalls with each token's own weights, none of which is ever formed.

  Args:
    fast_C, momentum_C: weight of the fast weights and of the momentum before the chunk; momentum_C may be ().
    mix_CS: weight of each row's gradient.
    score_CC: mix_CS times the products of lifted queries and keys, if they are known; else ().
    scale: dict name -> [] that multiplies each weight, or ().
  """
  # The dual form: with token i's gradient x_i g_i^T,
  #   u_t W_t = fast_t u_t W + momentum_t u_t S - sum_i mix[t, i] (u_t . x_i) g_i
  # at 2 C (inputs + outputs) FLOPs a token for the sum, and no matrix W_t ever exists.
  def product(name, u):
    out = recalled(state, name, fast_C, u)
    if not isinstance(momentum_C, tuple):
      out = out + (momentum_C[:, None] * u) @ state.momentum[name]
    # Later layers see what the layers before recall, so that their scores wait for the memory.
    known = name in form.net.first and not isinstance(score_CC, tuple)
    score_CS = score_CC if known else mix_CS * (u @ found.inputs[name].T)
    out = checkpoint_name(out - score_CS @ found.grads[name], "memory_product")
    return out if isinstance(scale, tuple) else out * scale[name]

  return form.net.forward(product, slow, ready.tokens.q, lifted_queries(ready))


def add_gradients(old, found: Surprise, weight_S):
  """Subtracts a weighted sum of gradients from each weight."""
  return {w: old[w] - found.inputs[w].T @ (weight_S[:, None] * found.grads[w]) for w in old}


def write(form: Descent, state: MemoryState, found: Surprise, decay: ChunkDecay, mix_S, surprise_S, kept):
  """Returns the state after the chunk; mix_S and surprise_S are the last rows of their matrices."""
  left = faded(state, decay.fast_C[-1])
  if not form.momentum:
    return state._replace(fast=add_gradients(left, found, mix_S), kept=kept)
  # The old momentum goes on entering the weights through the chunk; its total weight is momentum_C.
  left = jax.tree.map(lambda w, s: w + decay.momentum_C[-1] * s, left, state.momentum)
  momentum = jax.tree.map(lambda s: decay.keep_C[-1] * s, state.momentum)
  return state._replace(fast=add_gradients(left, found, mix_S),
                        momentum=add_gradients(momentum, found, surprise_S), kept=kept)


def chunk(form: Descent, slow, state: MemoryState, base, ready: PreparedChunk):
  """Reads a chunk; equal to `step` token by token from the same base."""
  weights = weights_of(base)
  decay = ready.decay
  found, weight_CS, kept = chunk_surprise(form, slow, weights, state.kept, ready)
  mix_CS = decay.mix_CC
  surprise_CS = decay.surprise_CC
  if form.window_size is not None:
    # Of a token's write in the weights, times of a row's gradient in that write: columns count rows now.
    mix_CS = mix_CS @ weight_CS
    surprise_CS = surprise_CS @ weight_CS
  size = ready.tokens.k.shape[0]
  if form.reads == "chunk":
    out_CM = form.net.apply(slow, weights, ready.tokens.q, lifted_queries(ready))
  else:
    scale = base.scale if isinstance(base, ChunkBase) else ()
    out_CM = read(form, slow, state, found, decay.fast_C, decay.momentum_C, mix_CS, ready, ready.score_CC,
                  scale)
  after = write(form, state, found, decay, mix_CS[-1], surprise_CS[-1], kept)
  # Rows of a window come first; the chunk's own are the last.
  return after, ChunkOut(out_CM, found.norm_C[-size:], found.loss_C[-size:])
