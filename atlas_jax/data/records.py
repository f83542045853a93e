"""Rows of JSON lines, JSON, CSV, Parquet and hub datasets, each with the place it stands at."""
import codecs
import csv
import functools
import glob
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import logging

from atlas_jax.data import formats
from atlas_jax.files import json_text, parquet

JSON_LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}  # What stands between two cells.
KINDS = (*JSON_LINES, *(kind + ".gz" for kind in JSON_LINES), ".json", *TABLES, ".parquet")
# A file whose name has one of these anywhere may hold rows.
ALMOST = (*JSON_LINES, ".json", *TABLES, ".parquet", ".arrow", ".xlsx")
SHOWN = 5  # Files named in a message that is about many.
CELL_CHARS = 2**31 - 1  # Most characters of one cell.
FORMS = f"a file, folder or glob of {', '.join(KINDS)}, several with commas between them"


class Record(NamedTuple):
  """One row."""

  where: str  # file:line for JSON lines and CSV, else file:row or dataset:row, counted from 1
  row: dict[str, Any]


def read(name: str, *, split: str = "train", download: bool = False) -> Iterator[Record]:
  """Yields the rows of files or of a hub dataset, files in the order of their names.

  Args:
    name: files, folders or globs with commas between them, or "hf:NAME" or "hf:NAME:SUBSET".
    split: of a hub dataset; files have none.
    download: whether a hub dataset may be fetched.

  Raises:
    ValueError: for a place that holds no rows, and for a row that is not a JSON object, naming file and line.
    ModuleNotFoundError: if the extra `data` is missing.
  """
  if name.startswith("hf:"):
    yield from _hugging_face(name, split, download)
    return
  found = files(name)
  empty = [file for file in found if not file.stat().st_size]
  if len(empty) == len(found):
    raise ValueError(f"config.data.files={name!r}: {_of(empty, found)} empty (0 bytes): "
                     f"{_shown(empty)}; write them again, or name others")
  if empty:
    _warn_empty(_of(empty, found), _shown(empty))
  for file in found:
    if file in empty:
      continue
    if file.suffix in TABLES:
      yield from _table(file, TABLES[file.suffix])
    else:
      yield from {".parquet": _parquet, ".json": _json}.get(file.suffix, _json_lines)(file)


def files(name: str) -> list[pathlib.Path]:
  """Lists the files that paths, folders and globs with commas between them name, sorted, each once.

  Raises:
    ValueError: if one of them names no file that can be read.
  """
  found: list[pathlib.Path] = []
  # A comma may be part of a file's name: it divides only what is no file as a whole.
  whole = pathlib.Path(name).expanduser().exists()
  for part in [name] if whole else [part.strip() for part in name.split(",")]:
    path = pathlib.Path(part).expanduser()
    if path.is_dir():
      there = [file for file in path.rglob("*") if file.is_file()]
      here = [file for file in there if file.name.endswith(KINDS)]
      _warn_left_out(part, tuple(sorted(file.name for file in there if _is_almost_rows(file.name))))
    elif path.is_file():
      here = [path]
    else:
      matches = map(pathlib.Path, glob.glob(str(path), recursive=True))
      here = [file for file in matches if file.is_file()]
    if not here:
      raise ValueError(f"config.data.files={part!r} names no file; it must be {FORMS}")
    found += sorted(here)
  strange = [str(file) for file in found if not file.name.endswith(KINDS)]
  if strange:
    raise ValueError(f"{strange[0]} ends in none of {', '.join(KINDS)}; convert it, or leave it out")
  return list(dict.fromkeys(found))


def _is_almost_rows(name: str) -> bool:
  """Returns whether a file of a folder may hold rows and is not read, for how it is packed or spelt."""
  return not name.endswith(KINDS) and any(suffix in ALMOST for suffix in pathlib.Path(name.lower()).suffixes)


@functools.cache  # A folder is read for each split, and warned of once.
def _warn_left_out(folder: str, left_out: tuple[str, ...]) -> None:
  if left_out:
    logging.warning("config.data.files=%s: %d files are not read, for they end in none of %s: %s", folder,
                    len(left_out), ", ".join(KINDS), ", ".join(left_out[:SHOWN]))


def _of(some: list, others: list) -> str:
  return f"{len(some)} of {len(others)} files {'is' if len(some) == 1 else 'are'}"


def _shown(some: list[pathlib.Path]) -> str:
  return ", ".join(map(str, some[:SHOWN])) + (f" and {len(some) - SHOWN} more" if some[SHOWN:] else "")


@functools.cache
def _warn_empty(how_many: str, which: str) -> None:
  logging.warning("%s empty (0 bytes) and give no rows: %s", how_many, which)


def _json_lines(file: pathlib.Path) -> Iterator[Record]:
  number = 0
  try:
    with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as opened:
      # Bytes, not text: each line is decoded by itself, so that one in another
      # encoding is named by its number.
      for number, line in enumerate(opened, start=1):
        where = f"{file}:{number}"
        text = _text(f"{file}:{number}", line).strip()
        # Said here: the parser would complain of an end that is missing, in a file that is whole.
        if number == 1 and text.startswith("["):
          raise ValueError(f"{where}: begins with '[' as a JSON list does, not with an object; name the file "
                           f"{file.name.partition('.')[0]}.json")
        if text:
          yield Record(where, _object(where, _parsed(where, text)))
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(f"{file}: cannot be unpacked after line {number} ({error}); pack it again") from error


def _json(file: pathlib.Path) -> Iterator[Record]:
  text = _text(str(file), file.read_bytes())
  # Many datasets have JSON lines in a file that ends in .json.
  if _is_lines(text):
    yield from _json_lines(file)
    return
  rows = _parsed(str(file), text)
  if not isinstance(rows, list):
    raise ValueError(f"{file}: is one {type(rows).__name__}; it must be a list of objects, or JSON lines in "
                     f"a file that ends in .jsonl")
  for number, row in enumerate(rows, start=1):
    yield Record(f"{file}:{number}", _object(f"{file}:{number}", row))


def _is_lines(text: str) -> bool:
  """Returns whether a JSON file has an object in each line: its first line is one, and others follow."""
  first, _, more = text.strip().partition("\n")
  if not first.startswith("{") or not more.strip():
    return False
  try:
    return isinstance(json_text.parse(first, nan=True), dict)
  except ValueError:
    return False


def _table(file: pathlib.Path, delimiter: str) -> Iterator[Record]:
  """Yields the rows of a table in text: a line of names, then a row in each line or quoted lines."""
  # Python's limit of 131072 characters is less than a long chat in a cell. It is one for the whole process.
  csv.field_size_limit(CELL_CHARS)
  text = _text(str(file), file.read_bytes())
  header = text.lstrip().partition("\n")[0]
  # Spreadsheets of some languages put others between cells.
  between = next((one for one in (delimiter, ";", "\t") if one in header), delimiter)
  # newline="" leaves line ends inside quotes as they are, and "strict" refuses a quote that is never closed,
  # which would otherwise swallow all rows behind it.
  cells = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
  names: list[str] = []
  line = 1
  try:
    for row in cells:
      where = f"{file}:{line}"
      # A row may go over several lines: the next one begins behind the last of them.
      line = cells.line_num + 1
      if not any(cell.strip() for cell in row):
        continue
      if not names:
        names = [name.strip() for name in row]
        if "" in names or len(set(names)) < len(names):
          raise ValueError(f"{where}: the first line must name each column once; it has {names}")
      elif len(row) != len(names):
        raise ValueError(f"{where}: has {len(row)} cells, the first line {len(names)}; put cells with "
                         f"{between!r} or line ends in double quotes")
      else:
        yield Record(where, dict(zip(names, row, strict=True)))
  except csv.Error as error:
    raise ValueError(f"{file}:{line}: cannot be read as a table ({error}); mend it") from error


def _parquet(file: pathlib.Path) -> Iterator[Record]:
  formats.need("pyarrow.parquet", f"{file}")
  parquet.columns(file)
  for number, row in enumerate(parquet.rows(file), start=1):
    yield Record(f"{file}:{number}", row)


def _hugging_face(name: str, split: str, download: bool) -> Iterator[Record]:
  dataset, _, subset = name[3:].partition(":")
  # Asked first: an attempt without a network takes minutes to fail.
  if not download and not pathlib.Path(dataset).exists():
    raise ValueError(f"config.data.name={name!r} is on the hub; set config.data.download=True to fetch it, "
                     f"or give files with config.data.name='files'")
  datasets = formats.need("datasets", f"config.data.name={name!r}")
  try:
    for number, row in enumerate(datasets.load_dataset(dataset, subset or None, split=split), start=1):
      yield Record(f"{name}:{number}", dict(row))
  except (OSError, ValueError) as error:  # Absent, offline, forbidden, and a split that is not there.
    line = (str(error).splitlines() or [""])[0]
    raise ValueError(f"config.data.name={name!r} cannot be read: {type(error).__name__}: {line}; without a "
                     f"network give files with config.data.name='files'") from error


def _text(where: str, data: bytes) -> str:
  """Returns bytes as text: UTF-8, or UTF-16 where a mark says so.

  Marks of the order of bytes are left out.
  """
  # Spreadsheets save "Unicode text" as UTF-16 with its mark. Of UTF-8 the mark is no part of the first
  # column's name, and a file put together of others may have it twice.
  wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  try:
    return data.decode("utf-16" if wide else "utf-8-sig").lstrip("\ufeff")
  except UnicodeDecodeError as error:
    raise ValueError(f"{where}: not UTF-8 ({error}); save it as UTF-8") from error


def _parsed(where: str, text: str) -> Any:
  try:
    return json_text.parse(text, nan=True)  # Python writes NaN in columns that nobody may read.
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}: not JSON ({error}); mend or delete it") from error
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error


def _object(where: str, row: Any) -> dict[str, Any]:
  if not isinstance(row, dict):
    raise ValueError(f"{where}: is {type(row).__name__}, not an object with fields; mend or delete it")
  return row
