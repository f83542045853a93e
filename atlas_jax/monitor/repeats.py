"""Batches that come again: the fraction of updates whose batch equals one of the last few.

A loader that hands out the same rows over and over looks like good training: the loss falls fast. Batches are
compared by a sum of their bytes; those of another epoch are of another order, and so are not equal.
"""
import collections
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

METRIC = "data/repeated_frac"
REMEMBERED = 64  # Batches.
BYTES = 2**14  # Of each array that are looked at: a batch that differs behind them only is hardly found.


class Repeats:
  """Compares each batch of this process with the last ones."""

  def __init__(self, saved: Mapping[str, Any] | None = None):
    """Takes what `saved` returned for the checkpoint that a run goes on from; None: it begins."""
    saved = saved or {"last": [], "count": 0, "equal": 0}
    self._last: collections.deque[int] = collections.deque(saved["last"], maxlen=REMEMBERED)
    self._count = int(saved["count"])
    self._equal = int(saved["equal"])
    self._next: list[bool] = []  # Of batches whose update was not observed yet.

  def take(self, batch: Mapping[str, Any]) -> None:
    """Notes a batch, before its update is made."""
    key = key_of(batch)
    self._next.append(key in self._last)
    self._last.append(key)

  def observe(self) -> None:
    """Counts the oldest batch whose update was not observed yet."""
    self._count += 1
    self._equal += self._next.pop(0)

  def row(self) -> dict[str, float]:
    """Returns data/repeated_frac, of the updates observed since the last call."""
    found = {METRIC: self._equal / self._count} if self._count else {}
    self._count = self._equal = 0
    return found

  def saved(self) -> dict[str, Any]:
    """Returns what a checkpoint keeps; all batches taken are observed by then."""
    return {"last": list(self._last), "count": self._count, "equal": self._equal}


def key_of(batch: Mapping[str, Any]) -> int:
  """Returns a number by which equal batches are known: a checksum of names and first bytes of the arrays."""
  key = 0
  for name in sorted(batch):
    array = np.ascontiguousarray(batch[name])
    key = zlib.crc32(array.reshape(-1).view(np.uint8)[:BYTES].data, zlib.crc32(name.encode(), key))
  return key
