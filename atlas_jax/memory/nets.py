"""Memories as functions: networks whose every weight meets its input in a product that the caller performs.

A network's `forward(product, slow, x, lifted)` calls `product(name, input)` where it needs input @ weight.
The same lines then recall with one set of weights, back-propagate a chunk, and read with each token's own
weights.
"""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

FIELD = "config.model.memory.options"
ACTIVATIONS = {
    "silu": jax.nn.silu,
    # The tanh form, as in kernels.memory_scan: a rule and its kernel must be one function.
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "identity": lambda x: x,
}
NORMS = (None, "layer", "affine", "unit")


class Net(NamedTuple):
  """A memory as a function of its products."""

  forward: Callable  # (product, slow, x_K, lifted_P) -> out_M, also with leading axes
  shapes: tuple[tuple[str, tuple[int, int]], ...]  # (name, (inputs, outputs)) of each weight, in order of use
  first: tuple[str, ...]  # weights whose input is lifted_P itself
  value_dim: int  # M
  slow: tuple[tuple[str, tuple[int, ...], float], ...] = ()  # (name, shape, start) of learned constants

  def init_fast(self, key):
    """Draws the learned initial weights: unit gain, biases zero."""
    keys = jax.random.split(key, len(self.shapes))
    # One input marks a bias, see `mlp`.
    return {name: jax.random.normal(key, shape, jnp.float32) * (shape[0] ** -0.5 if shape[0] > 1 else 0.0)
            for key, (name, shape) in zip(keys, self.shapes, strict=True)}

  def init_slow(self):
    """Returns the learned constants at their start."""
    return {name: jnp.full(shape, start, jnp.float32) for name, shape, start in self.slow}

  def apply(self, slow, weights, x_K, lifted_P):
    """Recalls with one set of weights."""
    return self.forward(lambda name, u: u @ weights[name], slow, x_K, lifted_P)


def mlp(*, key_dim: int, value_dim: int, lifted_dim: int, depth: int, expansion: float, activation: str,
        residual: bool, norm: str | None = None, biases: bool = False) -> Net:
  """Makes a network of `depth` matrices.

  Args:
    key_dim, value_dim, lifted_dim: widths of the key, of the output, and of the lifted key the matrices see.
    depth: matrices, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices; a name in ACTIVATIONS.
    residual: whether the key is added to the output.
    norm: of the output before the key is added: None, "layer" (mean 0, variance 1), "affine" (with learned
      scale and bias, which reading leaves alone), or "unit" (mean 0, the length of values, which is 1).
    biases: whether each matrix has a bias that is written like its weights.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  check(key_dim=key_dim, value_dim=value_dim, depth=depth, expansion=expansion, activation=activation,
        residual=residual, norm=norm)
  hidden = max(1, round(expansion * value_dim))
  widths = (lifted_dim, *(hidden,) * (depth - 1), value_dim)
  shapes = [(f"w{i}", pair) for i, pair in enumerate(zip(widths[:-1], widths[1:], strict=True))]
  if biases:
    # A bias is a matrix whose input is 1, so that it has gradients, momentum and retention like any other.
    shapes += [(f"b{i}", (1, width)) for i, width in enumerate(widths[1:])]
  forward = functools.partial(_mlp_forward, depth, activation, residual, norm, biases)
  return Net(forward, tuple(shapes), ("w0",), value_dim, _norm_slow(norm, value_dim))


def gated(*, key_dim: int, value_dim: int, lifted_dim: int, expansion: float, activation: str,
          residual: bool) -> Net:
  """Makes a network of three matrices, (activation(x @ gate) * (x @ up)) @ out; arguments as for `mlp`."""
  check(key_dim=key_dim, value_dim=value_dim, depth=2, expansion=expansion, activation=activation,
        residual=residual, norm=None)
  hidden = max(1, round(expansion * value_dim))
  shapes = (("gate", (lifted_dim, hidden)), ("up", (lifted_dim, hidden)), ("out", (hidden, value_dim)))
  return Net(functools.partial(_gated_forward, activation, residual), shapes, ("gate", "up"),
             value_dim)


def check(*, key_dim, value_dim, depth, expansion, activation, residual, norm):
  """Refuses options that make no network; the message names the field."""
  if depth < 1:
    raise ValueError(f"{FIELD}.depth={depth} must be at least 1")
  if expansion <= 0:
    raise ValueError(f"{FIELD}.expansion={expansion} must be positive")
  if activation not in ACTIVATIONS:
    raise ValueError(f"{FIELD}.activation={activation!r} is unknown; known are {', '.join(ACTIVATIONS)}")
  if residual and key_dim != value_dim:
    raise ValueError(f"{FIELD}.residual=True needs keys and values of one width, got {key_dim} and "
                     f"{value_dim}; make them equal or set residual=False")
  if norm not in NORMS:
    raise ValueError(f"{FIELD}.norm={norm!r} is unknown; known are {', '.join(map(str, NORMS))}")


def layer_norm(x):
  """Brings the last axis to mean 0 and variance 1."""
  centred = x - jnp.mean(x, -1, keepdims=True)
  # Large rows are brought to 1 first, which changes no value: powers in second gradients overflow.
  largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(centred), -1, keepdims=True), 1))
  # eps is divided along below: the value is that of the mean square of `centred` plus 1e-6.
  unit = centred / largest
  return unit * jax.lax.rsqrt(jnp.mean(unit * unit, -1, keepdims=True) + 1e-6 / (largest * largest))


def _mlp_forward(depth, activation, residual, norm, biases, product, slow, x_K, lifted_P):
  h = lifted_P
  for i in range(depth):
    h = ACTIVATIONS[activation](h) if i else h
    bias = product(f"b{i}", jnp.ones((*x_K.shape[:-1], 1), x_K.dtype)) if biases else None
    h = product(f"w{i}", h)
    h = h if bias is None else h + bias
  if norm is not None:
    h = layer_norm(h)
  if norm == "unit":
    # layer_norm leaves a mean square of 1, hence a length of sqrt(M); values have length 1.
    h = h * h.shape[-1] ** -0.5
  if norm == "affine":
    lead = (1,) * (h.ndim - 1)
    h = h * slow["norm_scale"].reshape(*lead, -1) + slow["norm_bias"].reshape(*lead, -1)
  return x_K + h if residual else h


def _gated_forward(activation, residual, product, slow, x_K, lifted_P):
  del slow
  h = ACTIVATIONS[activation](product("gate", lifted_P)) * product("up", lifted_P)
  out = product("out", h)
  return x_K + out if residual else out


def _norm_slow(norm, value_dim):
  if norm != "affine":
    return ()
  return (("norm_scale", (value_dim,), 1.0), ("norm_bias", (value_dim,), 0.0))
