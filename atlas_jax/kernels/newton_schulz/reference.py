"""Newton-Schulz as the papers write it: the definition."""
import jax
import jax.numpy as jnp

from atlas_jax import tree

# A singular value s becomes LINEAR s + CUBIC s^3 + QUINTIC s^5. The coefficients are made to lift small
# values fast, 3.4-fold a step, not to converge: five steps end between .65 and 1.25 (README of the kernels).
LINEAR = 3.4445
CUBIC = -4.7750
QUINTIC = 2.0315
SMALLEST_NORM = 1e-7  # Added to the norm, so that the zero matrix stays zero and has a gradient.
EXACT = jax.lax.Precision.HIGHEST  # Accelerators round the factors of a product unless told not to.


def matmul(left, right, precision=EXACT):
  """Multiplies matrices of the last two axes."""
  return jnp.matmul(left, right, precision=precision)


def normalize(x_ES):
  """Divides every matrix by its Frobenius norm; no gradient flows through the norm of a zero matrix."""
  square = jnp.sum(jnp.sum(jnp.square(x_ES), axis=-1, keepdims=True), axis=-2, keepdims=True)
  is_zero = square == 0
  norm = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))
  return x_ES / (norm + SMALLEST_NORM)


def newton_schulz(x_ES, *, steps: int):
  """Iterates on the side that is shorter; arguments as in the package."""
  if x_ES.shape[-2] > x_ES.shape[-1]:
    return newton_schulz(x_ES.mT, steps=steps).mT
  # No singular value is above the Frobenius norm: now all are in [0, 1], where steps stay bounded.
  x_ES = normalize(x_ES.astype(tree.accumulation_dtype(x_ES.dtype)))
  for _ in range(steps):
    gram_EE = matmul(x_ES, x_ES.mT)
    x_ES = LINEAR * x_ES + matmul(CUBIC * gram_EE + QUINTIC * matmul(gram_EE, gram_EE), x_ES)
  return x_ES
