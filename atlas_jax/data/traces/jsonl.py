"""Files of traces: one JSON object a line, read line by line, each accepted or rejected with a reason.

A line that cannot be read is a reject and does not stop the others. In strict mode all rejects of the files
make one error; else too large a fraction of them does. Files in the compact form, see `compact`, are
recognised by their first line. Of a line that stands twice the second is passed over; two lines of one
session that differ contradict one another, the second is a reject, and its session is in
`ReadReport.conflicts`, so that no copy of it is learnt from.

A reject's row in rejects.jsonl is {"file", "line": from 1, "kind": one of KINDS, "reason"}.
"""
import contextlib
import dataclasses
import gzip
import hashlib
import json
import pathlib
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

from atlas_jax.data import records
from atlas_jax.data.traces import compact, storable
from atlas_jax.data.traces.record import Trace
from atlas_jax.files import json_text, write
from atlas_jax.files.damage import one_line

MOST_LINE_BYTES = 64 * 2**20
SHOWN = 5  # Rejects named in an error that is about a fraction.
KINDS = {
    "encoding": "not UTF-8", "long": f"more than {MOST_LINE_BYTES // 2**20} MiB", "json": "not JSON",
    "object": "not an object", "field": "a field has a wrong type or is missing",
    "conflict": "another line of the same session says otherwise",
    "damaged": "a packed file that ends in the middle",
}


class Reject(NamedTuple):
  """A line that is no trace."""

  file: str
  line: int
  kind: str
  reason: str

  def __str__(self) -> str:
    return f"{self.file}:{self.line}: {self.kind}: {self.reason}"


class RejectedError(ValueError):
  """Lines that were rejected, and were not to be."""


class FoundTrace(NamedTuple):
  """A trace and where it stands."""

  where: str  # file:line, or store#id
  trace: Trace


@dataclasses.dataclass
class ReadReport:
  """What became of lines, counted while they are read.

  Attributes:
    lines: how many there were, blank ones left out.
    traces: how many were accepted.
    duplicates: how many stood there before, word for word.
    sanitized: how much was replaced in those accepted, see `storable`.
    rejects: how many of each kind.
    shown: the first rejects; all of them in strict mode.
    conflicts: identity of a session with contradicting lines -> both places.
  """

  lines: int = 0
  traces: int = 0
  duplicates: int = 0
  sanitized: int = 0
  rejects: Counter = dataclasses.field(default_factory=Counter)
  shown: list[Reject] = dataclasses.field(default_factory=list)
  conflicts: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def rejected(self) -> int:
    """How many lines were rejected."""
    return sum(self.rejects.values())

  def to_json(self) -> dict:
    """Returns the counts as an object."""
    return {"lines": self.lines, "traces": self.traces, "duplicates": self.duplicates,
            "sanitized": self.sanitized, "rejected": self.rejected, "rejects": dict(self.rejects)}


class _LineError(ValueError):
  """Why a line is no trace."""

  def __init__(self, kind: str, reason: object):
    super().__init__(one_line(reason))
    self.kind = kind


class TraceReader:
  """The traces of files; iterating reads them once, in order.

  Attributes:
    report: counts, of what was read so far.
  """

  def __init__(self, files: str, *, strict: bool = False, max_reject_frac: float = 0.05,
               rejects_file: str | pathlib.Path | None = None):
    """Names the files.

    Args:
      files: paths, folders or globs with commas between them, of .jsonl or .jsonl.gz; see `records.files`.
      strict: whether any reject is an error.
      max_reject_frac: fraction of the lines that may be rejected where it is not strict.
      rejects_file: gets a row for each reject; None: they are counted alone.

    Raises:
      ValueError: if they name no file, or one of another kind.
    """
    self._files = records.files(files)
    strange = [file for file in self._files if not file.name.removesuffix(".gz").endswith(records.JSON_LINES)]
    if strange:
      raise ValueError(f"config.data.files: {strange[0]} is no file of traces, whose names end in "
                       f"{' or '.join(records.JSON_LINES)}, also with .gz behind; export them again")
    self._strict = strict
    self._most = max_reject_frac
    self._rejects_file = rejects_file
    self._seen: dict[str, tuple[int, str]] = {}
    self.report = ReadReport()

  @property
  def files(self) -> list[pathlib.Path]:
    """The files, sorted."""
    return list(self._files)

  def __iter__(self) -> Iterator[FoundTrace]:
    """Yields the traces.

    Raises:
      RejectedError: after the last one, if there were rejects in strict mode, or too many.
    """
    self.report = ReadReport()
    self._seen = {}
    with contextlib.ExitStack() as stack:
      out = stack.enter_context(write.opened(self._rejects_file)) if self._rejects_file else None
      for file in self._files:
        yield from self._read(file, out)
    self._seen = {}
    self._check()

  def _read(self, file: pathlib.Path, out: IO[bytes] | None) -> Iterator[FoundTrace]:
    number = 0
    decoder: compact.Decoder | None = None
    try:
      with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as opened:
        for number, line in enumerate(_lines(opened), start=1):
          if not line.strip():
            continue
          if number == 1 and compact.is_header(line):
            decoder = compact.Decoder()
            continue
          self.report.lines += 1
          try:
            found = self._trace(f"{file}:{number}", line, number, decoder)
          except _LineError as error:
            self._reject(Reject(str(file), number, error.kind, str(error)), out)
          else:
            if found is not None:
              yield FoundTrace(f"{file}:{number}", found)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      self.report.lines += 1
      self._reject(Reject(str(file), number + 1, "damaged", f"cannot be unpacked ({error})"), out)

  def _trace(self, where: str, line: bytes, number: int, decoder: compact.Decoder | None) -> Trace | None:
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
    key = f"line:{digest}" if found.session_id is None else f"id:{found.session_id}"
    known = self._seen.setdefault(key, (digest, where))
    if known[1] == where:
      return False
    if known[0] == digest:
      self.report.duplicates += 1
      return True
    self.report.conflicts[found.identity] = f"{known[1]} and {where}"
    raise _LineError("conflict", f"session {found.identity} stands at {known[1]} too, with other content; "
                                 "keep one of them")

  def _reject(self, reject: Reject, out: IO[bytes] | None) -> None:
    self.report.rejects[reject.kind] += 1
    if self._strict or len(self.report.shown) < SHOWN:
      self.report.shown.append(reject)
    if out is not None:
      row = {**reject._asdict(), "reason": storable.text(reject.reason).value}
      out.write(storable.dumps(row).encode() + b"\n")

  def _check(self) -> None:
    report = self.report
    listed = "\n".join(map(str, report.shown))
    if self._strict and report.rejected:
      raise RejectedError(f"{report.rejected} of {report.lines} lines are no traces; mend or delete them, or "
                          f"set config.traces.strict=False:\n{listed}")
    if report.rejected > self._most * report.lines:
      kinds = ", ".join(f"{count} {kind} ({KINDS[kind]})" for kind, count in report.rejects.most_common())
      raise RejectedError(f"{report.rejected} of {report.lines} lines are no traces, more than "
                          f"config.traces.max_reject_frac={self._most}: {kinds}; mend them, or raise it. The "
                          f"first:\n{listed}")


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
