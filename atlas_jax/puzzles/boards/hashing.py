"""Random numbers out of counters: what an example looks like depends on its index alone."""
import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def mix(numbers) -> np.ndarray:
  """Spreads 64-bit integers over all 64-bit integers, one to one.

  Source: the finalizer of SplitMix64, Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195.
  """
  mixed = np.asarray(numbers).astype(np.uint64) + _STEP
  for shift, factor in _MIX:
    mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
  return mixed ^ mixed >> np.uint64(31)


def draws(seed: int, *counters, count: int) -> np.ndarray:
  """Returns [n, count] random 64-bit integers for n tuples of counters.

  Args:
    seed: any integer that fits 64 bits.
    *counters: arrays [n] of integers that are not negative; each row of them is a stream of its own.
    count: numbers per stream.
  """
  # A hash in a chain, not a generator: [n, count] numbers at once, and none depends
  # on which others are asked for.
  state = mix(np.array([seed % 2**64], np.uint64))
  for counter in counters:
    state = mix(state ^ mix(counter))
  return mix(state[:, None] + _STEP * np.arange(1, count + 1, dtype=np.uint64))
