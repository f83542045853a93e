"""Memora memory: each slice of the weights is a distribution, moved by multiplication.

  z_t = a_t z_{t-1} - r_t clip(grad_W l(W_base; k_t, v_t))
  W = scale softmax(z) of each slice
  y_t = f(W_base; q_t)

`fast` holds the logits z. The paper carries W and writes scale softmax(a log W - r grad); log W and z differ
by a constant of each slice, which softmax ignores, so that carrying z gives the same weights, is linear, and
needs no step between chunks. The gradient is with respect to W: softmax is not differentiated, as in the
paper. W is made once per chunk, and a token reads what earlier chunks wrote. A slice holds the inputs of one
output ("column") or all of a matrix. f is an MLP; l is half the squared error. Scales, the start and
`surprise_max` (see `rules.titans`) are ours, the paper does not tell its own.

Retention draws the logits to those of the text's start; the paper's draws them to zero (fade_to="zero"),
which makes all weights of a slice alike. In the paper f is layer-normed and added to its input
(norm="layer", residual=True); with keys and values of norm one, reads are then longer than values by the
root of their width, and the loss stays above that of answering zero. Weights of one sign need the centring:
our norm, "unit", gives reads the length of values.

In a line: z = a z − r ∇l; W = scale · softmax(z)
Floats per head: w

Source: Behrouz et al. 2025, Miras, arXiv:2504.13173, section 5 (Memora).
"""
import functools
import math

import jax
import jax.numpy as jnp

from atlas_jax.memory import descent, features, nets
from atlas_jax.memory.types import GateStarts, Learned, MemoryRule

AXES = {"column": 0, "matrix": (0, 1)}
START_STD = 0.5  # Of logits: units must differ, or the layer norm has nothing but rounding to raise.

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) the layer norm made reads 5.7
# times as long as values: the loss was 29 times that of answering zero.
STARTS = GateStarts(retention=0.9999, write_rate=0.2, write_rate_max=1.0)


def make(*, key_dim: int, value_dim: int, scale: float | None = None, over: str = "column", depth: int = 2,
         expansion: float = 4, activation: str = "gelu", norm: str | None = "unit", residual: bool = False,
         surprise_max: float | None = None, fade_to: str = "start") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    scale: sum of a slice's weights, above 0; None: the square root of its number of entries.
    over: what a slice is: "column" (the inputs of one output) or "matrix".
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    norm: of the memory's output before the key is added: None, "layer", as in the paper, "affine" (with a
      learned scale and bias), or "unit" (as long as values).
    residual: whether the memory's output is added to its input.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  if over not in AXES:
    raise ValueError(f"{nets.FIELD}.over={over!r} is unknown; known are {', '.join(AXES)}")
  if scale is not None and scale <= 0:
    raise ValueError(f"{nets.FIELD}.scale={scale} must be positive, or None for the root of a slice's size")
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual, norm=norm)
  return descent.make(net, lift=features.make("none", key_dim=key_dim), momentum=False,
                      surprise_max=surprise_max,
                      fade_to=fade_to, starts=STARTS, reads="chunk", init=functools.partial(_init, net),
                      derive=functools.partial(_distributions, scale, AXES[over]))


def _init(net, key):
  keys = jax.random.split(key, len(net.shapes))
  fast = {name: START_STD * jax.random.normal(key, shape, jnp.float32)
          for key, (name, shape) in zip(keys, net.shapes, strict=True)}
  return Learned(fast, net.init_slow())


def _distributions(scale, axis, slow, fast):
  del slow

  def weights(z_PF):
    size = z_PF.shape[0] if axis == 0 else z_PF.size
    # Even weights are then 1 / sqrt(size) each, the deviation of usual initial weights.
    return jax.nn.softmax(z_PF, axis=axis) * (math.sqrt(size) if scale is None else scale)

  return descent.ChunkBase(jax.tree.map(weights, fast))
