"""Reference results as NumPy loops written from the papers: one token at a time, float64, no code of the package.

Weights multiply from the right (`x_K @ w_KM`), the recall loss is half the squared error. Every memory rule has
an entry in `RULES`; `tests/memory/test_rules_contract.py` refuses a rule without one.
"""
import math
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
  """What a rule leaves after its tokens: reads in order, fast weights, momentum, the chunk's base, its position."""

  out_TM: np.ndarray
  fast: dict
  momentum: dict
  base: dict
  position: int


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def softplus(x):
  return np.logaddexp(0, np.asarray(x, np.float64))


def silu(x):
  return x * sigmoid(x)


def silu_slope(x):
  return sigmoid(x) + x * sigmoid(x) * (1 - sigmoid(x))


def gelu(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x):
  inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
  slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
  return 0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * slope


# Each activation with its derivative; gelu is the tanh form.
ACTIVATIONS = {
    "identity": (lambda x: x, np.ones_like),
    "relu2": (lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)),
    "silu": (silu, silu_slope),
    "gelu": (gelu, gelu_slope),
}


def mlp_read(weights, x, *, activation, residual):
  """f(W; x) of one token; `weights` is the list of the layers' matrices."""
  apply, _ = ACTIVATIONS[activation]
  h = x
  for layer, w in enumerate(weights):
    h = h @ w
    if layer < len(weights) - 1:
      h = apply(h)
  return x + h if residual else h


def mlp_gradient(weights, k, v, *, activation, residual):
  """Gradient of 1/2 |f(W; k) - v|^2 by back-propagation written out: one matrix per layer."""
  apply, slope = ACTIVATIONS[activation]
  inputs, sums = [k], []
  for layer, w in enumerate(weights):
    sums.append(inputs[-1] @ w)
    inputs.append(apply(sums[-1]) if layer < len(weights) - 1 else sums[-1])
  delta = inputs[-1] - v + (k if residual else 0)
  gradient = [None] * len(weights)
  for layer in reversed(range(len(weights))):
    gradient[layer] = np.outer(inputs[layer], delta)
    if layer:
      delta = (weights[layer] @ delta) * slope(sums[layer - 1])
  return gradient


def titans(fast, tokens, gates, *, chunk_size, momentum=None, base=None, position=0, write_T=None, reset_T=None,
           initial=None, padding_moves_grid=True, depth=2, expansion=1, activation="silu", residual=True):
  """Titans' long-term memory, S_t = m_t S - r_t grad(W_base), W_t = a_t W + S_t, y_t = f(W_t; q_t).

  Args:
    fast: {"w0": .., "w1": ..} weights before the first token.
    tokens: (q_TK, k_TK, v_TM); gates: (retention_T, momentum_T, write_rate_T), each already in its range.
    chunk_size: the base is renewed where the position in the chunk is 0.
    momentum, base, position: what an earlier call left; zero, `fast` and 0 without one.
    write_T: 0 at padding, which changes nothing; whether it takes a place in its chunk is `padding_moves_grid`.
    reset_T: 1 where the memory goes back to `initial` (momentum zero) before the token.
  """
  del expansion
  names = [f"w{layer}" for layer in range(depth)]
  form = dict(activation=activation, residual=residual)
  q_TK, k_TK, v_TM = (np.asarray(x, np.float64) for x in tokens)
  retention_T, momentum_T, write_rate_T = (np.asarray(x, np.float64) for x in gates)
  n = len(q_TK)
  write_T = np.ones(n) if write_T is None else np.asarray(write_T)
  reset_T = np.zeros(n) if reset_T is None else np.asarray(reset_T)
  w = [np.array(fast[name], np.float64) for name in names]
  s = [np.zeros_like(x) if momentum is None else np.array(momentum[name], np.float64) for name, x in zip(names, w)]
  anchor = [x if base is None else np.array(base[name], np.float64) for name, x in zip(names, w)]
  out = []
  for t in range(n):
    if reset_T[t]:
      w = [np.array(initial[name], np.float64) for name in names]
      s = [np.zeros_like(x) for x in w]
      position = 0
    if position == 0:
      anchor = list(w)
    if write_T[t]:
      gradient = mlp_gradient(anchor, k_TK[t], v_TM[t], **form)
      s = [momentum_T[t] * x - write_rate_T[t] * g for x, g in zip(s, gradient)]
      w = [retention_T[t] * x + y for x, y in zip(w, s)]
    out.append(mlp_read(w, q_TK[t], **form))
    if write_T[t] or padding_moves_grid:
      position = (position + 1) % chunk_size
  as_dict = lambda arrays: dict(zip(names, arrays))  # noqa: E731
  return Run(np.array(out).reshape(n, -1), as_dict(w), as_dict(s), as_dict(anchor), position)


# A rule's file name -> its loop. Every loop takes the arguments of `titans` up to `padding_moves_grid`, then options.
RULES = {"titans": titans}


def chunk_decay(retention_C, momentum_C, write_rate_C, write_C):
  """The chunk's decay tables by their row recurrences; a token with write 0 is as if it were not there.

  Returns a dict: fast_C, momentum_C (decay of the carried W and S inside W_t), mix_CC (weight of token i's gradient
  inside W_t), momentum_keep (decay of S over the chunk), momentum_weight_C (weight of the gradients inside the last S).
  """
  n = len(retention_C)
  fast, carried, keep = 1.0, 0.0, 1.0
  mix_C, weight_C = np.zeros(n), np.zeros(n)
  rows = {"fast_C": [], "momentum_C": [], "mix_CC": []}
  for t in range(n):
    if write_C[t]:
      keep *= momentum_C[t]
      weight_C = momentum_C[t] * weight_C
      weight_C[t] = write_rate_C[t]
      fast *= retention_C[t]
      carried = retention_C[t] * carried + keep
      mix_C = retention_C[t] * mix_C + weight_C
    for name, value in zip(rows, (fast, carried, mix_C)):
      rows[name].append(value)
  tables = {name: np.array(values) for name, values in rows.items()}
  return tables | {"momentum_keep": keep, "momentum_weight_C": weight_C}


def causal_conv(x_TD, kernel_WD, tail_WD=None):
  """Depthwise causal convolution by loops; kernel row W-1 meets the present token, the tail is what came before."""
  width = len(kernel_WD)
  tail_WD = np.zeros((width - 1, x_TD.shape[1])) if tail_WD is None else tail_WD
  padded_TD = np.concatenate([tail_WD, x_TD])
  out_TD = np.zeros_like(x_TD)
  for t in range(len(x_TD)):
    for lag in range(width):
      out_TD[t] += padded_TD[t + width - 1 - lag] * kernel_WD[width - 1 - lag]
  return out_TD


def local_attention(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, *, window_tokens):
  """Softmax attention of token t over the last `window_tokens` keys up to its own that share its document."""
  q_BTHK, k_BSHK, v_BSHK = (np.asarray(x, np.float64) for x in (q_BTHK, k_BSHK, v_BSHK))
  rows, length, heads, width = q_BTHK.shape
  tail = k_BSHK.shape[1] - length
  out_BTHK = np.zeros_like(q_BTHK)
  for b in range(rows):
    for t in range(length):
      seen = [j for j in range(k_BSHK.shape[1])
              if 0 <= tail + t - j < window_tokens and doc_BT[b, t] == doc_BS[b, j]]
      for h in range(heads):
        score = np.array([q_BTHK[b, t, h] @ k_BSHK[b, j, h] / math.sqrt(width) for j in seen])
        weight = np.exp(score - score.max())
        weight /= weight.sum()
        out_BTHK[b, t, h] = sum(weight[i] * v_BSHK[b, j, h] for i, j in enumerate(seen))
  return out_BTHK


def vocab_loss(hidden_ND, head_DV, target_N):
  """Negative log-likelihood of each target under softmax(hidden @ head), in nats."""
  nll = []
  for hidden_D, target in zip(np.asarray(hidden_ND, np.float64), target_N):
    logits_V = hidden_D @ np.asarray(head_DV, np.float64)
    nll.append(logits_V.max() + math.log(np.exp(logits_V - logits_V.max()).sum()) - logits_V[target])
  return np.array(nll)
