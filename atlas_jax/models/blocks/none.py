"""Attention alone, without a memory."""
from atlas_jax.models import flops as counts
from atlas_jax.models.attention import LocalAttention
from atlas_jax.models.mixing import BlockFields, BlockState, Call

HAS = ("attention",)


def zero_state(fields: BlockFields, rows: int, dtype) -> BlockState:
  """Returns the state of a block that has read nothing."""
  attention = LocalAttention(fields.heads, fields.window_tokens, parent=None)
  return BlockState(attention.zero_state(rows, fields.width, dtype), ())


def attend(fields: BlockFields, h_BTD, state: BlockState, call: Call):
  """Returns what attention gives, its state, and its queries, keys and values before rotation."""
  # A flax module made inside the block's, hence its child: other mixes that attend have the same parameters.
  attention = LocalAttention(fields.heads, fields.window_tokens, fields.out_scale, name="attention")
  out_BTD, after, qkv_BTHE = attention(h_BTD, state.attention, call.doc_BT, call.count_B, call.seen_tokens,
                                       call.ring)
  if call.attention_keep_B is not None:
    # Behind the output's projection, so that nothing of attention is left at 0; its state goes on as ever.
    out_BTD = out_BTD * call.attention_keep_B[:, None, None].astype(out_BTD.dtype)
  return out_BTD, after, qkv_BTHE


def flops(fields: BlockFields) -> float:
  """Counts attention to a full window."""
  return counts.attention(fields.width, keys=fields.window_tokens)


def mix(fields: BlockFields, x_BTD, h_BTD, state: BlockState, call: Call):
  """Returns what attention gives, the new state, and no stats."""
  del x_BTD
  mixed_BTD, attention, _ = attend(fields, h_BTD, state, call)
  return mixed_BTD, BlockState(attention, ()), {}
