"""NumPy files: NPY arrays, read or mapped, and NPZ archives, whose checksums are always verified."""
import io
import math
import pathlib
import threading
import zipfile

import numpy as np

from atlas_jax.files.damage import AGAIN, Damaged, as_damaged

# NumPy parses headers as Python, which threads of Python 3.11 must not do at once (SystemError).
_PARSING = threading.Lock()
_NPY = "cannot be read as a NumPy array"
_NPZ = "cannot be read as a NumPy archive"
MOST_RATIO = 1_100  # Deflate reaches 1032 to 1; no honest archive has more.


def read(file, *, kinds: str = "biuf", axes: int | None = None, lazy: bool = False,
         remedy: str = AGAIN) -> np.ndarray:
  """Reads an array from a .npy file.

  Args:
    file: its path.
    kinds: of dtypes that it may have, letters of `np.dtype.kind`.
    axes: how many it must have; None: any.
    lazy: map it into memory in place of reading it.
    remedy: what to do with a damaged one.

  Raises:
    Damaged: naming the file, if it is no whole array of numbers, or of another kind.
    OSError: if there is no such file, or it may not be read.
  """
  path = pathlib.Path(file)
  size = path.stat().st_size
  with as_damaged(file, _NPY, remedy), path.open("rb") as opened:
    shape, dtype, start = _header(opened)
  # The header alone, before NumPy acts on it: a damaged one may ask for terabytes, and an object array
  # for a pickle, which runs code.
  _check(file, shape, dtype, kinds, axes, remedy)
  need = start + math.prod(map(int, shape)) * dtype.itemsize
  # To the byte: np.load takes a file with more behind its array for whole.
  if size != need:
    raise Damaged(file, f"{_NPY} (it has {size} bytes, and its header says {need})", remedy)
  with as_damaged(file, _NPY, remedy), _PARSING:
    return np.load(path, mmap_mode="r" if lazy and 0 not in shape else None, allow_pickle=False)


def read_npz(file, *, kinds: str = "biufU", remedy: str = AGAIN) -> dict[str, np.ndarray]:
  """Reads all arrays of a .npz file by their names.

  Every member is read to its end, where its checksum is compared, before anything of it is parsed.

  Args:
    file: its path.
    kinds: of dtypes, as of `read`.
    remedy: what to do with a damaged one.

  Raises:
    Damaged: naming the file and the member that is damaged.
    OSError: if there is no such file, or it may not be read.
  """
  path = pathlib.Path(file)
  found = {}
  with as_damaged(file, _NPZ, remedy), path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
    # The directory states sizes before anything is unpacked, so a small file cannot fill the memory.
    for info in archive.infolist():
      if info.file_size > MOST_RATIO * max(info.compress_size, 1):
        raise Damaged(file, f"{info.filename} unpacks to {info.file_size} bytes", remedy)
      # To the end, where zipfile compares the CRC-32. np.load parses members while they are read, and a
      # flipped bit in a header would reach its parser first.
      content = archive.read(info)
      name = info.filename.removesuffix(".npy")
      if name in found:
        raise Damaged(file, f"has {name!r} twice", remedy)
      found[name] = _member(f"{file}: {name}", content, kinds, remedy)
  return found


def _member(what: str, content: bytes, kinds: str, remedy: str) -> np.ndarray:
  opened = io.BytesIO(content)
  shape, dtype, start = _header(opened)
  _check(what, shape, dtype, kinds, None, remedy)
  need = start + math.prod(map(int, shape)) * dtype.itemsize
  if len(content) != need:
    raise Damaged(what, f"has {len(content)} bytes, and its header says {need}", remedy)
  opened.seek(0)
  with _PARSING:
    return np.lib.format.read_array(opened, allow_pickle=False)


def _header(opened) -> tuple[tuple[int, ...], np.dtype, int]:
  """Returns shape, dtype, and where the numbers begin."""
  with _PARSING:
    version = np.lib.format.read_magic(opened)
    # Version 3.0 differs in the names of structured types alone, which are not read here.
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in reader:
      raise ValueError(f"it is of version {version}, and 1.0 and 2.0 are read")
    shape, _, dtype = reader[version](opened)
  return shape, dtype, opened.tell()


def _check(file, shape, dtype, kinds: str, axes: int | None, remedy: str) -> None:
  if dtype.hasobject or dtype.kind not in kinds or any(size < 0 for size in shape):
    raise Damaged(file, f"is {dtype} of shape {shape}, which is not read", remedy)
  if axes is not None and len(shape) != axes:
    raise Damaged(file, f"is {dtype} of shape {shape}; it must have {axes} axes", remedy)


def npz_bytes(**arrays) -> bytes:
  """Returns the bytes of a .npz file; `write.whole` puts them in place."""
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def npy_bytes(array) -> bytes:
  """Returns the bytes of a .npy file; `write.whole` puts them in place."""
  out = io.BytesIO()
  np.save(out, array, allow_pickle=False)
  return out.getvalue()
