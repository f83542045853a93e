"""Attention by segments: to their own tokens, to what a memory recalls for each, and to learned tokens."""
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory.projections import dense, last_valid
from atlas_jax.models import rope
from atlas_jax.models.attention import AttentionState, cos_sin
from atlas_jax.models.layers import HeadsOut, scaled_normal
from atlas_jax.models.mixing import Call

HIDDEN = -1e30  # Score of a key that is not seen.


class RecalledRows(NamedTuple):
  """Keys and values of what was recalled for the last window of tokens; every leaf leads with B."""

  k: jax.Array  # [B, W, H, K], before rotation
  v: jax.Array  # [B, W, H, K]


def visible(lag_TS, position_BT):
  """Returns which rows are of a token's segment and not after it; [B, T, S].

  What is recalled for a token is a function of that token, so that this bounds recalled rows as well: one of
  a later token would tell of it.

  Args:
    lag_TS: how many rows a row stands before the token.
    position_BT: where the token stands in its segment.
  """
  return (lag_TS >= 0)[None] & (lag_TS[None] <= position_BT[..., None])


class SegmentAttention(nn.Module):
  """Attends from a token to the tokens of its segment up to it, to as many recalled rows, to learned tokens.

  All three enter the same projections. A recalled row stands at the place of its token; learned tokens have
  no place, and look the same from wherever a token stands.

  Attributes:
    heads: attention heads; they share the input's width evenly.
    persistent_tokens: learned tokens.
    out_scale: factor on the initial output weights.
  """

  heads: int
  persistent_tokens: int
  out_scale: float

  @nn.compact
  def __call__(self, x_BTD, recalled_BTD, state: AttentionState, rows: RecalledRows, position_B, call: Call):
    """Reads T tokens of one segment.

    Args:
      x_BTD: the tokens.
      recalled_BTD: what was recalled for each.
      state: the last window of tokens, W; the segment's tokens before these are the last position_B of them.
      rows: the same of what was recalled.
      position_B: how many tokens of the segment stand before these.
      call: of which doc_BT, count_B, memory_scale and seen_tokens are used. Without a count the tokens begin
        a segment, and the state is not looked at.

    Returns:
      (out_BTD, AttentionState, RecalledRows).
    """
    length, width = x_BTD.shape[1:]
    size = width // self.heads
    kernel = self.param("qkv_kernel", scaled_normal(1.0), (width, self.heads, 3 * size), jnp.float32)
    q_BTHK, k_BTHK, v_BTHK = jnp.split(dense(x_BTD, kernel), 3, axis=-1)
    from_memory = jnp.split(dense(recalled_BTD, kernel[..., size:]), 2, axis=-1)
    whole = call.count_B is None

    def join(tail, new):
      return new if whole else jnp.concatenate([tail.astype(new.dtype), new], axis=1)

    own = [join(*pair) for pair in zip((state.k, state.v), (k_BTHK, v_BTHK))]
    recalled = [join(*pair) for pair in zip(rows, from_memory)]
    keys = own[0].shape[1]
    cos, sin = cos_sin(keys, size, k_BTHK.dtype)
    at_S = jnp.arange(keys, dtype=jnp.int32)
    lag_TS = at_S[keys - length:, None] - at_S[None]
    position_BT = position_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    same_BTS = call.doc_BT[:, :, None] == join(state.doc, call.doc_BT)[:, None, :]
    recalled_BTS = visible(lag_TS, position_BT) & same_BTS
    seen_BTS = recalled_BTS
    if call.seen_tokens is not None:
      seen_BTS = seen_BTS & (lag_TS < call.seen_tokens.astype(jnp.int32))[None]
    turned_BTHK = rope.apply_rope(q_BTHK, cos[:, -length:], sin[:, -length:])
    scale = call.memory_scale.astype(tree.accumulation_dtype(x_BTD.dtype))
    parts = [(turned_BTHK, rope.apply_rope(own[0], cos, sin), own[1], seen_BTS, None),
             (turned_BTHK, rope.apply_rope(recalled[0], cos, sin), recalled[1], recalled_BTS, scale)]
    if self.persistent_tokens:
      parts.append((q_BTHK, *self._persistent(x_BTD, kernel), None, None))
    out_BTHK = _attend(parts)
    count_B = call.count_B
    after = AttentionState(*(last_valid(old, new, count_B) for old, new in
                             zip(state, (k_BTHK, v_BTHK, call.doc_BT), strict=True)))
    rows = RecalledRows(*(last_valid(old, new, count_B) for old, new in zip(rows, from_memory, strict=True)))
    return HeadsOut(width, self.out_scale, name="out")(out_BTHK), after, rows

  def _persistent(self, x_BTD, kernel):
    """Returns keys and values of the learned tokens, for every row."""
    shape = (self.persistent_tokens, x_BTD.shape[-1])
    learned_SD = self.param("persistent", nn.initializers.normal(1.0), shape, jnp.float32)
    both_SHE = dense(learned_SD.astype(x_BTD.dtype), kernel[..., kernel.shape[-1] // 3:])
    both_BSHE = jnp.broadcast_to(both_SHE[None], (x_BTD.shape[0], *both_SHE.shape))
    return jnp.split(both_BSHE, 2, axis=-1)


def _attend(parts):
  """Returns softmax attention to several groups of keys at once, [B, T, H, K].

  Args:
    parts: of each group (queries, keys, values, which keys are seen [B, T, S] or None for all, weight of its
      keys or None for 1).
  """
  scores = []
  for q_BTHK, k_BSHK, _, seen_BTS, weight in parts:
    wide = tree.accumulation_dtype(q_BTHK.dtype)
    score_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=wide)
    score_BHTS = score_BHTS * jnp.asarray(q_BTHK.shape[-1] ** -0.5, wide)
    if weight is not None:
      score_BHTS = score_BHTS + jnp.log(jnp.maximum(weight, 1e-30))
      seen_BTS = seen_BTS & (weight > 0)
    scores.append(score_BHTS if seen_BTS is None else jnp.where(seen_BTS[:, None], score_BHTS, HIDDEN))
  weight_BHTS = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
  v_BSHK = jnp.concatenate([part[2] for part in parts], axis=1)
  return jnp.einsum("bhts,bshk->bthk", weight_BHTS.astype(v_BSHK.dtype), v_BSHK)
