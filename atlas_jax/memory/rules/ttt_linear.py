"""TTT-Linear: one matrix and a bias behind a layer norm, with steps that depend on the place in the chunk.

  f(x) = x + LN(x @ w0 + b0), LN with a learned scale and bias that reading leaves alone
  W_t = W_base - place_rate[j_t] sum of r_i clip(grad l(W_base; k_i, v_i)) over the chunk's tokens up to t
  y_t = f(W_t; q_t)

l is half the squared error of f against v, which is the paper's target v - k for what is added to k. No
retention and no momentum gate; `momentum` is the chunk's sum, so that the state is twice the net's weights.
place_rate is learned, one number per place in the chunk. `memory.ttt` tells the rest; `surprise_max` is ours,
see `rules.titans`.

Source: Sun et al. 2024, arXiv:2407.04620, sections 2.4 to 2.7.
"""
from atlas_jax.memory import nets, ttt
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) one write moved a read by
# .4%.
STARTS = GateStarts(write_rate=0.3, write_rate_max=1.0)


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
                  starts=STARTS)
