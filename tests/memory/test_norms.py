"""Norms against their definitions, also near zero and in narrow dtypes."""

import jax.numpy as jnp
import numpy as np

from atlas_jax.memory import norms
from atlas_jax.models import trm_blocks
from atlas_jax.models.layers import RMSNorm
from tests.helpers import assert_close, assert_same_bits


def vectors(dtype="float64", shape=(3, 5)):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape, scale=3), dtype)


def test_vectors_have_length_or_mean_square_one_along_the_axis_asked_for(x64):
  x = vectors()
  for axis in (0, 1):
    assert_close(jnp.sum(norms.l2_normalize(x, axis) ** 2, axis), np.ones(x.shape[1 - axis]), tolerance=1e-5)
    mean_square = jnp.mean(norms.rms_normalize(x, axis=axis) ** 2, axis)
    assert_close(mean_square, np.ones(x.shape[1 - axis]), tolerance=1e-5)


def test_zero_stays_zero():
  zero = jnp.zeros((2, 4))
  assert_same_bits(norms.l2_normalize(zero), zero)
  assert_same_bits(norms.rms_normalize(zero), zero)


def test_every_layer_has_the_same_rms_norm():
  x = vectors("float32")
  expected = norms.rms_normalize(x, eps=1e-5)
  assert_same_bits(RMSNorm(1e-5).apply({"params": {"scale": jnp.ones(5)}}, x), expected)
  assert_same_bits(trm_blocks.rms_normalize(x, 1e-5), expected)


def test_lengths_of_narrow_vectors_are_summed_in_float32():
  assert norms.l2_normalize(vectors("bfloat16")).dtype == jnp.float32
  assert norms.rms_normalize(vectors("bfloat16")).dtype == jnp.bfloat16
