"""Weights that a training run hands to a server of `language.serve`: one safetensors file with all leaves.

The tensors have the names of the parameters here, so that any model fits, also one with memory. Beside them
stand the model's fields, so that a server can say what is different before it takes another model's numbers.
"""
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from atlas_jax import tree
from atlas_jax.files.damage import Damaged
from atlas_jax.language.pretrained import tensor_files
from atlas_jax.models.language import LanguageModel

FIELDS = "fields"  # In the file's metadata: the model's fields as JSON.
SUFFIX = ".safetensors"
# Decide how numbers are computed, not which ones; adapters are merged before.
SPEED = ("remat", "scan_unroll", "attention_block_tokens", "memory.remat_chunks", "memory.impl")
NOT_FIELDS = ("parent", "name", "lora")
REMEDY = "hand the weights over again"


def write(file: pathlib.Path, language: LanguageModel, params: Any) -> None:
  """Writes parameters; every process calls it, and the first one writes.

  Args:
    file: its name ends in SUFFIX.
    language: the model, without adapters.
    params: of it.
  """
  tensors = {name: _fetched(leaf) for name, leaf in tree.named_leaves(params)}
  if jax.process_index() == 0:
    # Not durable: it is read at once, and then taken away.
    tensor_files.write_file(file, tensors, {FIELDS: json.dumps(described(language))}, durable=False)


def read(file: pathlib.Path, language: LanguageModel, like: Any) -> Any:
  """Reads parameters to where those of a model lie.

  Args:
    file: as `write` leaves it.
    language: the model that they must be of.
    like: its parameters, whose shapes, types and places they get.

  Returns:
    The tree of arrays.

  Raises:
    ValueError: if they are of another model; names the first field or tensor that differs.
    Damaged: if the file is broken.
  """
  folder = tensor_files.TensorFolder(file.parent, file.name.removesuffix(SUFFIX))
  _check_fields(file, folder.metadata(file.name), described(language))
  wanted = dict(tree.named_leaves(like))
  for name in sorted(wanted.keys() ^ folder.file_of.keys()):
    there, needs = ("none", "has one") if name in wanted else ("one", "has none")
    raise ValueError(f"the weights have {there} of the name {name!r}, and the model {needs}: they are of "
                     "another model")
  for name, leaf in wanted.items():
    found = (folder.shape(name), str(folder.dtype(name)))
    if found != (leaf.shape, str(leaf.dtype)):
      raise ValueError(f"the weights {name!r} are {found[1]} of shape {found[0]}, and the model needs "
                       f"{leaf.dtype} of shape {leaf.shape}")

  def place(name, leaf):
    return jax.device_put(folder.read(name), leaf.sharding)

  return tree.map_named(place, like)


def described(language: LanguageModel) -> dict[str, str]:
  """Returns the fields of a model that decide which numbers it computes, as text by their names."""
  module = language.module
  found: dict[str, Any] = {}
  for field in dataclasses.fields(module):
    if field.name not in NOT_FIELDS:
      _flatten(field.name, getattr(module, field.name), found)
  return {name: repr(value) for name, value in found.items() if name not in SPEED}


def _flatten(name: str, value: Any, found: dict[str, Any]) -> None:
  if not isinstance(value, Mapping):
    found[name] = list(value) if isinstance(value, tuple) else value
    return
  for key, inner in sorted(value.items()):
    _flatten(f"{name}.{key}", inner, found)


def _check_fields(file: pathlib.Path, metadata: Mapping[str, str], mine: Mapping[str, str]) -> None:
  try:
    theirs = json.loads(metadata[FIELDS])
    different = [name for name in sorted(mine.keys() | theirs.keys())
                 if mine.get(name) != theirs.get(name)]
  except (KeyError, ValueError, AttributeError) as error:
    raise Damaged(file, f"does not say which model's weights it has ({type(error).__name__})",
                  REMEDY) from error
  if different:
    name = different[0]
    more = f", and {len(different) - 1} more fields differ" if len(different) > 1 else ""
    raise ValueError(f"the weights are of a model with {name}={theirs.get(name)}, and the one that is served "
                     f"has {name}={mine.get(name)}{more}; serve a run of the same model")


def _fetched(leaf: Any) -> np.ndarray:
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    from jax.experimental import multihost_utils  # Needs a started cluster only when it is used.
    leaf = multihost_utils.process_allgather(leaf, tiled=True)
  return np.asarray(leaf, order="C")
