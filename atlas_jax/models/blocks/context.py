"""Memory as context: attention sees, beside its segment, what memory recalled for it before it was read.

A text is read by segments of config.model.window_tokens tokens. With x a segment of the block's input, h its
norm, M the memory before the segment and M_i the memory after the segment's tokens up to i:

  r_j = M read with the query of h_j, one memory token per token
  a_i = attention of h_i over learned tokens, r_j and h_j for j <= i
  y_i = norm(h_i + a_i), which is what the memory is written with and asked for
  the block adds a_i + gate * (M_i read with the query of y_i)

Two ways in which this can be written look into the future. r_j is a function of token j: whoever lets token i
attend to all memory tokens of its segment shows it the tokens after it. And to read the memory of the whole
segment would tell y_i of them as well; ours is written and read token by token.

Segments of a text follow one after another, since r needs the memory of the one before. The state also holds,
for a stream, the place in the segment, the weights of M, and keys and values of the segment's memory tokens.

Source: Titans (arXiv:2501.00663), memory as a context. The paper multiplies attention by what the updated
memory recalls; as in `gate`, we add it. There y is attention's output alone, whose keys say where in a
segment a token stands more than which token it is; with h in the sum, and not x, which is small in the first
block, pairs are learned that otherwise are not (experiments/recall_by_architecture). Queries of r and y have
the same projection, also as in the paper.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax.memory.layer import Memory, MemoryLayerState
from atlas_jax.models import flops as counts
from atlas_jax.models import pieces
from atlas_jax.models.blocks import gate, none
from atlas_jax.models.layers import HeadsOut, RMSNorm
from atlas_jax.models.mixing import BlockFields, BlockState, Call
from atlas_jax.models.segments import RecalledRows, SegmentAttention

HAS = ("attention", "memory", "fast_weights", "gate", "segments")
TENSOR_AXES = (("memory_tokens/kernel", (-3,)),)  # H, M, D


class ContextState(NamedTuple):
  """State of a block's memory from call to call; every leaf leads with B."""

  layer: MemoryLayerState  # of what writes y and reads it
  base: Any  # what memory tokens of the segment are read with, leaves [B, H, ...]; 0 at a segment's start
  tail: jax.Array  # last inputs of the convolutions of memory tokens' queries
  rows: RecalledRows
  place: jax.Array  # [B] int32, tokens read of the segment


class SegmentPart(NamedTuple):
  """One segment of a call, or the part of one that is in it; leaves [B, T, ...]."""

  h: jax.Array
  doc: jax.Array
  token: Any  # None where memories make no values of tokens
  count: Any  # [B] how many of the T tokens are real; None: a whole segment, padding aside


def check(fields: Mapping) -> None:
  """Refuses what `gate.check_own_projections` does, and segments that are not whole chunks."""
  gate.check_own_projections(fields)
  if fields["window_tokens"] % fields["memory"]["chunk_size"]:
    raise ValueError(f"config.model.window_tokens={fields['window_tokens']} is the length of segments, and "
                     f"not a multiple of config.model.memory.chunk_size={fields['memory']['chunk_size']}")


def zero_state(fields: BlockFields, rows: int, dtype) -> BlockState:
  """Returns the state of a block that has read nothing."""
  attention = none.zero_state(fields, rows, dtype).attention
  layer = Memory(**fields.memory, parent=None).zero_state(rows, dtype)
  memory = ContextState(layer, layer.running.base, layer.tail, RecalledRows(attention.k, attention.v),
                        jnp.zeros((rows,), jnp.int32))
  return BlockState(attention, memory)


def layer_of(memory: ContextState) -> MemoryLayerState:
  """Returns the state of the memory layer."""
  return memory.layer


def with_layer(memory: ContextState, layer: MemoryLayerState) -> ContextState:
  """Returns the state with another one of the memory layer, also for the rest of a segment."""
  inside_B = memory.place > 0
  return memory._replace(layer=layer, base=_where(inside_B, layer.running.base, memory.base))


def flops(fields: BlockFields) -> float | None:
  """Counts attention to a full segment and its memory tokens, their projections, and the memory layer."""
  width = fields.width
  keys = 2 * fields.window_tokens + fields.persistent_tokens
  memory_tokens = counts.projections(fields.memory, width) + 4.0 * width**2  # Their keys and values.
  return counts.total(counts.attention(width, keys=keys), memory_tokens,
                      counts.memory_layer(fields.memory, width))


def mix(fields: BlockFields, x_BTD, h_BTD, state: BlockState, call: Call):
  """Returns what attention and memory add; the new state; stats of memory and gate.

  Stats are means over segments, each weighed by its real tokens: one of padding alone has none to tell of.
  """
  del x_BTD
  size = fields.window_tokens
  rows, length = call.doc_BT.shape
  every = SegmentPart(h_BTD, call.doc_BT, call.token_BTD, None)
  if fields.mode == "packed":
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(rows, -1, size, *x.shape[2:]), 1, 0), every)
  else:
    count_B = jnp.full((rows,), length, jnp.int32) if call.count_B is None else call.count_B
    cut, count_NB = pieces.cut(every, state.memory.place, count_B, size)
    parts = cut._replace(count=count_NB)
  segment = nn.scan(Segment, variable_broadcast="params", split_rngs={"params": False},
                    in_axes=(0, nn.broadcast), out_axes=0)
  attention = SegmentAttention(fields.heads, fields.persistent_tokens, fields.out_scale, name="attention")
  reader = segment(attention, HeadsOut(fields.width, 1.0, name="memory_tokens"), RMSNorm(name="norm_memory"),
                   gate.parts_of(fields), size, fields.mode)
  (after, _), (mixed_NBTD, stats) = reader((state, call.last_doc_B), parts, call)
  if fields.mode == "packed":
    mixed_BTD = jnp.moveaxis(mixed_NBTD, 0, 1).reshape(h_BTD.shape)
  else:
    mixed_BTD = pieces.join(mixed_NBTD, state.memory.place, length, size)
  return mixed_BTD, after, {name: mean_over_segments(x_N, parts.doc) for name, x_N in stats.items()}


def mean_over_segments(x_N, doc_NBT):
  """Returns the mean over segments, weighed by their real tokens."""
  real_N = jnp.sum(doc_NBT >= 0, axis=(1, 2)).astype(x_N.dtype)
  return jnp.sum(x_N * real_N) / jnp.maximum(jnp.sum(real_N), 1)


class Segment(nn.Module):
  """Reads one part of a call after another, with the block's modules."""

  attention: nn.Module
  memory_tokens: nn.Module
  norm: nn.Module
  parts: gate.GatedMemory
  size: int
  mode: str

  def __call__(self, carry, part: SegmentPart, call: Call):
    """Returns (BlockState, document of the last real token), (what the block adds, stats)."""
    state, last_doc_B = carry
    memory = state.memory
    call = call._replace(doc_BT=part.doc, last_doc_B=last_doc_B, count_B=part.count, token_BTD=part.token)
    before = self._before(memory)
    read_BTHM, before, _ = self.parts.layer(part.h, before, part.doc, last_doc_B, part.count, mode="recall",
                                            token_BTD=part.token)
    recalled_BTD = self.memory_tokens(read_BTHM.astype(part.h.dtype))
    seen_BTD, attention, rows = self.attention(part.h, recalled_BTD, state.attention, memory.rows,
                                               memory.place, call)
    y_BTD = self.norm(part.h + seen_BTD)
    gated_BTD, layer, stats = gate.recall(self.parts, y_BTD, memory.layer, call, self.mode)
    position_B = memory.place if part.count is None else (memory.place + part.count) % self.size
    base = _where(position_B > 0, before.running.base, jax.tree.map(jnp.zeros_like, memory.base))
    memory = ContextState(layer, base, before.tail, rows, position_B)
    last_doc_B = pieces.last_document(part.doc, last_doc_B, part.count)
    return (BlockState(attention, memory), last_doc_B), (seen_BTD + gated_BTD, stats)

  def _before(self, memory: ContextState) -> MemoryLayerState:
    """Returns the memory that memory tokens are read with: as it was before the segment."""
    running = memory.layer.running
    base = _where(memory.place > 0, memory.base, running.base)
    return MemoryLayerState(running._replace(base=base), memory.tail)


def _where(condition_B, on_true, on_false):
  """Chooses between the rows of two trees."""

  def choose(new, old):
    return jnp.where(condition_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)

  return jax.tree.map(choose, on_true, on_false)
