"""Adam-atan2: Adam whose quotient is an arc tangent, so that it needs no epsilon and never exceeds its bound.

Source: Everett et al. 2024, arXiv:2407.05872, in the form of the package adam-atan2 0.0.3: the first moment's
bias correction multiplies outside the arc tangent, and there are no scale constants.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AdamAtan2State(NamedTuple):
  """Moments of the gradient, named like the parameters."""

  count: Any  # int32 [], updates made
  mu: Any  # mean, float32
  nu: Any  # mean square, float32


def scale_by_adam_atan2(b1: float = 0.9, b2: float = 0.95) -> optax.GradientTransformation:
  """Turns gradients into directions: atan2(mean, sqrt(mean square)), both without bias.

  Weight decay and the learning rate come behind it in the chain; each parameter then becomes
  p * (1 - lr * decay) - lr * direction.

  Args:
    b1: how much of the mean stays per update, in [0, 1).
    b2: how much of the mean square stays.

  Returns:
    A transformation whose state is `AdamAtan2State`; float32 or wider throughout.
  """
  def init(params):
    def zeros():
      return jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), params)

    return AdamAtan2State(jnp.zeros((), jnp.int32), zeros(), zeros())

  def update(grads, state, params=None):
    del params
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: m + (1 - b1) * (g.astype(m.dtype) - m), state.mu, grads)
    nu = jax.tree.map(lambda v, g: v + (1 - b2) * (jnp.square(g.astype(v.dtype)) - v), state.nu, grads)

    # atan2(c m, c s) = atan2(m, s): the scale of the gradients drops out
    # altogether, which Adam's epsilon spoils.
    def direction(m, v):
      def correct(b):
        return 1 - jnp.asarray(b, m.dtype) ** count.astype(m.dtype)

      angle = jnp.arctan2(m, jnp.sqrt(v) / jnp.sqrt(correct(b2))) / correct(b1)
      return jnp.where(v > 0, angle, 0)  # The square of a tiny gradient is 0, and the angle 90 degrees.

    return jax.tree.map(direction, mu, nu), AdamAtan2State(count, mu, nu)

  return optax.GradientTransformation(init, update)


def _wide(leaf):
  return jnp.promote_types(leaf.dtype, jnp.float32)
