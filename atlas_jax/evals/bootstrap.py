"""Intervals of a mean over texts of one kind, by resampling independent units."""
import numpy as np

DRAWS = 2_000
COVERAGE = 0.95  # The fraction of resampled means that lie within the interval.
AT_ONCE = 1 << 22  # Numbers drawn at a time.


def interval_of_mean(total_N, count_N, *, seed: int = 0) -> tuple[float, float] | None:
  """Returns the interval of sum(total_N) / sum(count_N) over resampled units; the same for the same numbers.

  Args:
    total_N: what each unit, such as a document, adds up to.
    count_N: of how many parts, such as tokens; at least one.
    seed: of the draws.

  Returns:
    (low, high), which hold 95% of the means of as many units drawn with replacement, both moved away from the
    mean by `widening`; None for fewer than two units, which say nothing of others.

  Source: the percentile bootstrap, Efron 1979, doi:10.1214/aos/1176344552; for few units it is too narrow, by
  the factor that Hesterberg 2014, arXiv:1411.5279, derives.
  """
  total_N = np.asarray(total_N, np.float64)
  count_N = np.asarray(count_N, np.float64)
  units = len(total_N)
  if units < 2:
    return None
  draw = np.random.default_rng(seed)
  means = []
  # In pieces of 32 MiB, since a draw has one number for each unit.
  for first in range(0, DRAWS, size := max(1, AT_ONCE // units)):
    # How often each unit is drawn, in place of which ones: a resampled sum is then one matrix product.
    times = draw.multinomial(units, np.full(units, 1 / units), size=min(size, DRAWS - first))
    means.append((times @ total_N) / (times @ count_N))
  low, high = np.quantile(np.concatenate(means), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
  # A ratio of sums, as the metric is: a long document weighs by its tokens.
  mean = total_N.sum() / count_N.sum()
  factor = widening(units)
  return float(mean + factor * (low - mean)), float(mean + factor * (high - mean))


def widening(units: int) -> float:
  """Returns by how much intervals of resampled means of so many units are too narrow: 9.2 for 2 units."""
  from scipy import special  # A tenth of what the program takes to start; most runs ask for no interval.

  upper = (1 + COVERAGE) / 2
  # The t quantile over the normal one, and the root of n / (n - 1) for the deviation that resampling
  # underestimates; 1 for many units.
  return float(special.stdtrit(units - 1, upper) / special.ndtri(upper) * (units / (units - 1)) ** 0.5)
