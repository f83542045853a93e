"""LaCT memory: large chunks, each written by one orthogonalised step that keeps the weights' norms.

  f(x) = (silu(x @ gate) * (x @ up)) @ out,   l = -f(k) . v
  g = sum over the chunk of rates_i grad l(W; k_i, v_i), one rate for each of gate, up and out
  M' = beta M + g                             (without momentum: M' = g)
  W' = W - NS(M'), each column then brought back to its norm before
  y_t = f(W; q_t)

A column is what leads to one output; its fixed norm takes the place of retention. A chunk is read before it
is written ("apply then update"), so a layer needs attention at least as wide as the chunk beside it. beta is
the mean momentum gate of the chunk's tokens. NS is scaled as in `memory.muon`, and as there a decoded token
costs one orthogonalisation. State per head: the weights twice, three times with momentum, and 2 floats.

In a line: W ← W − NS(Σ_chunk r ∇(−f(k)·v)), column norms kept
Floats per head: 2 w

Source: Zhang et al. 2025, Test-Time Training Done Right, arXiv:2505.23884, section 3.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory import descent, features, muon, nets, objectives
from atlas_jax.memory import flops as formulas
from atlas_jax.memory.types import ChunkOut, GateSpec, MemoryRule, MemoryState

ORDER = ("gate", "up", "out")


class LaCTExtra(NamedTuple):
  """Sums over the chunk's tokens so far."""

  moved: Any  # like fast: gradients times rates
  momentum_sum: jax.Array  # [] of momentum gates
  number: jax.Array  # [] float, of tokens


def make(*, key_dim: int, value_dim: int, expansion: float = 1, activation: str = "silu", ns_steps: int = 5,
         momentum: bool = False) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    expansion: hidden width over value_dim.
    activation: of the gate: "silu", "gelu" (tanh form), "relu2" or "identity".
    ns_steps: Newton-Schulz iterations; more bring the singular values nearer to 1.
    momentum: whether a chunk's sum is added to that of the chunks before.

  Raises:
    ValueError: if an option is out of range.
  """
  muon.check_steps(ns_steps)
  net = nets.gated(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, expansion=expansion,
                   activation=activation, residual=False)
  lift = features.make("none", key_dim=key_dim)
  form = descent.Descent(net, lift, objectives.dot, momentum, reads="chunk")

  def bind(function):
    return functools.partial(function, form)

  return MemoryRule(
      init=bind(descent.init), start=bind(_start), apply=bind(descent.apply), step=bind(_step),
      chunk=bind(_chunk), close=functools.partial(_close, ns_steps),
      # NS undoes a common factor: rates weigh a chunk's tokens against each other, and with momentum against
      # those of the chunks before.
      gates=(GateSpec("rates", len(ORDER), "softplus", 0.01),), uses=("log_momentum",) if momentum else (),
      reads="chunk", aims="direction", flops=functools.partial(_flops, form, ns_steps))


def _flops(form, ns_steps, chunk_size):
  turned = formulas.orthogonalization(form.net, ns_steps=ns_steps, tokens=chunk_size)
  return descent.flops(form._replace(momentum=False), chunk_size) + turned


def _start(form, learned):
  state = descent.start(form, learned)
  zero = jnp.zeros((), jax.tree.leaves(learned.fast)[0].dtype)
  return state._replace(kept=LaCTExtra(jax.tree.map(jnp.zeros_like, learned.fast), zero, zero))


def _step(form, slow, state, base, token, gates, place):
  del place
  grad = descent.token_gradient(form, slow, base, token.k, token.v, gates.more)
  moved = {name: state.kept.moved[name] + gates.more["rates"][i] * grad[name] for i, name in enumerate(ORDER)}
  kept = LaCTExtra(moved, state.kept.momentum_sum + gates.momentum, state.kept.number + 1)
  return state._replace(kept=kept), descent.apply(form, slow, base, token.q)


def _chunk(form, slow, state, base, prepared):
  tokens, gates, write_C, _ = prepared
  found = descent.surprise(form, slow, base, tokens.k, tokens.k, tokens.v, gates.more)
  real_C = write_C.astype(gates.momentum.dtype)
  rate_C3 = gates.more["rates"] * real_C[:, None]
  # One product per weight sums the outer products of all tokens.
  moved = {name: state.kept.moved[name] + found.inputs[name].T @ (rate_C3[:, i, None] * found.grads[name])
           for i, name in enumerate(ORDER)}
  kept = LaCTExtra(moved, state.kept.momentum_sum + gates.momentum @ real_C,
                   state.kept.number + jnp.sum(real_C))
  out_CM = descent.apply(form, slow, base, tokens.q)
  return state._replace(kept=kept), ChunkOut(out_CM, found.norm_C, found.loss_C)


def _close(ns_steps, slow, state, base):
  """Takes the chunk's step; nothing if no token was real."""
  del slow, base
  moved = state.kept.moved
  count = state.kept.number
  if state.momentum != ():
    # With no real token the sum is 0 and beta 1: the momentum stays, too.
    beta = jnp.where(count > 0, state.kept.momentum_sum / jnp.maximum(count, 1), 1)
    moved = jax.tree.map(lambda m, g: beta * m + g, state.momentum, moved)
  fast = jax.tree.map(lambda w, m: jnp.where(count > 0, _turned(w, w - muon.orthogonalize(m, ns_steps)), w),
                      state.fast, moved)
  return MemoryState(fast, moved if state.momentum != () else (), jax.tree.map(jnp.zeros_like, state.kept))


def _turned(old, new):
  """Brings each column of a weight to the norm it had."""

  def size(w):
    return muon.norm(jnp.sum(w * w, 0, keepdims=True))

  # NS has one norm whatever the gradient's: steps that never shrink would have weights grow without end.
  return new * size(old) / jnp.maximum(size(new), 1e-7)
