"""TNT: a global memory written once per chunk, and local ones that start anew at every shard of the text.

Global: V' = V - sum over the chunk of r_t grad l(V; k_t, v_t); read with the V of the chunk's start.
Local j: at a token of another shard than the last real one before, W = learned["slow"]["localj"], S = 0; at a
token of another piece of local_chunks[j] tokens the base becomes W. Then S = m_t S - p_t grad l(base; k, v)
and W = a_t W + S, read at P_t q_t, P_t the sum of k k^T over the shard's real tokens up to t. Local memories
also start anew after a chunk, which a shard never crosses. Recalls are added. Run.fast is V.
"""

import math

import numpy as np

from tests.memory.oracles import Recall, Run, arrays, at, mlp, walk, zeros


def fresh_local(initial):
  return {"fast": initial, "momentum": zeros(initial), "base": initial, "piece": None}


def written(local, recall, k, v, gate, j, piece):
  """One token of Titans at the local memory's base, with its gates; a new piece takes a new base."""
  if local["piece"] != piece:
    local = local | {"base": local["fast"], "piece": piece}
  fast, momentum = {}, {}
  for name, g in recall.gradient(local["base"], k, v, gate).items():
    momentum[name] = gate["local_momentum"][j] * local["momentum"][name] - gate["local_rate"][j] * g
    fast[name] = gate["local_retention"][j] * local["fast"][name] + momentum[name]
  return local | {"fast": fast, "momentum": momentum}


def network(depth=2, expansion=1, activation="silu", residual=False):
  """Every memory's; its weights know the expansion."""
  return mlp(depth=depth, activation=activation, residual=residual)


def run(
  learned,
  tokens,
  gates,
  *,
  chunk_size,
  local_chunks=None,
  shard_tokens=None,
  project_queries=True,
  global_memory=True,
  surprise_max=1.0,
  write_T=None,
  reset_T=None,
  **net,
):
  (q_TK, k_TK, v_TM), slow = (arrays(x) for x in tokens), arrays(learned["slow"])
  shard_tokens = shard_tokens or chunk_size
  local_chunks = local_chunks or (math.gcd(8, shard_tokens),)
  recall = Recall({}, network(**net), surprise_max=surprise_max)
  width = k_TK.shape[1]

  def unread():
    every = [fresh_local(slow[f"local{j}"]) for j in range(len(local_chunks))]
    return {"locals": every, "keys": np.zeros((width, width)), "shard": None}

  def fresh():
    return {"fast": arrays(learned["fast"])} | unread()

  def token(state, base, t, place):
    gate, k, v = at(gates, t), k_TK[t], v_TM[t]
    if state["shard"] != t // shard_tokens:
      state = state | unread() | {"shard": t // shard_tokens}
    every = [
      written(local, recall, k, v, gate, j, t // local_chunks[j]) for j, local in enumerate(state["locals"])
    ]
    fast = state["fast"]
    if global_memory:
      gradient = recall.gradient(base, k, v, gate)
      fast = {name: w - gate["write_rate"] * gradient[name] for name, w in fast.items()}
    return state | {"fast": fast, "locals": every, "keys": state["keys"] + np.outer(k, k)}

  def read(state, base, t, place):
    q = state["keys"] @ q_TK[t] if project_queries else q_TK[t]
    out = sum(recall.read(local["fast"], q) for local in state["locals"])
    return out + recall.read(base, q_TK[t]) if global_memory else out

  grid = dict(chunk_size=chunk_size, write_T=write_T, reset_T=reset_T)
  close = lambda state, base: state | unread()
  out_TM, state = walk(len(q_TK), fresh(), fresh=fresh, token=token, read=read, close=close, **grid)
  return Run(out_TM, state["fast"], {})
