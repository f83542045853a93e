"""Titans memory: gradient descent on the recall loss, with momentum and retention gated by each token.

  S_t = m_t S_{t-1} - r_t clip(grad l(W_base; k_t, v_t))
  W_t = a_t W_{t-1} + S_t
  y_t = f(W_t; q_t)

f is an MLP of `depth` matrices, by default added to its input; l is half the squared error. The paper leaves
f's activation open, takes the whole square (its step is half of our write_rate) and does not clip. We bound
the norm of each token's gradient on request: a chunk of alike keys writes up to C times in one direction from
one base, and without a bound such a chunk can overshoot further with every chunk after it.

Source: Behrouz et al. 2025, arXiv:2501.00663, Eq. 9-18. Chunks are computed in dual form: no gradient of a
token or a chunk ever exists as a matrix of its own.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory.types import ChunkDecay, ChunkOut, MemoryRule, MemoryState, Token

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "identity": lambda x: x,
}


class MLP(NamedTuple):
  """The memory as a function, and the bound on what it learns from one token."""

  widths: tuple[int, ...]  # of the input, between matrices, and of the output
  activation: str
  residual: bool
  surprise_max: float | None

  @property
  def names(self) -> list[str]:
    """Names of the fast matrices in the order of use."""
    return [f"w{i}" for i in range(len(self.widths) - 1)]

  def activate(self, x):
    """Applies the activation between matrices."""
    return ACTIVATIONS[self.activation](x)


def make(*, key_dim: int, value_dim: int, depth: int = 2, expansion: float = 1, activation: str = "silu",
         residual: bool = True, surprise_max: float | None = None) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    residual: whether the memory's output is added to its input.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  _check(key_dim, value_dim, depth, expansion, activation, residual, surprise_max)
  hidden = (max(1, round(expansion * value_dim)),) * (depth - 1)
  mlp = MLP((key_dim, *hidden, value_dim), activation, residual, surprise_max)
  bind = lambda function: functools.partial(function, mlp)
  return MemoryRule(bind(init_fast), init, bind(apply), bind(step), bind(chunk))


def _check(key_dim, value_dim, depth, expansion, activation, residual, surprise_max):
  field = "config.model.memory.options"
  if depth < 1:
    raise ValueError(f"{field}.depth={depth} must be at least 1")
  if expansion <= 0:
    raise ValueError(f"{field}.expansion={expansion} must be positive")
  if activation not in ACTIVATIONS:
    raise ValueError(f"{field}.activation={activation!r} is unknown; known are {', '.join(ACTIVATIONS)}")
  if residual and key_dim != value_dim:
    raise ValueError(f"{field}.residual=True needs keys and values of one width, got {key_dim} and "
                     f"{value_dim}; make them equal or set residual=False")
  if surprise_max is not None and surprise_max <= 0:
    raise ValueError(f"{field}.surprise_max={surprise_max} must be positive, or None for no bound")


def init_fast(mlp: MLP, key):
  """Draws the learned initial weights, of unit gain."""
  shapes = zip(mlp.widths[:-1], mlp.widths[1:], strict=True)
  keys = jax.random.split(key, len(mlp.names))
  return {name: jax.random.normal(key, shape, jnp.float32) * shape[0] ** -0.5
          for name, key, shape in zip(mlp.names, keys, shapes, strict=True)}


def init(fast) -> MemoryState:
  """Starts with no momentum."""
  return MemoryState(fast, jax.tree.map(jnp.zeros_like, fast))


def apply(mlp: MLP, fast, x_K):
  """Recalls what is stored under x; leading axes are free."""
  h = x_K @ fast["w0"]
  for name in mlp.names[1:]:
    h = mlp.activate(h) @ fast[name]
  return x_K + h if mlp.residual else h


def bound(mlp: MLP, square):
  """Gives the factor that brings a gradient of that squared norm within the bound."""
  if mlp.surprise_max is None:
    return jnp.ones_like(square)
  return mlp.surprise_max * jax.lax.rsqrt(jnp.maximum(square, mlp.surprise_max**2))


def step(mlp: MLP, state: MemoryState, base, token: Token, gates):
  """Reads one token: the plain form."""
  recall_loss = lambda fast: 0.5 * jnp.sum(jnp.square(apply(mlp, fast, token.k) - token.v))
  grad = jax.grad(recall_loss)(base)
  rate = gates.write_rate * bound(mlp, sum(jnp.sum(g * g) for g in grad.values()))
  momentum = jax.tree.map(lambda s, g: gates.momentum * s - rate * g, state.momentum, grad)
  fast = jax.tree.map(lambda w, s: gates.retention * w + s, state.fast, momentum)
  return MemoryState(fast, momentum), apply(mlp, fast, token.q)


class Surprise(NamedTuple):
  """Gradients of a chunk's recall losses, as outer products: of matrix i, inputs[i][t] and deltas[i][t]."""

  inputs: list
  deltas: list
  norm_C: jax.Array  # before the bound
  loss_C: jax.Array


def surprise(mlp: MLP, base, tokens: Token) -> Surprise:
  """Back-propagates the recall loss of each token at the base weights."""
  inputs, pulls, h = [tokens.k], [], tokens.k @ base["w0"]
  for name in mlp.names[1:]:
    h, pull = jax.vjp(mlp.activate, h)
    inputs.append(h)
    pulls.append(pull)
    h = h @ base[name]
  error_CM = (tokens.k + h if mlp.residual else h) - tokens.v
  deltas = [error_CM]
  for name, pull in zip(mlp.names[:0:-1], pulls[::-1], strict=True):
    deltas.insert(0, pull(deltas[0] @ base[name].T)[0])
  # An outer product's norm is the product of the norms.
  square_C = sum(jnp.sum(x * x, -1) * jnp.sum(d * d, -1) for x, d in zip(inputs, deltas, strict=True))
  scale_C = bound(mlp, square_C)
  norm_C = jnp.sqrt(jax.lax.stop_gradient(square_C))  # A metric; the root has no slope at 0.
  loss_C = 0.5 * jnp.sum(error_CM * error_CM, -1)
  return Surprise(inputs, [d * scale_C[:, None] for d in deltas], norm_C, loss_C)


def read(mlp: MLP, state: MemoryState, found: Surprise, decay: ChunkDecay, q_CK):
  """Recalls with each token's own weights, none of which is ever formed."""
  h = q_CK
  for i, name in enumerate(mlp.names):
    h = mlp.activate(h) if i else h
    old, pace = h @ state.fast[name], h @ state.momentum[name]
    new = (decay.mix_CC * (h @ found.inputs[i].T)) @ found.deltas[i]
    h = decay.fast_C[:, None] * old + decay.momentum_C[:, None] * pace - new
  return q_CK + h if mlp.residual else h


def write(mlp: MLP, state: MemoryState, found: Surprise, decay: ChunkDecay) -> MemoryState:
  """Gives the state after the chunk."""
  fast, momentum = {}, {}
  for i, name in enumerate(mlp.names):
    old, pace, x_CF, d_CM = state.fast[name], state.momentum[name], found.inputs[i], found.deltas[i]
    fast[name] = (decay.fast_C[-1] * old + decay.momentum_C[-1] * pace
                  - x_CF.T @ (decay.mix_CC[-1][:, None] * d_CM))
    momentum[name] = decay.momentum_keep * pace - x_CF.T @ (decay.momentum_weight_C[:, None] * d_CM)
  return MemoryState(fast, momentum)


def chunk(mlp: MLP, state: MemoryState, base, tokens: Token, decay: ChunkDecay):
  """Reads a chunk; equal to `step` token by token from the same base."""
  found = surprise(mlp, base, tokens)
  out_CM = read(mlp, state, found, decay, tokens.q)
  return write(mlp, state, found, decay), ChunkOut(out_CM, found.norm_C, found.loss_C)
