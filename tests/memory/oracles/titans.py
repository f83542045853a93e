"""Titans: S_t = m_t S_{t-1} - r_t grad(W_base), W_t = a_t W_{t-1} + S_t, y_t = f(W_t; q_t)."""

from tests.memory.oracles import Recall, descent, mlp


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  depth=2,
  expansion=1,
  activation="silu",
  residual=False,
  surprise_max=1.0,
  fade_to="start",
  **grid,
):
  """`grid`, here and in the other rules: chunk_size, write_T, reset_T."""
  recall = Recall(
    learned["slow"],
    mlp(depth=depth, activation=activation, residual=residual),
    surprise_max=surprise_max,
  )
  momentum = True if momentum is None else momentum
  return descent(learned, tokens, gates, recall, momentum=momentum, fade_to=fade_to, **grid)
