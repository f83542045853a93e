"""Hashes and counts that say which data a model was trained on."""
import hashlib
import pathlib
from collections import Counter
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

from atlas_jax.data.traces.record import Trace

BLOCK = 2**20


class _Counted(NamedTuple):
  identity: str
  digest: bytes
  review_status: str
  status: str
  schema_version: str


class DataHash:
  """Hash of a set of traces: equal for equal records, whatever their order and the store they come from."""

  def __init__(self) -> None:
    """Starts without any record."""
    self._records: list[_Counted] = []

  def add(self, trace: Trace) -> None:
    """Counts a record."""
    self._records.append(_Counted(trace.identity, bytes.fromhex(trace.sha256), trace.review_status or "none",
                                  trace.status or "none", str(trace.data.get("schema_version") or 1)))

  def leave_out(self, identities: Container[str]) -> None:
    """Counts the records of some sessions no longer."""
    self._records = [one for one in self._records if one.identity not in identities]

  @property
  def sha256(self) -> str:
    """Hash over the records' own hashes, sorted."""
    return hashlib.sha256(b"".join(sorted(one.digest for one in self._records))).hexdigest()

  def to_json(self) -> dict[str, Any]:
    """Returns what a manifest keeps of the data."""
    return {"sha256": self.sha256, "records": len(self._records),
            **{name: dict(Counter(getattr(one, name) for one in self._records))
               for name in ("review_status", "status", "schema_version")}}


def data_hash(traces: Iterable[Trace]) -> str:
  """Returns the hash of a set of traces; see `DataHash`."""
  found = DataHash()
  for one in traces:
    found.add(one)
  return found.sha256


def file_hashes(files: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
  """Returns name, size and SHA-256 of files, for a manifest."""
  found = []
  for file in files:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
      while block := opened.read(BLOCK):
        digest.update(block)
    found.append({"name": file.name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()})
  return found
