"""Long curves in few points."""

import numpy as np
import pytest

from atlas_jax.monitor import thinning


def curve(n):
  draw = np.random.default_rng(0)
  return np.arange(n, dtype=float), draw.normal(size=n)


@pytest.mark.parametrize("n", [1, 2, 299, 301, 1_000, 9_999, 100_003])
def test_extremes_and_ends_stay(n):
  x, y = curve(n)
  for spike in (n // 3, n - 1, 0):
    y[spike] = 50.0 + spike
    thin_x, thin_y = thinning.thin(x, y, 100)
    assert thin_y.max() == y.max() and thin_y.min() == y.min()
    assert (thin_x[0], thin_x[-1]) == (x[0], x[-1]) and (np.diff(thin_x) > 0).all()
    assert len(thin_x) <= max(300, 2 * 101 + 4) and np.isin(thin_y, y).all()


@pytest.mark.parametrize("n", [1, 7, 100, 12_345])
def test_a_band_holds_every_value_and_has_their_mean(n):
  x, y = curve(n)
  found = thinning.band(x, y, 50)
  assert found.low.min() == y.min() and found.high.max() == y.max()
  assert (found.low <= found.mean).all() and (found.mean <= found.high).all()
  assert len(found.x) <= max(n, 0) and len(found.x) <= 101 and (np.diff(found.x) > 0).all()
  if n % len(found.x) == 0:
    assert found.mean.mean() == pytest.approx(y.mean())


def test_only_finite_values_are_kept():
  x, y = thinning.finite(np.array([1.0, 2, 3]), np.array([np.nan, 5, np.inf]))
  assert (x.tolist(), y.tolist()) == ([2.0], [5.0])


def test_places_are_few_and_keep_both_ends():
  found = thinning.places(np.arange(1_000.0), 7)
  assert len(found) == 7 and (found[0], found[-1]) == (0, 999)
  assert thinning.places(np.arange(3.0), 7).tolist() == [0, 1, 2]
