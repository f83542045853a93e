"""Deep linear attention: descent on minus the inner product of recall and value, with a deep memory.

  W_t = a_t W_{t-1} - r_t grad(-f(W_base; phi(k_t)) . v_t)
  y_t = f(W_t; phi(q_t))

With a matrix for f it is `retention`; with a deep f the gradient depends on the memory, which the token
finds as it was at its chunk's start. The paper prints the loss without the minus, which would unlearn. The
loss has no least value: only retention and a bound on each token's gradient hold the weights.

Retention draws the weights to those of the text's start; the paper's draws them to zero (fade_to="zero"),
where a net of two matrices has no gradient, so that it cannot be written again. The key is added to the
output on request alone (residual=True): else an emptied memory would pass the query on. The bound on
gradients is on by default.

In a line: W = a W + r ∇⟨f(k), v⟩
Floats per head: w

Source: Behrouz et al. 2025, Atlas, arXiv:2505.23735, Eq. 19-20; momentum and the bound are ours.
"""
from atlas_jax.memory import descent, features, nets, objectives
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) weights fell from a norm of
# 7.8 to 1e-8 within 4,096 tokens; without a bound on gradients and with a rate of .5 they grew to 3e13
# within 16,384.
STARTS = GateStarts(retention=0.9995, momentum=0.5, write_rate=0.05, write_rate_max=0.5)


def make(*, key_dim: int, value_dim: int, depth: int = 2, expansion: float = 1, activation: str = "gelu",
         residual: bool = False, momentum: bool = False, surprise_max: float | None = 1.0,
         fade_to: str = "start", feature_map: str = "none", degree: int = 2,
         feature_dim: int = 16,
         cell_groups: int = 1) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
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
  # The loss sends back -v whatever was recalled: without a bound nothing but retention slows the growth.
  return descent.make(net, lift=lift, objective=objectives.dot, momentum=momentum, surprise_max=surprise_max,
                      fade_to=fade_to, starts=STARTS)
