"""Ways of mixing memory into a block, one per file, found by file name (config.model.memory_mix).

A file defines

  HAS         a tuple of `mixing.FACTS`, written out: configs are checked by it without importing the file
  mix         (BlockFields, x_BTD, h_BTD, BlockState, Call) -> (mixed_BTD, BlockState, stats): what the block
              adds to its input x, of which h is the norm. It is called inside the block's module, so that
              flax modules it makes are the block's own; the feed-forward layer follows behind it
  zero_state  (BlockFields, rows, dtype) -> BlockState: what a block starts from
  flops       BlockFields -> FLOPs of one token's forward pass, see `models.flops`; None where a rule has no
              formula
  check       (fields of config.model) -> None, optional: refuses settings before anything compiles
  layer_of, with_layer
              optional, where a block's memory is more than the state of its `memory.layer.Memory`: that state
              of it, and the memory with another one

and, if it has large parameters of its own, TENSOR_AXES as `models.placement` describes them. Stats are
scalars by name, of mode "packed"; those of `statistics.USAGE` keep their gradient. Blocks that config.model.
memory_layers leaves out are those of `none`.
"""
import functools
import importlib
import pkgutil
from typing import Any

from atlas_jax.models import mixing
from atlas_jax.models.mixing import FACTS, Mix


def names() -> list[str]:
  """Returns the names of all files in this folder."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


@functools.cache
def load(name: str) -> Mix:
  """Returns what the file of a name defines.

  Raises:
    ValueError: if there is no such file, or it declares a fact that is unknown; names the known ones.
  """
  if name not in names():
    raise ValueError(f"config.model.memory_mix={name!r} is unknown; known are {', '.join(names())}")
  # Only when it is asked for: configs are checked by names and HAS alone, without flax.
  module = importlib.import_module(f"{__name__}.{name}")
  unknown = sorted(set(module.HAS) - set(FACTS))
  if unknown:
    raise ValueError(f"{module.__file__}: HAS names {', '.join(unknown)}; known are {', '.join(FACTS)}")
  optional = {"check": mixing.accept, "layer_of": mixing.itself, "with_layer": mixing.replaced}
  parts: dict[str, Any] = {part: getattr(module, part, usual) for part, usual in optional.items()}
  return Mix(name, frozenset(module.HAS), module.mix, module.zero_state, flops=module.flops, **parts)
