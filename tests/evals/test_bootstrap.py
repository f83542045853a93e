"""Intervals of means over independent units."""
import numpy as np
import pytest

from atlas_jax.evals import bootstrap


def test_the_interval_is_that_of_the_normal_approximation_for_many_units():
  draw = np.random.default_rng(3)
  values_N = draw.normal(0.5, 2.0, size=400)
  low, high = bootstrap.interval_of_mean(values_N, np.ones(400))
  error = 1.96 * values_N.std(ddof=1) / 20
  assert low == pytest.approx(values_N.mean() - error, abs=0.03)
  assert high == pytest.approx(values_N.mean() + error, abs=0.03)


def test_units_count_with_their_size_and_are_drawn_whole():
  """A unit of a hundred equal tokens says no more than one of one token."""
  values_N, sizes_N = np.array([1.0, -1.0, 2.0, 0.5]), np.array([100.0, 100.0, 1.0, 1.0])
  low, high = bootstrap.interval_of_mean(values_N * sizes_N, sizes_N)
  mean = (values_N * sizes_N).sum() / sizes_N.sum()
  factor = bootstrap.widening(4)
  assert low == pytest.approx(mean - factor * (mean + 1), abs=0.04) and high > mean + factor * 0.8


def test_it_covers_the_truth_about_as_often_as_it_says():
  draw, hits = np.random.default_rng(0), 0
  for _ in range(200):
    sizes_N = draw.integers(1, 50, size=60)
    totals_N = sizes_N * draw.normal(0.1, 1.0, size=60)  # Tokens of a unit depend on each other.
    low, high = bootstrap.interval_of_mean(totals_N, sizes_N)
    hits += low <= 0.1 <= high
  assert 170 <= hits <= 198


@pytest.mark.parametrize("units", [2, 3, 4, 8])
def test_it_covers_the_truth_of_few_units_too(units):
  """Resampling alone would cover it in half of the cases for 2 units, in four fifths for 4."""
  draw, hits = np.random.default_rng(1), 0
  for _ in range(300):
    low, high = bootstrap.interval_of_mean(draw.normal(0.3, 1.0, size=units), np.ones(units))
    hits += low <= 0.3 <= high
  assert hits >= 270


def test_the_same_numbers_give_the_same_interval():
  numbers = np.arange(20.0), np.arange(1.0, 21.0)
  assert bootstrap.interval_of_mean(*numbers) == bootstrap.interval_of_mean(*numbers)


@pytest.mark.parametrize("units", [0, 1])
def test_one_unit_says_nothing_of_others(units):
  assert bootstrap.interval_of_mean(np.ones(units), np.ones(units)) is None


def test_many_units_are_drawn_in_pieces(monkeypatch):
  numbers = np.arange(50.0), np.ones(50)
  whole = bootstrap.interval_of_mean(*numbers)
  monkeypatch.setattr(bootstrap, "AT_ONCE", 50 * 7)
  assert bootstrap.interval_of_mean(*numbers) == whole
