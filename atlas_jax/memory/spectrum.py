"""Singular values of fast weights, and how many directions they use.

The effective rank is exp(entropy of the singular values over their sum).

Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".

Singular values are roots of the eigenvalues of the product of the smaller side, which costs a tenth of a
batched SVD on a CPU (16 matrices of [2048, 32]: 3.4 ms against 39 ms of one core) and is exact to about 3e-4
of the largest value in float32. What is lost: values below that are noise, so a matrix of rank 1 is measured
as 1.02 to 1.05; spectra over six decades were within 0.13% of those of float64.
"""
import jax
import jax.numpy as jnp

SHOWN = 10  # Largest singular values that are metrics of their own.


def singular_values(w):
  """Returns the singular values of matrices [..., n, m], largest first: float32 [..., min(n, m)]."""
  w = w.astype(jnp.float32)
  if w.shape[-2] < w.shape[-1]:
    w = jnp.swapaxes(w, -1, -2)
  # Scaled, since squares of tiny weights are below what float32 holds; full precision also on accelerators.
  largest = jnp.max(jnp.abs(w), axis=(-2, -1), keepdims=True)
  scale = jnp.where(largest > 0, largest, 1.0)
  w = w / scale
  gram = jnp.einsum("...ij,...ik->...jk", w, w, precision=jax.lax.Precision.HIGHEST)
  squares = jnp.maximum(jnp.linalg.eigvalsh(gram), 0.0)
  return jnp.sqrt(squares)[..., ::-1] * scale[..., 0]


def effective_rank(values):
  """Returns how many directions singular values [..., n] use: from 1 to n, and 0 of a matrix of zeros."""
  total = jnp.sum(values, axis=-1, keepdims=True)
  p = values / jnp.where(total > 0, total, 1.0)
  entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0), axis=-1)
  return jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0.0)


def measure(matrices: dict) -> dict:
  """Returns numbers of the fast weights of memories by name.

  Args:
    matrices: by name, each [..., n, m]; leading axes are equal.

  Returns:
    name -> [...]: "effective_rank", a mean over the matrices, and "effective_rank_NAME" of each if there are
    several; "singular_value_00" (the largest) to "singular_value_09" and "singular_value_mean", means over
    those matrices that have so many.
  """
  values = {name: singular_values(w) for name, w in matrices.items()}
  ranks = {name: effective_rank(s) for name, s in values.items()}
  found = {"effective_rank": _mean(list(ranks.values()))}
  if len(ranks) > 1:
    found |= {f"effective_rank_{name.replace('/', '_')}": rank for name, rank in ranks.items()}
  for i in range(min(SHOWN, max(s.shape[-1] for s in values.values()))):
    found[f"singular_value_{i:02d}"] = _mean([s[..., i] for s in values.values() if s.shape[-1] > i])
  found["singular_value_mean"] = _mean([jnp.mean(s, axis=-1) for s in values.values()])
  return found


def key_diversity(k_BHCK, real_BC):
  """Returns how evenly keys spread over directions, as a fraction of what they could: float [].

  For n keys of unit length the number of directions is n^2 / (sum over pairs i, j of cos(i, j)^2), which is 1
  where all are alike up to their sign and min(n, K) where they spread evenly. This is the participation ratio
  of the squared singular values of the keys. It is divided by min(n, K); independent random directions give
  about max(n, K) / (n + K).

  Args:
    k_BHCK: keys of any length.
    real_BC: 1 where a token counts, else 0.

  Returns:
    The mean over heads and rows with at least two real tokens; 0 where there is no such row.
  """
  square = jnp.sum(k_BHCK * k_BHCK, axis=-1, keepdims=True)
  k_BHCK = k_BHCK * jax.lax.rsqrt(jnp.maximum(square, 1e-30)) * real_BC[:, None, :, None]
  # Both products have the same norm; the smaller one costs less.
  size, width = k_BHCK.shape[-2:]
  product = "bhck,bhcl->bhkl" if width <= size else "bhck,bhdk->bhcd"
  gram = jnp.einsum(product, k_BHCK, k_BHCK)
  count_B = jnp.sum(real_BC, axis=-1)
  used_BH = count_B[:, None] ** 2 / jnp.maximum(jnp.sum(gram * gram, axis=(-2, -1)), 1e-30)
  part_B = jnp.mean(used_BH, axis=-1) / jnp.maximum(jnp.minimum(count_B, width), 1)
  counts_B = (count_B >= 2).astype(part_B.dtype)
  return jnp.sum(jnp.where(counts_B > 0, part_B, 0.0)) / jnp.maximum(jnp.sum(counts_B), 1)


def _mean(parts: list):
  return sum(parts[1:], start=parts[0]) / len(parts)
