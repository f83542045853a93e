"""Dot memory: the Omega rule with a first layer that sees keys through exp(scale q . k).

  G_t = sum_{lag < window_size} c_{t,lag} grad l(W_base; k_{t-lag}, v_{t-lag})
  W_t = a_t W_{t-1} - r_t G_t
  layer 1 of W_t (x) = w0_t x + sum_{i <= t} exp(scale x . k_i) row_{t,i}
  y_t = f(W_t; q_t)

l is half the squared error; the context gates c are the token's own. Token t adds -r_t c_{t,lag} times the
cotangent to the row of each token of its window; all rows fade; later layers are matrices. Gradients of a
window are taken at the start of the chunk of the token that writes, also those of tokens before that chunk.

The rows kept, w0, scale, normalize and the bound are those of `deep_transformer`: rows more than
`reach_tokens` before the chunk are dropped, where the paper's state grows with the text. See `exponential`
for the state's size, to which the window adds (window_size - 1) (key_dim + value_dim + 1) floats.

Weights fade to those of the text's start, rows to zero; the paper's all fade to zero (fade_to="zero"). The
key is added to the output on request alone (residual=True): else an emptied memory would pass the query on.

In a line: omega whose first layer is Σ exp(s x·kᵢ) rowᵢ
Floats per head: w + rows of 256 tokens

Source: Behrouz et al. 2025, Atlas, arXiv:2505.23735, sections 3 and 4; momentum and the bound are ours.
"""
from atlas_jax.memory import exponential, objectives
from atlas_jax.memory.types import MemoryRule


def make(*, key_dim: int, value_dim: int, chunk_size: int, window_size: int | None = 4, depth: int = 2,
         expansion: float = 1, activation: str = "gelu", residual: bool = False, scale: float | None = None,
         normalize: str | None = None, reach_tokens: int = 256, momentum: bool = False,
         surprise_max: float | None = 1.0, fade_to: str = "start") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    chunk_size: tokens whose gradients are taken at the same base.
    window_size: real tokens whose gradients each token writes, itself included; None: itself, without a gate.
    depth: layers of the memory, the first of rows, 1 or more.
    expansion: hidden width over value_dim.
    activation: between layers: "silu", "gelu" (tanh form), "relu2" or "identity".
    residual: whether the memory's output is added to its input.
    scale: of the exponent; None: the root of key_dim.
    normalize: None, or "sum": rows count in proportion to their kernels.
    reach_tokens: rows of earlier chunks that are kept, 1 and window_size - 1 or more.
    momentum: whether writes pass through a running sum gated by each token.
    surprise_max: bound on the norm of a token's gradient over all layers; None: no bound, as in the paper.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  # `deep_transformer` is the same call with the inner product for a loss and no window.
  return exponential.make(
      key_dim=key_dim, value_dim=value_dim, chunk_size=chunk_size, objective=objectives.l2, depth=depth,
      expansion=expansion, activation=activation, residual=residual, scale=scale, normalize=normalize,
      reach_tokens=reach_tokens, momentum=momentum, surprise_max=surprise_max,
      fade_to=fade_to, window_size=window_size)
