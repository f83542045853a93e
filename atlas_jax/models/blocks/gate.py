"""Memory beside attention: what it recalls enters through a gate and is added to what attention gives.

The gate is g = gate_floor + (1 - gate_floor) * sigmoid(z), one per token and head. The floor leaves the gate
a gradient everywhere; a call may give another one, see `models.lm.LM`.

Source: Titans (arXiv:2501.00663), memory as a gate. The paper multiplies attention by the gated memory; we
add, so that what memory recalls can enter where attention sees nothing.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory import statistics
from atlas_jax.memory.layer import Memory
from atlas_jax.models import flops as counts
from atlas_jax.models.blocks import none
from atlas_jax.models.layers import HeadsOut
from atlas_jax.models.mixing import BlockFields, BlockState, Call

HAS = ("attention", "memory", "fast_weights", "gate")
TENSOR_AXES = (("memory_out/kernel", (-3,)),)  # H, M, D


def check(fields: Mapping) -> None:
  """Refuses settings of the memory that contradict each other, see `Memory.build_rule`."""
  Memory(**fields["memory"], parent=None).build_rule()


def check_own_projections(fields: Mapping) -> None:
  """Refuses what `check` does, and projections of an attention that does not see what the memory reads."""
  check(fields)
  if fields["memory"]["qkv_source"] != "own":
    raise ValueError(f"config.model.memory.qkv_source={fields['memory']['qkv_source']!r} needs an attention "
                     f"that reads what the memory reads, and config.model.memory_mix={fields['memory_mix']!r}"
                     " has none; set qkv_source='own'")


def zero_state(fields: BlockFields, rows: int, dtype) -> BlockState:
  """Returns the state of a block that has read nothing."""
  memory = Memory(**fields.memory, parent=None).zero_state(rows, dtype)
  return none.zero_state(fields, rows, dtype)._replace(memory=memory)


def flops(fields: BlockFields) -> float | None:
  """Counts attention and the memory layer."""
  return counts.total(none.flops(fields), counts.memory_layer(fields.memory, fields.width))


def mix(fields: BlockFields, x_BTD, h_BTD, state: BlockState, call: Call):
  """Returns attention and gated memory, added; the new state; stats of memory and gate."""
  del x_BTD
  return mix_layer(Memory, fields, h_BTD, state, call)


def mix_layer(layer_type, fields: BlockFields, h_BTD, state: BlockState, call: Call):
  """Mixes a layer that is called as `Memory` is; see `mix`."""
  mixed_BTD, attention, qkv_BTHE = none.attend(fields, h_BTD, state, call)
  recalled_BTD, memory, stats = recall(parts_of(fields, layer_type), h_BTD, state.memory, call, fields.mode,
                                       qkv_BTHE)
  return mixed_BTD + recalled_BTD, BlockState(attention, memory), stats


class GatedMemory(NamedTuple):
  """The modules of a memory whose reads enter a block through a gate."""

  layer: Any  # Memory, or what is called as it is
  gate: nn.Module
  out: nn.Module


def parts_of(fields: BlockFields, layer_type=Memory) -> GatedMemory:
  """Makes the modules, of the block that is being called."""
  layer = layer_type(**fields.memory, name="memory")
  gate = MixGate(layer.heads, fields.gate_floor, name="mix_gate")
  return GatedMemory(layer, gate, HeadsOut(fields.width, fields.out_scale, name="memory_out"))


def recall(parts: GatedMemory, h_BTD, memory, call: Call, mode: str, qkv_BTHE=None):
  """Reads and writes tokens with a memory.

  Args:
    parts: of the block.
    h_BTD: what is read, written and asked the gate for.
    memory: the state of the layer.
    call: of which documents, counts, tokens, writes, scale and floor are used.
    mode: see `Memory`.
    qkv_BTHE: attention's queries, keys and values, where the layer takes them from there.

  Returns:
    (recalled_BTD, the new state, stats): what the gate lets through, back in the model's width.
  """
  out_BTHM, memory, stats = parts.layer(h_BTD, memory, call.doc_BT, call.last_doc_B, call.count_B, mode=mode,
                                        token_BTD=call.token_BTD, writes=call.memory_writes,
                                        qkv_BTHE=qkv_BTHE)
  # The gate sees the block's input, not what was recalled.
  gate_BTH, raw_BTH = parts.gate(h_BTD, call.gate_floor)
  # Behind the floor, so that a scale of 0 shuts memory off whatever the floor.
  weight_BTH = gate_BTH * call.memory_scale.astype(gate_BTH.dtype)
  # Memories give float32; from here on the block goes on in the activations' dtype.
  gated_BTHM = (out_BTHM * weight_BTH[..., None]).astype(h_BTD.dtype)
  if mode == "packed":
    stats = {**stats, **gate_stats(raw_BTH, gate_BTH, call.doc_BT), **read_usage(raw_BTH, call.doc_BT)}
  else:
    stats = {}
  return parts.out(gated_BTHM), memory, stats


class MixGate(nn.Module):
  """A gate: the fraction of each memory head that enters the block at each token.

  Attributes:
    heads: of the memory.
    floor: where a call gives none.
  """

  heads: int
  floor: float

  @nn.compact
  def __call__(self, x_BTD, floor=None):
    """Returns the gate after and before its floor, both [B, T, H], float32 or wider; floor: [] or None."""
    wide = tree.accumulation_dtype(x_BTD.dtype)
    kernel = self.param("kernel", nn.initializers.normal(0.02), (x_BTD.shape[-1], self.heads), jnp.float32)
    # Half open at the start: sigmoid has its steepest point there.
    bias = self.param("bias", nn.initializers.zeros, (self.heads,), jnp.float32)
    z_BTH = jnp.dot(x_BTD, kernel.astype(x_BTD.dtype), preferred_element_type=wide)
    raw_BTH = jax.nn.sigmoid(z_BTH + bias.astype(wide)[None, None])
    gate_BTH = floored(raw_BTH, self.floor if floor is None else floor.astype(wide))
    self.sow("intermediates", "gate_BT", jnp.mean(gate_BTH, axis=-1))
    return gate_BTH, raw_BTH


def floored(raw_BTH, floor):
  """Returns the gate above a floor, by a line: the greater of both would have no gradient below the floor."""
  return floor + (1 - floor) * raw_BTH


def read_usage(raw_BTH, doc_BT) -> dict:
  """Returns {"usage/read": []}, the mean of the gate before its floor over real tokens; with a gradient."""
  return {f"{statistics.USAGE}read": statistics.mean_of_real(raw_BTH, (doc_BT >= 0).astype(raw_BTH.dtype))}


def gate_stats(raw_BTH, gate_BTH, doc_BT) -> dict:
  """Returns the mean of the gate before its floor, the fraction below 0.1, and the mean after the floor.

  Padding does not count.
  """
  raw_BTH, gate_BTH = jax.lax.stop_gradient((raw_BTH, gate_BTH))
  real_BTH = jnp.broadcast_to((doc_BT >= 0)[..., None], raw_BTH.shape).astype(raw_BTH.dtype)

  def mean(x):
    return jnp.sum(x * real_BTH) / jnp.maximum(jnp.sum(real_BTH), 1)

  return {
      # Before the floor, which would hide a gate that training shuts.
      "mix_gate_raw_mean": mean(raw_BTH),
      "mix_gate_raw_below_0.1_frac": mean((raw_BTH < 0.1).astype(raw_BTH.dtype)),
      "mix_gate_mean": mean(gate_BTH),
  }
