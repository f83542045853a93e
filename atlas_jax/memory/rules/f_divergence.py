"""f-divergence memory: weights are positive masses, grown and shrunk by multiplication once per chunk.

  u = - sum over the chunk's tokens of r_i clip(grad_W l(W; k_i, v_i))
  W' = W * g(u), then each column brought to a times its old sum and 1 - a times its first one, a the product
       of the chunk's retentions
  y_t = f(W; q_t)

g is the inverse gradient of the divergence that holds W' near W: "kl" exp(u); "chi2" max(1 + u / 2, 1e-3);
"hellinger" 1 / (1 - min(u, 0.9))^2. A column holds the inputs of one output. `fast` stands still within a
chunk; `kept` carries u and the product of retentions so far, so that the state is twice the net's weights
and one number. The paper finds the columns' multiplier (its zeta) from the constraint on their mass and
steps every token; rescaling, the bounds of g and the retention of masses are ours. f is an MLP; l is half
the squared error; `surprise_max` is ours, see `rules.titans`.

Retention draws masses to those of the text's start, where they are already: there is no gate for it. Drawn
to zero (fade_to="zero") weights fade. In the
paper f is layer-normed and added to its input (norm="layer", residual=True); with keys and values of norm
one, reads are then longer than values by the root of their width, and the loss stays above that of answering
zero. Weights of one sign need the centring: our norm, "unit", gives reads the length of values.

In a line: W ← W · g(−Σ r ∇l) at a chunk's end, mass kept
Floats per head: 2 w

Source: Behrouz et al. 2025, Miras, arXiv:2504.13173, section 4 (f-divergence retention).
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory import descent, features, nets, objectives
from atlas_jax.memory.types import ChunkOut, Gates, GateStarts, Learned, MemoryRule, MemoryState, Token

# Known but for a factor of each column, which rescaling takes back.
GROWTH = {
    # The largest is 1, so that no sum of gradients makes exp overflow.
    "kl": lambda u_PF: jnp.exp(u_PF - _largest(u_PF)),
    "chi2": lambda u_PF: jnp.maximum(1 + u_PF / 2, 1e-3),  # Below u = -2 a mass would be negative.
    "hellinger": lambda u_PF: (1 - jnp.minimum(u_PF, 0.9)) ** -2,  # A pole at u = 1.
}
LEAST = 1e-15  # A weight of 0 could never grow again, and float32 must hold a column's mass to the power -2.


class Unfinished(NamedTuple):
  """The sum of a chunk's gradients so far."""

  moves: Any  # u, like fast
  retention: jax.Array  # [] product of the retentions


class PreparedDivergence(NamedTuple):
  """All of a chunk that needs no memory."""

  tokens: Token
  rate_C: jax.Array  # write rates, 0 at padding
  retention: jax.Array  # [] product of the real tokens' retentions

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) weights fell from a norm of
# 13 to 2e-8 within 4,096 tokens and no write moved a read again.
STARTS = GateStarts(retention=0.9999, write_rate=0.2, write_rate_max=1.0)


def make(*, key_dim: int, value_dim: int, divergence: str = "kl", depth: int = 2, expansion: float = 4,
         activation: str = "gelu", norm: str | None = "unit", residual: bool = False,
         surprise_max: float | None = None, fade_to: str = "start") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    divergence: "kl", "chi2" or "hellinger"; see the module.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    norm: of the memory's output before the key is added: None, "layer", as in the paper, "affine" (with a
      learned scale and bias), or "unit" (as long as values).
    residual: whether the memory's output is added to its input.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  if divergence not in GROWTH:
    raise ValueError(f"{nets.FIELD}.divergence={divergence!r} is unknown; known are {', '.join(GROWTH)}")
  objectives.check_bound(surprise_max)
  descent.check_fade(fade_to)
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual, norm=norm)
  form = descent.Descent(net, features.make("none", key_dim=key_dim), objectives.l2, momentum=False,
                         surprise_max=surprise_max, reads="chunk", fade_to=fade_to)

  def bind(function):
    return functools.partial(function, form)

  return MemoryRule(
      init=bind(_init), start=bind(_start), apply=bind(descent.apply), step=bind(_step), prepare=_prepare,
      chunk=bind(_chunk), close=functools.partial(_close, GROWTH[divergence]),
      uses=("write_rate",) if fade_to == "start" else ("log_retention", "write_rate"), reads="chunk",
      starts=STARTS, flops=bind(descent.flops))


def _init(form, key):
  learned = descent.init(form, key)
  # Growth by multiplication never changes a sign: masses must start positive.
  return learned._replace(fast=jax.tree.map(jnp.abs, learned.fast))


def _start(form, learned: Learned):
  one = jnp.ones((), jax.tree.leaves(learned.fast)[0].dtype)
  kept = Unfinished(jax.tree.map(jnp.zeros_like, learned.fast), one)
  return MemoryState(learned.fast, (), kept, learned.fast if form.fade_to == "start" else ())


def _step(form, slow, state: MemoryState, base, token: Token, gates: Gates, place):
  del place
  grad = descent.token_gradient(form, slow, base, token.k, token.v, gates.more)
  moves = jax.tree.map(lambda u, g: u - gates.write_rate * g, state.kept.moves, grad)
  kept = Unfinished(moves, state.kept.retention * gates.retention)
  return state._replace(kept=kept), descent.apply(form, slow, base, token.q)


def _prepare(slow, tokens: Token, gates: Gates, write_C, position_C):
  del slow, position_C
  write_C = write_C.astype(gates.write_rate.dtype)
  return PreparedDivergence(tokens, gates.write_rate * write_C,
                            jnp.exp(jnp.sum(gates.log_retention * write_C)))


def _chunk(form, slow, state: MemoryState, base, ready: PreparedDivergence):
  tokens = ready.tokens
  found = descent.surprise(form, slow, base, tokens.k, tokens.k, tokens.v, ())
  moves = descent.add_gradients(state.kept.moves, found, ready.rate_C)
  after = state._replace(kept=Unfinished(moves, state.kept.retention * ready.retention))
  return after, ChunkOut(descent.apply(form, slow, base, tokens.q), found.norm_C, found.loss_C)


def _largest(x_PF):
  return jax.lax.stop_gradient(jnp.max(x_PF, axis=0, keepdims=True))


def _close(growth, slow, state: MemoryState, base):
  del slow, base

  def grow(w_PF, u_PF, left_PF):
    factor_PF = growth(u_PF)
    # A column is divided by its sum below: with a largest factor of 1 and masses of LEAST or more, that sum
    # neither overflows nor vanishes.
    grown_PF = w_PF * (factor_PF / _largest(factor_PF))
    mass_1F, left_1F = (jnp.sum(x, axis=0, keepdims=True) for x in (grown_PF, left_PF))
    return jnp.maximum(grown_PF * (left_1F / mass_1F), LEAST)

  fast = jax.tree.map(grow, state.fast, state.kept.moves, descent.faded(state, state.kept.retention))
  kept = Unfinished(jax.tree.map(jnp.zeros_like, fast), jnp.ones_like(state.kept.retention))
  return state._replace(fast=fast, kept=kept)
