"""Elastic net: A_t = a_t A_{t-1} - r_t grad(A_base), reads with A_t; a full chunk's A is thresholded.

threshold: sign(A) max(|A| - threshold, 0); with smooth=True A atan(|A| / threshold) / (pi / 2). A chunk of
padding alone is not thresholded. The network is Moneta's, the loss half the squared error.
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
  threshold=1e-4,
  smooth=False,
  depth=2,
  expansion=4,
  activation="gelu",
  residual=False,
  norm=None,
  surprise_max=1.0,
  fade_to="start",
  **grid,
):
  def shrink(a):
    if smooth:
      return a * np.arctan(np.abs(a) / threshold) / (math.pi / 2)
    return np.sign(a) * np.maximum(np.abs(a) - threshold, 0)

  close = lambda fast: {name: shrink(a) for name, a in fast.items()}
  net = mlp(depth=depth, activation=activation, residual=residual, norm=norm)
  assert not momentum, "the rule has no momentum"
  recall = Recall(learned["slow"], net, surprise_max=surprise_max)
  return descent(learned, tokens, gates, recall, close=close, fade_to=fade_to, **grid)
