"""Reference results of every memory rule: NumPy loops from the papers, one token at a time, in float64.

One file per rule, named like the rule, with `run(learned, tokens, gates, *, chunk_size, write_T=None,
reset_T=None, momentum=None, **options) -> Run`. No code of the package is used. Weights multiply from
the right (`x_K @ w_KM`); every gradient is back-propagation written out.

  learned: {"fast": initial weights by name, "slow": the rule's learned constants by name}.
  tokens: (q_TK, k_TK, v_TM).
  gates: arrays [T] or [T, size] by name, each already in its range: retention, momentum, write_rate (those
    the rule uses) and the rule's own.
  write_T: 0 at padding, which changes nothing and has no place in a window, but takes a place in its chunk.
  reset_T: 1 where the memory starts anew before the token; always at a chunk's start.
  momentum: the momentum before the first token, a dict by name; zero if None. Where the rule has an option
    `momentum`, True or False is that option, and a dict also means True.
  options: those of the rule's `make`, with its defaults.

A chunk that is full is closed (what that does is the rule's affair) and its successor's base is made, also
where its last token is padding. A chunk with no token but padding is not closed: padding changes nothing.
"""

import math
from typing import NamedTuple

import numpy as np

from tests.memory.oracles.lifts import cells, poly_parts, sketch_parts


class Run(NamedTuple):
  """What a rule leaves: reads in order (anything at padding), fast weights and momentum at the end."""

  out_TM: np.ndarray
  fast: dict
  momentum: dict


def arrays(tree):
  """Copies a dict of arrays, or one array, to float64."""
  if isinstance(tree, dict):
    return {name: arrays(x) for name, x in tree.items()}
  return np.array(tree, np.float64)


def zeros(weights):
  return {name: np.zeros_like(w) for name, w in weights.items()}


def at(gates, t):
  """The gates of one token."""
  return {name: np.asarray(gate, np.float64)[t] for name, gate in gates.items()}


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def silu(x):
  return x * sigmoid(x)


def silu_grad(x):
  return sigmoid(x) + x * sigmoid(x) * (1 - sigmoid(x))


def gelu(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_grad(x):
  inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
  grad = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
  return 0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * grad


ACTIVATIONS = {
  "identity": (lambda x: x, np.ones_like),
  "relu2": (lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)),
  "silu": (silu, silu_grad),
  "gelu": (gelu, gelu_grad),
}


def layer_norm(x):
  """Mean 0 and variance 1, epsilon 1e-6 inside the root."""
  return (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-6)


def layer_norm_back(x, delta):
  """The gradient with respect to x, given that with respect to layer_norm(x)."""
  y = layer_norm(x)
  root = math.sqrt(((x - x.mean()) ** 2).mean() + 1e-6)
  return (delta - delta.mean() - y * (delta * y).mean()) / root


class Net(NamedTuple):
  """out = f(x), and the gradient of every weight given the gradient with respect to f.

  `lifted` is the feature map of x; `gradient_of` maps f's output to the gradient with respect to it.
  """

  read: object  # (weights, slow, x, lifted) -> out
  gradient: object  # (weights, slow, x, lifted, gradient_of) -> gradient by name


def mlp(*, depth, activation, residual, norm=None):
  """act(..act(lifted @ w0 + b0) @ w1 ..), normalised, plus x; biases where `weights` has them."""
  act, grad = ACTIVATIONS[activation]

  def sums_of(weights, lifted):
    inputs, sums = [lifted], []
    for i in range(depth):
      z = inputs[i] @ weights[f"w{i}"]
      if f"b{i}" in weights:
        z = z + weights[f"b{i}"].reshape(-1)
      sums.append(z)
      inputs.append(act(z))
    return inputs, sums

  def finish(slow, x, z):
    g = z if norm is None else layer_norm(z)
    g = g / math.sqrt(len(z)) if norm == "unit" else g
    if norm == "affine":
      g = g * slow["norm_scale"] + slow["norm_bias"]
    return x + g if residual else g

  def read(weights, slow, x, lifted):
    _, sums = sums_of(weights, lifted)
    return finish(slow, x, sums[-1])

  def gradient(weights, slow, x, lifted, grad_of):
    inputs, sums = sums_of(weights, lifted)
    delta = grad_of(finish(slow, x, sums[-1]))
    if norm == "affine":
      delta = delta * slow["norm_scale"]
    if norm == "unit":
      delta = delta / math.sqrt(len(delta))
    if norm is not None:
      delta = layer_norm_back(sums[-1], delta)
    found = {}
    for i in reversed(range(depth)):
      found[f"w{i}"] = np.outer(inputs[i], delta)
      if f"b{i}" in weights:
        found[f"b{i}"] = delta.reshape(weights[f"b{i}"].shape)
      if i:
        delta = (weights[f"w{i}"] @ delta) * grad(sums[i - 1])
    return found

  return Net(read, gradient)


def gated(*, activation, residual):
  """(act(lifted @ gate) * (lifted @ up)) @ out, plus x."""
  act, grad = ACTIVATIONS[activation]

  def read(weights, slow, x, lifted):
    g = (act(lifted @ weights["gate"]) * (lifted @ weights["up"])) @ weights["out"]
    return x + g if residual else g

  def gradient(weights, slow, x, lifted, grad_of):
    left, right = lifted @ weights["gate"], lifted @ weights["up"]
    delta = grad_of(read(weights, slow, x, lifted))
    hidden_delta = weights["out"] @ delta
    return {
      "gate": np.outer(lifted, hidden_delta * right * grad(left)),
      "up": np.outer(lifted, hidden_delta * act(left)),
      "out": np.outer(act(left) * right, delta),
    }

  return Net(read, gradient)


# Objectives: (out, v, gates of the token) -> (loss, gradient with respect to out).


def l2(out, v, gates):
  e = out - v
  return 0.5 * (e**2).sum(), e


def inner_product(out, v, gates):
  return -(out * v).sum(), -v


def lp(p, sharpness, eps=1e-6):
  """sum |e|^p / p; the gradient has a smooth sign and is not exactly the loss's."""

  def objective(out, v, gates):
    e = out - v
    return (np.abs(e) ** p).sum() / p, np.tanh(sharpness * e) * (e**2 + eps) ** ((p - 1) / 2)

  return objective


def huber(kind):
  """Squares up to the gate `threshold` and linear beyond, of each coordinate or of the error's norm."""

  def of_size(size, edge):
    return np.where(size <= edge, 0.5 * size**2, edge * (size - 0.5 * edge))

  def objective(out, v, gates):
    e, edge = out - v, gates["threshold"]
    if kind == "coordinate":
      return of_size(np.abs(e), edge).sum(), np.clip(e, -edge, edge)
    assert kind == "norm"
    size = math.sqrt((e**2).sum())
    return of_size(size, edge), e if size <= edge else edge * e / size

  return objective


def robust(shift):
  """Half the squared error plus `shift` times its (smooth) norm."""

  def objective(out, v, gates):
    e = out - v
    size = math.sqrt((e**2).sum() + 1e-6)
    return 0.5 * (e**2).sum() + shift * size, e + shift * e / size

  return objective


def features(slow, x, is_query, *, feature_map="none", degree=2, feature_dim=16, cell_groups=1):
  """What the memory's matrices see of x. "none" has no coefficients; others one per part, in order.

  "power" has parts 1 .. degree, the others 0 .. degree; "cells" are one part.
  """
  if feature_map == "none":
    return x
  if feature_map == "power":
    parts = [x**i / math.sqrt(math.factorial(i)) for i in range(1, degree + 1)]
  elif feature_map == "poly":
    parts = poly_parts(x, degree)
  elif feature_map == "projected":
    parts = poly_parts(x @ slow["projection"], degree)
  elif feature_map == "cells":
    parts = [cells(x, feature_dim, slow["sharpness"], cell_groups)]
  else:
    assert feature_map == "sketch"
    parts = sketch_parts(x, degree, feature_dim)
  if is_query:
    parts = [c * part for c, part in zip(slow["coefficients"], parts, strict=True)]
  return np.concatenate(parts)


class Recall:
  """A memory as a function: its network, feature map and objective, and the bound on a token's gradient."""

  def __init__(self, slow, net, objective=l2, surprise_max=None, **feature_options):
    self.slow, self.net = arrays(slow), net
    self.objective, self.surprise_max = objective, surprise_max
    self.feature_options = feature_options

  def read(self, weights, q):
    return self.net.read(weights, self.slow, q, features(self.slow, q, True, **self.feature_options))

  def gradient(self, weights, k, v, gates):
    lifted = features(self.slow, k, False, **self.feature_options)
    grad_of = lambda out: self.objective(out, v, gates)[1]
    found = self.net.gradient(weights, self.slow, k, lifted, grad_of)
    if self.surprise_max is not None:
      norm = math.sqrt(sum((g**2).sum() for g in found.values()))
      if norm > self.surprise_max:
        found = {name: g * self.surprise_max / norm for name, g in found.items()}
    return found

  def window_gradient(self, weights, rows, gates):
    """Sum over the rows (k, v, gates), newest first, of gradients times the newest token's context gates."""
    total = zeros(weights)
    for lag, (k, v, row_gates) in enumerate(rows):
      share = gates["context"][lag] if "context" in gates else 1.0
      for name, g in self.gradient(weights, k, v, row_gates).items():
        total[name] = total[name] + share * g
    return total


def newton_schulz(x, steps=5):
  """Brings the singular values near 1, times sqrt(max(1, outputs / inputs)); x is [inputs, outputs]."""
  tall = x.shape[0] > x.shape[1]
  y = x.T if tall else x
  y = y / (math.sqrt((y**2).sum()) + 1e-7)
  for _ in range(steps):
    a = y @ y.T
    y = 3.4445 * y + (-4.7750 * a + 2.0315 * (a @ a)) @ y
  return (y.T if tall else y) * math.sqrt(max(1, x.shape[1] / x.shape[0]))


def walk(
  length, state, *, fresh, token, read, close=None, anchor=None, chunk_size, write_T=None, reset_T=None
):
  """The grid of chunks: takes every token in order and returns the reads [T, M] and the last state.

  A state is a dict with "fast". `state` is before the first token; fresh() starts anew; token(state, base, t,
  place) writes; read(state, base, t, place) recalls; close(state, base) ends a full chunk; anchor(state)
  gives the base of the chunk that starts, the fast weights by default.
  """
  anchor = anchor or (lambda state: state["fast"])
  out, place, wrote = [], 0, False
  base = anchor(state)
  for t in range(length):
    if reset_T is not None and reset_T[t]:
      assert place == 0, "a reset belongs at a chunk's start"
      state = fresh()
      base = anchor(state)
    if write_T is None or write_T[t]:
      state, wrote = token(state, base, t, place), True
    out.append(read(state, base, t, place))
    place += 1
    if place == chunk_size:
      if close is not None and wrote:
        state = close(state, base)
      base, place, wrote = anchor(state), 0, False
  return np.array(out).reshape(length, -1), state


def faded(fast, start, retention, fade_to):
  """a A, or with fade_to "start" a A + (1 - a) A_start."""
  rest = 1 - retention if fade_to == "start" else 0.0
  return {name: retention * w + rest * start[name] for name, w in fast.items()}


def descent(learned, tokens, gates, recall, *, momentum=None, window_size=1, weights=None, close=None,
            fade_to="zero", **grid):
  """S_t = m_t S_{t-1} - r_t G_t, A_t = a_t A_{t-1} + S_t, y_t = f(W_t; q_t), with G_t taken at the base.

  Args:
    recall: the Recall; G_t is its gradient summed over the last window_size tokens; None is 1.
    momentum: None or False: S_t is -r_t G_t; True: from zero; a dict: S before the first token.
    weights: (A_t, A at the chunk's start) -> W_t; the base is W at the chunk's start. A_t itself by default.
    close: A -> A at a chunk's end.
    fade_to: "start" adds (1 - a_t) times the weights of the text's start to A_t.
    grid: chunk_size, write_T, reset_T.
  """
  (q_TK, k_TK, v_TM), initial = (arrays(x) for x in tokens), arrays(learned["fast"])
  weights = weights or (lambda fast, start: fast)
  has_momentum = bool(momentum)
  before = arrays(momentum) if isinstance(momentum, dict) else zeros(initial)

  def fresh():
    return {"fast": initial, "momentum": zeros(initial), "rows": []}

  def token(state, start, t, place):
    gate = at(gates, t)
    rows = [(k_TK[t], v_TM[t], gate), *state["rows"]][: window_size or 1]
    gradient = recall.window_gradient(weights(start, start), rows, gate)
    s, fast = {}, faded(state["fast"], initial, gate["retention"], fade_to)
    for name, g in gradient.items():
      s[name] = -gate["write_rate"] * g
      if has_momentum:
        s[name] = s[name] + gate["momentum"] * state["momentum"][name]
      fast[name] = fast[name] + s[name]
    return {"fast": fast, "momentum": s, "rows": rows}

  def read(state, start, t, place):
    return recall.read(weights(state["fast"], start), q_TK[t])

  def end(state, start):
    return state if close is None else state | {"fast": close(state["fast"])}

  out_TM, state = walk(
    len(q_TK), fresh() | {"momentum": before}, fresh=fresh, token=token, read=read, close=end, **grid
  )
  return Run(out_TM, state["fast"], state["momentum"] if has_momentum else {})
