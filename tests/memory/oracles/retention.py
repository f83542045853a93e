"""Retention: W_t = a_t W_{t-1} + r_t phi(k_t) v_t^T, y_t = phi(q_t) @ W_t; starts from the learned w0."""

import numpy as np

from tests.memory.oracles import Run, arrays, at, faded, features, walk


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  fade_to="zero",
  feature_map="none",
  degree=2,
  feature_dim=16,
  cell_groups=1,
  **grid,
):
  (q_TK, k_TK, v_TM), initial = (arrays(x) for x in tokens), arrays(learned["fast"])
  slow = arrays(learned["slow"])
  lift = dict(feature_map=feature_map, degree=degree, feature_dim=feature_dim, cell_groups=cell_groups)
  assert not momentum, "the rule has no momentum"

  def token(state, base, t, place):
    gate = at(gates, t)
    written = np.outer(features(slow, k_TK[t], False, **lift), v_TM[t])
    left = faded(state["fast"], initial, gate["retention"], fade_to)
    return {"fast": {"w0": left["w0"] + gate["write_rate"] * written}}

  def read(state, base, t, place):
    return features(slow, q_TK[t], True, **lift) @ state["fast"]["w0"]

  fresh = lambda: {"fast": initial}
  out_TM, state = walk(len(q_TK), fresh(), fresh=fresh, token=token, read=read, **grid)
  return Run(out_TM, state["fast"], {})
