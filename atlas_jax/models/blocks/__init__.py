"""Ways of mixing memory into a block, one per file, found by file name (config.model.memory_mix).

A file defines

  HAS         a tuple of `mixing.FACTS`, written out: configs are checked by it without importing the file
  mix         (BlockFields, h_BTD, BlockState, Call) -> (mixed_BTD, BlockState, stats): what the block adds to
              its input x, of h_BTD, the normalised x. It is called inside the block's module, so that flax
              modules it makes are the block's own; the feed-forward layer follows behind it
  zero_state  (BlockFields, rows, dtype) -> BlockState: what a block starts from
  check       (fields of config.model) -> None, optional: refuses settings before anything compiles

and, if it has large parameters of its own, TENSOR_AXES as `models.placement` describes them. Stats are
scalars by name, of mode "packed". Blocks that config.model.memory_layers leaves out are those of `none`.
"""
import functools
import importlib
import pkgutil

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
  check = getattr(module, "check", _accept)
  return Mix(name, frozenset(module.HAS), module.mix, module.zero_state, check)


def _accept(fields) -> None:
  """Accepts every setting, for a file without `check`."""
  del fields
