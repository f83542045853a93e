"""The layer of a memory without its memory, beside attention: projections, convolutions, a token's own value.

A control: what it gives is no memory's doing.
"""
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory.layer import Memory, MemoryLayerState
from atlas_jax.memory.projections import conv_mask, has_key, kept_tail, project
from atlas_jax.memory.types import Learned, MemoryRule
from atlas_jax.models import flops as counts
from atlas_jax.models.blocks import gate, none
from atlas_jax.models.mixing import BlockFields, BlockState, Call

HAS = ("attention", "memory", "gate")
# `Memory._weights` asks the rule what it has learned: nothing, so that no such parameters are made.
EMPTY = MemoryRule(init=lambda key: Learned((), {}), step=lambda *args: None)
NO_MEMORY: Any = ()  # Where a `MemoryLayerState` has fast weights.


class ConvMix(Memory):
  """The layer around a memory that is emptied before every token: out_t = v_t (k_t . q_t).

  A token then reads what it has just written itself, at write rate 1, and nothing of the tokens before it but
  what the convolutions of key, query and value hold: with the shift that is the last conv_taps + 1 tokens.
  Queries and keys are compared as they are, without a rule's feature map. There are no gates of writing, no
  fast weights and no rule; what concerns them is not read. Norm of the output, state of the convolutions and
  modes are those of `Memory`, whose parameters of these names it has: qkv_kernel, conv_kernel, value_kernel.
  """

  def build_rule(self):
    """Returns a rule without weights."""
    return EMPTY

  def _initial_fast(self, rule):
    return ()

  def zero_state(self, rows: int, dtype=jnp.float32) -> MemoryLayerState:
    """Returns the state of a layer that has read nothing: the convolutions' last inputs alone."""
    tail = jnp.zeros((rows, self.form.lags, self.heads, self.form.channels), dtype)
    return MemoryLayerState(NO_MEMORY, tail)

  @nn.compact
  def __call__(self, x_BTD, state: MemoryLayerState, doc_BT, last_doc_B, count_B, *, mode: str,
               n_chunks: int | None = None, token_BTD=None, writes=None, qkv_BTHE=None):
    """Reads T tokens; arguments and results as of `Memory`, alike in every mode, without stats or writes."""
    del mode, n_chunks, writes
    if count_B is not None:
      at_T = jnp.arange(doc_BT.shape[1], dtype=jnp.int32)
      # Without a memory a stream and packed documents differ in this alone: padding is where the count ends.
      doc_BT = jnp.where(at_T[None] < count_B[:, None], doc_BT, -1)
    weights = self._weights(self.build_rule(), x_BTD.shape[-1], tree.accumulation_dtype(x_BTD.dtype))
    token_BTD = self._token(x_BTD, token_BTD)
    mask_BTS = conv_mask(doc_BT, last_doc_B, self.form.lags)
    source_BTD = self._of_attention(x_BTD, qkv_BTHE)
    tokens, x_BTHE = project(self.form, weights, None, source_BTD, token_BTD, state.tail, mask_BTS)
    # A memory of zero written at rate 1 with (k, v), then read at q: q W = (q . k) v.
    own_BHTM = tokens.v * jnp.sum(tokens.k * tokens.q, axis=-1, keepdims=True)
    # With the shift a document's first token has no key: it is cut as in `Memory`, so that the two compare.
    real_BT = (doc_BT >= 0) & has_key(self.form, mask_BTS)
    out_BTHM = jnp.moveaxis(own_BHTM, 1, 2) * real_BT[..., None, None].astype(own_BHTM.dtype)
    tail = kept_tail(state.tail, x_BTHE, doc_BT, last_doc_B, count_B)
    return self._read(out_BTHM), MemoryLayerState(NO_MEMORY, tail), {}


def zero_state(fields: BlockFields, rows: int, dtype) -> BlockState:
  """Returns the state of a block that has read nothing."""
  memory = ConvMix(**fields.memory, parent=None).zero_state(rows, dtype)
  return none.zero_state(fields, rows, dtype)._replace(memory=memory)


def flops(fields: BlockFields) -> float:
  """Counts attention and the layer's projections."""
  return none.flops(fields) + counts.projections(fields.memory, fields.width)


def mix(fields: BlockFields, x_BTD, h_BTD, state: BlockState, call: Call):
  """Returns attention and the gated layer, added; the new state; stats of the gate."""
  del x_BTD
  return gate.mix_layer(ConvMix, fields, h_BTD, state, call)
