"""TTT with a linear memory: W_t = W_base - place_rate[j] sum of r_i grad_i(W_base) over the chunk up to t.

f(x) = LN(x @ w0 + b0), with residual plus x; the norm has a learned scale and bias. The loss is half the
squared error to v; j is the token's place in its chunk, padding counted. y_t = f(W_t; q_t). `momentum` is the
running sum, zero at a chunk's start. With rope, queries and keys, also as the x that is added, are turned by
their place.
"""

import math

import numpy as np

from tests.memory.oracles import Recall, Run, arrays, at, mlp, walk, zeros


def turned(x, place, base=10_000.0):
  """Rotary position: coordinate i with i + K // 2, by the angle place * base^(-i / (K // 2)).

  The last of an odd number of coordinates stays.
  """
  half, out = len(x) // 2, x.copy()
  for i in range(half):
    angle = place * base ** (-i / half)
    out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
    out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
  return out


def descent_by_place(learned, tokens, gates, net, *, momentum, rope, surprise_max=None, **grid):
  """The loop, for any network."""
  (q_TK, k_TK, v_TM), initial = (arrays(x) for x in tokens), arrays(learned["fast"])
  recall = Recall(learned["slow"], net, surprise_max=surprise_max)
  turn = turned if rope else lambda x, place: x

  def fresh():
    return {"fast": initial, "momentum": zeros(initial)}

  def token(state, base, t, place):
    gate = at(gates, t)
    place_rate = np.asarray(learned["slow"]["place_rate"], np.float64)[place]
    fast, total = {}, {}
    for name, g in recall.gradient(base, turn(k_TK[t], place), v_TM[t], gate).items():
      total[name] = state["momentum"][name] + gate["write_rate"] * g
      fast[name] = base[name] - place_rate * total[name]
    return {"fast": fast, "momentum": total}

  def read(state, base, t, place):
    return recall.read(state["fast"], turn(q_TK[t], place))

  def close(state, base):
    return {"fast": state["fast"], "momentum": zeros(initial)}

  begin = fresh() | ({"momentum": arrays(momentum)} if momentum else {})
  out_TM, state = walk(len(q_TK), begin, fresh=fresh, token=token, read=read, close=close, **grid)
  return Run(out_TM, state["fast"], state["momentum"])


def run(learned, tokens, gates, *, momentum=None, residual=False, norm=None, rope=True, **grid):
  net = mlp(depth=1, activation="identity", residual=residual, norm=norm)
  return descent_by_place(learned, tokens, gates, net, momentum=momentum, rope=rope, **grid)
