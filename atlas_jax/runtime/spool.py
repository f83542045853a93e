"""The spool: writes for a store that is down, on disk until it is back."""
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any


class StoreFull(Exception):
  """Neither store nor spool takes anything: no session may be begun."""


class Spool:
  """A folder with a file for each session; every line is on disk before `put` returns.

  Processes may fraction the folder: whoever adds to a file or takes from it locks it.

  Attributes:
    folder: of the files.
  """

  def __init__(self, folder: str | os.PathLike):
    """Takes the folder, which is made when something is put."""
    self.folder = pathlib.Path(folder)

  def put(self, key: str, operations: Sequence[Mapping[str, Any]]) -> None:
    """Adds operations of a session.

    Raises:
      StoreFull: if they cannot be written.
    """
    lines = [json.dumps({"key": key, **one}, allow_nan=False).encode("ascii") + b"\n" for one in operations]
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      with self._locked(key, "ab") as out:
        out.write(b"".join(lines))
        out.flush()
        os.fsync(out.fileno())
    except OSError as error:
      raise StoreFull(f"the store is down, and {self.folder} takes nothing either ({error}); no session is "
                      "begun until one of them does: mend the store, or make room") from error

  def waiting(self) -> list[str]:
    """Returns the keys of the sessions that wait, in the order in which they were written to last."""
    found = []
    for file in self.folder.glob("*.jsonl"):
      with contextlib.suppress(FileNotFoundError), file.open("rb") as lines:
        # Another process may have stored it meanwhile.
        first = lines.readline()
        if first.endswith(b"\n"):
          found.append((os.fstat(lines.fileno()).st_mtime_ns, json.loads(first)["key"]))
    return [key for _, key in sorted(found)]

  def operations(self, key: str) -> list[dict[str, Any]]:
    """Returns what waits of a session; a line that a crash cut off was never confirmed, and is none."""
    try:
      return _parsed(self._file(key).read_bytes())
    except FileNotFoundError:
      return []

  @contextlib.contextmanager
  def taken(self, key: str) -> Iterator[list[dict[str, Any]]]:
    """Yields what waits of a session, which is forgotten at the end of the block unless that raises.

    What is added meanwhile, by another process too, waits until then and is kept.
    """
    with contextlib.ExitStack() as stack:
      try:
        file = stack.enter_context(self._locked(key, "r+b"))
      except FileNotFoundError:
        file = None  # Another process has stored it.
      yield [] if file is None else _parsed(file.read())
      if file is not None:
        self._file(key).unlink()

  def drop(self, key: str) -> None:
    """Forgets a session."""
    self._file(key).unlink(missing_ok=True)

  def __len__(self) -> int:
    """Returns how many sessions wait."""
    return sum(1 for _ in self.folder.glob("*.jsonl"))

  @contextlib.contextmanager
  def _locked(self, key: str, mode: str) -> Iterator[IO[bytes]]:
    while True:
      with self._file(key).open(mode) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # Else it was stored and removed while this waited.
          yield file
          return

  def _file(self, key: str) -> pathlib.Path:
    # Keys are of callers, and may be any text.
    return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.jsonl"


def _parsed(content: bytes) -> list[dict[str, Any]]:
  return [json.loads(line) for line in content.split(b"\n")[:-1]]
