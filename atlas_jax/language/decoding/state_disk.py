"""States of prefixes on the disk: one file each, written by a thread of its own, whole or not at all.

A process that is killed loses what was still to be written, and nothing else. A damaged file is taken away
with a warning: what it held is read again from its text.
"""
import os
import pathlib
import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import logging

from atlas_jax.files.damage import Damaged
from atlas_jax.files.write import PART
from atlas_jax.language.decoding import state_files

SUFFIX = ".state"
HEADER_BYTES = 1_000  # Of a file's first line, at most.
# States that may wait to be written, and their bytes, which are not those of the store; what is more is kept
# in memory alone.
WAITING = 256
WAITING_BYTES = 2**28


class StoredState(NamedTuple):
  """The state behind a text, or of its last block where it grows."""

  arrays: list[np.ndarray]
  hidden_BD: np.ndarray  # [1, D] of the text's last id, so that the next one can be drawn without reading

  @property
  def bytes(self) -> int:
    """Returns the size of all arrays."""
    return sum(array.nbytes for array in (*self.arrays, self.hidden_BD))


class FiledText(NamedTuple):
  """The text of a file."""

  name: str
  key: str  # of the root
  grows: bool
  parent: str  # where it grows, the name of the file before it, or of the root
  depth: int  # blocks of the whole text
  block_tokens: int
  tokens: np.ndarray  # int32: all ids, or those of the last block


class StateDisk:
  """A folder of states.

  Attributes:
    skipped: states that were not written because too many waited.
    waiting_bytes: of states that wait to be written.
    damaged: files that could not be read.
  """

  def __init__(self, folder, max_bytes: int, *, most_waiting_bytes: int = WAITING_BYTES):
    """Makes the folder if there is none, and starts the thread that writes."""
    self._folder = pathlib.Path(folder)
    self._folder.mkdir(parents=True, exist_ok=True)
    self._max_bytes = max_bytes
    self._sizes: dict[str, int] = {}
    self._queue: queue.Queue = queue.Queue(WAITING)
    self._most_waiting_bytes = most_waiting_bytes
    self._waiting: dict[str, StoredState] = {}
    self._lock = threading.Lock()  # Of what waits.
    self.waiting_bytes = 0
    self.bytes = 0
    self.skipped = 0
    self.damaged = 0
    self._thread = threading.Thread(target=self._work, name="states", daemon=True)
    self._thread.start()

  @property
  def is_over(self) -> bool:
    """Returns whether the files are more than there may be."""
    return self.bytes > self._max_bytes

  def write(self, text: FiledText, state: StoredState) -> bool:
    """Hands the state behind a text to the thread; returns whether it took it."""
    size = state.bytes + text.tokens.nbytes + HEADER_BYTES
    waits = self.waiting_bytes + state.bytes
    if size > self._max_bytes or self._queue.full() or self._waiting and waits > self._most_waiting_bytes:
      self.skipped += 1
      return False
    fields = {**text._asdict(), "tokens": None}
    self._count(text.name, size)
    with self._lock:
      self._waiting[text.name] = state
      self.waiting_bytes += state.bytes
    self._queue.put((text.name, (fields, text.tokens, state)))
    return True

  def read(self, name: str) -> StoredState | None:
    """Reads a state; None if it could not be written, or is damaged, and then it is gone."""
    waiting = self._waiting.get(name)
    if waiting is not None:
      return waiting
    file = self._file(name)
    try:
      _, (_, hidden_BD, *arrays) = state_files.read_state(file)
      os.utime(file)
    except FileNotFoundError:
      self._forget(name)
      return None
    except (Damaged, OSError) as error:
      self.damaged += 1
      logging.warning("a stored state is dropped, and its text will be read again: %s", error)
      self.delete(name)
      return None
    return StoredState(arrays, hidden_BD)

  def delete(self, name: str) -> None:
    """Hands a file to the thread to be taken away, behind what waits."""
    self._forget(name)
    with self._lock:
      self._waiting.pop(name, None)
    self._queue.put((name, None))

  def used_at(self, name: str) -> float:
    """Returns when a file was written or read last."""
    return self._file(name).stat().st_mtime

  def flush(self) -> None:
    """Waits until all is on the disk."""
    self._queue.join()

  def close(self) -> None:
    """Writes what waits, and ends the thread."""
    self._queue.put(None)
    self._thread.join()

  def files(self) -> Iterator[FiledText]:
    """Yields the texts of files, those of fewer blocks first; takes damaged ones away."""
    for part in self._folder.glob(f".*{PART}"):
      part.unlink(missing_ok=True)  # Of a process that was killed while it wrote.
    found = []
    for file in self._folder.glob(f"*{SUFFIX}"):
      try:
        found.append(_text(file))
        self._count(file.stem, file.stat().st_size)
      except (Damaged, OSError) as error:
        self.damaged += 1
        logging.warning("a stored state is dropped, and its text will be read again: %s", error)
        self.delete(file.stem)
    yield from sorted(found, key=lambda text: text.depth)

  def _count(self, name: str, size: int) -> None:
    self.bytes += size - self._sizes.get(name, 0)
    self._sizes[name] = size

  def _forget(self, name: str) -> None:
    self.bytes -= self._sizes.pop(name, 0)

  def _file(self, name: str) -> pathlib.Path:
    return self._folder / f"{name}{SUFFIX}"

  def _work(self) -> None:
    while (job := self._queue.get()) is not None:
      name, written = job
      try:
        if written is None:
          self._file(name).unlink(missing_ok=True)
        else:
          fields, tokens, state = written
          state_files.write_state(self._file(name), fields, [tokens, state.hidden_BD, *state.arrays])
      except OSError as error:  # A full disk must not end the server.
        self.skipped += 1
        logging.warning("a state is not kept on the disk: %s", error)
      finally:
        if written is not None:
          self._written(name, written[-1])
        self._queue.task_done()
    self._queue.task_done()

  def _written(self, name: str, state: StoredState) -> None:
    with self._lock:
      self.waiting_bytes -= state.bytes
      # Another of the same name may wait by now, behind the end of the first.
      if self._waiting.get(name) is state:
        del self._waiting[name]


def _text(file: pathlib.Path) -> FiledText:
  """Reads the text of a file; its ids are compared with their checksum when the state is read."""
  fields, arrays = state_files.read_state(file, most=1)
  kinds = {"name": str, "key": str, "grows": bool, "parent": str, "depth": int, "block_tokens": int}
  for name, kind in kinds.items():
    if type(fields.get(name)) is not kind:
      raise Damaged(file, f"{name}={fields.get(name)!r} must be a {kind.__name__}", state_files.REMEDY)
  tokens = arrays[0]
  block_tokens = fields["block_tokens"]
  if tokens.dtype != np.int32 or block_tokens < 1 or not len(tokens) or len(tokens) % block_tokens:
    raise Damaged(file, f"has {len(tokens)} ids of {tokens.dtype}, which are no blocks of {block_tokens}",
                  state_files.REMEDY)
  return FiledText(**{**{name: fields[name] for name in kinds}, "tokens": tokens})
