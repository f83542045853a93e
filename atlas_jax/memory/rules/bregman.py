"""Bregman memory: weights stay between two bounds, moved through a logistic map.

  z_t = a_t z_{t-1} - r_t clip(grad_W l(W_base; k_t, v_t))
  W = low + (high - low) sigmoid(z)
  y_t = f(W_base; q_t)

`fast` holds the logits z: mirror descent, whose gradient is with respect to W, and whose retention draws W
towards the middle of its bounds. The paper has bounds 0 and 1 and no retention. W is made once per chunk,
and a token reads what earlier chunks wrote. f is an MLP; l is half the squared error; `surprise_max` is
ours, see `rules.titans`.

Retention draws the logits to those of the text's start; drawn to zero (fade_to="zero") all weights would
become the middle of their bounds, where a net of two matrices has no gradient. In the paper f is
layer-normed and added to its input (norm="layer", residual=True); with keys and values of norm one, reads
are then longer than values by the root of their width, and the loss stays above that of answering zero.

In a line: z = a z − r ∇l; W = low + (high − low) σ(z)
Floats per head: w

Source: Behrouz et al. 2025, Miras, arXiv:2504.13173, section 4 (Bregman divergences).
"""
import functools

import jax

from atlas_jax.memory import descent, features, nets
from atlas_jax.memory.types import GateStarts, Learned, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) the layer norm made reads 5.7
# times as long as values: the loss was 25 times that of answering zero.
STARTS = GateStarts(retention=0.9999, write_rate=0.1, write_rate_max=0.25)


def make(*, key_dim: int, value_dim: int, low: float = -1, high: float = 1, depth: int = 2,
         expansion: float = 4, activation: str = "gelu", norm: str | None = None, residual: bool = False,
         surprise_max: float | None = 1.0, fade_to: str = "start") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    low, high: bounds of every weight, low below high.
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
  if low >= high:
    raise ValueError(f"{nets.FIELD}.low={low} must be below high={high}")
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual, norm=norm)
  # A chunk stays linear in z: reads of a token's own W would take a sigmoid of every weight per token.
  return descent.make(net, lift=features.make("none", key_dim=key_dim), momentum=False,
                      surprise_max=surprise_max, fade_to=fade_to, starts=STARTS, reads="chunk",
                      init=functools.partial(_init, net, high - low),
                      derive=functools.partial(_between, low, high))


def _init(net, width, key):
  # Near the middle W moves by width / 4 per unit of z: the start is the middle plus usual initial weights.
  fast = jax.tree.map(lambda w: w * (4 / width), net.init_fast(key))
  return Learned(fast, net.init_slow())


def _between(low, high, slow, fast):
  del slow
  return descent.ChunkBase(jax.tree.map(lambda z: low + (high - low) * jax.nn.sigmoid(z), fast))
