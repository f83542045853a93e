"""Files of JSON lines that grow: a line is on the disk when it is written, and one process writes."""
import fcntl
import json
import os
import pathlib
import re
from typing import Any

from atlas_jax.files import write

HALF = re.compile("[\ud800-\udfff]")


class Appender:
  """Adds lines to a file, behind the last whole one; a line that a kill cut off was never written."""

  def __init__(self, file):
    """Opens it, and takes away what a kill has left of a line.

    Raises:
      OSError: if it cannot be opened, or another process has it.
    """
    self._path = pathlib.Path(file)
    is_new = not self._path.exists()
    self._out = self._path.open("a+b", buffering=0)
    try:
      fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      self._out.close()
      raise OSError(error.errno, "another process writes to it; wait for its end", str(file)) from error
    self._out.seek(0)
    content = self._out.read()
    self._out.truncate(content.rfind(b"\n") + 1)
    if is_new:
      write.sync(self._path.parent)

  def line(self, value: Any) -> None:
    """Writes a value as one line; half of a surrogate pair, which no reader takes, becomes U+FFFD.

    Raises:
      ValueError: for NaN and infinities.
      OSError: if it cannot be written, as on a full disk.
    """
    with write.naming(self._path):
      text = json.dumps(value, ensure_ascii=False, allow_nan=False)
      encoded = HALF.sub("\ufffd", text).encode() + b"\n"
      if self._out.write(encoded) != len(encoded):
        raise OSError(f"a line was cut off in {self._path}; the disk may be full")
      os.fsync(self._out.fileno())

  def close(self) -> None:
    """Closes the file, which others may write to then."""
    self._out.close()
