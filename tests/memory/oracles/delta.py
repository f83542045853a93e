"""Delta rule with forgetting, online: S_t = m_t S_{t-1} - r_t grad(W_{t-1}), W_t = a_t W_{t-1} + S_t.

f(x) = phi(x) @ w0, no residual. The gradient is taken at the weights before the token as they are, before
they are decayed. The chunk size changes nothing: every token is its own chunk here.
"""

from tests.memory.oracles import Recall, descent, mlp


def run(
  learned,
  tokens,
  gates,
  *,
  chunk_size,
  momentum=True,
  feature_map="none",
  degree=2,
  feature_dim=16,
  cell_groups=1,
  **grid,
):
  recall = Recall(
    learned["slow"],
    mlp(depth=1, activation="identity", residual=False),
    feature_map=feature_map,
    degree=degree,
    feature_dim=feature_dim,
    cell_groups=cell_groups,
  )
  momentum = True if momentum is None else momentum
  return descent(learned, tokens, gates, recall, momentum=momentum, chunk_size=1, **grid)
