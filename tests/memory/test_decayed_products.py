"""Products of rows with keys that fade on their way equal the sums written out, for any gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory.decayed_products import decayed_products
from tests.helpers import assert_close, quick_compilation

K = 3
# As many tokens as there are; a block is of four.
SIZES = (1, 3, 4, 7, 16)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def numbers(size, seed=0, low=0.0):
  draw = np.random.default_rng(seed)
  return draw.normal(size=(2, size, K)), draw.normal(size=(size, K)), draw.uniform(low, 1, (size, K))


def loop(row_2CK, key_CK, keep_CK):
  size = len(key_CK)
  score_2CC = np.zeros((2, size, size))
  for t in range(size):
    for i in range(t + 1):
      score_2CC[:, t, i] = (row_2CK[:, t] * key_CK[i] * keep_CK[i + 1 : t + 1].prod(0)).sum(-1)
  before_CK = np.cumprod(keep_CK, axis=0)
  after_CK = np.array([keep_CK[i + 1 :].prod(0) for i in range(size)])
  return score_2CC, row_2CK * before_CK, key_CK * after_CK, before_CK[-1]


@pytest.mark.parametrize("size", SIZES)
def test_products_rows_keys_and_what_is_kept_equal_the_loop(x64, size):
  arguments = numbers(size)
  assert_close(jax.jit(decayed_products)(*map(jnp.asarray, arguments)), loop(*arguments))


def test_a_shut_gate_is_nothing_to_those_behind_it():
  """In float32, where sums of logs would have lost what open gates after a shut one keep."""
  row_2CK, key_CK, keep_CK = numbers(16, low=0.99)
  keep_CK[3], keep_CK[9, 1] = 0, 1e-38
  arguments = [jnp.asarray(x, jnp.float32) for x in (row_2CK, key_CK, keep_CK)]
  found = jax.jit(decayed_products)(*arguments)
  assert_close(found, loop(*map(np.float64, arguments)), tolerance=1e-6)
  assert not np.asarray(found[0])[:, 3:, :3].any()


def test_gradients_are_those_of_the_sums_written_out(x64):
  weights = [np.random.default_rng(1).normal(size=np.shape(x)) for x in loop(*numbers(7))]
  arguments = tuple(map(jnp.asarray, numbers(7)))

  def direct(row_2CK, key_CK, keep_CK):
    log_CK = jnp.cumsum(jnp.log(keep_CK), axis=0)
    seen_CCK = jnp.tril(jnp.ones((7, 7)))[:, :, None] * jnp.exp(log_CK[:, None] - log_CK[None])
    score_2CC = jnp.einsum("atk,ik,tik->ati", row_2CK, key_CK, seen_CCK)
    before_CK = jnp.exp(log_CK)
    return score_2CC, row_2CK * before_CK[None], key_CK * jnp.exp(log_CK[-1:] - log_CK), before_CK[-1]

  def weighed(function):
    return jax.grad(lambda *args: sum((w * x).sum() for w, x in zip(weights, function(*args), strict=True)),
                    argnums=(0, 1, 2))

  assert_close(jax.jit(weighed(decayed_products))(*arguments), jax.jit(weighed(direct))(*arguments))


def test_gradients_are_finite_where_gates_are_shut():
  row_2CK, key_CK, keep_CK = (jnp.asarray(x, jnp.float32) for x in numbers(16))
  grads = jax.grad(lambda keep: sum(x.sum() for x in decayed_products(row_2CK, key_CK, keep)))(0 * keep_CK)
  assert np.isfinite(grads).all()
