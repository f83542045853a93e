"""Files of states: a line of JSON, sealed with a checksum, and the bytes of arrays of any dtype behind it."""
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from atlas_jax.files import json_file, write
from atlas_jax.files.damage import Damaged, as_damaged

MOST_HEADER = 2**24  # Bytes of the first line; that of a long stream names its ids.
KIND = "atlas state 1"
_WHAT = "cannot be read as a file of states"
REMEDY = "delete it: it is made again when its text is read"


def write_state(file, fields: Mapping[str, Any], arrays: Sequence[np.ndarray], *,
                durable: bool = True) -> None:
  """Writes fields and arrays; a reader sees all of the file or none, also after a loss of power.

  Args:
    file: its path.
    fields: values for JSON.
    arrays: of any dtype that has a name, bfloat16 among them.
    durable: see `write.opened`.
  """
  arrays = [np.asarray(array, order="C") for array in arrays]
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(_bytes(array))
  leaves = [[str(array.dtype), list(array.shape)] for array in arrays]
  header = json_file.sealed({"kind": KIND, "fields": dict(fields), "leaves": leaves,
                             "payload": digest.hexdigest()})
  with write.opened(file, durable=durable) as out:
    out.write(json.dumps(header).encode() + b"\n")
    for array in arrays:
      out.write(_bytes(array))


def _bytes(array: np.ndarray) -> memoryview:
  return array.reshape(-1).view(np.uint8).data


def read_state(file, *, most: int | None = None,
               remedy: str = REMEDY) -> tuple[dict[str, Any], list[np.ndarray]]:
  """Reads the fields and arrays of a file, checksums compared.

  Args:
    file: its path.
    most: how many arrays are read, the first ones, without comparing their checksum; None: all.
    remedy: what to do with a damaged one.

  Returns:
    (fields, arrays), the arrays read-only.

  Raises:
    Damaged: naming the file.
    OSError: if there is none, or it may not be read.
  """
  with pathlib.Path(file).open("rb") as opened:
    header = _header(file, opened, remedy)
    leaves = [(jnp.dtype(dtype), shape) for dtype, shape in header["leaves"][:most]]
    payload = opened.read(sum(dtype.itemsize * math.prod(shape) for dtype, shape in leaves))
  if most is None and hashlib.sha256(payload).hexdigest() != header["payload"]:
    raise Damaged(file, "holds other numbers than were written", remedy)
  arrays = []
  at = 0
  for dtype, shape in leaves:
    arrays.append(np.ndarray(shape, dtype, payload, at))
    at += arrays[-1].nbytes
  return header["fields"], arrays


def _header(file, opened, remedy: str) -> dict[str, Any]:
  """Returns the first line, checked, and leaves the file behind it."""
  line = opened.readline(MOST_HEADER + 1)
  if not line.endswith(b"\n"):
    raise Damaged(file, f"{_WHAT} (its first line does not end)", remedy)
  header = json_file.parse(file, line, remedy=remedy)
  seal = header.pop(json_file.SEAL, None)
  if seal != json_file.sealed(header)[json_file.SEAL] or header.get("kind") != KIND:
    raise Damaged(file, f"{_WHAT} (its first line was changed, or is of another kind)", remedy)
  with as_damaged(file, _WHAT, remedy):
    need = sum(jnp.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in header["leaves"])
  size = pathlib.Path(file).stat().st_size - len(line)
  if size != need:
    raise Damaged(file, f"has {size} bytes of numbers and should have {need}", remedy)
  return header
