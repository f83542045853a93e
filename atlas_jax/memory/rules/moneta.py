"""Moneta memory: descent on the p-th power of the error, with weights kept on a surface of the q-norm.

  e_t = f(W_base; k_t) - v_t
  A_t = a_t A_{t-1} - r_t clip(grad at W_base of sum |e_t|^p / p)
  W_t = s A_t,  s = (|A_base|_q + 1e-6)^(2 - q) for each matrix,  W_base = s A_base
  y_t = f(W_t; q_t)

`fast` is A. |.|_q is the q-norm of a matrix's entries. As in the paper's chunked form, s is taken anew at a
chunk's start alone; at q = 2 it is 1. The sign in the loss's gradient is smooth, tanh(sharpness e). f is an
MLP. The paper's loss has no 1 / p (its step is our write_rate over p), and it does not clip: `surprise_max`
is ours, see `rules.titans`. For q above 3 small A make large W.

Retention draws the weights to those of the text's start; the paper's draws them to zero (fade_to="zero"),
where a net of two matrices has no gradient, so that it cannot be written again. In the paper f is
layer-normed and added to its input (norm="layer", residual=True); with keys and values of norm one, reads
are then longer than values by the root of their width, and the loss stays above that of answering zero. As s
lengthens small weights, our norm, "unit", gives reads the length of values.

In a line: A = a A − r ∇‖e‖ₚᵖ; W = A / ‖A‖_q^(q−2)
Floats per head: w

Source: Behrouz et al. 2025, Miras, arXiv:2504.13173, section 5 (Moneta), Eq. 24 and 25.
"""
import functools

import jax
import jax.numpy as jnp

from atlas_jax.memory import descent, features, nets, objectives
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) weights fell from a norm of
# 13 to 5e-6 within 4,096 tokens, and the layer norm made reads 5.7 times as long as values: the loss was 30
# times that of answering zero.
STARTS = GateStarts(retention=0.9999, write_rate=0.05, write_rate_max=0.5)


def make(*, key_dim: int, value_dim: int, p: float = 3, q: float = 4, sharpness: float = 10, depth: int = 2,
         expansion: float = 4, activation: str = "gelu", norm: str | None = "unit", residual: bool = False,
         surprise_max: float | None = None, fade_to: str = "start") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    p: power of the error in the loss, at least 1.
    q: of the norm that sets the weights' scale, at least 1; 2: the scale is left alone.
    sharpness: derivative of the smooth sign at 0, above 0.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    norm: of the memory's output before the key is added: None, "layer", as in the paper, "affine" (with a
      learned scale and bias), or "unit" (as long as values).
    residual: whether the memory's output is added to its input.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  if q < 1:
    raise ValueError(f"{nets.FIELD}.q={q} must be at least 1")
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual, norm=norm)
  return descent.make(net, lift=features.make("none", key_dim=key_dim), momentum=False,
                      objective=objectives.lp(p, sharpness), surprise_max=surprise_max,
                      fade_to=fade_to, starts=STARTS,
                      derive=functools.partial(_scaled, q))


def _scaled(q, slow, fast):
  del slow
  scale = jax.tree.map(functools.partial(_scale, q), fast)
  # s is handed on: with one s for the chunk, W_t = s A_t stays linear in the chunk's gradients.
  return descent.ChunkBase(jax.tree.map(lambda a, s: a * s, fast, scale), scale)


def _scale(q, a_PF):
  # Entries are divided by the largest before they are raised: a faded memory's powers underflow, and their
  # root's gradient overflows. A memory that was never started is all zero and takes the norm 1.
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(a_PF)))
  started = largest > 0
  unit = jnp.where(started, largest, 1)
  total = jnp.sum((jnp.abs(a_PF) / unit) ** q)
  return (unit * jnp.where(started, total, 1) ** (1 / q) + 1e-6) ** (2 - q)
