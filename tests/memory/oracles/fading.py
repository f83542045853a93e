"""The delta rule of a memory that has faded first, which gated_delta, kda and gated_delta_2 share."""

import numpy as np

from tests.memory.oracles import Run, arrays, walk


def fading(learned, tokens, fade_TK, erase_TK, write_TM, *, write_T=None, reset_T=None):
  """F = diag(fade) W; W = F - outer(k, (erase * k) F - write * v); y = q W. Every token is its own chunk."""
  q_TK, k_TK, v_TM = (arrays(x) for x in tokens)
  initial = arrays(learned["fast"])

  def token(state, base, t, place):
    faded = np.diag(fade_TK[t]) @ state["fast"]["w0"]
    error = (erase_TK[t] * k_TK[t]) @ faded - write_TM[t] * v_TM[t]
    return {"fast": {"w0": faded - np.outer(k_TK[t], error)}}

  def read(state, base, t, place):
    return q_TK[t] @ state["fast"]["w0"]

  fresh = lambda: {"fast": initial}
  out_TM, state = walk(len(q_TK), fresh(), fresh=fresh, token=token, read=read, chunk_size=1, write_T=write_T,
                       reset_T=reset_T)
  return Run(out_TM, state["fast"], {})
