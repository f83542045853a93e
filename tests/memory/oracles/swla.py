"""Sliding-window linear attention: descent on -f(phi(k)) . v, summed over the last window_size tokens.

It has the gate "context" [window_size] like omega; without that gate every row counts 1.
"""

from tests.memory.oracles import Recall, descent, inner_product, mlp


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=False,
  window_size=4,
  depth=1,
  expansion=1,
  activation="gelu",
  residual=False,
  surprise_max=None,
  feature_map="none",
  degree=2,
  feature_dim=16,
  cell_groups=1,
  **grid,
):
  recall = Recall(
    learned["slow"],
    mlp(depth=depth, activation=activation, residual=residual),
    objective=inner_product,
    surprise_max=surprise_max,
    feature_map=feature_map,
    degree=degree,
    feature_dim=feature_dim,
    cell_groups=cell_groups,
  )
  return descent(learned, tokens, gates, recall, momentum=momentum, window_size=window_size, **grid)
