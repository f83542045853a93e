"""Delta rules that fade first: the scaffold of gated_delta, kda and gated_delta_2.

  F_t = diag(keep_t) W_{t-1}
  e_t = (erase_t * k_t) F_t - write_t * v_t
  W_t = F_t - k_t e_t^T
  y_t = q_t W_t

`*` is by element; keep and erase are numbers or have one per channel of keys, write is a number or has one
per channel of values. The error is that of the memory as it has faded, which is what tells these rules from
`rules.delta`. Errors are linear in those before, hence a chunk's errors solve a triangular system: with D the
products of `decayed_products` for rows erase_t * k_t, and p_t what all gates up to t keep,

  e_t + sum_{i < t} D[t, i] e_i = (p_t * erase_t * k_t) W - write_t * v_t

so that the size of a chunk is a matter of speed alone. Chunks report surprise and loss of the plain recall,
k W - v, at their base.
"""
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from atlas_jax.memory.decayed_products import decayed_products
from atlas_jax.memory.gates import decay_matrix
from atlas_jax.memory.rules.delta import unit_lower_inverse
from atlas_jax.memory.types import ChunkOut, Gates, Learned, MemoryRule, MemoryState, Token


class FadingGates(NamedTuple):
  """Gates of one token, or of a chunk's with a leading C."""

  log_keep: jax.Array  # [], or [K] for each channel of keys; at most 0
  erase: jax.Array  # [] or [K]
  write: jax.Array  # [] or [M]


class FadingForm(NamedTuple):
  """Settings of one rule."""

  key_dim: int
  value_dim: int
  gates: Callable  # Gates -> FadingGates


class PreparedFading(NamedTuple):
  """All of a chunk that needs no memory."""

  tokens: Token
  row_2CK: jax.Array  # erased keys and queries, as they meet the memory before the chunk
  key_CK: jax.Array  # keys as they stand at its end
  keep: jax.Array  # [] or [K], what of the memory before stays
  value_CM: jax.Array  # written values
  solve_CC: jax.Array  # what turns errors of the memory before, faded, into errors online
  score_CC: jax.Array  # products of queries with keys


def make(form: FadingForm, **rule_fields) -> MemoryRule:
  """Makes a rule; `rule_fields` are fields of MemoryRule to replace."""
  def bind(function):
    return functools.partial(function, form)

  rule = MemoryRule(init=bind(init), step=bind(step), prepare=bind(prepare), chunk=bind(chunk), apply=apply,
                    flops=bind(flops))
  return rule._replace(**rule_fields)


def init(form: FadingForm, key) -> Learned:
  """Draws the learned start: unit gain."""
  shape = (form.key_dim, form.value_dim)
  return Learned({"w0": jax.random.normal(key, shape, jnp.float32) / math.sqrt(form.key_dim)}, {})


def apply(slow, base, x_K):
  """Recalls what is stored under a query; leading axes are free."""
  del slow
  return x_K @ base["w0"]


def flops(form: FadingForm, chunk_size: int) -> float:
  """Counts the FLOPs of one token: 6 K M of errors, writes and reads; in the chunk 4 C K + 3 C M."""
  within = 4 * form.key_dim + 3 * form.value_dim
  return 6.0 * form.key_dim * form.value_dim + chunk_size * within


def step(form: FadingForm, slow, state: MemoryState, base, token: Token, gates: Gates, place):
  """Reads one token: the plain form."""
  del slow, base, place
  gate = form.gates(gates)
  faded_KM = jnp.exp(gate.log_keep).reshape(-1, 1) * state.fast["w0"]
  error_M = (gate.erase * token.k) @ faded_KM - gate.write * token.v
  fast_KM = faded_KM - jnp.outer(token.k, error_M)
  return state._replace(fast={"w0": fast_KM}), token.q @ fast_KM


def _over(gate_C, x_CE):
  """Multiplies rows by gates of one number, or of one number per channel."""
  return (gate_C[:, None] if gate_C.ndim == 1 else gate_C) * x_CE


def prepare(form: FadingForm, slow, tokens: Token, gates: Gates, write_C, position_C) -> PreparedFading:
  """Does for a chunk all that needs no memory."""
  del slow, position_C
  gate = form.gates(gates)
  mask_C = write_C.astype(gate.write.dtype)
  # Erased keys and queries are faded alike and meet the same keys: as one array they cost half of the fading.
  row_2CK = jnp.stack([_over(mask_C, _over(gate.erase, tokens.k)), tokens.q])
  if gate.log_keep.ndim == 1:  # One number for all channels needs no blocks: products are weighed afterwards.
    score_2CC, row_2CK, key_CK, keep = _alike_products(row_2CK, tokens.k, gate.log_keep * mask_C)
  else:
    # A token of padding keeps all: its key stands for nothing, since its error is zero.
    keep_CK = jnp.exp(gate.log_keep * mask_C[:, None])
    score_2CC, row_2CK, key_CK, keep = decayed_products(row_2CK, tokens.k, keep_CK)
  solve_CC = _inverse(jnp.tril(score_2CC[0], -1))
  return PreparedFading(Token(tokens.q, tokens.k, tokens.v), row_2CK, key_CK, keep,
                        _over(mask_C, _over(gate.write, tokens.v)), solve_CC, score_2CC[1])


def _alike_products(row_2CK, key_CK, log_keep_C):
  """Returns what `decayed_products` does, for channels that fade alike."""
  decay_CC = decay_matrix(log_keep_C)
  before_C = jnp.exp(jnp.cumsum(log_keep_C))
  score_2CC = (row_2CK @ key_CK.T) * decay_CC[None]
  return score_2CC, row_2CK * before_C[None, :, None], key_CK * decay_CC[-1][:, None], before_C[-1]


@jax.custom_vjp
def _inverse(lower_CC):
  """Inverts 1 + L; the gradient needs the inverse alone."""
  # By differentiation of the blocks of doubling size, every level would be kept or computed again.
  return unit_lower_inverse(lower_CC)


def _inverse_forward(lower_CC):
  inverse_CC = checkpoint_name(unit_lower_inverse(lower_CC), "memory_product")
  return inverse_CC, inverse_CC


def _inverse_back(inverse_CC, grad_CC):
  return (-jnp.tril(inverse_CC.T @ grad_CC @ inverse_CC.T, -1),)


_inverse.defvjp(_inverse_forward, _inverse_back)


def chunk(form: FadingForm, slow, state: MemoryState, base, ready: PreparedFading):
  """Reads a chunk; equal to `step` token by token, also from inside a grid chunk."""
  del form, slow
  fast_KM = state.fast["w0"]
  # The only products with the memory: what follows is of the chunk's own tokens.
  before_2CM = checkpoint_name(ready.row_2CK @ fast_KM, "memory_product")
  error_CM = checkpoint_name(ready.solve_CC @ (before_2CM[0] - ready.value_CM), "memory_grad")
  out_CM = before_2CM[1] - ready.score_CC @ error_CM
  fast_KM = ready.keep.reshape(-1, 1) * fast_KM - ready.key_CK.T @ error_CM
  norm_C, loss_C = _report(base, ready.tokens)
  return state._replace(fast={"w0": fast_KM}), ChunkOut(out_CM, norm_C, loss_C)


def _report(base, tokens: Token) -> tuple[Any, Any]:
  """Returns the norm of each token's gradient of the recall loss at the base, and that loss."""
  error_CM = tokens.k @ base["w0"] - tokens.v
  square_C = jnp.sum(error_CM * error_CM, -1)
  # A metric: the root has no gradient at 0.
  norm_C = jnp.sqrt(jax.lax.stop_gradient(square_C * jnp.sum(tokens.k * tokens.k, -1)))
  return norm_C, 0.5 * square_C
