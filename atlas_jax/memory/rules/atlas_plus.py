"""Atlas++ memory: Atlas with a gated network, f(x) = (activation(phi @ gate) * (phi @ up)) @ out.

All else is as in `rules.atlas`.

Retention draws the weights to those of the text's start; the paper's draws them to zero (fade_to="zero"),
where a net of two matrices has no gradient, so that it cannot be written again. The key is added to the
output on request alone (residual=True): else an emptied memory would pass the query on.

In a line: atlas with f(x) = x + (gelu(x G) · x U) O
Floats per head: 2 w + 3 (2d + 1)

Source: Behrouz et al. 2025, Atlas, arXiv:2505.23735, section 4 (Atlas++).
"""
from atlas_jax.memory import features, muon, nets
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) one write moved a read by
# .06% at the start and by 6e-8 after 4,096 tokens; see `rules.atlas` for why momentum is nearly 1.
STARTS = GateStarts(retention=0.9999, momentum=0.97, write_rate=0.05, write_rate_max=0.2)


def make(*, key_dim: int, value_dim: int, mode: str = "chunk_end", ns_steps: int = 5,
         window_size: int | None = 4, expansion: float = 1, activation: str = "gelu", residual: bool = False,
         surprise_max: float | None = None,
         fade_to: str = "start", feature_map: str = "none", degree: int = 2,
         feature_dim: int = 16,
         cell_groups: int = 1) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    mode: "chunk_end", "hybrid", or "per_token" (slow: an oracle, for small widths).
    ns_steps: Newton-Schulz iterations; more bring the singular values nearer to 1.
    window_size: real tokens whose gradients each token writes, itself included; None: itself alone, ungated.
    expansion: hidden width over value_dim.
    activation: of the gate: "silu", "gelu" (tanh form), "relu2" or "identity".
    residual: whether the memory's output is added to its input.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.
    feature_map, degree, feature_dim, cell_groups: how keys and queries are lifted, see `features.make`.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  lift = features.make(feature_map, key_dim=key_dim, degree=degree, feature_dim=feature_dim,
                       cell_groups=cell_groups)
  net = nets.gated(key_dim=key_dim, value_dim=value_dim, lifted_dim=lift.width, expansion=expansion,
                   activation=activation, residual=residual)
  return muon.make(net, lift=lift, mode=mode, ns_steps=ns_steps, window_size=window_size,
                   surprise_max=surprise_max, fade_to=fade_to, starts=STARTS)
