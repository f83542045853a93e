"""Spectra of fast weights and the spread of keys equal what is known of matrices and keys made for it."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import spectrum


def with_singular_values(values, *, n, m, seed=0):
  """A matrix [n, m] that has these singular values."""
  draw = np.random.default_rng(seed)
  left, _ = np.linalg.qr(draw.normal(size=(n, len(values))))
  right, _ = np.linalg.qr(draw.normal(size=(m, len(values))))
  return (left * np.asarray(values)) @ right.T


def test_singular_values_are_those_the_matrices_were_made_of():
  given = np.array([[3.0, 2.0, 0.5, 0.1], [5.0, 1.0, 1.0, 0.01]])
  for n, m in ((7, 4), (4, 9)):
    w = jnp.asarray(np.stack([with_singular_values(each, n=n, m=m) for each in given]), jnp.float32)
    np.testing.assert_allclose(spectrum.singular_values(w), given, rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_effective_rank_of_known_spectra(scale):
  """Equal values count fully, others by their entropy; a factor on the weights changes nothing."""
  known = {4.0: [1, 1, 1, 1], 1.0: [1], np.exp(1.5 * np.log(2)): [2, 1, 1]}  # Of 1/2, 1/4, 1/4.
  for rank, values in known.items():
    w = jnp.asarray(scale * with_singular_values(values, n=12, m=4), jnp.float32)
    # Noise of float32 below 3e-4 of the largest value: up to 3 such values beside one.
    np.testing.assert_allclose(spectrum.effective_rank(spectrum.singular_values(w)), rank, rtol=0.01)


def test_zeros_have_rank_zero_and_no_nan():
  values = spectrum.singular_values(jnp.zeros((3, 6, 4)))
  np.testing.assert_array_equal(spectrum.effective_rank(values), np.zeros(3))


def test_each_row_has_a_rank_of_its_own():
  """One batch flattened into a matrix would have at most as many directions as rows."""
  w = jax.random.normal(jax.random.key(0), (2, 3, 40, 16))
  rank_BH = spectrum.effective_rank(spectrum.singular_values(w))
  exact = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
  p = exact / exact.sum(-1, keepdims=True)
  np.testing.assert_allclose(rank_BH, np.exp(-(p * np.log(p)).sum(-1)), rtol=1e-4)
  assert rank_BH.min() > 10


def test_a_deep_memory_has_means_over_its_matrices_and_the_rank_of_each():
  one, two = with_singular_values([2, 2], n=5, m=2), with_singular_values([4, 4, 4], n=3, m=6)
  found = spectrum.measure({"first": jnp.asarray(one, jnp.float32), "second": jnp.asarray(two, jnp.float32)})
  expected = {"effective_rank": 2.5, "effective_rank_first": 2, "effective_rank_second": 3,
              "singular_value_00": 3, "singular_value_01": 3, "singular_value_02": 4,
              "singular_value_mean": 3}
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)


def diversity(k_CK, real_C=None):
  k_BHCK = jnp.asarray(k_CK, jnp.float32)[None, None]
  return float(spectrum.key_diversity(k_BHCK, jnp.ones(k_BHCK.shape[2:3])[None] if real_C is None
                                      else jnp.asarray(real_C, jnp.float32)[None]))


@pytest.mark.parametrize("size, width", [(4, 8), (8, 4), (4, 4)])
def test_orthogonal_keys_are_all_that_is_possible_and_equal_ones_the_least(size, width):
  spread = np.eye(width)[np.arange(size) % width] * np.arange(1, size + 1)[:, None]  # Length does not count.
  assert diversity(spread) == pytest.approx(1)
  same = np.outer(np.resize([1, -1], size), np.arange(1, width + 1))  # Nor does the sign.
  assert diversity(same) == pytest.approx(1 / min(size, width), rel=1e-5)


def test_padding_and_rows_without_a_pair_do_not_count():
  k_CK = np.concatenate([np.eye(3), np.ones((5, 3))])
  assert diversity(k_CK, [1, 1, 1, 0, 0, 0, 0, 0]) == pytest.approx(1)
  assert diversity(k_CK, [1, 0, 0, 0, 0, 0, 0, 0]) == 0
  both = jnp.stack([jnp.asarray(k_CK, jnp.float32)] * 2)[:, None]
  real_BC = jnp.asarray([[1, 1, 1] + [0] * 5, [0] * 8], jnp.float32)
  assert float(spectrum.key_diversity(both, real_BC)) == pytest.approx(1)


def test_random_keys_have_the_diversity_that_the_page_names():
  size, width = 64, 32
  k_BHCK = jax.random.normal(jax.random.key(1), (4, 4, size, width))
  found = float(spectrum.key_diversity(k_BHCK, jnp.ones((4, size))))
  assert found == pytest.approx(size / (size + width), rel=0.05)
