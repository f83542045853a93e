"""LaCT: f(x) = (silu(x @ gate) * (x @ up)) @ out, no residual; a full chunk makes one orthogonalised step.

g = sum over the chunk's real tokens of rates_i grad_i at the chunk's start, of -f(k) . v; gate "rates" [3]
holds the steps of gate, up and out. M = beta M + g with momentum, beta the mean momentum gate of the real
tokens; else M = g. Then W - NS(M), each column (the inputs of one output) brought to the norm it had before:
w * old / max(new, 1e-7). Reads are of the chunk's start. M changes at a chunk's end only.
"""

import numpy as np

from tests.memory.oracles import Recall, Run, arrays, at, gated, inner_product, newton_schulz, walk, zeros

ORDER = ("gate", "up", "out")


def column_norms(w):
  return np.sqrt((w**2).sum(0))


def run(learned, tokens, gates, *, momentum=False, expansion=1, activation="silu", ns_steps=5, **grid):
  (q_TK, k_TK, v_TM), initial = (arrays(x) for x in tokens), arrays(learned["fast"])
  recall = Recall(learned["slow"], gated(activation=activation, residual=False), objective=inner_product)

  def fresh():
    return {"fast": initial, "momentum": zeros(initial), "sum": zeros(initial), "betas": []}

  def token(state, base, t, place):
    gate = at(gates, t)
    gradient = recall.gradient(base, k_TK[t], v_TM[t], gate)
    total = {name: state["sum"][name] + gate["rates"][i] * gradient[name] for i, name in enumerate(ORDER)}
    betas = [*state["betas"], gate["momentum"]] if momentum else []
    return state | {"sum": total, "betas": betas}

  def read(state, base, t, place):
    return recall.read(base, q_TK[t])

  def close(state, base):
    fast, moved = {}, {}
    for name, w in state["fast"].items():
      moved[name] = state["sum"][name]
      if momentum:
        moved[name] = np.mean(state["betas"]) * state["momentum"][name] + moved[name]
      new = w - newton_schulz(moved[name], ns_steps)
      fast[name] = new * column_norms(w) / np.maximum(column_norms(new), 1e-7)
    return {"fast": fast, "momentum": moved, "sum": zeros(fast), "betas": []}

  begin = fresh() | ({"momentum": arrays(momentum)} if isinstance(momentum, dict) else {})
  out_TM, state = walk(len(q_TK), begin, fresh=fresh, token=token, read=read, close=close, **grid)
  return Run(out_TM, state["fast"], state["momentum"] if momentum else {})
