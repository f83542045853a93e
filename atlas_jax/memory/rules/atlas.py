"""Atlas memory: the gradients of a window enter a running sum, and its orthogonalised form the weights.

  G_t = sum_{lag < window_size} c_{t,lag} grad l(W_base; phi(k_{t-lag}), v_{t-lag})
  S_t = m_t S_{t-1} - G_t
  W_t = a_t W_{t-1} + r_t NS(S_t)      (mode "per_token", the paper's)

NS is the Newton-Schulz iteration times sqrt(max(1, outputs / inputs)), l half the squared error. With modes
"chunk_end" and "hybrid" the orthogonalised sum enters once per chunk, see `memory.muon`. "chunk_end" reads
the weights of the chunk's start, "hybrid" adds the running sum to them, at the norm NS would give it.

All gradients of a window are taken at the start of the chunk of the token that writes. The paper's signs of S
and W disagree with each other; ours descend. It leaves the window, the degree of phi and the scale of NS open
and normalises at a chunk's end, which we leave to the layer. State per head: twice the weights,
(window_size - 1) (key_dim + value_dim + 1) floats of the window, and 2.

Retention draws the weights to those of the text's start; the paper's draws them to zero (fade_to="zero"),
where a net of two matrices has no gradient, so that it cannot be written again. The key is added to the
output on request alone (residual=True): else an emptied memory would pass the query on.

In a line: S = m S − Σ_window c ∇l; W = a W + r NS(S)
Floats per head: 2 w + 3 (2d + 1)

Source: Behrouz et al. 2025, Atlas, arXiv:2505.23735, Eq. 32 and 33 and section 4; "hybrid" is ours.
"""
from atlas_jax.memory import features, muon, nets
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) one write moved a read by .1%
# at the start and by .002% after 4,096 tokens: of a chunk's 32 gradients momentum .6 leaves the first .6^31
# of its weight, .97 leaves .39.
STARTS = GateStarts(retention=0.9999, momentum=0.97, write_rate=0.05, write_rate_max=0.2)


def make(*, key_dim: int, value_dim: int, mode: str = "chunk_end", ns_steps: int = 5,
         window_size: int | None = 4, depth: int = 2, expansion: float = 1, activation: str = "gelu",
         residual: bool = False, surprise_max: float | None = None,
         fade_to: str = "start", feature_map: str = "none", degree: int = 2,
         feature_dim: int = 16,
         cell_groups: int = 1) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    mode: "chunk_end", "hybrid", or "per_token" (slow: an oracle, for small widths).
    ns_steps: Newton-Schulz iterations; more bring the singular values nearer to 1.
    window_size: real tokens whose gradients each token writes, itself included; None: itself alone, ungated.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    residual: whether the memory's output is added to its input.
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
  # NS of 32 x 32 takes 5 (4 + 2) 32^3 = 983,040 FLOPs: 30,720 a token where a chunk of 32 takes one, and all
  # of them where every token does.
  return muon.make(net, lift=lift, mode=mode, ns_steps=ns_steps, window_size=window_size,
                   surprise_max=surprise_max, fade_to=fade_to, starts=STARTS)
