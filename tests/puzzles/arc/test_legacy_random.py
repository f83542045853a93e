"""Draws in blocks are those that NumPy's old generator gives one at a time."""
import numpy as np
import pytest

from atlas_jax.puzzles.arc.legacy_random import LegacyRandom


@pytest.mark.core
def test_mixed_draws_equal_those_of_numpy():
  ours, numpys = LegacyRandom(7), np.random.RandomState(7)
  for turn in range(40):
    bound = turn % 31 + 1
    assert ours.below(bound) == numpys.randint(0, bound)
    kinds, permutations, ends = ours.augmentations(5 + turn)
    taken = len(kinds) - turn % 3
    for kind, permutation in zip(kinds[:taken], permutations[:taken], strict=True):
      assert kind == numpys.randint(0, 8)
      np.testing.assert_array_equal(permutation, [0, *numpys.permutation(np.arange(1, 10))])
    ours.skip(ends[taken - 1])


def test_shuffles_equal_those_of_numpy():
  ours, numpys = LegacyRandom(3), np.random.RandomState(3)
  for count in (1, 2, 17, 400):
    expected = list(range(count))
    numpys.shuffle(expected)
    assert ours.shuffled(count) == expected


def test_the_global_generator_is_left_alone():
  np.random.seed(5)
  expected = np.random.RandomState(5).randint(0, 1000, 4).tolist()
  LegacyRandom(9).augmentations(50)
  assert np.random.randint(0, 1000, 4).tolist() == expected
