"""TTT-Linear: one matrix and a bias, with steps that depend on the place in the chunk.

  f(x) = x @ w0 + b0
  W_t = W_base - place_rate[j_t] sum of r_i clip(grad l(W_base; k_i, v_i)) over the chunk's tokens up to t
  y_t = f(W_t; q_t)

l is half the squared error of f against v, which is the paper's target v - k for what is added to k. No
retention and no momentum gate; `momentum` is the chunk's sum, so that the state is twice the net's weights.
place_rate is learned, one number per place in the chunk. `memory.ttt` tells the rest; `surprise_max` is ours,
see `rules.titans`.

In the paper f is layer-normed (with a learned scale and bias) and added to its input (norm="affine",
residual=True); with keys and values of norm one, reads are then longer than values by the root of their
width, and the loss stays above that of answering zero.

In a line: f(x) = x + LN(x W + b); W = W_base − p_j Σ_chunk r ∇l
Floats per head: 2 (d² + d)

Source: Sun et al. 2024, arXiv:2407.04620, sections 2.4 to 2.7.
"""
from atlas_jax.memory import nets, ttt
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (rate .01, with residual) one write moved a read by .4%. The starts of the paper's code have a
# deviation of .02; with unit gain, chunks of 64 take more than 4,096 tokens to forget them. From a rate of 2
# on biases, which every token writes, do not settle.
STARTS = GateStarts(write_rate=0.3, write_rate_max=1.0)
START_STD = 0.02


def make(*, key_dim: int, value_dim: int, chunk_size: int, residual: bool = False, norm: str | None = None,
         rope: bool = True,
         surprise_max: float | None = None) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values, equal.
    chunk_size: tokens of a chunk.
    residual: whether the key is added to the memory's output.
    norm: of the memory's output before the key is added: "affine", as in the paper, "layer", "unit", or None.
    rope: whether queries and keys are turned by their place in the chunk.
    surprise_max: bound on the norm of a token's gradient over all weights; None: no bound, as in the paper.

  Raises:
    ValueError: if surprise_max is out of range, or the widths differ.
  """
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=1, expansion=1,
                 activation="identity", residual=residual, norm=norm, biases=True)
  return ttt.make(net, key_dim=key_dim, chunk_size=chunk_size, rope=rope, surprise_max=surprise_max,
                  starts=STARTS, start_std=START_STD)
