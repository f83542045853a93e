"""Reads the tensors of a PyTorch checkpoint without PyTorch, and runs nothing that the file may ask for.

A checkpoint is a zip archive: a pickle of what was saved, in which tensors name their storages, and a member
of raw numbers for each storage. The pickle may build dicts, lists and tensors, and nothing else.

Source: the format of torch.save since PyTorch 1.6 (its documentation, "Serialization semantics").
"""
import collections
import itertools
import math
import pathlib
import pickle
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

STORAGES = {"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
            "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
            "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool"}
MOST_VALUES = 1_000_000  # Dicts inside dicts may be shared: a small file could name more than memory holds.
LARGE = 2**28  # Bytes or numbers up to which a small file may stand for more than it holds.
# What unpickling damaged bytes raises; what `_Unpickler` refuses is a plain ValueError.
_BROKEN = (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, OverflowError,
           UnicodeDecodeError, RecursionError, MemoryError, zipfile.BadZipFile, NotImplementedError)


class _Storage(NamedTuple):
  dtype: str
  key: str
  numel: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple
  strides: tuple


def _rebuild(storage, offset, shape, strides, *others) -> _Tensor:
  del others  # Whether a gradient was wanted, and hooks, which are none of ours.
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data, *others) -> _Tensor:
  del others
  return data


# The functions that torch.save writes for tensors and parameters, each by one of ours that only notes its
# arguments. A pickle can call any function that it may name: this table is all that it may.
_KNOWN = {("collections", "OrderedDict"): collections.OrderedDict,
          ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
          ("torch._utils", "_rebuild_parameter"): _parameter}


class _Unpickler(pickle.Unpickler):
  """Builds what `_KNOWN` lists, and refuses all else by name."""

  def find_class(self, module, name):
    # Classes stand in a pickle as names; here a storage's class is the dtype of its numbers.
    if module == "torch" and name in STORAGES:
      return STORAGES[name]
    if (module, name) not in _KNOWN:
      raise ValueError(f"it asks for {module}.{name}, and only tensors in dicts and lists are read")
    return _KNOWN[module, name]

  def persistent_load(self, pid):
    # ("storage", class, key of the member with the numbers, device it was saved from, how many numbers).
    kind, dtype, key, _, count = pid
    if kind != "storage" or dtype not in STORAGES.values():
      raise ValueError(f"it asks for {str(pid)[:80]}, which is no storage of numbers")
    return _Storage(dtype, str(key), int(count))


def read(file) -> dict[str, np.ndarray]:
  """Reads all tensors by their names; names of nested dicts are joined with dots, what is no tensor is left.

  Raises:
    ValueError: if the file is no checkpoint, damaged, or holds what is not to be read; names it.
  """
  path = pathlib.Path(file)
  try:
    with zipfile.ZipFile(path) as archive:
      return _read(archive)
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror})") from error
  except _BROKEN as error:
    old = "" if zipfile.is_zipfile(path) else "; checkpoints from before PyTorch 1.6 must be saved again"
    raise ValueError(f"{path} is no whole PyTorch checkpoint ({type(error).__name__}: {error}){old}"
                     ) from error
  except ValueError as error:
    raise ValueError(f"{path} is not read: {error}") from error


def _read(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
  if len(pickles) != 1:
    raise ValueError(f"it holds {len(pickles)} files data.pkl, a PyTorch checkpoint has one")
  # All members lie in one folder of the archive, whatever its name.
  root = pickles[0].removesuffix("data.pkl")
  # Newer versions write this member; files without it are taken as little-endian.
  if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
    raise ValueError("its numbers are big-endian; save it again on a usual machine")
  _check_member(archive, pickles[0])
  with archive.open(pickles[0]) as opened:
    found = _named(_Unpickler(opened).load(), "", itertools.count(1))
  storages: dict[_Storage, np.ndarray] = {}
  return {name: _array(archive, root, tensor, storages, name) for name, tensor in found.items()}


def _check_member(archive, name: str) -> None:
  """Refuses what unpacks to far more than it is; torch.save packs nothing."""
  info = archive.getinfo(name)
  if info.file_size > max(LARGE, 10 * info.compress_size):
    raise ValueError(f"{name} is {info.compress_size} bytes that unpack to {info.file_size}; save it again "
                     "with torch.save")


def _named(value: Any, name: str, visited: itertools.count) -> dict[str, _Tensor]:
  if next(visited) > MOST_VALUES:
    raise ValueError(f"its dicts name more than {MOST_VALUES} values, far more than a model has")
  if isinstance(value, _Tensor):
    return {name: value}
  items = value.items() if isinstance(value, dict) else ()
  return {full: tensor for key, inner in items
          for full, tensor in _named(inner, f"{name}.{key}" if name else str(key), visited).items()}


def _array(archive, root: str, tensor: _Tensor, storages: dict[_Storage, np.ndarray], name: str):
  """Returns a tensor's numbers, after checking that all of them lie in its storage."""
  storage, offset, shape, strides = tensor
  sizes = (offset, *shape, *strides)
  if not isinstance(storage, _Storage) or not all(type(size) is int and size >= 0 for size in sizes):
    raise ValueError(f"the tensor {name!r} has no sizes that can be: {sizes}")
  # Not np.dtype: bfloat16 is none of NumPy's.
  dtype = jnp.dtype(storage.dtype)
  # The place of the last number of a strided view, from its first: `as_strided` below checks nothing, and
  # would read whatever lies behind the buffer.
  last = sum((size - 1) * step for size, step in zip(shape, strides))
  if len(shape) != len(strides) or math.prod(shape) and offset + last >= storage.numel:
    raise ValueError(f"the tensor {name!r} reaches beyond its {storage.numel} numbers")
  # A stride of 0 repeats one number; honest tensors do so in small, such as an expanded mask.
  if math.prod(shape) > max(LARGE, storage.numel):
    raise ValueError(f"the tensor {name!r} of shape {shape} repeats its {storage.numel} numbers")
  if storage not in storages:  # Two tensors may say different things of one member.
    member = f"{root}data/{storage.key}"
    _check_member(archive, member)
    raw = archive.read(member)
    if len(raw) != storage.numel * dtype.itemsize:
      raise ValueError(f"the numbers of {name!r} are {len(raw)} bytes, not {storage.numel} {storage.dtype}")
    storages[storage] = np.frombuffer(raw, dtype)
  steps = [step * dtype.itemsize for step in strides]
  return np.lib.stride_tricks.as_strided(storages[storage][offset:], shape, steps, writeable=False)
