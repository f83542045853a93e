"""Delta memory: writing a key replaces what the key recalled just before; exact for any chunk size.

  S_t = m_t S_{t-1} - r_t phi(k_t) (phi(k_t) W_{t-1} - v_t)^T
  W_t = a_t W_{t-1} + S_t
  y_t = phi(q_t) W_t

The error is that of the memory of the very token before, so the chunk size is a matter of speed alone. The
memory is linear in the errors before, hence a chunk's errors solve a triangular system: with mix, A and B the
weights of `ChunkDecay` in row t - 1 (at t = 0 none, 1 and 0),

  e_t + sum_{i < t} mix[t-1, i] (phi(k_i) . phi(k_t)) e_i = A[t-1] phi(k_t) W + B[t-1] phi(k_t) S - v_t

The matrix needs no memory and is inverted for all chunks at once, by diagonal blocks of doubling size: all
products of matrices, as precise as substitution, and at C = 64 and 96 values some seven times cheaper,
forward and backward on a CPU. (Summing powers of the matrix costs more and fails where keys are alike.)

Without momentum, S_t = -r_t grad: the gated delta rule, but for the error, which that rule takes after fading
(a_t W_{t-1}) and we before, as Titans does. Chunks report errors at their base, like those of other rules.

In a line: S = m S − r k (k W − v)ᵀ at W of the token before; W = a W + S; exact for any chunk size
Floats per head: 2 d²

Source: Yang et al. 2024, arXiv:2406.06484 and Gated DeltaNet, arXiv:2412.06464, whose beta is our write_rate;
momentum: Behrouz et al. 2025, Titans, arXiv:2501.00663, Eq. 9-14. The solution with momentum is ours.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from atlas_jax.memory import descent, features, nets, objectives
from atlas_jax.memory.types import ChunkOut, GateStarts, MemoryRule


class PreparedDelta(NamedTuple):
  """All of a chunk that needs no memory."""

  parts: descent.PreparedChunk
  before_C: jax.Array  # fraction of W in the memory before each token
  momentum_before_C: Any  # weight of S in it; () without momentum
  solve_CC: jax.Array  # what turns errors at the chunk's start, faded, into errors online

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) it lived; its norm fell from
# 5.5 to .23 within 4,096 tokens, its loss was .91 of that of answering zero.
STARTS = GateStarts(retention=0.9999, momentum=0.1, write_rate=0.2, write_rate_max=1.0)
WITHOUT_MOMENTUM = GateStarts(retention=0.9999, write_rate=0.5, write_rate_max=1.0)  # Half of the error.


def make(*, key_dim: int, value_dim: int, momentum: bool = True, fade_to: str = "zero",
         feature_map: str = "none", degree: int = 2, feature_dim: int = 16,
         cell_groups: int = 1) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    momentum: whether writes pass through a running sum gated by each token.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.
    feature_map, degree, feature_dim, cell_groups: how keys and queries are lifted, see `features.make`.

  Raises:
    ValueError: if an option is out of range.
  """
  lift = features.make(feature_map, key_dim=key_dim, degree=degree, feature_dim=feature_dim,
                       cell_groups=cell_groups)
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=lift.width, depth=1, expansion=1,
                 activation="identity", residual=False)
  form = descent.Descent(net, lift, objectives.l2, momentum, fade_to=fade_to)
  rule = descent.make(net, lift=lift, momentum=momentum, fade_to=fade_to,
                      starts=STARTS if momentum else WITHOUT_MOMENTUM)
  return rule._replace(step=functools.partial(step, form), prepare=functools.partial(prepare, form),
                       chunk=functools.partial(chunk, form), flops=functools.partial(flops, form))


def flops(form, chunk_size: int) -> float:
  """Counts the FLOPs of one token: those of descent, and the solve of its row."""
  return descent.flops(form, chunk_size) + 3 * chunk_size * form.lift.key_dim


def step(form, slow, state, base, token, gates, place):
  """Reads one token: descent from the memory as it is."""
  del base
  return descent.step(form, slow, state, state.fast, token, gates, place)


def prepare(form, slow, tokens, gates, write_C, position_C) -> PreparedDelta:
  """Does for a chunk all that needs no memory."""
  parts = descent.prepare(form, slow, tokens, gates, write_C, position_C)
  decay = parts.decay
  key_CP = descent.lifted_keys(parts)

  def earlier(x, first):
    # The memory that token t finds is the one after token t - 1; for the first it is the chunk's start.
    return jnp.concatenate([jnp.full_like(x[:1], first), x[:-1]])

  lower_CC = earlier(decay.mix_CC, 0) * (key_CP @ key_CP.T)
  momentum_before_C = earlier(decay.momentum_C, 0) if form.momentum else ()
  return PreparedDelta(parts, earlier(decay.fast_C, 1), momentum_before_C, unit_lower_inverse(lower_CC))


def unit_lower_inverse(lower_CC: jax.Array) -> jax.Array:
  """Inverts 1 + L, L strictly lower triangular, by diagonal blocks of doubling size."""
  size = lower_CC.shape[0]
  full = 1 << (size - 1).bit_length()
  lower = jnp.pad(lower_CC, ((0, full - size), (0, full - size)))
  inverse, side = jnp.ones((full, 1, 1), lower.dtype), 1  # of the diagonal blocks of that side
  while side < full:
    pair = np.arange(full // (2 * side), dtype=np.int32)
    # Two blocks A and D on the diagonal with B below A: their inverse has -D^-1 B A^-1 below A^-1.
    below = lower.reshape(pair.size, 2, side, pair.size, 2, side)[:, 1, :, :, 0][pair, :, pair]
    first = inverse[0::2]
    second = inverse[1::2]
    corner = -second @ below @ first
    left = jnp.concatenate([first, corner], axis=1)
    right = jnp.concatenate([jnp.zeros_like(corner), second], axis=1)
    inverse = jnp.concatenate([left, right], axis=2)
    side = 2 * side
  return inverse[0, :size, :size]


def chunk(form, slow, state, base, ready: PreparedDelta):
  """Reads a chunk; equal to `step` token by token, also from inside a grid chunk."""
  parts = ready.parts
  key_CP = descent.lifted_keys(parts)
  v_CM = parts.tokens.v
  decay = parts.decay
  recall = functools.partial(_recall, form, state)
  recalled_CM = recall(key_CP, ready.before_C, ready.momentum_before_C)
  # recalled - v is the right side of the system above: what errors would be if the chunk wrote nothing.
  error_CM = checkpoint_name(ready.solve_CC @ (recalled_CM - v_CM), "memory_grad")
  # For reports alone, at the base as with other rules. The errors that are written are the ones above.
  loss_C, grad_CM = form.objective(key_CP @ base["w0"], v_CM, parts.more)
  square_C = jax.lax.stop_gradient(jnp.sum(key_CP * key_CP, -1) * jnp.sum(grad_CM * grad_CM, -1))
  found = descent.Surprise({"w0": key_CP}, {"w0": error_CM}, jnp.sqrt(square_C), loss_C)
  read_CM = recall(descent.lifted_queries(parts), decay.fast_C, decay.momentum_C)
  out_CM = read_CM - parts.score_CC @ error_CM
  after = descent.write(form, state, found, decay, decay.mix_CC[-1], decay.surprise_CC[-1], state.kept)
  return after, ChunkOut(out_CM, found.norm_C, found.loss_C)


def _recall(form, state, x_CP, fast_C, momentum_C):
  """Recalls with the memory before the chunk as each token leaves it."""
  # Products are weighed, not keys: lifted ones are many times wider.

  def product(w_PM):
    return checkpoint_name(x_CP @ w_PM, "memory_product")

  out_CM = fast_C[:, None] * product(state.fast["w0"])
  if state.start != ():
    out_CM += (1 - fast_C)[:, None] * product(state.start["w0"])
  return out_CM + momentum_C[:, None] * product(state.momentum["w0"]) if form.momentum else out_CM
