"""Atlas: omega's G_t, S_t = m_t S_{t-1} - G_t, orthogonalised by Newton-Schulz when it enters the weights.

per_token: W_t = a_t W_{t-1} + r_t NS(S_t), y_t = f(W_t; q_t).
chunk_end: within a chunk W_t = a_t W_{t-1} and y_t = f(W_base; q_t), not decayed; a full chunk adds
  rbar NS(S_C), rbar the mean write rate of its real tokens.
hybrid: the same, but y_t = f(W_t + r_t (target / (|S_t|_F + 1e-7)) S_t; q_t) for each matrix by itself, with
  target = sqrt(min(inputs, outputs)) sqrt(max(1, outputs / inputs)), about the norm of NS(S_t).

Gradients are taken at the chunk's start in every mode. The momentum goes on from chunk to chunk.
"""

import math

from tests.memory.oracles import Recall, Run, arrays, at, faded, mlp, newton_schulz, walk, zeros


def scaled(s):
  """S at the Frobenius norm of a matrix whose singular values are those Newton-Schulz aims at."""
  target = math.sqrt(min(s.shape)) * math.sqrt(max(1, s.shape[1] / s.shape[0]))
  return s * target / (math.sqrt((s**2).sum()) + 1e-7)


def orthogonal_descent(
  learned, tokens, gates, recall, *, mode, ns_steps, window_size, momentum, fade_to="start", **grid
):
  """The loop, for any network."""
  assert mode in ("chunk_end", "hybrid", "per_token")
  (q_TK, k_TK, v_TM), initial = (arrays(x) for x in tokens), arrays(learned["fast"])

  def fresh():
    return {"fast": initial, "momentum": zeros(initial), "rows": [], "rates": []}

  def token(state, base, t, place):
    gate = at(gates, t)
    rows = [(k_TK[t], v_TM[t], gate), *state["rows"]][: window_size or 1]
    s, fast = {}, faded(state["fast"], initial, gate["retention"], fade_to)
    for name, g in recall.window_gradient(base, rows, gate).items():
      s[name] = gate["momentum"] * state["momentum"][name] - g
      if mode == "per_token":
        fast[name] = fast[name] + gate["write_rate"] * newton_schulz(s[name], ns_steps)
    return {"fast": fast, "momentum": s, "rows": rows, "rates": [*state["rates"], gate["write_rate"]]}

  def read(state, base, t, place):
    if mode == "chunk_end":
      return recall.read(base, q_TK[t])
    weights = state["fast"]
    if mode == "hybrid":
      rate = at(gates, t)["write_rate"]
      weights = {name: w + rate * scaled(state["momentum"][name]) for name, w in weights.items()}
    return recall.read(weights, q_TK[t])

  def close(state, base):
    if mode == "per_token":
      return state
    rate = sum(state["rates"]) / len(state["rates"])
    s = state["momentum"]
    fast = {name: w + rate * newton_schulz(s[name], ns_steps) for name, w in state["fast"].items()}
    return state | {"fast": fast, "rates": []}

  begin = fresh() | ({"momentum": arrays(momentum)} if momentum else {})
  out_TM, state = walk(len(q_TK), begin, fresh=fresh, token=token, read=read, close=close, **grid)
  return Run(out_TM, state["fast"], state["momentum"])


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  mode="chunk_end",
  ns_steps=5,
  window_size=4,
  depth=2,
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
    surprise_max=surprise_max,
    feature_map=feature_map,
    degree=degree,
    feature_dim=feature_dim,
    cell_groups=cell_groups,
  )
  settings = dict(mode=mode, ns_steps=ns_steps, window_size=window_size, momentum=momentum)
  return orthogonal_descent(learned, tokens, gates, recall, **settings, **grid)
