"""True names of what fails outside the program: disks, limits, permissions, memory."""
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator

NUMBERS = {errno.ENOSPC: "space", errno.EDQUOT: "space", errno.EMFILE: "files", errno.ENFILE: "files",
           errno.EACCES: "permission", errno.EPERM: "permission", errno.EROFS: "read-only",
           errno.ENOMEM: "memory"}
# What libraries that swallow the number say, in this order.
WORDS = {"No space left on device": "space", "Disk quota exceeded": "space", "Too many open files": "files",
         "Read-only file system": "read-only", "Permission denied": "permission",
         "Cannot allocate memory": "memory", "RESOURCE_EXHAUSTED": "device"}
FULL_BYTES = 2**26  # A disk with more is not called full: the one that is may be another.
# An absolute path in a message; the slashes of a URL follow a colon, another slash or a letter.
_PATH = re.compile(r"(?<![\w/:])(/[^\s'\"\[\](),;]+)")


def true_name(error: BaseException, places: Iterable[str | os.PathLike] = ()) -> str | None:
  """Says in one line what outside the program failed, where, and what to do; None for other errors.

  Args:
    error: with those that it comes from.
    places: folders that the program writes to; where the error of a full disk names no file, the fullest is
      named if it has less than 64 MiB.
  """
  found = [(kind, each) for each in chain(error) if (kind := _kind(each))]
  if not found:
    return None
  # Libraries call a full disk an exhausted resource as well: the device is meant only if nothing else is.
  kind, cause = min(found, key=lambda pair: pair[0] == "device")
  # The error that names the kind may lack the file, and the one around it have it.
  path = _path_of(cause) or next(filter(None, map(_path_of, chain(error))), None)
  if path is None and kind == "space":
    path = _fullest(places)
  return f"{_named(kind, path)} ({_line(error)}); {_remedy(kind)}"


def chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and those that it comes from."""
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    # Also errors that were raised while another was handled: libraries seldom write `from`. `seen` ends a
    # ring.
    error = error.__cause__ or error.__context__


def _kind(error: BaseException) -> str | None:
  if isinstance(error, MemoryError):
    return "memory"
  if isinstance(error, OSError) and error.errno in NUMBERS:
    return NUMBERS[error.errno]
  if isinstance(error, SyntaxError):
    return None
  # The number of an OSError is certain, words are a guess: they come last.
  return next((kind for words, kind in WORDS.items() if words in str(error)), None)


def _path_of(error: BaseException) -> str | None:
  if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
    return os.fsdecode(error.filename)
  found = _PATH.search(str(error))
  return found[1].rstrip(".:") if found else None


def _named(kind: str, path: str | None) -> str:
  at = f" at {path}" if path else ""
  if kind == "space":
    return f"disk full{at}{_free(path)}"
  if kind == "files":
    return f"too many open files{at}"
  if kind == "permission":
    return f"no permission{at}"
  if kind == "read-only":
    return f"read-only file system{at}"
  return "out of memory of this host" if kind == "memory" else "out of device memory"


def _fullest(places: Iterable[str | os.PathLike]) -> str | None:
  free = {os.fspath(place): shutil.disk_usage(place).free for place in places if os.path.isdir(place)}
  fullest = min(free, key=lambda place: free[place], default=None)
  return None if fullest is None or free[fullest] > FULL_BYTES else fullest


def _free(path: str | None) -> str:
  # What failed may be the making of this very file: the nearest folder that exists is on the same disk.
  for place in (pathlib.Path(path), *pathlib.Path(path).parents) if path else ():
    if place.exists():
      usage = shutil.disk_usage(place)
      return f", where {usage.free / 2**30:.2f} of {usage.total / 2**30:.2f} GiB are free"
  return ""


def _remedy(kind: str) -> str:
  again = "the same command then goes on from the newest checkpoint"
  return {
      "space": f"make room there, or keep less (config.checkpoint.keep_last); {again}",
      "files": f"raise the limit of this shell, such as `ulimit -n 65536`; {again}",
      "permission": "give this user the right, or choose another place",
      "read-only": "choose a place that can be written; --mode=eval, generate and export can read there",
      "memory": f"lower config.data.batch_rows or config.data.threads, or use a larger machine; {again}",
      "device": "lower config.data.batch_rows, raise config.train.accumulate_steps, or set config.model."
                "remat=block",
  }[kind]


def _line(error: BaseException) -> str:
  words = " ".join(str(error).split())
  return f"{type(error).__name__}: {words[:500]}" if words else type(error).__name__
