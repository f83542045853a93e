"""Omega memory: every token takes a step of descent on the recall loss of the last few tokens together.

  G_t = sum_{lag < window_size} c_{t,lag} grad l(W_base; phi(k_{t-lag}), v_{t-lag})
  W_t = a_t W_{t-1} - r_t G_t
  y_t = f(W_t; phi(q_t))

The context gates c are the token's own; l is half the squared error. All gradients of a window are taken at
the start of the chunk of the token that writes, also those of tokens before that chunk. The paper folds r
into c and leaves the window, the gates' start and the degree of phi open; it normalises at a chunk's end,
which we leave to the layer. The window counts real tokens: beside its weights a head keeps
(window_size - 1) (key_dim + value_dim + 1) floats.

Retention draws the weights to those of the text's start; the paper's draws them to zero (fade_to="zero"),
where a net of two matrices has no gradient, so that it cannot be written again. The key is added to the
output on request alone (residual=True): else an emptied memory would pass the query on.

In a line: W = a W − r Σ_window c ∇l
Floats per head: w + 3 (2d + 1)

Source: Behrouz et al. 2025, Atlas, arXiv:2505.23735, Eq. 9 and section 3; momentum and the bound are ours.
"""
from atlas_jax.memory import descent, features, nets
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) weights fell from a norm of
# 7.8 to 3e-8 within 4,096 tokens and no write moved a read again.
# At a rate of .5 memories of random keys were not finite within 65,536 tokens, hence the bound.
STARTS = GateStarts(retention=0.9999, momentum=0.5, write_rate=0.05, write_rate_max=0.12)


def make(*, key_dim: int, value_dim: int, window_size: int = 4, depth: int = 2, expansion: float = 1,
         activation: str = "gelu", residual: bool = False, momentum: bool = False,
         surprise_max: float | None = 1.0,
         fade_to: str = "start", feature_map: str = "none", degree: int = 2,
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
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper,
      with which a run of equal tokens diverges.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.
    feature_map, degree, feature_dim, cell_groups: how keys and queries are lifted, see `features.make`.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  lift = features.make(feature_map, key_dim=key_dim, degree=degree, feature_dim=feature_dim,
                       cell_groups=cell_groups)
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=lift.width, depth=depth,
                 expansion=expansion, activation=activation, residual=residual)
  # A chunk back-propagates window_size - 1 tokens more than its own, once each: at chunks of 32 and a window
  # of 4 that is 9% more, not four times as much.
  return descent.make(net, lift=lift, momentum=momentum, window_size=window_size, surprise_max=surprise_max,
                      fade_to=fade_to, starts=STARTS)
