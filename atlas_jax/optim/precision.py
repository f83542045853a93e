"""Parameters in bfloat16: which ones are, and updates that are rounded at random so that small ones count.

An update of a well trained model is often below half the distance between two neighbouring bfloat16 numbers.
Rounded to the nearest, it would be lost at every step. Rounded at random, up with the probability that makes
the mean right, it is kept in expectation, and no float32 copy of the parameters is needed.

Source: Gupta et al. 2015, arXiv:1502.02551 (stochastic rounding).
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from atlas_jax import tree

ROUNDING = 2**31 - 3  # Folded into an update's key: no piece of a batch has this number.
SQUARES = 2**31 - 4  # The seed that squares are rounded with.
LOW_BITS = 16  # Of a float32, beyond those of a bfloat16.


def stored(params, kernels, dtype: str):
  """Returns parameters as a run stores them.

  Args:
    params: arrays of float32 or narrower.
    kernels: a tree of booleans like them; True marks those that dtype applies to.
    dtype: "float32", which leaves all as they are, or "bfloat16".
  """
  if dtype == "float32":
    return params
  return jax.tree.map(lambda leaf, is_kernel: leaf.astype(dtype) if is_kernel else leaf, params, kernels)


def wide(params):
  """Returns parameters with floats below 32 bits as float32, for averages that move in small steps."""
  return jax.tree.map(_wide, params)


def wide_shapes(params_abstract):
  """Returns shapes and dtypes of `wide(params)`."""
  return jax.eval_shape(wide, params_abstract)


def widened(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns an optimizer that sees parameters and gradients, and makes updates, in float32 or wider."""

  def init(params):
    return optimizer.init(wide(params))

  def update(grads, state, params=None):
    return optimizer.update(wide(grads), state, None if params is None else wide(params))

  return optax.GradientTransformation(init, update)


def narrow_squares(adam: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns Adam that keeps mean squares in bfloat16, rounded at random by keys of the count of updates.

  To the nearest they would stop to fall: a step of 1 - 0.999 is below half of the gap between two numbers.

  Args:
    adam: what `optax.scale_by_adam` gives, for float32 parameters.
  """

  def narrow(state, nu):
    return NarrowState(state._replace(nu=()), nu)

  def init(params):
    state = adam.init(params)
    return narrow(state, tree.cast(state.nu, jnp.bfloat16))

  def update(grads, state, params=None):
    updates, after = adam.update(grads, state.adam._replace(nu=wide(state.nu)), params)
    leaves, form = jax.tree.flatten(after.nu)
    key = jax.random.fold_in(jax.random.key(SQUARES), after.count)
    rounded = [round_randomly(leaf, jax.random.fold_in(key, at)) for at, leaf in enumerate(leaves)]
    return updates, narrow(after, form.unflatten(rounded))

  return optax.GradientTransformation(init, update)


class NarrowState(NamedTuple):
  """The state of `narrow_squares`, named like the parameters."""

  adam: Any  # Adam's, without squares
  nu: Any  # mean squares, bfloat16


def apply_updates(params, updates, key):
  """Adds updates to parameters; sums for bfloat16 ones are formed in float32 and rounded at random.

  Args:
    params: stored parameters.
    updates: of the same form.
    key: of the update's own.

  Returns:
    New parameters in the dtypes of the old ones; those of float32 exactly as `optax.apply_updates` has them.
  """
  def one(pair, key):
    leaf, step = pair
    if leaf.dtype != jnp.bfloat16:
      return optax.apply_updates(leaf, step)
    return round_randomly(leaf.astype(jnp.float32) + step, key)

  leaves, form = jax.tree.flatten(params)
  pairs = zip(leaves, form.flatten_up_to(updates), strict=True)
  key = jax.random.fold_in(key, ROUNDING)
  return form.unflatten([one(pair, jax.random.fold_in(key, at)) for at, pair in enumerate(pairs)])


def round_randomly(x, key):
  """Rounds float32 to one of the two nearest bfloat16 numbers, the mean of many draws being x itself.

  Args:
    x: float32; a bfloat16 number comes back as it is, and so do infinities, and NaN as NaN.
    key: one draw per number follows from it.

  Returns:
    bfloat16 of x's shape.
  """
  # The low half of a float32's bits says how far it is from the bfloat16 number below it towards the one
  # above, in parts of 2^16: a uniform draw carries over with that probability. In sign and magnitude "up" is
  # away from zero, which makes no difference to the mean.
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  draw = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  carried = (bits + draw) >> LOW_BITS
  rounded = jax.lax.bitcast_convert_type(carried.astype(jnp.uint16), jnp.bfloat16)
  # A draw must not turn a NaN's bits into an infinity's, nor run past the sign.
  return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _wide(leaf):
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    return leaf
  return leaf.astype(tree.accumulation_dtype(leaf.dtype))
