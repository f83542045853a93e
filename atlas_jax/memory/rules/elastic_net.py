"""Elastic-net memory: descent with retention; at a chunk's end small weights become zero.

  A_t = a_t A_{t-1} - r_t clip(grad l(A_base; k_t, v_t))
  y_t = f(A_t; q_t)
  A <- sign(A) max(|A| - threshold, 0), or smoothly A atan(|A| / threshold) / (pi / 2), when a chunk is full

Retention is the square part of the elastic net, the threshold its absolute part. The paper thresholds after
every step; we do so once per chunk, so that a chunk stays linear in its gradients. A chunk without a real
token changes nothing: `kept` tells whether the chunk has had one (the state is the net's weights and this).
f is an MLP, layer-normed and added to its input; l is half the squared error; `surprise_max` is ours, see
`rules.titans`.

Source: Behrouz et al. 2025, Miras, arXiv:2504.13173, section 4 (elastic net retention).
"""
import functools
import math

import jax
import jax.numpy as jnp

from atlas_jax.memory import descent, features, nets
from atlas_jax.memory.types import Learned, MemoryRule, MemoryState


def make(*, key_dim: int, value_dim: int, threshold: float = 1e-3, smooth: bool = False, depth: int = 2,
         expansion: float = 4, activation: str = "gelu", norm: str | None = "layer", residual: bool = True,
         surprise_max: float | None = None) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    threshold: size below which a weight becomes 0 (smooth: shrinks most), above 0.
    smooth: whether the threshold has no corner; small weights then shrink, but not to 0.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    norm: of the memory's output before the key is added: None, "layer", or "affine" (with a learned scale and
      bias).
    residual: whether the memory's output is added to its input.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  if threshold <= 0:
    raise ValueError(f"{nets.FIELD}.threshold={threshold} must be positive")
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual, norm=norm)
  plain = descent.make(net, lift=features.make("none", key_dim=key_dim), momentum=False,
                       surprise_max=surprise_max)
  bind = lambda function: functools.partial(function, plain)
  return plain._replace(start=bind(_start), step=bind(_step), chunk=bind(_chunk),
                        close=functools.partial(_close, threshold, smooth))


def _start(plain, learned: Learned):
  return plain.start(learned)._replace(kept=jnp.zeros((), jax.tree.leaves(learned.fast)[0].dtype))


def _step(plain, slow, state: MemoryState, base, token, gates, place):
  after, out_M = plain.step(slow, state, base, token, gates, place)
  return after._replace(kept=jnp.ones_like(state.kept)), out_M


def _chunk(plain, slow, state: MemoryState, base, ready):
  after, out = plain.chunk(slow, state, base, ready)
  return after._replace(kept=jnp.maximum(state.kept, jnp.max(ready.write_C).astype(state.kept.dtype))), out


def _close(threshold, smooth, slow, state: MemoryState, base):
  del slow, base
  fast = jax.tree.map(lambda a: jnp.where(state.kept > 0, _shrink(threshold, smooth, a), a), state.fast)
  return state._replace(fast=fast, kept=jnp.zeros_like(state.kept))


def _shrink(threshold, smooth, a_PF):
  if smooth:
    return a_PF * jnp.arctan(jnp.abs(a_PF) / threshold) * (2 / math.pi)
  return jnp.sign(a_PF) * jnp.maximum(jnp.abs(a_PF) - threshold, 0)
