"""TTT-MLP: two matrices with biases, with steps that depend on the place in the chunk.

  f(x) = act(x @ w0 + b0) @ w1 + b1
  W_t = W_base - place_rate[j_t] sum of r_i clip(grad l(W_base; k_i, v_i)) over the chunk's tokens up to t
  y_t = f(W_t; q_t)

All else is as in `rules.ttt_linear`, and the state is twice the net's weights here, too.

In the paper f is layer-normed (with a learned scale and bias) and added to its input (norm="affine",
residual=True); with keys and values of norm one, reads are then longer than values by the root of their
width, and the loss stays above that of answering zero.

In a line: ttt_linear with an MLP of width 4 d
Floats per head: 2 w

Source: Sun et al. 2024, arXiv:2407.04620, sections 2.4 to 2.7.
"""
from atlas_jax.memory import nets, ttt
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (rate .01, with residual and norm) one write moved a read by 2%, and reads were 5.7 times as long as
# values: the loss was 21 times that of answering zero. See `rules.ttt_linear` for the bound.
STARTS = GateStarts(write_rate=0.3, write_rate_max=1.0)


def make(*, key_dim: int, value_dim: int, chunk_size: int, expansion: float = 4, activation: str = "gelu",
         residual: bool = False, norm: str | None = None,
         rope: bool = True, surprise_max: float | None = None) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values, equal.
    chunk_size: tokens of a chunk.
    expansion: hidden width over value_dim.
    activation: between the matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    residual: whether the key is added to the memory's output.
    norm: of the memory's output before the key is added: "affine", as in the paper, "layer", "unit", or None.
    rope: whether queries and keys are turned by their place in the chunk.
    surprise_max: bound on the norm of a token's gradient over all weights; None: no bound, as in the paper.

  Raises:
    ValueError: if an option is out of range, or the widths differ.
  """
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=2, expansion=expansion,
                 activation=activation, residual=residual, norm=norm, biases=True)
  return ttt.make(net, key_dim=key_dim, chunk_size=chunk_size, rope=rope, surprise_max=surprise_max,
                  starts=STARTS)
