"""DeepTransformer: deep linear attention, the first layer a function of kernels exp(scale x . k_i).

layer 1 of W_t (x) = x @ w0_t + sum of exp(scale x . k_i) row_{t,i} over the rows seen. Token t adds
-r_t grad_t to its own row; w0 is never written; everything fades. Seen are the rows of the chunk so far
and the last reach_tokens before the chunk; the base has the latter alone, as they were at the chunk's start.
"""

import math

import numpy as np

from tests.memory.oracles import ACTIVATIONS, Run, arrays, at, faded, inner_product, walk, zeros


class KernelRecall:
  """A memory with such a first layer as a function of its state, and the gradients of its loss."""

  def __init__(self, objective, *, scale, normalize, depth, activation, residual, surprise_max):
    self.objective, self.scale, self.normalize, self.depth = objective, scale, normalize, depth
    self.act, self.act_grad = ACTIVATIONS[activation]
    self.residual, self.surprise_max = residual, surprise_max

  def forward(self, state, x):
    """The sum before each activation, and f(x)."""
    kernels = [math.exp(self.scale * (x @ row["k"])) for row in state["rows"]]
    share = 1.0 if self.normalize is None or not kernels else 1 / sum(kernels)
    z = x @ state["fast"]["w0"]
    for kernel, row in zip(kernels, state["rows"], strict=True):
      z = z + share * kernel * row["fast"]
    sums = [z]
    for i in range(1, self.depth):
      sums.append(self.act(sums[-1]) @ state["fast"][f"w{i}"])
    return sums, sums[-1] + x if self.residual else sums[-1]

  def gradient(self, base, k, v, gate):
    """Of each matrix but w0 by name; under "row" the gradient with respect to layer 1."""
    sums, out = self.forward(base, k)
    delta, found = self.objective(out, v, gate)[1], {}
    for i in reversed(range(1, self.depth)):
      found[f"w{i}"] = np.outer(self.act(sums[i - 1]), delta)
      delta = (base["fast"][f"w{i}"] @ delta) * self.act_grad(sums[i - 1])
    # The gradient in the space of the kernel has the key's length there, exp(scale k . k / 2).
    square = math.exp(self.scale * (k @ k)) * (delta**2).sum() + sum((g**2).sum() for g in found.values())
    found["row"] = delta
    if self.surprise_max is not None and math.sqrt(square) > self.surprise_max:
      found = {name: g * self.surprise_max / math.sqrt(square) for name, g in found.items()}
    return found


def written(recall, state, base, k, v, gate, *, window_size, has_momentum, initial, fade_to):
  """The state after a token; gradients of its window are taken at the base."""
  width = state["fast"]["w0"].shape[1]
  rows = [dict(row, new=np.zeros(width)) for row in state["rows"]]
  rows.append(dict(k=k, v=v, new=np.zeros(width), fast=np.zeros(width), momentum=np.zeros(width)))
  new = zeros(state["fast"])
  for lag in range(min(window_size or 1, len(rows))):
    row = rows[-1 - lag]
    count = gate["write_rate"] * (gate["context"][lag] if "context" in gate else 1.0)
    found = recall.gradient(base, row["k"], row["v"], gate)
    row["new"] = -count * found.pop("row")
    for name, g in found.items():
      new[name] = new[name] - count * g
  keep = gate["momentum"] if has_momentum else 0.0
  s = {name: keep * state["momentum"][name] + new[name] for name in new}
  left = faded(state["fast"], initial, gate["retention"], fade_to)
  fast = {name: left[name] + s[name] for name in new}
  for row in rows:
    row["momentum"] = keep * row["momentum"] + row.pop("new")
    row["fast"] = gate["retention"] * row["fast"] + row["momentum"]
  return dict(fast=fast, momentum=s, rows=rows)


def kernel_descent(
  learned,
  tokens,
  gates,
  objective,
  *,
  window_size=1,
  depth=2,
  expansion=1,
  activation="gelu",
  residual=False,
  scale=None,
  normalize=None,
  reach_tokens=256,
  momentum=None,
  surprise_max=1.0,
  fade_to="start",
  **grid,
):
  """Descent with such a first layer; `momentum` as for `descent`: None, a bool, or S before the text."""
  (q_TK, k_TK, v_TM), initial = (arrays(x) for x in tokens), arrays(learned["fast"])
  form = dict(depth=depth, activation=activation, residual=residual, surprise_max=surprise_max)
  scale = math.sqrt(k_TK.shape[1]) if scale is None else scale
  recall = KernelRecall(objective, scale=scale, normalize=normalize, **form)
  before = arrays(momentum) if isinstance(momentum, dict) else zeros(initial)
  how = dict(window_size=window_size, has_momentum=bool(momentum), initial=initial, fade_to=fade_to)
  fresh = lambda: dict(fast=initial, momentum=zeros(initial), rows=[])
  out_TM, state = walk(
    len(q_TK),
    fresh() | {"momentum": before},
    fresh=fresh,
    token=lambda state, base, t, place: written(recall, state, base, k_TK[t], v_TM[t], at(gates, t), **how),
    read=lambda state, base, t, place: recall.forward(state, q_TK[t])[1],
    close=lambda state, base: state | {"rows": state["rows"][-reach_tokens:]},
    anchor=lambda state: state,
    **grid,
  )
  return Run(out_TM, state["fast"], state["momentum"] if momentum else {})


def run(learned, tokens, gates, **options):
  return kernel_descent(learned, tokens, gates, inner_product, **options)
