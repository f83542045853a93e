"""Reference results as NumPy loops from the papers: one token at a time, float64, no code of the package.

Weights multiply from the right (`x_K @ w_KM`). The loops of memory rules are in `tests/memory/oracles`, one
file per rule; `tests/memory/test_rules_contract.py` refuses a rule without one.
"""

import importlib
import itertools
import math

import numpy as np


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def softplus(x):
  return np.logaddexp(0, np.asarray(x, np.float64))


def silu(x):
  return x * sigmoid(x)


def chunk_decay(retention_C, momentum_C, write_rate_C, write_C):
  """The chunk's decay tables by their row recurrences; a token with write 0 is as if it were not there.

  momentum_C may be None: the momentum is the token's gradient alone.

  Returns a dict: fast_C, momentum_C (decay of the carried W and S inside W_t), mix_CC (weight of token i's
  gradient inside W_t), keep_C (decay of the carried S inside S_t), surprise_CC (weight of token i's gradient
  inside S_t). Without momentum, momentum_C and keep_C are (), and a padded token has no row in surprise_CC.
  """
  n = len(retention_C)
  fast, carried, keep = 1.0, 0.0, 1.0
  mix_C, surprise_C = np.zeros(n), np.zeros(n)
  rows = {"fast_C": [], "momentum_C": [], "mix_CC": [], "keep_C": [], "surprise_CC": []}
  for t in range(n):
    if momentum_C is None:
      surprise_C = np.zeros(n)
    if write_C[t]:
      stays = 0.0 if momentum_C is None else momentum_C[t]
      keep *= stays
      surprise_C = stays * surprise_C
      surprise_C[t] = write_rate_C[t]
      fast *= retention_C[t]
      carried = retention_C[t] * carried + keep
      mix_C = retention_C[t] * mix_C + surprise_C
    for name, value in zip(rows, (fast, carried, mix_C, keep, surprise_C)):
      rows[name].append(value)
  tables = {name: np.array(values) for name, values in rows.items()}
  return tables if momentum_C is not None else tables | {"momentum_C": (), "keep_C": ()}


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


def rule_run(rule):
  """The loop of a memory rule."""
  return importlib.import_module(f"tests.memory.oracles.{rule}").run


COMMON = {  # Gates of every rule that uses them: (name of the loop, from what the affine map gives)
  "log_retention": ("retention", lambda z, write_rate_max: np.exp(-softplus(z))),
  "log_momentum": ("momentum", lambda z, write_rate_max: sigmoid(z)),
  "write_rate": ("write_rate", lambda z, write_rate_max: write_rate_max * sigmoid(z)),
}


def token_gates(params, x_TD, *, heads, write_rate_max, uses, own):
  """Gates of each head as the rules' loops take them; `own` lists (name, size, kind, start, max)."""
  used = [name for name in COMMON if name in uses]
  gates = [{} for _ in range(heads)]
  if used:
    z_TUH = (x_TD @ params["kernel"] + params["bias"]).reshape(len(x_TD), len(used), heads)
    for i, (h, gate) in itertools.product(range(len(used)), enumerate(gates)):
      name, of = COMMON[used[i]]
      gate[name] = of(z_TUH[:, i, h], write_rate_max)
  for name, size, kind, _, largest, *_ in own:
    z_TG = x_TD @ params[f"{name}_kernel"] + params[f"{name}_bias"]
    for h, z in enumerate(np.split(z_TG, heads, axis=1)):
      gate = softplus(z) if kind == "softplus" else largest * sigmoid(z)
      gates[h][name] = gate[:, 0] if size is None else gate
  return gates


def has_context(doc_T):
  """1 where the token before a token is of its document."""
  return np.array([int(t > 0 and doc_T[t - 1] == doc_T[t] and doc_T[t] >= 0) for t in range(len(doc_T))])


def memory_tokens(
  params, h, x_TD, token_TD, doc_T, *, key_dim, shift, shared_qk, activation, value_source, of_attention
):
  """Queries, keys and values of one head. With shift, row t of the keys is made of the tokens before t.

  `of_attention` is None, or attention's queries, keys and values [3, T, H, K], in place of projections.
  """
  if of_attention is None:
    projected_TE = x_TD @ params["qkv_kernel"][:, h]
  else:
    q_TK, k_TK, v_TK = of_attention[:, :, h]
    chosen = ([] if shared_qk else [q_TK]) + [k_TK] + ([v_TK] if value_source == "input" else [])
    projected_TE = np.concatenate(chosen, axis=1)
  mixed_TE = short_conv(projected_TE, params["conv_kernel"][:, h], doc_T)
  mixed_TE = silu(mixed_TE) if activation == "silu" else mixed_TE
  q_TK, rest_TE = mixed_TE[:, :key_dim], mixed_TE[:, key_dim:]
  k_TK = q_TK if shared_qk else rest_TE[:, :key_dim]
  v_TM = rest_TE if shared_qk else rest_TE[:, key_dim:]
  if value_source == "token":
    v_TM = rms(token_TD) @ params["value_kernel"][:, h]
  if shift:
    k_TK = np.concatenate([np.zeros_like(k_TK[:1]), k_TK[:-1]])
  return [unit(part) for part in (q_TK, k_TK, v_TM)]


def memory_layer(
  params,
  x_TD,
  doc_T,
  *,
  rule,
  heads,
  key_dim,
  value_dim,
  chunk_size,
  write_rate_max,
  options,
  uses=tuple(COMMON),
  own=(),
  token_TD=None,
  shift=False,
  shared_qk=False,
  activation="silu",
  value_source="input",
  initial="learned",
  read_norm="rms",
  of_attention=None,
):
  """A memory layer on one row from its start: projections, convolutions, gates, the rule, scaled heads.

  Returns out_THM, zero at padding, and the Run of each head. With shift, a document's first token takes a
  place in its chunk, and neither writes nor reads. `initial` names where the fast weights start: "zero" needs
  their shapes, which only the rules of one matrix tell: its inputs are the lifted keys'.
  """
  write_T, runs = has_context(doc_T) if shift else (doc_T >= 0).astype(int), []
  gates = token_gates(params["gates"], x_TD, heads=heads, write_rate_max=write_rate_max, uses=uses, own=own)
  for h in range(heads):
    how = dict(key_dim=key_dim, shift=shift, shared_qk=shared_qk, activation=activation)
    how |= dict(of_attention=of_attention)
    source_TD = x_TD if token_TD is None else token_TD
    tokens = memory_tokens(params, h, x_TD, source_TD, doc_T, value_source=value_source, **how)
    if initial == "zero":
      lifted_dim = options["feature_dim"] if options.get("feature_map") == "cells" else key_dim
      fast = {"w0": np.zeros((lifted_dim, value_dim))}
    else:
      fast = _part_of(params["initial_fast"], h)
    learned = {"fast": fast, "slow": _part_of(params.get("slow", {}), h)}
    grid = dict(chunk_size=chunk_size, write_T=write_T, reset_T=starts_of(doc_T))
    runs.append(rule_run(rule)(learned, tokens, gates[h], **grid, **options))
  out_THM = np.stack([run.out_TM * write_T[:, None] for run in runs], axis=1)
  return rms(out_THM) if read_norm == "rms" else out_THM * math.sqrt(value_dim), runs


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


def blocks_of(params):
  """Parameters of each block, from the bottom; stacks of blocks that are alike are named by their first."""
  stacks = sorted((name for name in params if name.startswith("blocks")), key=lambda name: int(name[7:] or 0))
  for name in stacks:
    for layer in range(len(params[name]["norm_mix"]["scale"])):
      yield _part_of(params[name], layer)


def lm(params, tokens_T, doc_T, *, window_tokens, gate_floor, memory, memory_scale=1.0):
  """The language model on one row from its start; returns logits_TV. `memory` as `memory_layer` takes it."""
  width = params["embed"].shape[1]
  x_TD = params["embed"][tokens_T] * math.sqrt(width)
  token_TD = x_TD
  for block in blocks_of(params):
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
    x_TD = x_TD + np.einsum("thk,hkd->td", seen_THK, block["attention"]["out"]["kernel"])
    if "memory" in block:
      shared = None if "qkv_kernel" in block["memory"] else np.stack([q_THK, k_THK, v_THK])
      of_text = dict(token_TD=token_TD, of_attention=shared)
      recalled_THM, _ = memory_layer(block["memory"], h_TD, doc_T, **of_text, **memory)
      gate_TH = sigmoid(h_TD @ block["mix_gate"]["kernel"] + block["mix_gate"]["bias"])
      gate_TH = gate_floor + (1 - gate_floor) * gate_TH
      x_TD = x_TD + np.einsum(
        "th,thm,hmd->td", memory_scale * gate_TH, recalled_THM, block["memory_out"]["kernel"]
      )
    h_TD, mlp = rms(x_TD) * block["norm_mlp"]["scale"], block["mlp"]
    x_TD = x_TD + (silu(h_TD @ mlp["gate_kernel"]) * (h_TD @ mlp["up_kernel"])) @ mlp["out_kernel"]
  return (rms(x_TD) * params["final_norm"]["scale"]) @ params["embed"].T


def _part_of(tree, index):
  """One layer or head of stacked parameters."""
  return {
    name: _part_of(part, index) if isinstance(part, dict) else np.asarray(part[index], np.float64)
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


def stablemax_nll(hidden_ND, head_DV, target_N):
  """Negative log-likelihood of each target under the stablemax of hidden @ head, in nats."""
  nll = []
  for hidden_D, target in zip(np.asarray(hidden_ND, np.float64), target_N):
    logits = hidden_D @ np.asarray(head_DV, np.float64)
    scores = [logit + 1 if logit >= 0 else 1 / (1 - logit) for logit in logits]
    nll.append(-math.log(scores[target] / sum(scores)))
  return np.array(nll)


def orthogonal_grad(grad, weight, fraction):
  """The gradient of one matrix without a fraction of its part along the matrix."""
  along = scale = 0.0
  for g, w in zip(np.asarray(grad, np.float64).reshape(-1), np.asarray(weight, np.float64).reshape(-1)):
    along, scale = along + g * w, scale + w * w
  return np.asarray(grad, np.float64) - fraction * along / scale * np.asarray(weight, np.float64)
