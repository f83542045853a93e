"""Omega: G_t = sum over the last window_size tokens of context_{t,lag} grad_{t-lag}(W_base), then as Titans.

S_t = m_t S_{t-1} - r_t G_t with momentum, else -r_t G_t; W_t = a_t W_{t-1} + S_t. The window counts real
tokens. A gradient longer than surprise_max is shortened before its context gate. With window_size 1 there
is no gate "context"; where the gate is missing every row counts 1.
"""

from tests.memory.oracles import Recall, descent, mlp


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=False,
  window_size=4,
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
    surprise_max=surprise_max,
    feature_map=feature_map,
    degree=degree,
    feature_dim=feature_dim,
    cell_groups=cell_groups,
  )
  options = dict(momentum=momentum, window_size=window_size, fade_to=fade_to)
  return descent(learned, tokens, gates, recall, **options, **grid)
