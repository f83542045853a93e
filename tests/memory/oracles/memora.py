"""Memora: logits z_t = a_t z_{t-1} - r_t grad(W_base), W = scale * softmax(z) per slice; fast is z.

The gradient is that with respect to W (the softmax is not differentiated). Reads are with the base, the
weights at the chunk's start. A slice is a column (the inputs of one output), or with over="matrix" the whole
matrix; scale=None is sqrt(entries of a slice). The network is Moneta's, the loss half the squared error.
"""

import math

import numpy as np

from tests.memory.oracles import Recall, descent, mlp


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  scale=None,
  over="column",
  depth=2,
  expansion=4,
  activation="gelu",
  residual=False,
  norm="unit",
  surprise_max=None,
  fade_to="start",
  **grid,
):
  assert over in ("column", "matrix")
  axis = 0 if over == "column" else (0, 1)

  def softmax(z):
    raised = np.exp(z - z.max(axis, keepdims=True))
    entries = z.shape[0] if over == "column" else z.size
    return (math.sqrt(entries) if scale is None else scale) * raised / raised.sum(axis, keepdims=True)

  def weights(fast, start):
    return {name: softmax(z) for name, z in start.items()}

  net = mlp(depth=depth, activation=activation, residual=residual, norm=norm)
  assert not momentum, "the rule has no momentum"
  recall = Recall(learned["slow"], net, surprise_max=surprise_max)
  return descent(learned, tokens, gates, recall, weights=weights, fade_to=fade_to, **grid)
