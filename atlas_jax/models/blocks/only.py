"""Memory alone, without attention: all that a token learns of those before it comes from the memory layer.

That layer's short convolutions count as part of it. Of a text's first tokens a memory that starts at zero
recalls nothing, so that rules and settings with a value under its own token's key fit better than those of a
memory beside attention; see `mix=only` of configs/memory_40m.py.

Source: Titans (arXiv:2501.00663), LMM: the memory module by itself. The gate is that of `gate`.
"""
from atlas_jax.memory.layer import Memory
from atlas_jax.models import flops as counts
from atlas_jax.models.blocks import gate
from atlas_jax.models.mixing import BlockFields, BlockState, Call

HAS = ("memory", "fast_weights", "gate")

check = gate.check_own_projections


def zero_state(fields: BlockFields, rows: int, dtype) -> BlockState:
  """Returns the state of a block that has read nothing."""
  return BlockState((), Memory(**fields.memory, parent=None).zero_state(rows, dtype))


def flops(fields: BlockFields) -> float | None:
  """Counts the memory layer."""
  return counts.memory_layer(fields.memory, fields.width)


def mix(fields: BlockFields, x_BTD, h_BTD, state: BlockState, call: Call):
  """Returns what memory recalls; the new state; stats of memory and gate."""
  del x_BTD
  recalled_BTD, memory, stats = gate.recall(gate.parts_of(fields), h_BTD, state.memory, call, fields.mode)
  return recalled_BTD, BlockState((), memory), stats
