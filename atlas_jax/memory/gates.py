"""Gates of a memory: learned functions of the token, and their products over a chunk."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory.types import ChunkDecay, Gates, GateSpec, GateStarts


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
  # Row t of terms has the logs up to t, column i of after picks those behind i. In full precision: an error
  # of a log is a relative error of the product, and accelerators round the factors of a product by default.
  log_CC = jnp.dot(terms_CC, after_CC, precision=jax.lax.Precision.HIGHEST)
  # Above the diagonal the sum is empty and exp finite, so that the mask leaves no nan in the backward pass.
  return jnp.where(seen_CC, jnp.exp(log_CC), 0)


def chunk_decay(log_retention_C, log_momentum_C, write_rate_C, write_C) -> ChunkDecay:
  """Accumulates the gates of one chunk.

  Args:
    log_retention_C, log_momentum_C, write_rate_C: the gates of each token, see `Gates`; log_momentum_C may be
      None, for rules without momentum.
    write_C: 1 where the token writes, 0 at padding; a padded token is as good as absent.

  Returns:
    The weights of `ChunkDecay`, in the gates' dtype.

  Source: Titans (arXiv:2501.00663) Eq. 16-18, with every gate per token; the mask u is ours.
  """
  write_C = write_C.astype(write_rate_C.dtype)
  # A log of 0 is an open gate, so that padding neither fades the weights nor the momentum.
  retention_CC = decay_matrix(log_retention_C * write_C)
  fast_C = jnp.exp(jnp.cumsum(log_retention_C * write_C))
  rate_C = write_rate_C * write_C
  if log_momentum_C is None:
    # Each gradient enters once and then fades: Titans' momentum with a gate of 0.
    return ChunkDecay(fast_C, (), retention_CC * rate_C[None, :], (), jnp.diag(rate_C))
  momentum_CC = decay_matrix(log_momentum_C * write_C)
  keep_C = jnp.exp(jnp.cumsum(log_momentum_C * write_C))
  surprise_CC = momentum_CC * rate_C[None, :]
  # W_t sums the momenta S_j, j <= t, each faded since j. At padding S stands and must not enter W once more:
  # its column is cut, while S itself passes through.
  applied_CC = retention_CC * write_C[None, :]
  return ChunkDecay(fast_C, applied_CC @ keep_C, applied_CC @ surprise_CC, keep_C, surprise_CC)


def inverse_softplus(value: float) -> float:
  """Returns z with softplus(z) = value, for initial biases."""
  return math.log(math.expm1(value))


def inverse_sigmoid(value: float) -> float:
  """Returns z with sigmoid(z) = value, for initial biases."""
  return math.log(value) - math.log1p(-value)


class TokenGates(nn.Module):
  """Computes the gates of each token and head from the layer's input.

  Attributes:
    heads: memory heads.
    starts: where they begin, and the bound of the step size.
    half_life_spread: the longest half-life of a head's fast weights at the start over the shortest, at least
      1; in between they rise by equal factors.
    uses: the common gates that are learned; the others are 0 and have no parameters.
    more: a rule's own gates.
  """

  heads: int
  starts: GateStarts
  half_life_spread: float = 1.0
  uses: tuple[str, ...] = ("log_retention", "log_momentum", "write_rate")
  more: tuple[GateSpec, ...] = ()

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> Gates:
    """Returns Gates of [B, T, H] and [B, T, H, size], float32 or wider."""
    each = [self.starts.of_head(head, self.heads, self.half_life_spread) for head in range(self.heads)]
    starts = {
        "log_retention": [inverse_softplus(-math.log(start.retention)) for start in each],
        "log_momentum": [inverse_sigmoid(start.momentum) for start in each],
        "write_rate": [inverse_sigmoid(start.write_rate / start.write_rate_max) for start in each],
    }
    maps = {
        # Logs of sigmoids of -z and z. Taken as the log of a sigmoid, a shut gate would be log 0.
        "log_retention": lambda z: -jax.nn.softplus(z),
        "log_momentum": jax.nn.log_sigmoid,
        "write_rate": lambda z: self.starts.write_rate_max * jax.nn.sigmoid(z),
    }
    zero_BTH = jnp.zeros((*x_BTD.shape[:2], self.heads), tree.accumulation_dtype(x_BTD.dtype))
    common = dict.fromkeys(starts, zero_BTH)
    used = [name for name in starts if name in self.uses]
    if used:
      # One product for all common gates. Starts lie in the bias: the kernel's .02 adds a little of the token.
      kernel, bias = self._parameters("", len(used) * self.heads, x_BTD.shape[-1],
                                      [start for name in used for start in starts[name]])
      parts = jnp.split(_affine(x_BTD, kernel, bias), len(used), axis=-1)
      common |= {name: maps[name](z_BTH) for name, z_BTH in zip(used, parts, strict=True)}
    return Gates(**common, more=self._more(x_BTD))

  def _more(self, x_BTD):
    out = {}
    for spec in self.more:
      size = spec.size or 1
      soft = spec.kind == "softplus"
      start = inverse_softplus(spec.init) if soft else inverse_sigmoid(spec.init / spec.max)
      kernel, bias = self._parameters(f"{spec.name}_", self.heads * size, x_BTD.shape[-1],
                                      [start] * (self.heads * size))
      z_BTHS = _affine(x_BTD, kernel, bias).reshape(*x_BTD.shape[:2], self.heads, size)
      gate_BTHS = jax.nn.softplus(z_BTHS) if soft else spec.max * jax.nn.sigmoid(z_BTHS)
      out[spec.name] = gate_BTHS[..., 0] if spec.size is None else gate_BTHS
    return out or ()

  def _parameters(self, prefix, size, width, starts):
    kernel = self.param(f"{prefix}kernel", nn.initializers.normal(0.02), (width, size), jnp.float32)
    bias = self.param(f"{prefix}bias", lambda _: jnp.asarray(starts, jnp.float32))
    return kernel, bias


def _affine(x_BTD, kernel, bias):
  wide = tree.accumulation_dtype(x_BTD.dtype)
  # Sum, bias and what follows in float32: below 1 bfloat16 steps by 1/256, and a retention of .9999 is 1.
  z_BTG = jnp.dot(x_BTD, kernel.astype(x_BTD.dtype), preferred_element_type=wide)
  return z_BTG + bias.astype(wide).reshape(1, 1, -1)
