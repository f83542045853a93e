"""The gated delta net of pretrained hybrid models: a memory of one matrix per head in the place of attention.

Queries, keys and values pass one projection and a short causal convolution; keys and queries have unit norm;
heads of values may share those of keys. The memory is `rules.gated_delta`, where the log of what stays is
-exp(A) softplus(x W_a + b) and the write rate sigmoid(x W_r). Reads are normalised and gated before they are
brought back to the width.

Source: Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464, section 3.4, as Qwen3.5 and Qwen3-Next have it.
"""
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory import rules, scan
from atlas_jax.memory.norms import l2_normalize, rms_normalize
from atlas_jax.memory.projections import causal_conv, conv_mask
from atlas_jax.memory.types import Gates, Learned, Token
from atlas_jax.models.decoder import Projection, out_scale

# Axes of its leaves that are split over `tensor`, see `models.placement`.
TENSOR_AXES = (
    (r"delta/(qkv)/kernel", (-1,)),  # D, channels
    (r"delta/(gate|rate|decay)/kernel", (-1, -2)),  # D, H, M or D, H
    (r"delta/out/kernel", (-3,)))  # H, M, D
NO_DOC = -2  # the document of a row that has read nothing
SHUT = -1e4  # the log of what stays where a document begins: nothing does


class DeltaState(NamedTuple):
  """State of one layer, of fixed size however long the text."""

  fast_BHKM: jax.Array  # float32
  tail_BSE: jax.Array  # last inputs of the convolution


class GatedDeltaNet(nn.Module):
  """Reads and writes a memory at every token; real tokens stand first in their rows.

  Attributes:
    shape: the fields of the `HybridDecoder`.
  """

  shape: Mapping

  @nn.compact
  def __call__(self, x_BTD, past: DeltaState, doc_BT, last_doc_B):
    """Reads T tokens of each row.

    Args:
      x_BTD: the layer's input.
      past: the state before them.
      doc_BT: document of each token, -1 at padding, which stands behind all others.
      last_doc_B: the document whose state `past` is, NO_DOC for none.

    Returns:
      [B, T, D], and the state after the last real token.
    """
    shape = self.shape
    wide = tree.accumulation_dtype(x_BTD.dtype)
    heads, width = shape["value_heads"], shape["value_dim"]
    keys = shape["key_heads"] * shape["key_dim"]
    x_BTE = Projection((2 * keys + heads * width,), name="qkv")(x_BTD)
    taps_SE1 = self.param("conv", nn.initializers.normal(0.5), (shape["conv_taps"], x_BTE.shape[-1], 1),
                          jnp.float32)
    mask_BTS = conv_mask(doc_BT, last_doc_B, shape["conv_taps"] - 1)
    mixed_BTE = causal_conv(x_BTE[:, :, None], past.tail_BSE[:, :, None],
                            jnp.moveaxis(taps_SE1, 2, 1).astype(x_BTE.dtype), mask_BTS)[:, :, 0]
    q_BTE, k_BTE, v_BTE = jnp.split(jax.nn.silu(mixed_BTE), [keys, 2 * keys], axis=-1)
    q_BTHK, k_BTHK = (self._of_keys(x) for x in (q_BTE, k_BTE))
    v_BTHM = v_BTE.reshape(*v_BTE.shape[:2], heads, width).astype(wide)
    log_keep_BTH, rate_BTH = self._gates(x_BTD, wide)
    # A document begins on an empty memory: nothing stays of the one before it, in the same row of the scan.
    before_BT = jnp.concatenate([last_doc_B[:, None], doc_BT[:, :-1]], axis=1)
    log_keep_BTH = jnp.where((before_BT != doc_BT)[..., None], SHUT, log_keep_BTH)
    tokens = Token(q_BTHK * shape["key_dim"] ** -0.5, k_BTHK, v_BTHM)
    out_BTHM, fast_BHKM = recall(tokens, log_keep_BTH, rate_BTH, doc_BT >= 0, past.fast_BHKM)
    scale_M = self.param("norm", nn.initializers.ones, (width,), jnp.float32)
    normal_BTHM = rms_normalize(out_BTHM, eps=shape["norm_eps"]) * scale_M[None, None, None]
    gate_BTHM = Projection((heads, width), name="gate")(x_BTD)
    gated_BTHM = (normal_BTHM * jax.nn.silu(gate_BTHM.astype(wide))).astype(x_BTD.dtype)
    out = Projection((x_BTD.shape[-1],), n_in=2, scale=out_scale(shape), name="out")
    return out(gated_BTHM), DeltaState(fast_BHKM, _tail(past.tail_BSE, x_BTE, doc_BT >= 0))

  def _of_keys(self, x_BTE):
    """Splits keys or queries into heads of norm one, each for its heads of values."""
    shape = self.shape
    x_BTHK = x_BTE.reshape(*x_BTE.shape[:2], shape["key_heads"], shape["key_dim"])
    return jnp.repeat(l2_normalize(x_BTHK), shape["value_heads"] // shape["key_heads"], axis=2)

  def _gates(self, x_BTD, wide):
    """Returns the log of what stays and the write rate, float32 or wider."""
    heads = self.shape["value_heads"]
    # Half-lives at the start: A in 1..16 and a step near .01 leave between .85 and .99 per token.
    log_rate_H = self.param("log_rate", lambda _: jnp.log(jnp.linspace(1.0, 16.0, heads)))
    bias_H = self.param("bias", nn.initializers.constant(-4.6), (heads,), jnp.float32)
    step_BTH = Projection((heads,), name="decay")(x_BTD).astype(wide) + bias_H[None, None]
    rate_BTH = jax.nn.sigmoid(Projection((heads,), name="rate")(x_BTD).astype(wide))
    return -jnp.exp(log_rate_H)[None, None] * jax.nn.softplus(step_BTH), rate_BTH


def recall(tokens: Token, log_keep_BTH, rate_BTH, write_BT, fast_BHKM, *, most_chunk: int = 64):
  """Reads with the gated delta rule, by chunks.

  Args:
    tokens: of [B, T, H, ...].
    log_keep_BTH, rate_BTH: the log of what stays, and the write rate.
    write_BT: whether a token is real.
    fast_BHKM: the memories before the first one.
    most_chunk: tokens of a chunk; changes speed only.

  Returns:
    (reads [B, T, H, M], the memories after the last real token).
  """
  length = write_BT.shape[1]
  chunk = min(length, most_chunk)
  more = -length % chunk
  rule = rules.load("gated_delta", key_dim=tokens.k.shape[-1], value_dim=tokens.v.shape[-1], chunk_size=chunk)

  def by_head(x):
    return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2))), 2, 1)

  def head(tokens, log_keep_T, rate_T, fast_KM, write_T):
    # The rule starts from what it is told: here the memory as the last call left it.
    learned = Learned({"w0": fast_KM}, {})
    gates = Gates(log_keep_T, jnp.zeros_like(log_keep_T), rate_T)
    reset_N = jnp.zeros((write_T.shape[0] // chunk,), bool)
    memory, out = scan.scan_packed(rule, rule.start(learned), learned, tokens, gates, write_T, reset_N,
                                   chunk_size=chunk)
    return out.out_CM, memory.fast["w0"]

  rows = jax.vmap(jax.vmap(head, in_axes=(0, 0, 0, 0, None)))
  write_BS = jnp.pad(write_BT, ((0, 0), (0, more)))
  out_BHTM, fast_BHKM = rows(jax.tree.map(by_head, tokens), by_head(log_keep_BTH), by_head(rate_BTH),
                             fast_BHKM, write_BS)
  return jnp.moveaxis(out_BHTM, 1, 2)[:, :length], fast_BHKM


def _tail(tail_BSE, x_BTE, real_BT):
  """Returns the last S rows of a tail and the real rows behind it."""
  both_BSE = jnp.concatenate([tail_BSE, x_BTE.astype(tail_BSE.dtype)], axis=1)
  size = tail_BSE.shape[1]
  count_B = jnp.sum(real_BT, axis=1, dtype=jnp.int32)
  return jax.vmap(lambda rows, at: jax.lax.dynamic_slice_in_dim(rows, at, size))(both_BSE, count_B)
