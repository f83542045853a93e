"""The spool: what a store that is down would have been told, on disk, until it is back."""
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any


class StoreFull(Exception):
  """Neither store nor spool takes anything: no session may be begun."""


class Spool:
  """A folder with a file for each session; every line is on disk before `put` returns.

  Attributes:
    folder: of the files.
  """

  def __init__(self, folder: str | os.PathLike):
    """Takes the folder, which is made when something is put."""
    self.folder = pathlib.Path(folder)

  def put(self, key: str, operation: Mapping[str, Any]) -> None:
    """Adds an operation of a session.

    Raises:
      StoreFull: if it cannot be written.
    """
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      with self._file(key).open("ab") as out:
        out.write(json.dumps({"key": key, **operation}, allow_nan=False).encode("ascii") + b"\n")
        out.flush()
        os.fsync(out.fileno())
    except OSError as error:
      raise StoreFull(f"the store is down, and {self.folder} takes nothing either ({error}); no session is "
                      "begun until one of them does: mend the store, or make room") from error

  def waiting(self) -> list[str]:
    """Returns the keys of the sessions that wait, in the order in which they began."""
    files = sorted(self.folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
    return [line["key"] for file in files for line in _first(file)]

  def operations(self, key: str) -> list[dict[str, Any]]:
    """Returns what waits of a session; a line that a crash cut off was never confirmed, and is none."""
    return list(_lines(self._file(key)))

  def drop(self, key: str) -> None:
    """Forgets a session, when all of it is stored."""
    self._file(key).unlink(missing_ok=True)

  def __len__(self) -> int:
    """Returns how many sessions wait."""
    return sum(1 for _ in self.folder.glob("*.jsonl"))

  def _file(self, key: str) -> pathlib.Path:
    # Keys are of callers, and may be any text.
    return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.jsonl"


def _first(file: pathlib.Path) -> list[dict[str, Any]]:
  return list(_lines(file))[:1]


def _lines(file: pathlib.Path) -> Iterator[dict[str, Any]]:
  if not file.exists():
    return
  for line in file.read_bytes().split(b"\n")[:-1]:
    yield json.loads(line)
