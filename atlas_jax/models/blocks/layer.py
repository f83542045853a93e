"""Memory as a layer: attention reads the input with what memory recalls of it, one after the other.

With x the block's input, h its norm, m = gated memory of h, the block adds m + attention(norm(h + m)).

Source: Titans (arXiv:2501.00663), memory as a layer: attention over the memory's output. There the memory's
layer has a residual connection like any other layer, and so has ours: without it attention would see nothing
where a memory recalls nothing, as at the start of a document. It is h that is added, as in `context`: in the
first block x is small beside what a memory recalls before it has learned, and with x pairs are learned later
(experiments/recall_by_architecture). The gate is that of `gate`.
"""
from atlas_jax.models import flops as counts
from atlas_jax.models.blocks import gate, none
from atlas_jax.models.layers import RMSNorm
from atlas_jax.models.mixing import BlockFields, BlockState, Call

HAS = ("attention", "memory", "fast_weights", "gate")

check = gate.check_own_projections
zero_state = gate.zero_state


def flops(fields: BlockFields) -> float | None:
  """Counts the memory layer and attention."""
  return counts.total(none.flops(fields), counts.memory_layer(fields.memory, fields.width))


def mix(fields: BlockFields, x_BTD, h_BTD, state: BlockState, call: Call):
  """Returns what memory and attention add; the new state; stats of memory and gate."""
  del x_BTD
  recalled_BTD, memory, stats = gate.recall(gate.parts_of(fields), h_BTD, state.memory, call, fields.mode)
  h_BTD = RMSNorm(name="norm_attention")(h_BTD + recalled_BTD)
  mixed_BTD, attention, _ = none.attend(fields, h_BTD, state, call)
  return recalled_BTD + mixed_BTD, BlockState(attention, memory), stats
