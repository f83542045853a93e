"""Adam that keeps the mean square of a matrix's gradients by rows and columns, not by entries.

The mean square of entry (r, c) is estimated as row mean r times column mean c over the mean of all, which
needs rows + columns numbers in place of rows x columns. Gradients are divided by its root first and averaged
afterwards.

Source: Shazeer and Stern 2018, arXiv:1804.04235 (Adafactor), in optax's form, with Adam's constant decays
without bias in place of the decay that rises.
"""
import math

import jax
import jax.numpy as jnp
import optax

LEAST_SIDE = 32  # A matrix with a shorter side saves little and is kept whole.
MOST_RMS = 1.0  # Of an update of a parameter, Adafactor's bound: estimates of a square can be too small.


def scale_by_factored_adam(shapes, b1: float, b2: float, mean_dtype) -> optax.GradientTransformation:
  """Turns gradients into directions: their mean after each was divided by the root of the mean square.

  Args:
    shapes: a tree like the parameters of (lead, rows, columns), see `matrix_shape`; None where the mean
      square is kept for every number.
    b1, b2: how much of the mean and of the mean square stays per update, in [0, 1).
    mean_dtype: in which the mean is kept.

  Returns:
    A transformation whose moments end in the names of the parameters.
  """
  is_leaf = lambda x: x is None or isinstance(x, tuple)
  split = jax.tree.map(lambda shape: shape is not None, shapes, is_leaf=is_leaf)
  whole = jax.tree.map(lambda one: not one, split)

  def rms(factored):
    return optax.scale_by_factored_rms(factored, decay_rate=b2, decay_rate_fn=_decay,
                                       min_dim_size_to_factor=LEAST_SIDE)

  return optax.chain(
      optax.masked(_as_matrices(rms(True), shapes), split), optax.masked(rms(False), whole),
      optax.clip_by_block_rms(MOST_RMS), optax.ema(b1, debias=True, accumulator_dtype=mean_dtype))


def matrix_shape(shape: tuple[int, ...], lead_axes: int) -> tuple[int, int, int] | None:
  """Returns how a leaf is read as stacked matrices, (lead, rows, columns), None if it is not factored.

  Args:
    shape: of the leaf.
    lead_axes: first axes that count matrices, such as depth; -1 for a leaf that is none.
  """
  inner = shape[max(lead_axes, 0):]
  if lead_axes < 0 or len(inner) < 2:
    return None
  lead = math.prod(shape[:lead_axes])
  # Heads and their width belong on one side: the cut that makes both sides as equal as can be.
  cut = min(range(1, len(inner)), key=lambda at: math.prod(inner[:at]) + math.prod(inner[at:]))
  rows, columns = math.prod(inner[:cut]), math.prod(inner[cut:])
  # optax factors the two longest axes, which must be these.
  return (lead, rows, columns) if min(rows, columns) >= max(LEAST_SIDE, lead + 1) else None


def _as_matrices(transform: optax.GradientTransformation, shapes) -> optax.GradientTransformation:
  """Returns a transformation that sees every leaf as stacked matrices."""

  def reshape(updates):
    return jax.tree.map(lambda x, shape: x.reshape(shape), updates, _masked_like(shapes, updates))

  def init(params):
    return transform.init(reshape(params))

  def update(grads, state, params):
    out, state = transform.update(reshape(grads), state, reshape(params))
    return jax.tree.map(lambda x, grad: x.reshape(grad.shape), out, grads), state

  return optax.GradientTransformation(init, update)


def _masked_like(shapes, updates):
  """Returns the shapes of those leaves that optax has not masked out."""
  leaves = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))
  return jax.tree.unflatten(jax.tree.structure(updates), leaves)


def _decay(count, b2):
  """Returns how much of an unbiased mean stays so that it is Adam's, corrected for its start from zero."""
  count = count.astype(jnp.float32)
  return b2 * (1 - b2**count) / (1 - b2 ** (count + 1))
