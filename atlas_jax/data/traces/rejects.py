"""Records that are read: counts, those that are rejected, and the error where they are too many.

A reject's row in rejects.jsonl is {"file", "line": from 1, null for a store, "kind": one of KINDS, "reason"}.
"""
import contextlib
import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

from atlas_jax.data.traces import storable
from atlas_jax.files import write
from atlas_jax.files.damage import one_line

SHOWN = 5  # Rejects named in an error that is about a fraction.
KINDS = {
    "encoding": "not UTF-8", "long": "too many bytes", "json": "not JSON", "object": "not an object",
    "field": "a field has a wrong type or is missing",
    "conflict": "another line of the same session says otherwise",
    "damaged": "a packed file that ends in the middle",
}


class Reject(NamedTuple):
  """A record that is no trace."""

  file: str  # or a store and the session in it
  line: int | None  # from 1
  kind: str
  reason: str

  def __str__(self) -> str:
    place = self.file if self.line is None else f"{self.file}:{self.line}"
    return f"{place}: {self.kind}: {self.reason}"


class RejectedError(ValueError):
  """Records that were rejected, and were not to be."""


@dataclasses.dataclass
class ReadReport:
  """Counts of lines by what became of them, added up while they are read.

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
    """Number of lines that were rejected."""
    return sum(self.rejects.values())

  def to_json(self) -> dict:
    """Returns the counts as an object."""
    return {"lines": self.lines, "traces": self.traces, "duplicates": self.duplicates,
            "sanitized": self.sanitized, "rejected": self.rejected, "rejects": dict(self.rejects)}


class RejectLog:
  """Collects rejects, and says when there are too many.

  Attributes:
    report: counts so far.
  """

  def __init__(self, *, strict: bool = False, max_reject_frac: float = 0.05,
               file: str | pathlib.Path | None = None):
    """Says what is allowed.

    Args:
      strict: whether any reject is an error.
      max_reject_frac: fraction of the records that may be rejected where it is not strict.
      file: gets a row for each reject; None: they are counted alone.
    """
    self._strict = strict
    self._most = max_reject_frac
    self._file = file
    self._out: IO[bytes] | None = None
    self.report = ReadReport()

  @contextlib.contextmanager
  def reading(self) -> Iterator[None]:
    """Counts anew, and checks the rejects when the block ends; the file is there also if they are too many.

    Raises:
      RejectedError: if there were rejects in strict mode, or too many.
    """
    self.report = ReadReport()
    with contextlib.ExitStack() as stack:
      self._out = stack.enter_context(write.opened(self._file)) if self._file else None
      yield
    self._out = None
    self._check()

  def add(self, reject: Reject) -> None:
    """Counts a reject, and writes its row."""
    reject = reject._replace(reason=one_line(storable.text(reject.reason).value))
    self.report.rejects[reject.kind] += 1
    # All of them in strict mode, whose error lists them.
    if self._strict or len(self.report.shown) < SHOWN:
      self.report.shown.append(reject)
    if self._out is not None:
      self._out.write(storable.dumps(reject._asdict()).encode() + b"\n")

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
