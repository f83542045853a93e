"""Fewer points of a long curve, for pictures: extremes stay, so that no spike is lost."""
from typing import NamedTuple

import numpy as np

BUCKETS = 600  # Pictures are about so many pixels wide; a bucket leaves two points.


class Band(NamedTuple):
  """A curve in buckets; arrays are [buckets]."""

  x: np.ndarray  # of each bucket's middle point
  low: np.ndarray
  mean: np.ndarray
  high: np.ndarray


def finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the points whose value is finite; arrays are [points]."""
  kept = np.isfinite(y)
  return (x, y) if kept.all() else (x[kept], y[kept])


def places(x: np.ndarray, most: int) -> np.ndarray:
  """Returns at most so many of the places, evenly, the first and the last among them."""
  if len(x) <= most:
    return x
  return x[np.linspace(0, len(x) - 1, most).astype(np.int64)]


def thin(x: np.ndarray, y: np.ndarray, buckets: int = BUCKETS) -> tuple[np.ndarray, np.ndarray]:
  """Returns the lowest and the highest point of each bucket, and the first and last point of all.

  Args:
    x: places, [points], in order.
    y: finite values, [points].
    buckets: as many points each; a curve of three times as many points or fewer is returned as it is.
  """
  if len(y) <= 3 * buckets:
    return x, y
  size, whole_BT = _in_buckets(y, buckets)
  starts = np.arange(len(whole_BT)) * size
  rest = len(whole_BT) * size
  kept = [0, len(y) - 1, *(starts + whole_BT.argmin(axis=1)), *(starts + whole_BT.argmax(axis=1))]
  if rest < len(y):
    kept += [rest + int(y[rest:].argmin()), rest + int(y[rest:].argmax())]
  places = np.unique(kept)
  return x[places], y[places]


def band(x: np.ndarray, y: np.ndarray, buckets: int = BUCKETS) -> Band:
  """Returns range and mean of each bucket; arguments as of `thin`."""
  size, whole_BT = _in_buckets(y, buckets)
  rest = y[len(whole_BT) * size:]
  low, mean, high = whole_BT.min(axis=1), whole_BT.mean(axis=1), whole_BT.max(axis=1)
  middles = np.arange(len(whole_BT)) * size + size // 2
  if len(rest):
    low, mean, high = np.append(low, rest.min()), np.append(mean, rest.mean()), np.append(high, rest.max())
    middles = np.append(middles, len(y) - 1 - len(rest) // 2)
  return Band(x[middles], low, mean, high)


def _in_buckets(y: np.ndarray, buckets: int) -> tuple[int, np.ndarray]:
  size = max(1, len(y) // buckets)
  whole = len(y) // size
  return size, y[:whole * size].reshape(whole, size)
