"""Sliding-window linear attention: every token writes the last few values anew, each as much as it chooses.

  W_t = a_t W_{t-1} - r_t sum_{lag < window_size} c_{t,lag} grad(-f(W_base; phi(k_{t-lag})) . v_{t-lag})
  y_t = f(W_t; phi(q_t))

The context gates c are the token's own. With a matrix for f, the default, gradients do not depend on the
memory, and the chunk size changes nothing but speed; a deeper f is the paper's SWDT. The paper prints the
loss without the minus, which would unlearn, and has no write rate beside its gates. The window counts real
tokens and reaches across chunks: beside its weights a head keeps (window_size - 1) (key_dim + value_dim + 1)
floats.

In a line: W = a W + r Σ_window c ∇⟨f(k), v⟩
Floats per head: w + 3 (2d + 1)

Source: Behrouz et al. 2025, Atlas, arXiv:2505.23735, Eq. 49 and section 4; momentum and the bound are ours.
"""
from atlas_jax.memory import descent, features, nets, objectives
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) it lived; its norm fell from
# 5.5 to .20 within 4,096 tokens: it held the last hundreds alone.
STARTS = GateStarts(retention=0.9999, momentum=0.5, write_rate=0.1, write_rate_max=1.0)


def make(*, key_dim: int, value_dim: int, window_size: int = 4, depth: int = 1, expansion: float = 1,
         activation: str = "gelu", residual: bool = False, momentum: bool = False,
         surprise_max: float | None = None, fade_to: str = "zero", feature_map: str = "none", degree: int = 2,
         feature_dim: int = 16,
         cell_groups: int = 1) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    window_size: real tokens whose gradients each token writes, itself included.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    residual: whether the memory's output is added to its input.
    momentum: whether writes pass through a running sum gated by each token.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.
    feature_map, degree, feature_dim, cell_groups: how keys and queries are lifted, see `features.make`.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  lift = features.make(feature_map, key_dim=key_dim, degree=degree, feature_dim=feature_dim,
                       cell_groups=cell_groups)
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=lift.width, depth=depth,
                 expansion=expansion, activation=activation, residual=residual)
  return descent.make(net, lift=lift, objective=objectives.dot, momentum=momentum, window_size=window_size,
                      surprise_max=surprise_max, fade_to=fade_to, starts=STARTS)
