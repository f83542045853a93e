"""Gradients without the part that lies along the weights: a step turns a matrix and does not lengthen it.

Once training rows are known by heart, a gradient of cross entropy mostly points along the weights: longer
weights make the same answers surer, and nothing else. Without that part the loss falls only where answers
change.

Source: Prieto et al. 2025, arXiv:2501.04697, the projection that they call perpendicular gradients. It is
theirs at fraction 1; here matrices alone are projected, each block of the stacked ones by itself.
"""
import jax
import jax.numpy as jnp
import optax


def project(grad, weight, *, fraction: float, lead_axes: int = 0):
  """Returns grad - fraction * (<grad, weight> / <weight, weight>) weight.

  Args:
    grad: of a matrix, or of several stacked ones.
    weight: the matrix.
    fraction: of the part along the weight that is taken out, in [0, 1].
    lead_axes: first axes that count matrices, such as depth; inner products are over the others.

  Returns:
    The projected gradient in its dtype; that of a matrix of zeros as it is, since zeros have no direction.
  """
  axes = tuple(range(lead_axes, weight.ndim))
  # In float32: the sum of many squares in bfloat16 stops growing.
  wide = jnp.promote_types(weight.dtype, jnp.float32)
  g, w = grad.astype(wide), weight.astype(wide)
  squares = jnp.sum(w * w, axis=axes, keepdims=True)
  along = jnp.sum(g * w, axis=axes, keepdims=True) / jnp.where(squares > 0, squares, 1)
  return (g - jnp.asarray(fraction, wide) * along * w).astype(grad.dtype)


def orthogonal(lead_axes, fraction: float) -> optax.GradientTransformation:
  """Makes the transformation of gradients; it has no state.

  Args:
    lead_axes: a tree like the parameters: see `project`; -1 for a leaf whose gradient stays as it is.
    fraction: see `project`.
  """

  def one(grad, weight, lead):
    return grad if lead < 0 else project(grad, weight, fraction=fraction, lead_axes=lead)

  def update(grads, params):
    assert params is not None  # `optax.stateless` hands on what `update` is given.
    return jax.tree.map(one, grads, params, lead_axes)

  return optax.stateless(update)
