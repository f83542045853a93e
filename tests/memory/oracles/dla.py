"""Deep linear attention: descent on -f(phi(k)) . v with a deep f. Window 1, no context gate."""

from tests.memory.oracles import Recall, descent, inner_product, mlp


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=False,
  depth=2,
  expansion=1,
  activation="gelu",
  residual=False,
  surprise_max=1.0,
  fade_to="start",
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
  return descent(learned, tokens, gates, recall, momentum=momentum, fade_to=fade_to, **grid)
