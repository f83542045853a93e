"""Hashes and counts that say which data a model was trained on."""
import hashlib
import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from atlas_jax.data.traces.record import Trace

BLOCK = 2**20


class DataHash:
  """Hash of a set of traces: equal for equal records, whatever their order and the store they come from."""

  def __init__(self) -> None:
    """Starts without any record."""
    self._hashes: list[bytes] = []
    self._reviews: Counter = Counter()
    self._statuses: Counter = Counter()
    self._versions: Counter = Counter()

  def add(self, trace: Trace) -> None:
    """Counts a record."""
    self._hashes.append(bytes.fromhex(trace.sha256))
    self._reviews[trace.review_status or "none"] += 1
    self._statuses[trace.status or "none"] += 1
    self._versions[str(trace.data.get("schema_version") or 1)] += 1

  @property
  def sha256(self) -> str:
    """Hash over the records' own hashes, sorted."""
    return hashlib.sha256(b"".join(sorted(self._hashes))).hexdigest()

  def to_json(self) -> dict[str, Any]:
    """Returns what a manifest keeps of the data."""
    return {"sha256": self.sha256, "records": len(self._hashes), "review_status": dict(self._reviews),
            "status": dict(self._statuses), "schema_version": dict(self._versions)}


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
