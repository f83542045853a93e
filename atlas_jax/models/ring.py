"""The window of attention while a text is written: a ring of slots, of which each token overwrites one.

A window as `attention.AttentionState` holds it moves up by one with every token, which passes over all of it
in each block. Here the token of place p stays in slot p mod W, its key turned by the angle of its slot, and
the query of place p is turned by p mod W. Slots after the query's were filled a turn before: for them it is
turned by W more, so that the angle between the two is again that of their distance, and none passes 2 W.
Products with keys and values are then plain ones, of arrays that lie as they are.

Blocks read their ring and return the new token's key and value alone; `written` puts those of all blocks into
their slots at the end, in place where the state is given away. Only the distance of its own tokens and where
its text began to be written decide in which slots a row has what, never what other rows do.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.kernels.local_attention.reference import near
from atlas_jax.models import rope

ROPE_BASE = 10_000.0


class Ring(NamedTuple):
  """Keys and values of one block, or of a stack of them with a leading L."""

  k: Any  # [B, H, W, K], turned by their slots
  v: Any  # [B, H, W, K]


class NewToken(NamedTuple):
  """Key and value of the token that a block has read, of one block or with a leading L."""

  k: Any  # [B, H, K], turned by its slot
  v: Any  # [B, H, K]


class Rings(NamedTuple):
  """The rings of all blocks; a token has the same slot in each."""

  stacks: Any  # list of a Ring with a leading L for each stack of blocks; () where they have no attention
  slot: Any  # [B] int32, of the next token
  here: Any  # [B, W] bool, whether a slot has a token of the row's text


ROW_AXES = Rings(1, 0, 0)  # Which axis of its leaves counts rows.


class RingPlace(NamedTuple):
  """All that the blocks share when they read a token."""

  own_BW: jax.Array  # its slot
  later_BW: jax.Array  # slots filled a turn before
  seen_BW: jax.Array
  cos: jax.Array  # [B, 2, 1, K/2], of its slot, and of W slots on
  sin: jax.Array


def of_windows(windows, doc_B, lengths) -> Rings:
  """Puts windows into rings, the oldest token into slot 0.

  Args:
    windows: `AttentionState` of all blocks, leaves [B, L, W, ...].
    doc_B: document of each row's text.
    lengths: range of blocks with attention of each stack.
  """
  window, size = windows.k.shape[2], windows.k.shape[4]
  cos, sin = _cos_sin(jnp.arange(window, dtype=jnp.int32), size, windows.k.dtype)

  def turned(x, *angles):
    x_LBHWK = jnp.transpose(x, (1, 0, 3, 2, 4))
    return rope.apply_rope(x_LBHWK, *(part[None, None, None] for part in angles)) if angles else x_LBHWK

  k_LBHWK = turned(windows.k, cos, sin)
  v_LBHWK = turned(windows.v)
  stacks = [Ring(k_LBHWK[part.start:part.stop], v_LBHWK[part.start:part.stop]) if part else ()
            for part in lengths]
  # Blocks have read the same tokens, so that the first one tells where each stands.
  return Rings(stacks, jnp.zeros(doc_B.shape, jnp.int32), windows.doc[:, 0] == doc_B[:, None])


def place(rings: Rings, size: int, dtype, seen_tokens=None) -> RingPlace:
  """Returns what the next token's reading has to know of its slot.

  Args:
    rings: of all blocks.
    size: of a head.
    dtype: of activations.
    seen_tokens: [] int32, how many of the window's tokens it sees; None: all.
  """
  window = rings.here.shape[1]
  slot_B1 = rings.slot[:, None]
  at_W = jnp.arange(window, dtype=jnp.int32)[None]
  own_BW = at_W == slot_B1
  seen_BW = (rings.here | own_BW) & near((slot_B1 - at_W) % window, window, seen_tokens)
  angle_B2 = slot_B1 + jnp.array([[0, window]], jnp.int32)
  cos, sin = (part[:, :, None] for part in _cos_sin(angle_B2, size, dtype))
  return RingPlace(own_BW, at_W > slot_B1, seen_BW, cos, sin)


def attend(ring: Ring, at: RingPlace, q_BHK, k_BHK, v_BHK):
  """Attends from one new token of each row, which stands in its slot before it is written there.

  Args:
    ring: of the block.
    at: the token's place.
    q_BHK, k_BHK, v_BHK: the token's, not turned.

  Returns:
    (out_BHK, NewToken).
  """
  wide = tree.accumulation_dtype(q_BHK.dtype)
  turned_B2HK = rope.apply_rope(q_BHK.astype(wide)[:, None], at.cos, at.sin)
  new = NewToken(rope.apply_rope(k_BHK, at.cos[:, 0], at.sin[:, 0]).astype(ring.k.dtype),
                 v_BHK.astype(ring.v.dtype))
  both_B2HW = jnp.einsum("bxhk,bhwk->bxhw", turned_B2HK, ring.k.astype(wide))
  scores_BHW = jnp.where(at.later_BW[:, None], both_B2HW[:, 1], both_B2HW[:, 0])
  own_BH = jnp.sum(turned_B2HK[:, 0] * new.k.astype(wide), axis=-1)
  scores_BHW = jnp.where(at.own_BW[:, None], own_BH[..., None], scores_BHW)
  scores_BHW = scores_BHW * jnp.asarray(q_BHK.shape[-1] ** -0.5, wide)
  weights_BHW = jax.nn.softmax(jnp.where(at.seen_BW[:, None], scores_BHW, -1e30), axis=-1)
  # The slot still holds the token that leaves the window.
  before_BHW = jnp.where(at.own_BW[:, None], 0, weights_BHW)
  own_BH = jnp.sum(weights_BHW - before_BHW, axis=-1)
  out_BHK = jnp.einsum("bhw,bhwk->bhk", before_BHW, ring.v.astype(wide))
  return (out_BHK + own_BH[..., None] * new.v.astype(wide)).astype(q_BHK.dtype), new


def written(rings: Rings, new: list, own_BW) -> Rings:
  """Returns the rings with the token in its slot; the next one has the next slot.

  Args:
    rings: as they were read.
    new: NewToken with a leading L for each stack; () where blocks have no attention.
    own_BW: the slot, of `RingPlace`.
  """
  row_B = jnp.arange(rings.slot.shape[0], dtype=jnp.int32)

  def put(ring_LBHWK, new_LBHK):
    # Indices of rows and slots lie apart, so that their axis comes first.
    return ring_LBHWK.at[:, row_B, :, rings.slot].set(jnp.moveaxis(new_LBHK, 1, 0), unique_indices=True)

  stacks = [Ring(*map(put, ring, token)) if ring else ()
            for ring, token in zip(rings.stacks, new, strict=True)]
  return Rings(stacks, (rings.slot + 1) % rings.here.shape[1], rings.here | own_BW)


def _cos_sin(angle, size: int, dtype):
  wide = tree.accumulation_dtype(dtype)
  return rope.cos_sin(angle, *rope.inverse_frequencies(size, ROPE_BASE, dtype=wide), wide)
