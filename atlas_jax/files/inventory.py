"""Checksums of the files of a folder, taken when it is written and compared when it is read.

CRC-32 of pieces, computed by a few threads: a flipped bit is always seen, and gigabytes take a second or two.
It is no defence against someone who changes a file on purpose.
"""
import concurrent.futures
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from atlas_jax.files import inside, json_file, write
from atlas_jax.files.damage import AGAIN, Damaged

SUMS = "atlas_checksums.json"
# 16 MiB: large enough that a piece costs little beside its checksum, small enough that four of them fit any
# memory. zlib works without Python's lock, so the threads run side by side. A change makes all inventories
# that were written before differ.
PIECE_BYTES = 2**24
THREADS = 4


def take(folder, names: Iterable[str]) -> dict[str, list]:
  """Returns {name: [size, checksum of each piece]} of files in a folder."""
  root = pathlib.Path(folder)
  return {name: [(root / name).stat().st_size, _sums(root / name)] for name in names}


def check(folder, recorded: Any, *, named_by, remedy: str = AGAIN) -> None:
  """Compares files with an inventory.

  Args:
    folder: that has them.
    recorded: what `take` gave when they were written.
    named_by: the file that has the inventory, for messages.
    remedy: what to do.

  Raises:
    Damaged: naming the first file that is missing or has other contents.
  """
  if not isinstance(recorded, Mapping):
    raise Damaged(named_by, "has no inventory of the files beside it", remedy)
  for name, entry in recorded.items():
    file = inside.path(folder, name, named_by=named_by, remedy=remedy)
    if not isinstance(entry, list) or len(entry) != 2:
      raise Damaged(named_by, f"its entry of {name!r} is no size and checksums", remedy)
    size, sums = entry
    if not file.is_file():
      raise Damaged(file, "is missing", remedy)
    # First what costs nothing: a copy that was cut short is the usual damage.
    if file.stat().st_size != size:
      raise Damaged(file, f"has {file.stat().st_size} bytes instead of {size}", remedy)
    if _sums(file) != sums:
      raise Damaged(file, "has other contents than were written (its checksum differs)", remedy)


def seal(folder) -> None:
  """Writes SUMS into a folder: the checksums of the other files that lie in it itself."""
  root = pathlib.Path(folder)
  # Files of the folder itself alone; `check_sealed` looks no deeper either.
  names = sorted(file.name for file in root.iterdir() if file.is_file() and _counts(file.name))
  write.json(root / SUMS, json_file.sealed({"files": take(root, names)}))


def check_sealed(folder, *, remedy: str = AGAIN) -> None:
  """Compares a folder with its SUMS; one without it, of an older version or not ours, passes.

  Raises:
    Damaged: naming the file that is damaged, missing, or was added.
  """
  root = pathlib.Path(folder)
  file = root / SUMS
  if not file.is_file():
    return
  recorded: Any = json_file.read_sealed(file, remedy=remedy, needed=True).get("files")
  check(root, recorded, named_by=file, remedy=remedy)
  # A file that was added may change what a loader reads: transformers takes a chat_template.jinja before the
  # template in its configuration.
  more = sorted(one.name for one in root.iterdir() if one.is_file() and _counts(one.name)
                and one.name not in recorded)
  if more:
    raise Damaged(root / more[0], f"is not one of the files that {SUMS} lists", remedy)


def _counts(name: str) -> bool:
  # Hidden names are of the system, of editors, and of `write` at work.
  return name != SUMS and not name.startswith(".")


def _sums(file: pathlib.Path) -> list[int]:
  def piece(at: int) -> int:
    with file.open("rb") as opened:
      opened.seek(at)
      return zlib.crc32(opened.read(PIECE_BYTES))
  starts = range(0, file.stat().st_size, PIECE_BYTES)
  if len(starts) < 2:
    return [piece(at) for at in starts]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return list(pool.map(piece, starts))
