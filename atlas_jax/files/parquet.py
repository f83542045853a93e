"""Parquet files, row by row; needs the package pyarrow."""
import importlib
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from atlas_jax.files.damage import Damaged, as_damaged

_WHAT = "not a whole Parquet file"
AGAIN = "write it again"
MOST_VALUES = 10_000_000  # Of lists in the file's description; that of a large file has thousands.


def rows(file, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
  """Yields rows as dicts.

  Args:
    file: its path.
    columns: to read; None: all.

  Raises:
    Damaged: naming the file; also for a page whose checksum, if the file has them, differs.
    ModuleNotFoundError: without pyarrow.
  """
  opened = _open(file)
  with as_damaged(file, _WHAT, AGAIN):
    batches = opened.iter_batches(columns=columns)
  while True:
    with as_damaged(file, _WHAT, AGAIN):
      batch = next(batches, None)
      found = None if batch is None else batch.to_pylist()
    if found is None:
      return
    yield from found


def columns(file) -> list[str]:
  """Lists the names of columns.

  Raises:
    Damaged: also if two columns have one name.
  """
  opened = _open(file)
  with as_damaged(file, _WHAT, AGAIN):
    names = list(opened.schema_arrow.names)
  # Rows become dicts, in which the second column of a name would hide the first.
  twice = [name for name, count in Counter(names).items() if count > 1]
  if twice:
    raise Damaged(file, f"has {twice[0]!r} twice among its columns", "keep one of them")
  return names


def _open(file):
  parquet = importlib.import_module("pyarrow.parquet")
  if pathlib.Path(file).stat().st_size == 0:
    raise Damaged(file, "is empty (0 bytes)", AGAIN)
  with as_damaged(file, _WHAT, AGAIN):
    # The limits are for the footer, which is parsed before any row: a damaged one
    # may state lists of billions.
    return parquet.ParquetFile(file, page_checksum_verification=True, thrift_string_size_limit=2**27,
                               thrift_container_size_limit=MOST_VALUES)
