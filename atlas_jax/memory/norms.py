"""Norms of vectors: to length one, and to root mean square one."""
import jax
import jax.numpy as jnp

from atlas_jax import tree


def l2_normalize(x, axis: int = -1):
  """Scales vectors to norm one, smoothly near zero; float32 or wider."""
  full = x.astype(tree.accumulation_dtype(x.dtype))
  # Under the root, the small term keeps a vector of zeros at zero, with a finite gradient: the key before a
  # text's first token is one. Lengths well below 1e-3 come out shorter than one.
  return full * jax.lax.rsqrt(jnp.sum(full * full, axis, keepdims=True) + 1e-6)


def inverse_rms(x, *, eps: float, axis: int = -1):
  """Returns one over the root mean square of vectors, eps added to the mean; the axis stays, of size one."""
  return jax.lax.rsqrt(jnp.mean(x * x, axis, keepdims=True) + eps)


def rms_normalize(x, *, eps: float = 1e-6, axis: int = -1):
  """Scales vectors to root mean square one, in x's dtype: callers cast where that is too narrow."""
  return x * inverse_rms(x, eps=eps, axis=axis)
