"""Memory beside attention: what it recalls enters through a gate and is added to what attention gives.

The gate is g = gate_floor + (1 - gate_floor) * sigmoid(z), one per token and head. The floor leaves the gate
a gradient everywhere.

Source: Titans (arXiv:2501.00663), memory as a gate. The paper multiplies attention by the gated memory; we
add, so that what memory recalls can enter where attention sees nothing.
"""
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory.layer import Memory
from atlas_jax.models.blocks import none
from atlas_jax.models.layers import HeadsOut
from atlas_jax.models.mixing import BlockFields, BlockState, Call

HAS = ("attention", "memory", "fast_weights", "gate")
TENSOR_AXES = (("memory_out/kernel", (-3,)),)  # H, M, D


def check(fields: Mapping) -> None:
  """Refuses settings of the memory that contradict each other, see `Memory.build_rule`."""
  Memory(**fields["memory"], parent=None).build_rule()


def zero_state(fields: BlockFields, rows: int, dtype) -> BlockState:
  """Returns the state of a block that has read nothing."""
  memory = Memory(**fields.memory, parent=None).zero_state(rows, dtype)
  return none.zero_state(fields, rows, dtype)._replace(memory=memory)


def mix(fields: BlockFields, h_BTD, state: BlockState, call: Call):
  """Returns attention and gated memory, added; the new state; stats of memory and gate."""
  return mix_layer(Memory, fields, h_BTD, state, call)


def mix_layer(layer_type, fields: BlockFields, h_BTD, state: BlockState, call: Call):
  """Mixes a layer that is called as `Memory` is; see `mix`."""
  mixed_BTD, attention, qkv_BTHE = none.attend(fields, h_BTD, state, call)
  layer = layer_type(**fields.memory, name="memory")
  out_BTHM, memory, stats = layer(h_BTD, state.memory, call.doc_BT, call.last_doc_B, call.count_B,
                                  mode=fields.mode, token_BTD=call.token_BTD, writes=call.memory_writes,
                                  qkv_BTHE=qkv_BTHE)
  gate_BTH, raw_BTH = MixGate(layer.heads, fields.gate_floor, name="mix_gate")(h_BTD)
  weight_BTH = gate_BTH * call.memory_scale.astype(gate_BTH.dtype)
  gated_BTHM = (out_BTHM * weight_BTH[..., None]).astype(h_BTD.dtype)
  mixed_BTD = mixed_BTD + HeadsOut(h_BTD.shape[-1], fields.out_scale, name="memory_out")(gated_BTHM)
  stats = {**stats, **gate_stats(raw_BTH, gate_BTH, call.doc_BT)} if fields.mode == "packed" else {}
  return mixed_BTD, BlockState(attention, memory), stats


class MixGate(nn.Module):
  """A gate: the fraction of each memory head that enters the block at each token."""

  heads: int
  floor: float

  @nn.compact
  def __call__(self, x_BTD):
    """Returns the gate after and before its floor, both [B, T, H], float32 or wider."""
    wide = tree.accumulation_dtype(x_BTD.dtype)
    kernel = self.param("kernel", nn.initializers.normal(0.02), (x_BTD.shape[-1], self.heads), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (self.heads,), jnp.float32)
    z_BTH = jnp.dot(x_BTD, kernel.astype(x_BTD.dtype), preferred_element_type=wide)
    raw_BTH = jax.nn.sigmoid(z_BTH + bias.astype(wide)[None, None])
    gate_BTH = self.floor + (1 - self.floor) * raw_BTH
    self.sow("intermediates", "gate_BT", jnp.mean(gate_BTH, axis=-1))
    return gate_BTH, raw_BTH


def gate_stats(raw_BTH, gate_BTH, doc_BT) -> dict:
  """Returns the mean of the gate before its floor, the fraction below 0.1, and the mean after the floor.

  Padding does not count.
  """
  raw_BTH, gate_BTH = jax.lax.stop_gradient((raw_BTH, gate_BTH))
  real_BTH = jnp.broadcast_to((doc_BT >= 0)[..., None], raw_BTH.shape).astype(raw_BTH.dtype)

  def mean(x):
    return jnp.sum(x * real_BTH) / jnp.maximum(jnp.sum(real_BTH), 1)

  return {
      "mix_gate_raw_mean": mean(raw_BTH),
      "mix_gate_raw_below_0.1_frac": mean((raw_BTH < 0.1).astype(raw_BTH.dtype)),
      "mix_gate_mean": mean(gate_BTH),
  }
