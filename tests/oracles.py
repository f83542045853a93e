"""Reference results as NumPy loops from the papers: one token at a time, float64, no code of the package.

Weights multiply from the right (`x_K @ w_KM`), the recall loss is half the squared error. Every memory rule
has an entry in `RULES`; `tests/memory/test_rules_contract.py` refuses a rule without one.
"""

import math
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
  """What a rule leaves: reads in order, fast weights, momentum, the chunk's base and the position in it."""

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


def titans(fast, tokens, gates, *, chunk_size, momentum=None, base=None, position=0, write_T=None,
           reset_T=None, initial=None, padding_moves_grid=True, depth=2, expansion=1, activation="silu",
           residual=True, surprise_max=None):
  """Titans' long-term memory, S_t = m_t S - r_t grad(W_base), W_t = a_t W + S_t, y_t = f(W_t; q_t).

  Args:
    fast: {"w0": .., "w1": ..} weights before the first token.
    tokens: (q_TK, k_TK, v_TM); gates: (retention_T, momentum_T, write_rate_T), each already in its range.
    chunk_size: the base is renewed where the position in the chunk is 0.
    momentum, base, position: what an earlier call left; zero, `fast` and 0 without one.
    write_T: 0 at padding, which changes nothing.
    padding_moves_grid: whether padding takes a place in its chunk.
    reset_T: 1 where the memory goes back to `initial` (momentum zero) before the token.
    surprise_max: a token's gradient that is longer, over all matrices, is shortened to it; not in the paper.
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
  s = [
    np.zeros_like(x) if momentum is None else np.array(momentum[name], np.float64)
    for name, x in zip(names, w)
  ]
  anchor = [x if base is None else np.array(base[name], np.float64) for name, x in zip(names, w)]
  out = []
  for t in range(n):
    if reset_T[t]:
      w = [np.array(initial[name], np.float64) for name in names]
      s = [np.zeros_like(x) for x in w]
      anchor, position = w, 0
    if write_T[t]:
      gradient = mlp_gradient(anchor, k_TK[t], v_TM[t], **form)
      norm = math.sqrt(sum((g**2).sum() for g in gradient))
      rate = write_rate_T[t] if surprise_max is None else write_rate_T[t] * min(1, surprise_max / norm)
      s = [momentum_T[t] * x - rate * g for x, g in zip(s, gradient)]
      w = [retention_T[t] * x + y for x, y in zip(w, s)]
    out.append(mlp_read(w, q_TK[t], **form))
    if write_T[t] or padding_moves_grid:
      position = (position + 1) % chunk_size
      anchor = w if position == 0 else anchor
  as_dict = lambda arrays: dict(zip(names, arrays))
  return Run(np.array(out).reshape(n, -1), as_dict(w), as_dict(s), as_dict(anchor), position)


# A rule's file name -> its loop: the arguments of `titans` up to `padding_moves_grid`, then its options.
RULES = {"titans": titans}


def chunk_decay(retention_C, momentum_C, write_rate_C, write_C):
  """The chunk's decay tables by their row recurrences; a token with write 0 is as if it were not there.

  Returns a dict: fast_C, momentum_C (decay of the carried W and S inside W_t), mix_CC (weight of token i's
  gradient inside W_t), momentum_keep (decay of S over the chunk), momentum_weight_C (weight of each gradient
  inside the last S).
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


def short_conv(x_TE, taps_SE, doc_T):
  """Depthwise causal convolution by loops, blind to other documents; the last tap meets the token itself."""
  width, out_TE = len(taps_SE), np.zeros_like(x_TE)
  for t in range(len(x_TE)):
    for lag in range(min(width, t + 1)):
      if doc_T[t - lag] == doc_T[t]:
        out_TE[t] += x_TE[t - lag] * taps_SE[width - 1 - lag]
  return out_TE


def unit(x):
  """Norm one, with the epsilon inside the root."""
  return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)


def rms(x):
  """Root mean square one, with the epsilon inside the root."""
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def starts_of(doc_T, before=None):
  """1 where a document begins, given the one before the first token; padding (-1) begins nothing."""
  starts, last = [], before
  for doc in doc_T:
    starts.append(int(doc >= 0 and doc != last))
    last = doc if doc >= 0 else last
  return np.array(starts)


def memory_layer(
  params, x_TD, doc_T, *, rule, heads, key_dim, value_dim, chunk_size, write_rate_max, options
):
  """A memory layer on one row from its start: projections, convolutions, gates, the rule, normalised heads.

  Returns out_THM, zero at padding, and the Run of each head.
  """
  z_TG = x_TD @ params["gates"]["kernel"] + params["gates"]["bias"]
  write_T, runs = (doc_T >= 0).astype(int), []
  for h in range(heads):
    mixed_TE = silu(short_conv(x_TD @ params["qkv_kernel"][:, h], params["conv_kernel"][:, h], doc_T))
    assert mixed_TE.shape[1] == 2 * key_dim + value_dim
    tokens = [unit(part) for part in np.split(mixed_TE, (key_dim, 2 * key_dim), axis=1)]
    gates = (
      np.exp(-softplus(z_TG[:, h])),
      sigmoid(z_TG[:, heads + h]),
      write_rate_max * sigmoid(z_TG[:, 2 * heads + h]),
    )
    initial = {name: w[h] for name, w in params["initial_fast"].items()}
    runs.append(
      RULES[rule](
        initial,
        tokens,
        gates,
        chunk_size=chunk_size,
        write_T=write_T,
        initial=initial,
        reset_T=starts_of(doc_T),
        **options,
      )
    )
  return rms(np.stack([run.out_TM * write_T[:, None] for run in runs], axis=1)), runs


def rotated(x_THK, base=10_000.0):
  """Rotary positions, counted from the row's first token."""
  half, out_THK = x_THK.shape[-1] // 2, np.empty_like(x_THK)
  for t in range(len(x_THK)):
    for i in range(half):
      angle = t * base ** (-i / half)
      left, right = x_THK[t, :, i], x_THK[t, :, i + half]
      out_THK[t, :, i] = left * math.cos(angle) - right * math.sin(angle)
      out_THK[t, :, i + half] = right * math.cos(angle) + left * math.sin(angle)
  return out_THK


def lm(params, tokens_T, doc_T, *, window_tokens, gate_floor, memory, memory_scale=1.0):
  """The language model on one row from its start; returns logits_TV. `memory` as `memory_layer` takes it."""
  width = params["embed"].shape[1]
  x_TD = params["embed"][tokens_T] * math.sqrt(width)
  for layer in range(len(params["blocks"]["norm_mix"]["scale"])):
    block = _layer_of(params["blocks"], layer)
    h_TD = rms(x_TD) * block["norm_mix"]["scale"]
    q_THK, k_THK, v_THK = np.split(
      np.einsum("td,dhe->the", h_TD, block["attention"]["qkv_kernel"]), 3, axis=-1
    )
    seen_THK = local_attention(
      rotated(q_THK)[None],
      rotated(k_THK)[None],
      v_THK[None],
      doc_T[None],
      doc_T[None],
      window_tokens=window_tokens,
    )[0]
    recalled_THM, _ = memory_layer(block["memory"], h_TD, doc_T, **memory)
    gate_TH = sigmoid(h_TD @ block["mix_gate"]["kernel"] + block["mix_gate"]["bias"])
    gate_TH = gate_floor + (1 - gate_floor) * gate_TH
    x_TD = (
      x_TD
      + np.einsum("thk,hkd->td", seen_THK, block["attention"]["out"]["kernel"])
      + np.einsum("th,thm,hmd->td", memory_scale * gate_TH, recalled_THM, block["memory_out"]["kernel"])
    )
    h_TD, mlp = rms(x_TD) * block["norm_mlp"]["scale"], block["mlp"]
    x_TD = x_TD + (silu(h_TD @ mlp["gate_kernel"]) * (h_TD @ mlp["up_kernel"])) @ mlp["out_kernel"]
  return (rms(x_TD) * params["final_norm"]["scale"]) @ params["embed"].T


def _layer_of(tree, layer):
  return {
    name: _layer_of(part, layer) if isinstance(part, dict) else np.asarray(part[layer], np.float64)
    for name, part in tree.items()
  }


def local_attention(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, *, window_tokens):
  """Softmax attention of token t over the last `window_tokens` keys up to its own that share its document."""
  q_BTHK, k_BSHK, v_BSHK = (np.asarray(x, np.float64) for x in (q_BTHK, k_BSHK, v_BSHK))
  rows, length, heads, width = q_BTHK.shape
  tail = k_BSHK.shape[1] - length
  out_BTHK = np.zeros_like(q_BTHK)
  for b in range(rows):
    for t in range(length):
      seen = [
        j
        for j in range(k_BSHK.shape[1])
        if 0 <= tail + t - j < window_tokens and doc_BT[b, t] == doc_BS[b, j]
      ]
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
