"""FLOPs of one token's forward pass by formula: those of the algorithm, whatever a program really executes.

A multiply-add counts as 2. Norms, rotations, activations, gates and convolutions are left out, and so is
recomputation. A backward pass is twice this. What a mix costs says its own file in `models/blocks`.
"""
from collections.abc import Mapping

from atlas_jax.memory.layer import Memory
from atlas_jax.models import blocks


def attention(width: int, *, keys: float) -> float:
  """Counts projections of width D and attention to so many keys: 8 D^2 + 4 keys D."""
  return 8.0 * width**2 + 4.0 * keys * width


def feed_forward(width: int, ff_width: int) -> float:
  """Counts a gated feed-forward layer: 6 D F."""
  return 6.0 * width * ff_width


def projections(fields: Mapping, width: int) -> float:
  """Counts what a memory layer projects, 2 D per channel: queries, keys, values, and reads back to the width.

  Args:
    fields: of `memory.layer.Memory`.
    width: D, of the model.
  """
  layer = Memory(**fields, parent=None)
  channels = 0 if layer.qkv_source == "attention" else layer.form.channels
  values = layer.value_dim if layer.value_source == "token" else 0
  return 2.0 * width * layer.heads * (channels + values + layer.value_dim)


def memory_layer(fields: Mapping, width: int) -> float | None:
  """Counts a memory layer: its projections, and the formula of its rule for every head; None without one."""
  layer = Memory(**fields, parent=None)
  per_head = layer.build_rule().flops
  if per_head is None or not layer.writes:
    return None
  return projections(fields, width) + layer.heads * per_head(layer.chunk_size)


def total(*parts: float | None) -> float | None:
  """Adds up parts; None if one of them has no formula."""
  known = [part for part in parts if part is not None]
  return sum(known) if len(known) == len(parts) else None


def forward(model) -> float | None:
  """Counts the forward pass of a `models.lm.LM`, scores of the vocabulary included; None without a formula.

  Of a model with inner steps it also counts these: their backward pass goes through all blocks from the first
  with fast weights on.
  """
  fields = model.block_fields("packed")
  above = feed_forward(model.width, model.ff_width)
  with_memory = model.mix.flops(fields) if model.with_memory else 0.0
  without = blocks.load("none").flops(fields)
  head = 2.0 * model.width * model.vocab_size
  each = [total(with_memory if i in model.with_memory else without, above) for i in range(model.depth)]
  inner = 0.0 if model.first_inner is None else total(*each[model.first_inner:], head)
  return total(*each, head, None if inner is None else 2 * inner)
