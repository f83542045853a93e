"""f-divergence retention: a full chunk takes W to W * g(-G), G = sum over its real tokens of r_i grad_i(W).

Then each column (the inputs of one output) is brought to its old sum times the product of the chunk's
retentions. The weights start positive and stay so. Within a chunk they stand still: reads and gradients are
of the chunk's start, and `fast` is those weights. g(u): kl exp(u); chi2 max(1 + u / 2, 1e-3); hellinger
1 / (1 - min(u, 0.9))^2. The network is Moneta's, the loss half the squared error.
"""

import numpy as np

from tests.memory.oracles import Recall, Run, arrays, at, faded, mlp, walk, zeros

GROWTH = {
  "kl": np.exp,
  "chi2": lambda u: np.maximum(1 + u / 2, 1e-3),
  "hellinger": lambda u: 1 / (1 - np.minimum(u, 0.9)) ** 2,
}


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  divergence="kl",
  depth=2,
  expansion=4,
  activation="gelu",
  residual=False,
  norm="unit",
  surprise_max=None,
  fade_to="start",
  **grid,
):
  (q_TK, k_TK, v_TM), initial = (arrays(x) for x in tokens), arrays(learned["fast"])
  net = mlp(depth=depth, activation=activation, residual=residual, norm=norm)
  recall = Recall(learned["slow"], net, surprise_max=surprise_max)
  assert not momentum, "the rule has no momentum"

  def fresh():
    return {"fast": initial, "sum": zeros(initial), "kept": 1.0}

  def token(state, base, t, place):
    gate = at(gates, t)
    gradient = recall.gradient(base, k_TK[t], v_TM[t], gate)
    total = {name: state["sum"][name] + gate["write_rate"] * g for name, g in gradient.items()}
    return {"fast": state["fast"], "sum": total, "kept": state["kept"] * gate.get("retention", 1.0)}

  def read(state, base, t, place):
    return recall.read(base, q_TK[t])

  def close(state, base):
    fast, left = {}, faded(state["fast"], initial, state["kept"], fade_to)
    for name, w in state["fast"].items():
      grown = w * GROWTH[divergence](-state["sum"][name])
      fast[name] = grown * (left[name].sum(0) / grown.sum(0))
    return {"fast": fast, "sum": zeros(fast), "kept": 1.0}

  out_TM, state = walk(len(q_TK), fresh(), fresh=fresh, token=token, read=read, close=close, **grid)
  return Run(out_TM, state["fast"], {})
