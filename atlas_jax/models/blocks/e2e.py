"""Attention and a second feed-forward layer, whose weights the model's own loss trains while it reads.

With x the block's input, a = attention of norm(x) and f the layer with the weights that the mini-batches read
before have left, the block adds a + f(norm(x + a)). How f is trained stands in `models.inner`, its settings
are config.model.inner. Blocks with such a layer are those of config.model.memory_layers, in the paper the
last quarter; the width of the other feed-forward layers makes up for its parameters.

Source: Tandon et al. 2025, TTT-E2E, arXiv:2512.23675.
"""
import flax.linen as nn
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.models import flops as counts
from atlas_jax.models.blocks import none
from atlas_jax.models.layers import RMSNorm, gated, scaled_normal
from atlas_jax.models.mixing import BlockFields, BlockState, Call

HAS = ("attention", "inner_steps")
TENSOR_AXES = (
    (r"fast_mlp/(gate|up)_kernel", (-1,)),  # D, F
    (r"fast_mlp/out_kernel", (-2,)))  # F, D


class FastMLP(nn.Module):
  """A gated feed-forward layer with weights of each row's own; its parameters are what they start from.

  Attributes:
    ff_width: hidden width.
    out_scale: factor on the initial output weights.
  """

  ff_width: int
  out_scale: float

  @nn.compact
  def __call__(self, x_BTD, fast: dict):
    """Returns [B, T, D] in x's dtype; `fast` is shaped like the parameters, with a leading B."""
    width = x_BTD.shape[-1]
    for name, (shape, scale) in _shapes(width, self.ff_width, self.out_scale).items():
      self.param(name, scaled_normal(scale), shape, jnp.float32)
    gate, up, out = (fast[name].astype(x_BTD.dtype) for name in ("gate_kernel", "up_kernel", "out_kernel"))
    hidden_BTF = gated(jnp.einsum("btd,bdf->btf", x_BTD, gate), jnp.einsum("btd,bdf->btf", x_BTD, up))
    return jnp.einsum("btf,bfd->btd", hidden_BTF, out)


def _shapes(width: int, ff_width: int, out_scale: float) -> dict:
  """Returns the shape of each kernel and the scale of its start."""
  into = ((width, ff_width), 1.0)
  return {"gate_kernel": into, "up_kernel": into, "out_kernel": ((ff_width, width), out_scale)}


def zero_state(fields: BlockFields, rows: int, dtype) -> BlockState:
  """Returns the state of a block that has read nothing; a document starts from the parameters."""
  shapes = _shapes(fields.width, fields.inner["ff_width"], fields.out_scale)
  wide = tree.accumulation_dtype(jnp.dtype(dtype))
  fast = {name: jnp.zeros((rows, *shape), wide) for name, (shape, _) in shapes.items()}
  return none.zero_state(fields, rows, dtype)._replace(memory=fast)


def flops(fields: BlockFields) -> float:
  """Counts attention and the second feed-forward layer; what its training costs counts `flops.forward`."""
  return none.flops(fields) + counts.feed_forward(fields.width, fields.inner["ff_width"])


def mix(fields: BlockFields, x_BTD, h_BTD, state: BlockState, call: Call):
  """Returns what attention and the layer add, with the weights of the state; no stats."""
  seen_BTD, attention, _ = none.attend(fields, h_BTD, state, call)
  h_BTD = RMSNorm(name="norm_fast")(x_BTD + seen_BTD)
  layer = FastMLP(fields.inner["ff_width"], fields.out_scale, name="fast_mlp")
  fed_BTD = layer(h_BTD, state.memory) * call.memory_scale.astype(h_BTD.dtype)
  return seen_BTD + fed_BTD, BlockState(attention, state.memory), {}
