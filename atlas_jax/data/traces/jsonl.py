"""Files of traces: one JSON object a line, read line by line, each accepted or rejected with a reason.

A line that cannot be read is a reject and does not stop the others. In strict mode all rejects of the files
make one error; else too large a fraction of them does. Files in the compact form, see `compact`, are
recognised by their first line. Of a line that stands twice the second is passed over; two lines of one
session that differ contradict one another, the second is a reject, and its session is in
`ReadReport.conflicts`, so that no copy of it is learnt from.
"""
import gzip
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from atlas_jax.data import records
from atlas_jax.data.traces import compact
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.rejects import ReadReport, Reject, RejectLog
from atlas_jax.files import json_text

MOST_LINE_BYTES = 64 * 2**20


class FoundTrace(NamedTuple):
  """A trace and where it stands."""

  where: str  # file:line, or store#id
  trace: Trace


class _LineError(ValueError):
  """Why a line is no trace."""

  def __init__(self, kind: str, reason: object):
    super().__init__(str(reason) or type(reason).__name__)
    self.kind = kind


class TraceReader:
  """The traces of files; iterating reads them once, in order."""

  def __init__(self, files: str, *, strict: bool = False, max_reject_frac: float = 0.05,
               rejects_file: str | pathlib.Path | None = None):
    """Names the files.

    Args:
      files: paths, folders or globs with commas between them, of .jsonl or .jsonl.gz; see `records.files`.
      strict, max_reject_frac, rejects_file: see `rejects.RejectLog`.

    Raises:
      ValueError: if they name no file, or one of another kind.
    """
    self._files = records.files(files)
    strange = [file for file in self._files if not file.name.removesuffix(".gz").endswith(records.JSON_LINES)]
    if strange:
      raise ValueError(f"config.data.files: {strange[0]} is no file of traces, whose names end in "
                       f"{' or '.join(records.JSON_LINES)}, also with .gz behind; export them again")
    self._log = RejectLog(strict=strict, max_reject_frac=max_reject_frac, file=rejects_file)
    self._names = [str(file) for file in self._files]
    self._numbers = {name: number for number, name in enumerate(self._names)}
    # Session -> hash of its line (64 bits), file (24 bits), line (40 bits).
    self._seen: dict[str, int] = {}

  @property
  def report(self) -> ReadReport:
    """Counts of what was read so far."""
    return self._log.report

  @property
  def files(self) -> list[pathlib.Path]:
    """The files, sorted."""
    return list(self._files)

  def __iter__(self) -> Iterator[FoundTrace]:
    """Yields the traces.

    Raises:
      RejectedError: after the last one, if there were rejects in strict mode, or too many.
    """
    with self._log.reading():
      self._seen = {}
      for file in self._files:
        yield from self._read(file)
      self._seen = {}

  def _read(self, file: pathlib.Path) -> Iterator[FoundTrace]:
    number = 0
    decoder: compact.CompactDecoder | None = None
    try:
      with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as opened:
        for number, line in enumerate(_lines(opened), start=1):
          if not line.strip():
            continue
          if number == 1 and _is_compact(file, line):
            decoder = compact.CompactDecoder()
            continue
          self.report.lines += 1
          try:
            found = self._trace(f"{file}:{number}", line, number, decoder)
          except _LineError as error:
            self._log.add(Reject(str(file), number, error.kind, str(error)))
          else:
            if found is not None:
              yield FoundTrace(f"{file}:{number}", found)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      self.report.lines += 1
      self._log.add(Reject(str(file), number + 1, "damaged", f"cannot be unpacked ({error})"))

  def _trace(self, where: str, line: bytes, number: int,
             decoder: compact.CompactDecoder | None) -> Trace | None:
    """Returns the trace of a line, None for one that was there before."""
    text = _text(line, first=number == 1)
    try:
      value = json_text.parse(text, nan=True, unchecked=True)
      if decoder is not None:
        value = decoder.decode(value)
    except json.JSONDecodeError as error:
      raise _LineError("json", f"{error.msg} at character {error.pos}") from error
    except ValueError as error:
      raise _LineError("json", error) from error
    except RecursionError as error:  # Of a compact file whose values refer to one another without end.
      raise _LineError("json", "is nested too deep") from error
    if not isinstance(value, dict):
      raise _LineError("object", f"is {type(value).__name__}, not an object with fields")
    try:
      found = Trace.from_json(value)
    except (RecursionError, ValueError) as error:
      raise _LineError("field", error) from error
    if self._is_duplicate(where, found, line if decoder is None else found.sha256.encode()):
      return None
    self.report.traces += 1
    self.report.sanitized += found.sanitized
    return found

  def _is_duplicate(self, where: str, found: Trace, line: bytes) -> bool:
    # Of the bytes, not of the record: a hash of sorted JSON takes longer than all the rest of the reading.
    digest = int.from_bytes(hashlib.blake2b(line.strip(), digest_size=8).digest(), "big")
    key = f"line {digest}" if found.session_id is None else str(found.session_id)
    file, _, number = where.rpartition(":")
    # One number for each session, not its place as a text: a million of them must fit into memory.
    entry = digest << 64 | self._numbers[file] << 40 | int(number)
    known = self._seen.setdefault(key, entry)
    if known == entry:
      return False
    if known >> 64 == digest:
      self.report.duplicates += 1
      return True
    first = f"{self._names[known >> 40 & 0xFFFFFF]}:{known & 0xFFFFFFFFFF}"
    self.report.conflicts[found.identity] = f"{first} and {where}"
    raise _LineError("conflict", f"session {found.identity} stands at {first} too, with other content; "
                                 "keep one of them")


def _is_compact(file: pathlib.Path, line: bytes) -> bool:
  try:
    return compact.is_header(line)
  except ValueError as error:  # Not one line of it can be read, however many rejects are allowed.
    raise ValueError(f"{file}: {error}") from error


def _lines(opened) -> Iterator[bytes]:
  """Yields lines; of one that is too long, as much as shows that it is."""
  while line := opened.readline(MOST_LINE_BYTES + 1):
    yield line
    # The rest is passed over, so that a file without line ends does not fill the memory.
    while len(line) > MOST_LINE_BYTES and not line.endswith(b"\n"):
      line = opened.readline(MOST_LINE_BYTES + 1)
      if not line:
        return


def _text(line: bytes, *, first: bool) -> str:
  if len(line) > MOST_LINE_BYTES:
    raise _LineError("long", f"has more than {MOST_LINE_BYTES} bytes; cut its events when exporting")
  try:
    return line.decode("utf-8-sig" if first else "utf-8").strip()
  except UnicodeDecodeError as error:
    raise _LineError("encoding", f"not UTF-8 ({error.reason} at byte {error.start})") from error
