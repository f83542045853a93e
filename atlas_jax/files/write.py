"""The one writer of small files: a reader sees the old file or the new one, also after a loss of power.

A file is written beside its place under a name of its own, brought to the disk, and renamed; then the folder
is brought to the disk too. Files that nobody needs after the program has ended may go without
(`durable=False`); they are whole all the same.
"""
import contextlib
import errno
import functools
import json as json_library
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import IO, Any

PART = ".part"  # How the name of a file ends that is still being written; it begins with a dot.


@contextlib.contextmanager
def opened(file, *, durable: bool = True) -> Iterator[IO[bytes]]:
  """Yields a binary file to write to, which takes its place when the block ends; an error leaves nothing.

  Raises:
    OSError: of the system, such as a full disk; the old file, if any, is as it was.
  """
  path = pathlib.Path(file)
  with placed(path, durable=durable) as part:
    # Not tempfile: its files are closed to all other users, who may read a run. O_EXCL: two writers that drew
    # the same name would mix their bytes.
    descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # Less the umask.
    with open(descriptor, "w+b") as out:
      yield out


@contextlib.contextmanager
def naming(file) -> Iterator[None]:
  """Adds the name of a file to errors of the system that have none, as those of writing to an open file."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      error.filename = str(file)
    raise


@contextlib.contextmanager
def placed(file, *, durable: bool = True) -> Iterator[pathlib.Path]:
  """Yields a path beside a file for a library to write to; it takes the file's place when the block ends."""
  path = pathlib.Path(file)
  # Such as /dev/stdout, which root may replace.
  if path.exists() and not path.is_file() and not path.is_dir():
    raise OSError(errno.EINVAL, "is a device or pipe, in whose place no file is put", str(path))
  part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
  try:
    with naming(path):
      yield part
      if durable:
        sync(part)
      # The content must be on the disk before the name is: the other way round, a loss of power leaves the
      # new name on a file of zeros.
      os.replace(part, path)
  except BaseException:
    # BaseException above: a Ctrl-C must leave no part behind either.
    part.unlink(missing_ok=True)
    raise
  if durable:
    # The rename is an entry of the folder, and is lost with the power if that is not on the disk.
    sync(path.parent)


def whole(file, content: bytes | str, *, durable: bool = True) -> None:
  """Writes a file; a str is written as UTF-8."""
  with opened(file, durable=durable) as out:
    out.write(content.encode() if isinstance(content, str) else content)


def json(file, content: Any, *, indent: int | None = 2, sort_keys: bool = False,
         durable: bool = True) -> None:
  """Writes a value as JSON."""
  dumps = functools.partial(json_library.dumps, content, indent=indent, sort_keys=sort_keys)
  try:
    encoded = dumps(ensure_ascii=False).encode()
  except UnicodeEncodeError:  # Half of a surrogate pair: not in UTF-8, but an escape of JSON.
    encoded = dumps().encode()
  whole(file, encoded + b"\n", durable=durable)


def json_line(content: Any) -> bytes:
  """Returns a value as one line of JSON with its end."""
  try:
    encoded = json_library.dumps(content, ensure_ascii=False).encode()
  except UnicodeEncodeError:  # See `json`.
    encoded = json_library.dumps(content).encode()
  return encoded + b"\n"


def copy(source, target, *, durable: bool = True) -> None:
  """Copies a file; one that is copied to its own place stays."""
  source = pathlib.Path(source)
  target = pathlib.Path(target)
  if source.resolve() == target.resolve():
    return
  with source.open("rb") as old, opened(target, durable=durable) as new:
    shutil.copyfileobj(old, new, 2**20)


def folder(part, target) -> None:
  """Renames a finished folder to its place, its files brought to the disk first.

  Raises:
    OSError: also if the target is there and not empty.
  """
  part = pathlib.Path(part)
  target = pathlib.Path(target)
  for file in sorted(part.rglob("*")):
    sync(file)
  sync(part)
  part.rename(target)
  sync(target.parent)


def sync(path) -> None:
  """Brings a file, or the names in a folder, to the disk, where the file system can."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    # Some file systems, such as network mounts, cannot sync a folder.
    if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
      raise
  finally:
    os.close(descriptor)
