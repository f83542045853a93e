"""Gates of a memory: learned functions of the token, and their products over a chunk."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory.types import ChunkDecay, Gates


def decay_matrix(log_gate_C: jax.Array) -> jax.Array:
  """Multiplies gates between any two tokens of a chunk.

  Args:
    log_gate_C: log of each token's gate, finite and at most 0.

  Returns:
    [C, C]: row t, column i holds the product of gates i+1..t where i <= t, else 0.
  """
  size = log_gate_C.shape[0]
  seen_CC = jnp.tril(jnp.ones((size, size), bool))
  # Each sum has only its own terms: a difference of running sums loses the open gates after a shut one.
  terms_CC = jnp.where(seen_CC, log_gate_C[None, :], 0)
  after_CC = jnp.tril(jnp.ones((size, size), log_gate_C.dtype), -1)
  log_CC = jnp.dot(terms_CC, after_CC, precision=jax.lax.Precision.HIGHEST)
  # Above the diagonal the sum is empty and exp finite, so that the mask leaves no nan in the backward pass.
  return jnp.where(seen_CC, jnp.exp(log_CC), 0)


def chunk_decay(log_retention_C, log_momentum_C, write_rate_C, write_C) -> ChunkDecay:
  """Accumulates the gates of one chunk.

  Args:
    log_retention_C, log_momentum_C, write_rate_C: the gates of each token, see `Gates`.
    write_C: 1 where the token writes, 0 at padding; a padded token is as good as absent.

  Returns:
    The weights of `ChunkDecay`, in the gates' dtype.

  Source: Titans (arXiv:2501.00663) Eq. 16-18, with every gate per token; the mask u is ours.
  """
  write_C = write_C.astype(write_rate_C.dtype)
  retention_CC = decay_matrix(log_retention_C * write_C)
  momentum_CC = decay_matrix(log_momentum_C * write_C)
  keep_momentum_C = jnp.exp(jnp.cumsum(log_momentum_C * write_C))
  surprise_CC = momentum_CC * (write_rate_C * write_C)[None, :]
  applied_CC = retention_CC * write_C[None, :]
  return ChunkDecay(
      fast_C=jnp.exp(jnp.cumsum(log_retention_C * write_C)),
      momentum_C=applied_CC @ keep_momentum_C,
      mix_CC=applied_CC @ surprise_CC,
      momentum_keep=keep_momentum_C[-1],
      momentum_weight_C=surprise_CC[-1],
  )


def inverse_softplus(value: float) -> float:
  """Gives z with softplus(z) = value, for initial biases."""
  return math.log(math.expm1(value))


def inverse_sigmoid(value: float) -> float:
  """Gives z with sigmoid(z) = value, for initial biases."""
  return math.log(value) - math.log1p(-value)


class TokenGates(nn.Module):
  """Computes the gates of each token and head from the layer's input.

  Attributes:
    heads: memory heads.
    retention_init: share of the fast weights kept per token at the start, in (0, 1).
    momentum_init: share of the momentum kept per token at the start, in (0, 1).
    write_rate_init, write_rate_max: step size at the start and its bound; 0 < init < max.
  """

  heads: int
  retention_init: float
  momentum_init: float
  write_rate_init: float
  write_rate_max: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> Gates:
    """Returns Gates of [B, T, H], float32 or wider."""
    wide = tree.wide(x_BTD.dtype)
    shape = (x_BTD.shape[-1], 3 * self.heads)
    kernel = self.param("kernel", nn.initializers.normal(0.02), shape, jnp.float32)
    z_BTG = jnp.dot(x_BTD, kernel.astype(x_BTD.dtype), preferred_element_type=wide)
    starts = (inverse_softplus(-math.log(self.retention_init)), inverse_sigmoid(self.momentum_init),
              inverse_sigmoid(self.write_rate_init / self.write_rate_max))
    bias = self.param("bias", lambda _, shape: jnp.repeat(jnp.asarray(starts, jnp.float32), self.heads),
                      (3 * self.heads,))
    z_BTG = z_BTG + bias.astype(wide).reshape(1, 1, -1)
    retain_BTH, keep_BTH, rate_BTH = jnp.split(z_BTG, 3, axis=-1)
    return Gates(
        log_retention=-jax.nn.softplus(retain_BTH),
        log_momentum=jax.nn.log_sigmoid(keep_BTH),
        write_rate=self.write_rate_max * jax.nn.sigmoid(rate_BTH),
    )
