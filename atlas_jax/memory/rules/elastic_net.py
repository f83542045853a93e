"""Elastic-net memory: descent with retention; at a chunk's end small weights become zero.

  A_t = a_t A_{t-1} - r_t clip(grad l(A_base; k_t, v_t))
  y_t = f(A_t; q_t)
  A <- sign(A) max(|A| - threshold, 0), or smoothly A atan(|A| / threshold) / (pi / 2), when a chunk is full

Retention is the square part of the elastic net, the threshold its absolute part. The paper thresholds after
every step; we do so once per chunk, so that a chunk stays linear in its gradients. f is an MLP; l is half
the squared error; `surprise_max` is ours, see `rules.titans`.

Retention draws the weights to those of the text's start; the paper's draws them to zero (fade_to="zero"),
where a net of two matrices has no gradient, so that it cannot be written again. In the paper f is
layer-normed and added to its input (norm="layer", residual=True); with keys and values of norm one, reads
are then longer than values by the root of their width, and the loss stays above that of answering zero.

In a line: W = a W − r ∇l; soft threshold at a chunk's end
Floats per head: w

Source: Behrouz et al. 2025, Miras, arXiv:2504.13173, section 4 (elastic net retention).
"""
import functools
import math

import jax
import jax.numpy as jnp

from atlas_jax.memory import descent, features, nets
from atlas_jax.memory.types import GateStarts, MemoryRule, MemoryState

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) the layer norm made reads 5.7
# times as long as values: the loss was 25 times that of answering zero; without it the threshold, then 1e-3,
# emptied the memory within 16,384 tokens. A weight lasts if its start is above threshold / (1 - retention of
# a chunk): with these, and half-lives up to four times as long, above .025.
STARTS = GateStarts(retention=0.9995, write_rate=0.05, write_rate_max=0.15)


def make(*, key_dim: int, value_dim: int, threshold: float = 1e-4, smooth: bool = False, depth: int = 2,
         expansion: float = 4, activation: str = "gelu", norm: str | None = None, residual: bool = False,
         surprise_max: float | None = 1.0, fade_to: str = "start") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    threshold: size below which a weight becomes 0 (smooth: shrinks most), above 0.
    smooth: whether the threshold has no corner; small weights then shrink, but not to 0.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    norm: of the memory's output before the key is added: None, "layer", as in the paper, "affine" (with a
      learned scale and bias), or "unit" (as long as values).
    residual: whether the memory's output is added to its input.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper,
      with which a run of equal tokens diverges.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  if threshold <= 0:
    raise ValueError(f"{nets.FIELD}.threshold={threshold} must be positive")
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual, norm=norm)
  return descent.make(net, lift=features.make("none", key_dim=key_dim), momentum=False,
                      surprise_max=surprise_max,
                      fade_to=fade_to, starts=STARTS, close=functools.partial(_close, threshold, smooth))


def _close(threshold, smooth, slow, state: MemoryState, base):
  del slow, base
  return state._replace(fast=jax.tree.map(functools.partial(_shrink, threshold, smooth), state.fast))


def _shrink(threshold, smooth, a_PF):
  if smooth:
    # Far above the threshold a weight loses (2 / pi) threshold, near 0 it becomes (2 / pi) a |a| / threshold.
    return a_PF * jnp.arctan(jnp.abs(a_PF) / threshold) * (2 / math.pi)
  # The proximal step of threshold |A|_1.
  return jnp.sign(a_PF) * jnp.maximum(jnp.abs(a_PF) - threshold, 0)
