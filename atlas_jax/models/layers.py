"""Small layers shared by the networks: normalisation, feed-forward, projections of heads."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory.norms import rms_normalize
from atlas_jax.memory.projections import dense

# Axes of its leaves that are split over `tensor`, see `models.placement`.
TENSOR_AXES = (
    (r"mlp/(gate|up)_kernel", (-1,)),  # D, F
    (r"blocks(_\d+)?/mlp/out_kernel", (-2,)))  # F, D


class RMSNorm(nn.Module):
  """Scales vectors to root mean square one, times a learned scale; computed in float32 or wider.

  Attributes:
    eps: added to mean squares.
  """

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x_BTD):
    """Returns x, normalised along its last axis, in its dtype; it may have more axes, as of heads."""
    scale = self.param("scale", nn.initializers.ones, (x_BTD.shape[-1],), jnp.float32)
    # Squares of bfloat16 have 8 bits, and their sum over the width would stop growing.
    full = x_BTD.astype(tree.accumulation_dtype(x_BTD.dtype))
    lifted = jnp.expand_dims(scale.astype(full.dtype), range(x_BTD.ndim - 1))
    return (rms_normalize(full, eps=self.eps) * lifted).astype(x_BTD.dtype)


class SwiGLU(nn.Module):
  """The gated feed-forward layer: (silu(x W_gate) * x W_up) W_out, see `gated`.

  Attributes:
    ff_width: hidden width.
    out_scale: factor on the initial output weights.
  """

  ff_width: int
  out_scale: float = 1.0

  @nn.compact
  def __call__(self, x_BTD):
    """Returns [B, T, D] in x's dtype."""
    width = x_BTD.shape[-1]
    gate = self.param("gate_kernel", scaled_normal(1.0), (width, self.ff_width), jnp.float32)
    up = self.param("up_kernel", scaled_normal(1.0), (width, self.ff_width), jnp.float32)
    out = self.param("out_kernel", scaled_normal(self.out_scale), (self.ff_width, width), jnp.float32)
    return dense(gated(dense(x_BTD, gate), dense(x_BTD, up)), out)


def gated(gate, up):
  """Returns silu(gate) * up, what stands between the projections of a gated feed-forward layer.

  Source: Shazeer 2020, arXiv:2002.05202.
  """
  return jax.nn.silu(gate) * up


def scaled_normal(scale: float, in_axes: int = 1):
  """Returns an initializer of standard deviation scale / sqrt(inputs); the first in_axes axes are inputs."""
  def init(key, shape, dtype):
    deviation = scale * math.prod(shape[:in_axes]) ** -0.5
    return jax.random.normal(key, shape, dtype) * jnp.asarray(deviation, dtype)
  return init


class HeadsOut(nn.Module):
  """Projects heads back to the model's width.

  Attributes:
    width: of the model.
    scale: factor on the initial weights.
  """

  width: int
  scale: float

  @nn.compact
  def __call__(self, x_BTHK):
    """Returns [B, T, D] in x's dtype."""
    shape = (*x_BTHK.shape[2:], self.width)
    kernel = self.param("kernel", scaled_normal(self.scale, in_axes=2), shape, jnp.float32)
    # The parameter keeps heads apart, so that they can be split over devices; the product sees one axis.
    joined_BTE = x_BTHK.reshape(*x_BTHK.shape[:2], -1)
    return dense(joined_BTE, kernel.reshape(-1, self.width))
