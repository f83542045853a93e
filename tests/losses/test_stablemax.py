"""Stablemax and its loss are the original's, at every scale of logits, and so is the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses import stablemax
from tests import trm_fixture as fixture
from tests.helpers import assert_close

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def check(dtype):
  """Loss, log-probabilities and gradient against the fixture."""
  given = fixture.arrays("stablemax")
  logits_BTV, labels_BT = jnp.asarray(given["logits"]), jnp.asarray(given["labels"])
  loss_BT = stablemax.stablemax_loss(logits_BTV, labels_BT, dtype)
  assert loss_BT.dtype == dtype
  tolerance = TOLERANCE[dtype]
  assert_close(loss_BT, given["ce"], tolerance=tolerance)
  log_BTV = stablemax.log_stablemax(logits_BTV.astype(dtype))
  assert_close(log_BTV, given["logprobs"], tolerance=tolerance)
  grad = jax.grad(lambda x: jnp.sum(stablemax.stablemax_loss(x, labels_BT, dtype)))(logits_BTV)
  assert_close(grad, given["dlogits"], tolerance=2e-5)  # Stored in float32.
  assert_close(stablemax.stablemax(jnp.asarray(given["s_in"], dtype)), given["s_out"], tolerance=tolerance)


def test_float32_is_the_original_s_loss():
  check("float32")


def test_float64_is_the_original_s_loss_to_its_last_digits(x64):
  check("float64")


def test_float64_is_refused_without_64_bit_mode():
  with pytest.raises(ValueError, match="'float64' needs jax's 64-bit mode"):
    stablemax.stablemax_loss(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), jnp.int32), "float64")


def test_probabilities_add_up_to_one():
  logits_BTV = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)) * 10, jnp.float32)
  assert_close(jnp.exp(stablemax.log_stablemax(logits_BTV)).sum(-1), np.ones((2, 3), np.float32))


def test_the_gradient_is_finite_where_a_branch_not_taken_is_not():
  grad = jax.grad(lambda x: jnp.sum(stablemax.stablemax(x)))(jnp.asarray([1.0, 0.0, -0.0, -1.0, 1e6]))
  np.testing.assert_allclose(grad, [1, 1, 1, 0.25, 1])
