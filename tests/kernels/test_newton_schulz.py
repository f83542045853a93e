"""Newton-Schulz: all forms against the polynomial of the singular values, and both passes on every route."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.kernels.newton_schulz import PALLAS_PLATFORMS, chunked, newton_schulz, pallas, reference
from tests.helpers import assert_close, assert_grads, quick_compilation
from tests.kernels.lowering import lower


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


E, S, STEPS = 5, 7, 5
KERNELS = {
  name: functools.partial(pallas.newton_schulz, platform=name, interpret=True) for name in pallas.ROUTES
}
FORMS = {"reference": reference.newton_schulz, "chunked": chunked.newton_schulz} | KERNELS
every_form = pytest.mark.parametrize("form", FORMS)


def matrices(*shape, dtype="float32", seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def rank_one(dtype="float32"):
  return matrices(E, 1, dtype=dtype) * matrices(1, S, dtype=dtype, seed=1)


def both_passes(form, x_ES, steps=STEPS):
  """The matrix, and the gradients of a sum that weighs its entries differently."""
  run = functools.partial(FORMS[form], steps=steps)
  total = lambda x: jnp.sum(run(x) * matrices(*x.shape, dtype=str(x.dtype), seed=9))
  return jax.jit(lambda x: (run(x), jax.grad(total)(x)))(x_ES)


def by_singular_values(x_ES, steps):
  """The definition by another way: the polynomial on each singular value."""
  x_ES = np.asarray(x_ES, np.float64)
  left, values, right = np.linalg.svd(x_ES, full_matrices=False)
  values = values / (np.sqrt(np.sum(x_ES**2, axis=(-2, -1)))[..., None] + 1e-7)
  for _ in range(steps):
    values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
  return (left * values[..., None, :]) @ right


@pytest.mark.core
@pytest.mark.parametrize("form", ["reference", "chunked"])
@pytest.mark.parametrize("shape", [(E, S), (S, E), (2, 3, E, E), (1, S)])
@pytest.mark.parametrize("steps", [0, 5])
def test_each_singular_value_goes_through_the_polynomial(x64, form, shape, steps):
  x_ES = matrices(*shape, dtype="float64")
  assert_close(
    jax.jit(FORMS[form], static_argnames="steps")(x_ES, steps=steps), by_singular_values(x_ES, steps)
  )


@pytest.mark.core
@pytest.mark.parametrize("shape", [(2, 3, E, S), (S, E)])
def test_the_backward_pass_by_hand_is_the_derivative(x64, shape):
  x_ES = matrices(*shape, dtype="float64")
  out_ES, grad_ES = both_passes("chunked", x_ES)
  assert_close((out_ES, grad_ES), both_passes("reference", x_ES))
  weight_ES = np.asarray(matrices(*shape, dtype="float64", seed=9))
  total = lambda x: np.sum(by_singular_values(x, STEPS) * weight_ES)
  assert_grads(total, np.asarray(x_ES), grad_ES)


@pytest.mark.parametrize("form", KERNELS)
@pytest.mark.parametrize(
  "x_ES", [matrices(2, 3, E, S), matrices(20, 17), rank_one()], ids=["batch", "tall", "rank1"]
)
def test_the_kernel_equals_the_reference_in_both_passes(form, x_ES):
  assert_close(both_passes(form, x_ES), both_passes("reference", x_ES))


@pytest.mark.parametrize("form", KERNELS)
def test_the_kernel_is_lifted_over_rows_and_heads(form):
  x_BHES = matrices(2, 3, E, S)
  lifted = jax.vmap(jax.vmap(functools.partial(FORMS[form], steps=2)))
  assert_close(lifted(x_BHES), reference.newton_schulz(x_BHES, steps=2))


@every_form
def test_singular_values_come_near_one(form):
  values = np.linalg.svd(np.asarray(FORMS[form](matrices(4, 16, 32), steps=STEPS)), compute_uv=False)
  assert values.min() > 0.65 and values.max() < 1.25


@every_form
def test_orthogonal_factors_and_transposition_pass_through(form):
  run = functools.partial(FORMS[form], steps=STEPS)
  x_ES = matrices(E, S)
  left_EE, right_SS = (jnp.asarray(np.linalg.qr(matrices(n, n, seed=n))[0]) for n in (E, S))
  assert_close(run(left_EE @ x_ES @ right_SS), left_EE @ run(x_ES) @ right_SS)
  assert_close(run(x_ES.mT), run(x_ES).mT)


@every_form
def test_zero_and_rank_one_have_finite_gradients(form):
  for x_ES in (jnp.zeros((E, S)), rank_one(), 1e-20 * rank_one()):
    out_ES, grad_ES = both_passes(form, x_ES)
    assert np.isfinite(out_ES).all() and np.isfinite(grad_ES).all()
  assert_close(FORMS[form](jnp.zeros((E, S)), steps=STEPS), np.zeros((E, S)))


@every_form
def test_narrow_floats_are_iterated_in_float32(form):
  x_ES = matrices(E, S, dtype="bfloat16")
  out_ES, expected_ES = (FORMS[form](x, steps=STEPS) for x in (x_ES, x_ES.astype(jnp.float32)))
  assert out_ES.dtype == jnp.float32
  assert_close(out_ES, expected_ES)


@pytest.mark.parametrize("platform, form", [("cuda", "gpu"), ("tpu", "tpu")])
@pytest.mark.parametrize("shape", [(2, E, S), (64, 64), (16, 153)])
def test_both_passes_lower_without_the_device(platform, form, shape):
  run = functools.partial(pallas.newton_schulz, steps=STEPS, platform=form)
  lifted = jax.vmap(lambda x: jax.vjp(run, x)[1](x)[0])
  x_BES = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
  assert lower(jax.vmap(run), x_BES, platform=platform).count("newton_schulz_forward") >= 1
  assert lower(lifted, x_BES, platform=platform).count("newton_schulz_backward") >= 1


def test_the_kernel_says_what_it_cannot_hold(x64):
  assert pallas.ROUTES.keys() == set(PALLAS_PLATFORMS)
  for x_ES, platform, why in [
    (jnp.zeros((65, 65), jnp.float32), "gpu", "65 x 65 is padded to 128 x 128 on gpu"),
    (jnp.zeros((2000, 128), jnp.float32), "tpu", "shorter side may have 256"),
    (jnp.zeros((E, S)), "gpu", "works in float32, the matrices are float64"),
    (jnp.zeros((E, S), jnp.float32), "cpu", "no kernel for cpu, only for gpu and tpu"),
  ]:
    with pytest.raises(ValueError, match=why):
      pallas.newton_schulz(x_ES, steps=STEPS, platform=platform)


def test_wrong_calls_are_refused():
  with pytest.raises(
    ValueError, match="supported are auto, reference and chunked on every platform, pallas on"
  ):
    newton_schulz(matrices(E, S), impl="fused")
  with pytest.raises(ValueError, match="steps=-1"):
    newton_schulz(matrices(E, S), steps=-1)
  with pytest.raises(ValueError, match="shape"):
    newton_schulz(matrices(E))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there the kernel is supported")
def test_the_kernel_is_refused_by_name_where_there_is_none():
  with pytest.raises(ValueError, match="no impl='pallas' on cpu; supported are"):
    newton_schulz(matrices(E, S), impl="pallas")


@pytest.mark.parametrize("impl", ["auto", "reference", "chunked"])
def test_the_package_gives_every_form(impl):
  x_ES = matrices(S, E)
  assert_close(newton_schulz(x_ES, impl=impl), reference.newton_schulz(x_ES, steps=5))


@pytest.mark.accelerator
def test_the_kernel_runs_on_the_device():
  x_BES = matrices(6, 48, 64)
  total = lambda impl, x: jnp.sum(newton_schulz(x, impl=impl) * matrices(*x.shape, seed=9))
  for run in (newton_schulz, lambda x, impl: jax.grad(functools.partial(total, impl))(x)):
    assert_close(run(x_BES, impl="pallas"), run(x_BES, impl="reference"))
