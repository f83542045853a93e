"""Safetensors in one file or in shards: read by slices straight to where a leaf lives, and written back.

A `names.Row` says how a tensor's axes and a leaf's differ; nothing here knows a model.
"""
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from atlas_jax import tree
from atlas_jax.files import inside, json_file, write
from atlas_jax.files.damage import Damaged, as_damaged
from atlas_jax.language.pretrained.names import LAYER, Row

AGAIN, MOST_HEADER = "fetch it again", 10**8  # Bytes that the format allows.
METADATA = "__metadata__"  # In a file's header, beside the tensors.
INDEX_SUFFIX = ".safetensors.index.json"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TensorFolder:
  """The tensors of a folder, opened but not read."""

  def __init__(self, folder, stem: str = "model"):
    """Opens what is there.

    Args:
      folder: holds `stem`.safetensors, or `stem`.safetensors.index.json and the shards that it names.
      stem: "model", or "adapter_model".

    Raises:
      ValueError: naming the file that is missing or cannot be read, or the tensor its shard lacks.
    """
    self.folder = pathlib.Path(folder)
    self.stem = stem
    self.file_of, self._files = _layout(self.folder, stem)
    # Compared before anything is read: of a folder of many gigabytes, a lacking tensor is named at once.
    present = {file: set(opened.keys()) for file, opened in self._files.items()}
    for name, file in self.file_of.items():
      if name not in present[file]:
        raise ValueError(f"{self.folder / file} has no tensor {name!r}, which the index says it holds")

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns a tensor's shape."""
    return tuple(self._slice(name).get_shape())

  def dtype(self, name: str) -> np.dtype:
    """Returns a tensor's dtype.

    Raises:
      ValueError: if it is not a float of 16 bits or more.
    """
    stored = self._slice(name).get_dtype()
    if stored not in DTYPES:
      raise ValueError(f"{self.where(name)} is of type {stored}, which is not supported; known are "
                       f"{', '.join(DTYPES)}")
    return jnp.dtype(DTYPES[stored])

  def read(self, name: str, *cuts: slice) -> np.ndarray:
    """Reads a slice of a tensor, or all of it; only the slice is read from the disk."""
    return self._slice(name)[cuts or (slice(None),) * len(self.shape(name))]

  def metadata(self, file: str) -> dict[str, str]:
    """Returns what a file says of itself, in the file's order."""
    return dict(_header(self.folder / file).get(METADATA, {}))

  def where(self, name: str) -> str:
    """Returns a tensor's file and name, for messages."""
    return f"{self.folder / self.file_of[name]}: {name}"

  def _slice(self, name: str):
    return self._files[self.file_of[name]].get_slice(name)


def _layout(folder: pathlib.Path, stem: str):
  single = folder / f"{stem}.safetensors"
  index = folder / f"{stem}{INDEX_SUFFIX}"
  if index.is_file():
    file_of = json_file.read(index, remedy=AGAIN).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
      raise Damaged(index, "is not an index of shards: it needs a 'weight_map' of tensors", AGAIN)
    for file in file_of.values():
      # An index is input: a name such as ../x must not lead out of the folder.
      inside.path(folder, file, named_by=index, remedy=AGAIN)
    for file in sorted(set(file_of.values())):
      if not (folder / file).is_file():
        raise ValueError(f"the shard {folder / file} is missing; {index.name} says that it holds "
                         f"{sum(one == file for one in file_of.values())} tensors")
    return file_of, {file: _open(folder / file) for file in sorted(set(file_of.values()))}
  if not single.is_file():
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    also = "".join(f"; {name} is a pickle, which is never read: save the model as safetensors"
                   for name in pickles[:1])
    raise ValueError(f"{folder} has neither {single.name} nor {index.name}{also}")
  opened = _open(single)
  return dict.fromkeys(opened.keys(), single.name), {single.name: opened}


def _open(file: pathlib.Path):
  with as_damaged(file, "is not a whole safetensors file", AGAIN):
    return safetensors.safe_open(str(file), framework="numpy")


def read_tree(folder: TensorFolder, table: Iterable[Row], abstract, shardings, dtype=None, *, spare=()):
  """Reads every leaf of a tree from its tensor, straight to its place.

  Args:
    folder: where the tensors are.
    table: a row for every leaf.
    abstract: tree of ShapeDtypeStructs; leaves whose tensors are per layer lead with depth.
    shardings: tree of shardings, the same form.
    dtype: to read into; None keeps each leaf's stored one.
    spare: patterns of names that may be there without being read.

  Returns:
    The tree of arrays. On the host there is never more than the part of one leaf that one device holds, apart
    from the arrays themselves where devices share the host's memory.

  Raises:
    ValueError: naming the file and the tensor that is missing, left over, or of another shape or type.
  """
  row_of = {row.ours: row for row in table}
  # All names, shapes and types are looked at before the first tensor goes to a device.
  leaves = dict(tree.named_leaves(abstract))
  wanted: set[str] = set()
  for name, leaf in leaves.items():
    wanted.update(_check_leaf(folder, row_of[name], leaf.shape))
  over = [name for name in folder.file_of
          if name not in wanted and not any(re.fullmatch(pattern, name) for pattern in spare)]
  if over:
    raise ValueError(f"{folder.where(over[0])} is a tensor that the model has no place for"
                     + (f", like {len(over) - 1} more" if len(over) > 1 else ""))

  def place(name, leaf, sharding):
    row = row_of[name]
    return read_leaf(folder, row, leaf.shape, sharding, dtype)
  return tree.map_named(place, abstract, shardings)


def read_leaf(folder: TensorFolder, row: Row, shape, sharding, dtype=None) -> jax.Array:
  """Reads one leaf to its place; every device's part is read from the disk on its own."""
  tensors = _tensors(row, shape)
  # Layers may be stored in different dtypes; one leaf has one.
  dtype = jnp.dtype(dtype or jnp.result_type(*{folder.dtype(name) for name in tensors}))

  # Called for each device with its slices of the leaf, so the host holds one part at a time.
  def part(index) -> np.ndarray:
    cuts = [range(*cut.indices(size)) for cut, size in zip(index, shape, strict=True)]
    inner = cuts[1:] if LAYER in row.theirs else cuts
    sizes = dict(zip(row.kept.split(), shape[len(shape) - len(row.kept.split()):], strict=True))
    chosen = [tensors[i] for i in cuts[0]] if LAYER in row.theirs else tensors
    out = np.empty((len(chosen), *map(len, inner)), dtype)
    for target, name in zip(out, chosen, strict=True):
      target[...] = _cut_and_turn(folder, name, row, sizes, dict(zip(row.kept.split(), inner, strict=True)))
    return out if LAYER in row.theirs else out[0]
  return jax.make_array_from_callback(tuple(shape), sharding, part)


def _cut_and_turn(folder, name: str, row: Row, sizes: Mapping[str, int], cut: Mapping[str, range]):
  """Reads the part of a tensor that `cut` asks for, with the leaf's axes in the leaf's order."""
  slices = []
  lengths = []
  rest = []
  # A tensor's axis may hold several of the leaf's, as "(h k)" does. What a device wants of the
  # first of them is one contiguous range, so only that is read from the disk; the others are cut
  # out of it in memory. The transposition is a view.
  for group in _groups(row.stored):
    inner = math.prod(sizes[axis] for axis in group[1:])
    lead = cut[group[0]]
    slices.append(slice(lead.start * inner, lead.stop * inner))
    lengths += [len(lead), *(sizes[axis] for axis in group[1:])]
    rest += [slice(None), *(slice(cut[axis].start, cut[axis].stop) for axis in group[1:])]
  stored = [axis for group in _groups(row.stored) for axis in group]
  array = folder.read(name, *slices).reshape(lengths)[tuple(rest)]
  return array.transpose([stored.index(axis) for axis in row.kept.split()])


def _check_leaf(folder: TensorFolder, row: Row, shape) -> list[str]:
  tensors = _tensors(row, shape)
  sizes = dict(zip(row.kept.split(), shape[len(shape) - len(row.kept.split()):], strict=True))
  needed = tuple(math.prod(sizes[axis] for axis in group) for group in _groups(row.stored))
  for name in tensors:
    if name not in folder.file_of:
      raise ValueError(f"{folder.folder} has no tensor {name!r}, which the model needs; it has "
                       f"{len(folder.file_of)} tensors in {len(set(folder.file_of.values()))} files")
    if folder.shape(name) != needed:
      raise ValueError(f"{folder.where(name)} is of shape {folder.shape(name)}, but the config needs "
                       f"{needed}")
    folder.dtype(name)
  return tensors


def _tensors(row: Row, shape) -> list[str]:
  if LAYER not in row.theirs:
    return [row.theirs]
  return [row.theirs.format(row.first + row.every * i) for i in range(shape[0])]


def _groups(pattern: str) -> list[list[str]]:
  """Splits "(h k) d" into [["h", "k"], ["d"]]."""
  return [part.strip("()").split() for part in re.findall(r"\([^)]*\)|\S+", pattern)]


def tensors_of(params, table: Iterable[Row]) -> dict[str, tuple]:
  """Returns how each tensor is made: its name -> (leaf, row, layer or None), for `fetch`."""
  row_of = {row.ours: row for row in table}
  made: dict[str, tuple] = {}
  for name, leaf in tree.named_leaves(params):
    row = row_of[name]
    for layer, theirs in enumerate(_tensors(row, leaf.shape)):
      made[theirs] = (leaf, row, layer if LAYER in row.theirs else None)
  return made


def shape_of(made: tuple) -> tuple[int, ...]:
  """Returns the shape a tensor of `tensors_of` will have."""
  leaf, row, _ = made
  kept = row.kept.split()
  sizes = dict(zip(kept, leaf.shape[leaf.ndim - len(kept):], strict=True))
  return tuple(math.prod(sizes[axis] for axis in group) for group in _groups(row.stored))


def fetch(made: tuple, dtype) -> np.ndarray:
  """Brings one tensor to the host, in its stored form; every process must call this in the same order."""
  leaf, row, layer = made
  # The layer is an argument, so that one compilation serves them all.
  part = leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
  if isinstance(part, jax.Array) and not part.is_fully_addressable:
    from jax.experimental import multihost_utils  # Needs a started cluster only when it is used.
    part = multihost_utils.process_allgather(part, tiled=True)
  kept = row.kept.split()
  stored = [axis for group in _groups(row.stored) for axis in group]
  array = np.asarray(part).transpose([kept.index(axis) for axis in stored]).reshape(shape_of(made))
  return np.ascontiguousarray(array.astype(dtype))


def _header(file: pathlib.Path) -> dict:
  """Reads the JSON at a file's start; the library gives metadata in no order."""
  with file.open("rb") as opened:
    size = int.from_bytes(opened.read(8), "little")
    # A length beyond the file is no header: else a few bytes of another format would ask for gigabytes.
    if size > min(MOST_HEADER, file.stat().st_size):
      raise Damaged(file, f"is not a whole safetensors file (its header would have {size} bytes)", AGAIN)
    return json_file.parse(file, opened.read(size), remedy=AGAIN)


def _order_metadata(file: pathlib.Path, metadata: Mapping[str, str]) -> None:
  """Writes the metadata of a file again, in their order; nothing else changes, nor its length."""
  header = {**_header(file), METADATA: dict(metadata)}
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  with file.open("r+b") as opened:
    # A shorter header is filled with spaces, which JSON ignores, so that tensors keep their offsets.
    size = int.from_bytes(opened.read(8), "little")
    if len(text) > size:
      raise ValueError(f"{file}: metadata {dict(metadata)} cannot be kept in their order; write fewer")
    opened.write(text.ljust(size))


def write_file(file: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], *,
               durable: bool = True) -> None:
  """Writes one file of tensors so that a reader sees the whole of it or nothing."""
  with write.placed(file, durable=durable) as partial:
    save_file(dict(tensors), str(partial), metadata=dict(metadata))
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    partial.chmod(0o666 & ~mask)  # The library closes its files to others; a server may be another user.
    if len(metadata) > 1:
      _order_metadata(partial, metadata)


def write_json(file: pathlib.Path, content, *, durable: bool = True) -> None:
  """Writes JSON so that a reader sees the whole of it or nothing."""
  write.json(file, content, sort_keys=True, durable=durable)
