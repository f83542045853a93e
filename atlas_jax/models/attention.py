"""Sliding-window attention with rotary positions and a state of fixed size."""
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.kernels.local_attention import local_attention
from atlas_jax.kernels.local_attention.reference import near
from atlas_jax.memory.layer import NO_DOC, last_valid
from atlas_jax.memory.projections import dense
from atlas_jax.models import ring, rope
from atlas_jax.models.layers import HeadsOut, scaled_normal

# Axes of its leaves that are split over `tensor`, see `models.placement`.
TENSOR_AXES = (
    (r"blocks(_\d+)?/attention/qkv_kernel", (-2,)),  # D, H, queries keys and values
    (r"attention/out/kernel", (-3,)))  # H, K, D


class AttentionState(NamedTuple):
  """The last window of keys and values, before rotation; every leaf leads with B."""

  k: object  # [B, W, H, K]
  v: object  # [B, W, H, K]
  doc: object  # [B, W] document of each row, NO_DOC where there is none


class LocalAttention(nn.Module):
  """Attends to the last `window_tokens` tokens of the same document.

  Attributes:
    heads: attention heads; they share the input's width evenly.
    window_tokens: how far a token sees, itself included.
    out_scale: factor on the initial output weights.
    impl: form of the kernel.
  """

  heads: int
  window_tokens: int
  out_scale: float = 1.0
  impl: str = "auto"

  def zero_state(self, rows: int, width: int, dtype) -> AttentionState:
    """Returns the state before any token."""
    shape = (rows, self.window_tokens, self.heads, width // self.heads)
    doc = jnp.full(shape[:2], NO_DOC, jnp.int32)
    return AttentionState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), doc)

  @nn.compact
  def __call__(self, x_BTD, state, doc_BT, count_B, seen_tokens=None, at=None):
    """Reads T tokens.

    Args:
      x_BTD: the layer's input.
      state: what an earlier call returned, or `zero_state`; or a `ring.Ring`, for one token.
      doc_BT: document of each token, -1 at padding.
      count_B: how many of the T tokens are real; None: all.
      seen_tokens: [] int32, how many of the window's tokens it sees, see the kernel. Traced. None: all.
      at: `ring.RingPlace` of the token, where the state is a ring.

    Returns:
      out_BTD, the new state (of a ring `ring.NewToken`), and qkv_BTHE: queries, keys and values side by side,
      before rotation.
    """
    length, width = x_BTD.shape[1:]
    shape = (width, self.heads, 3 * (width // self.heads))
    kernel = self.param("qkv_kernel", scaled_normal(1.0), shape, jnp.float32)
    qkv_BTHE = dense(x_BTD, kernel)
    q_BTHK, k_BTHK, v_BTHK = jnp.split(qkv_BTHE, 3, axis=-1)

    if isinstance(state, ring.Ring):
      out_BHK, new = ring.attend(state, at, q_BTHK[:, 0], k_BTHK[:, 0], v_BTHK[:, 0])
      return HeadsOut(width, self.out_scale, name="out")(out_BHK[:, None]), new, qkv_BTHE

    def join(tail, new):
      return jnp.concatenate([tail.astype(new.dtype), new], axis=1)

    k_BSHK = join(state.k, k_BTHK)
    v_BSHK = join(state.v, v_BTHK)
    doc_BS = join(state.doc, doc_BT)
    if length == 1 and self.impl == "auto":
      out_BTHK = _attend_next(q_BTHK, k_BSHK[:, 1:], v_BSHK[:, 1:], doc_BT, doc_BS[:, 1:], seen_tokens)
    else:
      # Keys are kept unrotated and rotated anew by their row at hand: attention sees distances alone, and
      # however long the text is, angles stay those of W + T rows, which float32 tells apart.
      cos, sin = cos_sin(k_BSHK.shape[1], k_BSHK.shape[3], k_BSHK.dtype)
      q_BTHK = rope.apply_rope(q_BTHK, cos[:, -length:], sin[:, -length:])
      k_BSHK = rope.apply_rope(k_BSHK, cos, sin)
      out_BTHK = local_attention(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, window_tokens=self.window_tokens,
                                 seen_tokens=seen_tokens, impl=self.impl)
    # Rows of other documents stay among the last W and are masked by `doc`: the shape never changes.
    ends = (last_valid(old, new, count_B) for old, new in zip(state, (k_BTHK, v_BTHK, doc_BT), strict=True))
    return HeadsOut(width, self.out_scale, name="out")(out_BTHK), AttentionState(*ends), qkv_BTHE


def _attend_next(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, seen_tokens):
  """Attends from one new token of each row, the last of S, as `local_attention` with rotated keys does.

  The query is rotated by the lag of each key: the products are the same, and the keys stay as they are. On a
  CPU a token of 8 rows, 7 heads and 256 keys takes a sixth of the time so, one of a single row a third.
  """
  rows, window, heads, size = k_BSHK.shape
  wide = tree.accumulation_dtype(q_BTHK.dtype)
  lag_S = jnp.arange(window - 1, -1, -1)
  frequencies = rope.inverse_frequencies(size, ring.ROPE_BASE, dtype=wide)
  cos, sin = (part[None, :, None] for part in rope.cos_sin(lag_S, *frequencies, wide))
  rotated_BSHK = rope.apply_rope(jnp.broadcast_to(q_BTHK.astype(wide), k_BSHK.shape), cos, sin)
  seen_BS = (doc_BS == doc_BT) & near(lag_S, window, seen_tokens)[None]
  # Of several rows products and sums in one pass are faster, since no operand is laid out anew; of one row
  # they would be made by a single thread.
  if rows > 1:
    scores_BSH = jnp.sum(rotated_BSHK * k_BSHK.astype(wide), axis=-1)
  else:
    scores_BSH = jnp.einsum("bshk,bshk->bsh", rotated_BSHK, k_BSHK.astype(wide))
  scores_BSH = jnp.where(seen_BS[..., None], scores_BSH * jnp.asarray(size**-0.5, wide), -1e30)
  weights_BSH = jax.nn.softmax(scores_BSH, axis=1)
  if rows > 1:
    out_BHK = jnp.sum(weights_BSH[..., None] * v_BSHK.astype(wide), axis=1)
  else:
    out_BHK = jnp.einsum("bsh,bshk->bhk", weights_BSH, v_BSHK.astype(wide))
  return out_BHK.reshape(rows, 1, heads, size).astype(q_BTHK.dtype)


def cos_sin(rows: int, size: int, dtype):
  """Returns cosine and sine of the rows at hand, counted from the oldest, never from a text's start."""
  frequencies = rope.inverse_frequencies(size, ring.ROPE_BASE, dtype=tree.accumulation_dtype(dtype))
  return tuple(part[None, :, None] for part in rope.cos_sin(jnp.arange(rows), *frequencies, dtype))
