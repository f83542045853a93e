"""Atlas with a gated network: f(x) = (gelu(phi @ gate) * (phi @ up)) @ out."""

from tests.memory.oracles import Recall, gated
from tests.memory.oracles.atlas import orthogonal_descent


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  mode="chunk_end",
  ns_steps=5,
  window_size=4,
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
    gated(activation=activation, residual=residual),
    surprise_max=surprise_max,
    feature_map=feature_map,
    degree=degree,
    feature_dim=feature_dim,
    cell_groups=cell_groups,
  )
  settings = dict(mode=mode, ns_steps=ns_steps, window_size=window_size, momentum=momentum)
  return orthogonal_descent(learned, tokens, gates, recall, **settings, **grid)
