"""Moneta: A_t = a_t A_{t-1} - r_t grad(W_base) with the l_p loss, W = s A; fast is A.

s = (|A|_q + 1e-6)^(2-q) per matrix, |A|_q = (sum |A_ij|^q)^(1/q), is taken at the chunk's start: the base is
s A, reads are with s A_t.
"""

import numpy as np

from tests.memory.oracles import Recall, descent, lp, mlp


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  p=3,
  q=4,
  sharpness=10,
  depth=2,
  expansion=4,
  activation="gelu",
  residual=False,
  norm="unit",
  surprise_max=None,
  fade_to="start",
  **grid,
):
  def weights(fast, start):
    size = {name: (np.abs(w) ** q).sum() ** (1 / q) + 1e-6 for name, w in start.items()}
    return {name: size[name] ** (2 - q) * w for name, w in fast.items()}

  net = mlp(depth=depth, activation=activation, residual=residual, norm=norm)
  recall = Recall(learned["slow"], net, objective=lp(p, sharpness), surprise_max=surprise_max)
  assert not momentum, "the rule has no momentum"
  return descent(learned, tokens, gates, recall, weights=weights, fade_to=fade_to, **grid)
