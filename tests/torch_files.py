"""Writes checkpoints as torch.save does, byte for byte where it matters, without PyTorch."""
import struct
import zipfile

import numpy as np

CODES = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage",
         "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int32": "IntStorage", "uint8": "ByteStorage",
         "bool": "BoolStorage"}  # fmt: skip


def text(value: str) -> bytes:
  """The opcodes of a text."""
  return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
  """The opcodes of an integer."""
  return b"J" + struct.pack("<i", value)


def numbers(values) -> bytes:
  """The opcodes of a tuple of integers."""
  return b"(" + b"".join(map(number, values)) + b"t"


def ordered(items=b"") -> bytes:
  """The opcodes of an OrderedDict."""
  return b"ccollections\nOrderedDict\n)R" + (b"(" + items + b"u" if items else b"")


def tensor(key: str, array, *, offset=0, shape=None, strides=None, count=None) -> bytes:
  """The opcodes of a tensor; what is given takes the place of what the array says."""
  shape = array.shape if shape is None else shape
  strides = [step // array.itemsize for step in array.strides] if strides is None else strides
  kind = f"ctorch\n{CODES[str(array.dtype)]}\n".encode()
  size = number(array.size if count is None else count)
  storage = b"(" + text("storage") + kind + text(key) + text("cpu") + size + b"tQ"
  parts = storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + ordered()
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + parts + b"tR"


def write(file, arrays, *, content: bytes | None = None, root="step_7", byteorder="little"):
  """Writes a state dict of arrays; `content` takes the place of its opcodes."""
  items = b"".join(text(name) + tensor(str(i), array) for i, (name, array) in enumerate(arrays.items()))
  with zipfile.ZipFile(file, "w") as archive:
    content = ordered(items) if content is None else content
    archive.writestr(f"{root}/data.pkl", b"\x80\x02" + content + b".")
    archive.writestr(f"{root}/byteorder", byteorder)
    for i, array in enumerate(arrays.values()):
      archive.writestr(f"{root}/data/{i}", np.ascontiguousarray(array).tobytes())
    archive.writestr(f"{root}/version", "3\n")
  return file
