"""DeepTransformer memory: deep linear attention whose first layer sees keys through exp(scale q . k).

  W_t = a_t W_{t-1} - r_t grad(-f(W_base; k_t) . v_t)
  layer 1 of W_t (x) = w0_t x + sum_{i <= t} exp(scale x . k_i) row_{t,i}
  y_t = f(W_t; q_t)

The descent on layer 1, in the space of the map phi* with phi*(q) . phi*(k) = exp(scale q . k), adds
-r_t grad_t to the row of token t and fades all rows; later layers are matrices. With depth 1 and no
residual, rows are values: attention with unnormalised exponential weights that fade; with normalize="sum",
full retention and a write rate of 1 in addition, softmax attention beside what w0 recalls.

Departures. The papers' state grows with the text; ours keeps, of the chunks before, the last `reach_tokens`
rows and drops what is older, and is exact while the text is no longer than that: see `exponential` for the
state's size. The paper has no w0, which is the memory a text starts with, fades like all weights and is not
written; nor normalize, which divides a read's rows by the sum of their kernels (gradients of rows are not).
The paper leaves the scale open. Keys have unit norm here; those of attention have a norm about sqrt(key_dim)
and a scale of 1 / sqrt(key_dim). Our default, sqrt(key_dim), gives the same exponents. A key then meets
itself with exp(sqrt(key_dim)), 287 for 32 and 2981 for 64, and descent without a bound on each token's
gradient, phi*'s length included, overflows within a few chunks: the bound is on by default.

Weights fade to those of the text's start, rows to zero; the paper's all fade to zero (fade_to="zero"). The
key is added to the output on request alone (residual=True): else an emptied memory would pass the query on.

In a line: dla whose first layer is Σ exp(s x·kᵢ) rowᵢ
Floats per head: w + rows of 256 tokens

Source: Behrouz et al. 2025, Atlas, arXiv:2505.23735, section 4; momentum and the bound are ours.
"""
from atlas_jax.memory import exponential, objectives
from atlas_jax.memory.types import MemoryRule


def make(*, key_dim: int, value_dim: int, chunk_size: int, depth: int = 2, expansion: float = 1,
         activation: str = "gelu", residual: bool = False, scale: float | None = None,
         normalize: str | None = None, reach_tokens: int = 256, momentum: bool = False,
         surprise_max: float | None = 1.0, fade_to: str = "start") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    chunk_size: tokens whose gradients are taken at the same base.
    depth: layers of the memory, the first of rows, 1 or more.
    expansion: hidden width over value_dim.
    activation: between layers: "silu", "gelu" (tanh form), "relu2" or "identity".
    residual: whether the memory's output is added to its input.
    scale: of the exponent; None: the root of key_dim.
    normalize: None, or "sum": rows count in proportion to their kernels.
    reach_tokens: rows of earlier chunks that are kept, 1 or more.
    momentum: whether writes pass through a running sum gated by each token.
    surprise_max: bound on the norm of a token's gradient over all layers; None: no bound, as in the paper.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  # `dot` is the same call with the squared error and a window.
  return exponential.make(
      key_dim=key_dim, value_dim=value_dim, chunk_size=chunk_size, objective=objectives.dot, depth=depth,
      expansion=expansion, activation=activation, residual=residual, scale=scale, normalize=normalize,
      reach_tokens=reach_tokens, momentum=momentum, surprise_max=surprise_max,
      fade_to=fade_to, window_size=None)
