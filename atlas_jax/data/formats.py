"""Documents out of files: plain text, JSON lines, Parquet, ArrayRecord, and their compressed forms.

What cannot be read is reported to `faults` with file and line, and skipped.
"""
import gzip
import importlib
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import logging

from atlas_jax.files import json_lines, parquet
from atlas_jax.files.damage import Damaged

PLAIN = (".txt", ".text", ".md", ".rst", ".tex", ".py")
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
ARRAY_RECORD = (".array_record", ".arrayrecord")
COMPRESSED = ("", ".gz", ".zst")
LINES_OR_PLAIN = tuple(kind + packed for kind in (*PLAIN, *JSON_LINES) for packed in COMPRESSED)
SUFFIXES = LINES_OR_PLAIN + PARQUET + ARRAY_RECORD
SHOWN = 5              # Faults logged one by one; the rest are counted.
CHUNK_BYTES = 2**20


class Document(NamedTuple):
  """One text."""
  name: str      # a file, or file:line, or dataset:row; decides on which side of the split it falls
  text: bytes    # UTF-8, not empty


class Faults:
  """Counts what was read and what had to be skipped, and raises when that is too much."""

  def __init__(self, bad_input_frac: float):
    """Sets the fraction of documents, and of files, that may be skipped."""
    self.bad_input_frac = bad_input_frac
    self.files = self.documents = self.bad_files = self.bad_documents = 0
    self._first: list[str] = []

  @property
  def skipped(self) -> int:
    """Returns the number of documents and files that were skipped."""
    return self.bad_files + self.bad_documents

  def skip(self, where: str, why: object, *, whole_file: bool = False) -> None:
    """Notes that `where` (file, or file:line) was skipped."""
    self.bad_files += whole_file
    self.bad_documents += not whole_file
    if self.skipped <= SHOWN:
      self._first.append(f"{where} ({why})")
      logging.warning("skipped %s: %s", where, why)

  def check(self) -> None:
    """Raises ValueError if more was skipped than `bad_input_frac` allows."""
    # `documents` counts what was read, `files` all that were opened. The two are judged apart: one archive
    # that is cut short may hide a million documents, and counts as a whole bad file.
    documents = self.documents + self.bad_documents
    fractions = ("files", self.bad_files, self.files), ("documents", self.bad_documents, documents)
    for what, bad, seen in fractions:
      if bad > self.bad_input_frac * seen:
        raise ValueError(
            f"{bad} of {seen} {what} cannot be read, more than config.data.bad_input_frac="
            f"{self.bad_input_frac} allows: {'; '.join(self._first)}; mend them or raise that field")
    if self.skipped > SHOWN:
      logging.warning("skipped %d documents and %d files in all", self.bad_documents, self.bad_files)


def read(name: str, file: pathlib.Path, faults: Faults, *, text_field: str) -> Iterator[Document]:
  """Yields the documents of one file, by its suffix; a suffix that is not known is plain text.

  Args:
    name: what to call the file in documents and faults.
    file: where it is.
    faults: told what is skipped.
    text_field: the field of JSON lines or column of Parquet that holds the text.

  Raises:
    ModuleNotFoundError: if the format needs the extra `data`.
    ValueError: if a Parquet file has no such column.
  """
  faults.files += 1
  if not file.stat().st_size:
    faults.skip(name, "empty", whole_file=True)
    return
  # Of x.jsonl.gz the suffix inside decides how it is read, the outer one how it is unpacked.
  kind = file.with_suffix("").suffix if file.suffix in COMPRESSED[1:] else file.suffix
  rows = {**dict.fromkeys(JSON_LINES, _json_lines), **dict.fromkeys(PARQUET, _parquet),
          **dict.fromkeys(ARRAY_RECORD, _array_record)}.get(kind, _plain)
  try:
    for where, value in rows(name, file, text_field, faults):
      text = checked_text(where, value, faults)
      if text is not None:
        yield Document(where, text)
  # A file that breaks in the middle has given the documents before: they stay, and the file counts as bad.
  except (EOFError, OSError, zlib.error) as error:
    faults.skip(name, f"{error or type(error).__name__}; what follows in it is lost", whole_file=True)


def checked_text(where: str, value, faults: Faults) -> bytes | None:
  """Returns the text as UTF-8 bytes, or None after telling `faults` that it is not text, or empty."""
  if isinstance(value, str):
    # Half of a surrogate pair, which JSON escapes may hold, becomes bytes that are not UTF-8: the check below
    # then reports it with its line, where "strict" would raise out of the whole file.
    value = value.encode("utf-8", errors="surrogatepass")
  if not isinstance(value, bytes):
    faults.skip(where, f"its text is {type(value).__name__}, not a string")
    return None
  try:
    value.decode("utf-8")
  except UnicodeDecodeError as error:
    faults.skip(where, f"not UTF-8 at line {value[:error.start].count(10) + 1}, byte {error.start}")
    return None
  if not value.strip():
    faults.skip(where, "empty")
    return None
  return value


def need(module: str, what: str):
  """Imports a module of the extra `data`, or says that the extra is missing."""
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{what} needs the package {error.name}: pip install 'atlas_jax[data]', "
                              f"or set config.data.name='python_stdlib'") from error


def _plain(name, file, text_field, faults):
  yield name, b"".join(_chunks(file))


def _json_lines(name, file, text_field, faults):
  for number, line in enumerate(_lines(_chunks(file)), start=1):
    where = f"{name}:{number}"
    if not line.strip():
      continue
    try:
      # Python writes NaN for missing numbers; of a line only the text is used, so it
      # need not be refused for that.
      record = json_lines.parse(file, number, line, nan=True)
    except Damaged as error:
      faults.skip(where, error.why)
      continue
    if text_field in record:
      yield where, record[text_field]
    else:
      faults.skip(where, f"no field {text_field!r} (config.data.text_field)")


def _parquet(name, file, text_field, faults):
  need("pyarrow.parquet", f"{file}")
  try:
    columns = parquet.columns(file)
    if text_field in columns:
      for number, row in enumerate(parquet.rows(file, [text_field]), start=1):
        yield f"{name}:{number}", row[text_field]
  except Damaged as error:
    raise EOFError(error.why) from error
  if text_field not in columns:
    raise ValueError(f"config.data.text_field={text_field!r} is no column of {file}; it has "
                     f"{', '.join(columns)}")


def _array_record(name, file, text_field, faults):
  reader = need("array_record.python.array_record_module", f"{file}").ArrayRecordReader(str(file))
  if not reader.ok():
    raise EOFError("not a whole ArrayRecord file")
  for record in range(reader.num_records()):
    try:
      value, = reader.read([record])
    except (RuntimeError, IndexError) as error:
      raise EOFError(error) from error
    yield f"{name}:{record + 1}", value
  reader.close()


def _chunks(file: pathlib.Path) -> Iterator[bytes]:
  """Yields the bytes of a file, unpacked; raises EOFError if a packed one ends too soon."""
  if file.suffix == ".zst":
    yield from _zstd_chunks(file)
    return
  with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as opened:
    while chunk := opened.read(CHUNK_BYTES):
      yield chunk


def _zstd_chunks(file: pathlib.Path) -> Iterator[bytes]:
  zstandard = need("zstandard", f"{file}")
  # A .zst file may be several frames one after another, as parallel compressors write them; a decompressor
  # ends with its frame and hands back the bytes behind it.
  frame: Any = None
  packed = b""
  with open(file, "rb") as opened:
    while packed := packed or opened.read(CHUNK_BYTES):
      frame = frame or zstandard.ZstdDecompressor().decompressobj()
      try:
        yield frame.decompress(packed)
      except zstandard.ZstdError as error:
        raise EOFError(error) from error
      packed = b""
      if frame.eof:
        frame, packed = None, frame.unused_data
  if frame:
    raise EOFError("compressed file ended before the end of its frame")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
  rest: list[bytes] = []
  for chunk in chunks:
    # Only at line feeds; bytes.splitlines would also end a line at a carriage return. Pieces of
    # a line that is longer than a chunk are kept apart and joined once: joined each time, a
    # long line would cost its square.
    *whole, last = chunk.split(b"\n")
    if whole:
      yield b"".join([*rest, whole[0]])
      yield from whole[1:]
      rest = []
    rest.append(last)
  if any(rest):
    yield b"".join(rest)
