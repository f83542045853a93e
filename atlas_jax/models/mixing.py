"""The interface of a mix of memory and attention: its facts, its functions and their arguments."""
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

# What a file in models/blocks may declare in HAS, and what follows from it.
FACTS = {
    "attention": "its blocks have attention and a state of it; config.model.heads and window_tokens are read",
    "memory": "its blocks have a layer of config.model.memory, and packed texts are read by whole chunks",
    "fast_weights": "that layer is written while it reads, and can be emptied",
    "gate": "what is recalled enters through a gate, and config.model.gate_floor is read",
    "inner_steps": "its blocks have fast weights that the model's loss trains; config.model.inner is read",
    "segments": "it attends by segments of config.model.window_tokens, where packed documents start; "
                "config.model.persistent_tokens is read",
}


class BlockFields(NamedTuple):
  """Settings of one block, of `models.lm.LM`."""

  width: int
  heads: int
  window_tokens: int
  ff_width: int
  gate_floor: float
  out_scale: float  # factor on initial weights of projections back to the width
  memory: Mapping  # fields of `memory.layer.Memory`
  mode: str  # "packed" or "stream", see `models.lm.LM`
  persistent_tokens: int = 0  # learned tokens that attention sees before a segment
  inner: Any = None  # fields of config.model.inner


class BlockState(NamedTuple):
  """State of one block from call to call, of fixed size; every leaf leads with B."""

  attention: Any  # () without attention
  memory: Any  # () without memory


class Call(NamedTuple):
  """Arguments of a call that all blocks share, see `models.lm.LM`."""

  doc_BT: jax.Array
  last_doc_B: jax.Array  # document of the last valid token of the earlier call
  count_B: jax.Array | None
  memory_scale: jax.Array  # [] float32
  token_BTD: jax.Array | None  # the tokens' embeddings, where memories make values of them
  memory_writes: jax.Array | None
  seen_tokens: jax.Array | None
  ring: Any = None  # `ring.RingPlace` of the token, where states of attention are rings
  gate_floor: jax.Array | None = None  # [] float32; None: that of the block's fields
  attention_keep_B: jax.Array | None = None  # factor on what attention gives to a row; None: 1


class Mix(NamedTuple):
  """The definitions of a file in models/blocks, see there."""

  name: str
  has: frozenset[str]  # of FACTS
  mix: Callable  # (BlockFields, x_BTD, h_BTD, BlockState, Call) -> (mixed_BTD, BlockState, stats)
  zero_state: Callable  # (BlockFields, rows, dtype) -> BlockState
  check: Callable  # (fields of config.model) -> None; raises ValueError where they do not fit
  flops: Callable  # BlockFields -> FLOPs of one token's forward pass; None: no formula
  layer_of: Callable  # memory of a BlockState -> state of its memory layer
  with_layer: Callable  # (memory of a BlockState, state of its memory layer) -> memory


def check_given(mix: Mix, rows: int, attends: bool, gate_floor, attention_keep_B) -> None:
  """Refuses arguments of a call that nothing would read; `attends`: whether any block has attention.

  Raises:
    ValueError: names the argument, what it needs, and what to do.
  """
  here = f"config.model.memory_mix={mix.name!r}"
  if gate_floor is not None and "gate" not in mix.has:
    raise ValueError(f"gate_floor is the least of a gate that memory enters through, and {here} has none; "
                     "leave it out, or choose a mix with a gate")
  if attention_keep_B is None:
    return
  if "segments" in mix.has:
    raise ValueError(f"attention_keep_B takes attention away, through which {here} reads its memory as well; "
                     "leave it out, or choose a mix that reads its memory beside attention")
  if not attends:
    raise ValueError(f"attention_keep_B takes attention away, and with {here} no block has any; leave it out")
  shape = jax.numpy.shape(attention_keep_B)
  if shape != (rows,):
    raise ValueError(f"attention_keep_B has the shape {shape}, and the tokens have {rows} rows; give one "
                     "number for each row")


def accept(fields) -> None:
  """Accepts every setting, for a file without `check`."""
  del fields


def itself(memory):
  """Returns a state of a memory that is no more than its layer's, for a file without `layer_of`."""
  return memory


def replaced(memory, layer):
  """Returns the layer's state in place of such a memory, for a file without `with_layer`."""
  del memory
  return layer
