"""Parameters in bfloat16: rounding at random keeps the mean, and the optimizer computes in float32."""
import jax
import jax.numpy as jnp
import numpy as np
import optax

from atlas_jax import tree
from atlas_jax.optim import build, precision
from tests.helpers import assert_same_bits
from tests.optim.test_build import FIELDS, small_params

DRAWS = 4_000


def rounded(x, key=0):
  return precision.round_randomly(jnp.asarray(x, jnp.float32), jax.random.key(key))


def test_rounding_is_to_the_two_neighbours_and_right_on_average():
  draw = np.random.default_rng(0)
  # Of both signs and of sizes from 1e-6 to 1e6.
  x_N = (draw.normal(size=32) * 10 ** draw.uniform(-6, 6, size=32)).astype(np.float32)
  out_SN = np.asarray(rounded(np.tile(x_N, (DRAWS, 1)))).astype(np.float64)
  gap_N = out_SN.max(0) - out_SN.min(0)  # Between the neighbours: each number lies between two, and has both.
  near_N = np.asarray(jnp.asarray(x_N).astype(jnp.bfloat16)).astype(np.float64)
  assert all(len(np.unique(out_N)) == 2 for out_N in out_SN.T)
  assert (np.abs(x_N - near_N) <= gap_N / 2).all() and ((out_SN == near_N).any(0)).all()
  # The mean of draws deviates by at most gap / 2 / sqrt(draws); five of these happen once in 1.7 million.
  assert (np.abs(out_SN.mean(0) - x_N) < 5 * gap_N / 2 / DRAWS**0.5).all()


def test_what_bfloat16_has_is_kept_and_so_is_what_is_not_finite():
  x_N = np.asarray([0.0, -0.0, 1.5, -3.25 * 2.0**-100, 2.0**100, np.inf, -np.inf], np.float32)
  for key in range(20):
    np.testing.assert_array_equal(np.asarray(rounded(x_N, key)).astype(np.float32), x_N)
    assert np.isnan(np.asarray(rounded([np.nan, -np.nan], key)).astype(np.float32)).all()
  assert np.signbit(np.asarray(rounded([-0.0])).astype(np.float32)).all()


def test_updates_too_small_for_the_dtype_add_up_to_those_of_float32():
  ones_N = jnp.ones(2_000, jnp.bfloat16)
  step_N = jnp.full(2_000, 1e-4)  # A 39th of half the gap above 1: to the nearest, nothing would ever change.

  @jax.jit
  def one(number, params):
    key = jax.random.fold_in(jax.random.key(0), number)
    return precision.apply_updates(params, {"w": step_N, "bias": step_N[:3]}, key)

  params = {"w": ones_N, "bias": jnp.ones(3)}
  for number in range(100):
    params = one(number, params)
  assert params["w"].dtype == jnp.bfloat16 and params["bias"].dtype == jnp.float32
  moved_N = np.asarray(params["w"]).astype(np.float64) - 1
  # Steps of 2^-7 taken with probability p = 1e-4 / 2^-7, 100 times each.
  deviation = 2.0**-7 * np.sqrt(100 * 0.0128 / 2_000)
  assert abs(moved_N.mean() - 0.01) < 5 * deviation
  assert_same_bits(optax.apply_updates(jnp.ones(2_000, jnp.bfloat16), step_N), ones_N)  # The contrast.


def test_draws_follow_from_the_key_and_differ_between_leaves_and_keys():
  params = {name: jnp.ones(500, jnp.bfloat16) for name in "ab"}
  step = jax.tree.map(lambda x: jnp.full(500, 2.0**-8), params)
  first, again, other = (precision.apply_updates(params, step, jax.random.key(key)) for key in (1, 1, 2))
  assert_same_bits(first, again)
  assert (first["a"] != first["b"]).any() and (first["a"] != other["a"]).any()


def test_float32_parameters_are_updated_as_ever():
  params = {"w": jnp.linspace(-1, 1, 9)}
  step = {"w": jnp.linspace(1e-4, 1e-3, 9)}
  found = precision.apply_updates(params, step, jax.random.key(0))
  assert_same_bits(found, optax.apply_updates(params, step))


def test_kernels_in_blocks_alone_are_stored_in_bfloat16():
  mask = dict(tree.named_leaves(build.kernel_mask(jax.eval_shape(small_params))))
  assert {name for name, marked in mask.items() if marked} == {"blocks/memory/query/kernel"}
  stored = precision.stored(small_params(), build.kernel_mask(small_params()), "bfloat16")
  dtypes = {name: leaf.dtype for name, leaf in tree.named_leaves(stored)}
  assert all((dtype == jnp.bfloat16) == mask[name] for name, dtype in dtypes.items())
  assert_same_bits(precision.stored(small_params(), mask, "float32"), small_params())


def test_the_optimizer_computes_in_float32_whatever_the_parameters_are():
  params = small_params()
  narrow = tree.cast(params, jnp.bfloat16)
  optimizer = build.build(params, **FIELDS)
  state = optimizer.init(narrow)
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
  grads = jax.tree.map(lambda x: jnp.full_like(x, 0.5), params)
  updates, _ = optimizer.update(tree.cast(grads, jnp.bfloat16), state, narrow)
  assert_same_bits(updates, optimizer.update(grads, state, params)[0])
