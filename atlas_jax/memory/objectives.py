"""Recall losses: what a memory minimises when it writes. Miras calls them attentional biases.

An objective maps (out_CM, v_CM, gates) to the loss of each token, [C], and to the gradient that is
back-propagated from the output, [C, M]; `gates` holds the rule's own gates of each token.
Source: Behrouz et al. 2025, Miras, arXiv:2504.13173, sections 4 and 5.
"""
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from atlas_jax.memory.nets import FIELD


def l2(out_CM, v_CM, gates):
  """Returns half the squared error, and its gradient."""
  del gates
  error_CM = out_CM - v_CM
  return 0.5 * jnp.sum(error_CM * error_CM, -1), error_CM


def dot(out_CM, v_CM, gates):
  """Returns minus the inner product of output and value, and its gradient: a Hebbian write."""
  del gates
  return -jnp.sum(out_CM * v_CM, -1), -v_CM


def lp(p: float, sharpness: float) -> Callable:
  """Makes sum |e|^p / p, with a smooth sign in its gradient: tanh(sharpness e) (e^2 + 1e-6)^((p - 1) / 2).

  The paper's loss has no 1 / p: write_rate is p times its step.
  """
  if p < 1:
    raise ValueError(f"{FIELD}.p={p} must be at least 1")
  if sharpness <= 0:
    raise ValueError(f"{FIELD}.sharpness={sharpness} must be positive")
  return functools.partial(_lp, p, sharpness)


def _lp(p, sharpness, out_CM, v_CM, gates):
  del gates
  error_CM = out_CM - v_CM
  # Training differentiates the write, hence this gradient, once more: |e|^(p - 1) has an infinite derivative
  # at 0 for p below 2, and the small term makes it finite.
  size_CM = error_CM * error_CM + 1e-6
  grad_CM = jnp.tanh(sharpness * error_CM) * size_CM ** ((p - 1) / 2)
  return jnp.sum(size_CM ** (p / 2), -1) / p, grad_CM


def huber(kind: str) -> Callable:
  """Makes the Huber loss, squares up to the gate `threshold` and linear beyond.

  Args:
    kind: "coordinate" (each coordinate of the error by itself) or "norm" (of the error's norm).
  """
  if kind not in ("coordinate", "norm"):
    raise ValueError(f"{FIELD}.huber={kind!r} is unknown; known are coordinate, norm")
  return functools.partial(_huber, kind)


def _huber(kind, out_CM, v_CM, gates):
  error_CM = out_CM - v_CM
  edge_C1 = gates["threshold"][..., None]
  if kind == "coordinate":
    size_CM = jnp.abs(error_CM)
    loss_CM = jnp.where(size_CM <= edge_C1, 0.5 * error_CM**2, edge_C1 * (size_CM - 0.5 * edge_C1))
    # The gate has a gradient through coordinates beyond it alone: a threshold that no error reaches is dead.
    return jnp.sum(loss_CM, -1), jnp.clip(error_CM, -edge_C1, edge_C1)
  square_C1 = jnp.sum(error_CM * error_CM, -1, keepdims=True)
  inside_C1 = square_C1 <= edge_C1 * edge_C1
  # Where the square is inside, the root's argument is replaced, so that no gradient at 0 is infinite.
  norm_C1 = jnp.sqrt(jnp.where(inside_C1, 1, square_C1))
  loss_C1 = jnp.where(inside_C1, 0.5 * square_C1, edge_C1 * (norm_C1 - 0.5 * edge_C1))
  return loss_C1[..., 0], error_CM * jnp.where(inside_C1, 1, edge_C1 / norm_C1)


def robust(shift: float) -> Callable:
  """Makes half the squared error plus `shift` times its norm: the worst value within that distance."""
  if shift < 0:
    raise ValueError(f"{FIELD}.shift={shift} must not be negative")
  return functools.partial(_robust, shift)


def _robust(shift, out_CM, v_CM, gates):
  del gates
  error_CM = out_CM - v_CM
  square_C1 = jnp.sum(error_CM * error_CM, -1, keepdims=True)
  # The norm has no gradient at a perfect recall; the small term gives it 0 there.
  norm_C1 = jnp.sqrt(square_C1 + 1e-6)
  return (0.5 * square_C1 + shift * norm_C1)[..., 0], error_CM * (1 + shift / norm_C1)


def bound(square: jax.Array, surprise_max: float | None) -> jax.Array:
  """Returns the factor that brings a gradient of that squared norm within the bound; None: no bound."""
  if surprise_max is None:
    return jnp.ones_like(square)
  # Within the bound the root is that of the bound itself: the factor is 1, and no small norm is divided by.
  return surprise_max * jax.lax.rsqrt(jnp.maximum(square, surprise_max**2))


def check_bound(surprise_max: float | None):
  """Refuses a bound that is not positive."""
  if surprise_max is not None and surprise_max <= 0:
    raise ValueError(f"{FIELD}.surprise_max={surprise_max} must be positive, or None for no bound")
