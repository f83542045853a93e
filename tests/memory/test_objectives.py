"""Recall losses: their values, and that what is back-propagated is their gradient, or what is documented."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import descent, features, nets, objectives
from tests.helpers import assert_close, quick_compilation

T, M = 40, 5


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def huber_of(size, edge):
  return jnp.where(size <= edge, 0.5 * size**2, edge * (size - 0.5 * edge))


# The losses of one token, written again; e is output minus value, v the value, g the rule's own gates.
EXACT = {
  "l2": (objectives.l2, lambda e, v, g: 0.5 * jnp.sum(e**2)),
  "dot": (objectives.dot, lambda e, v, g: -jnp.sum((e + v) * v)),
  "huber coordinate": (
    objectives.huber("coordinate"),
    lambda e, v, g: jnp.sum(huber_of(jnp.abs(e), g["threshold"])),
  ),
  "huber norm": (
    objectives.huber("norm"),
    lambda e, v, g: huber_of(jnp.sqrt(jnp.sum(e**2)), g["threshold"]),
  ),
  "robust": (
    objectives.robust(0.7),
    lambda e, v, g: 0.5 * jnp.sum(e**2) + 0.7 * jnp.sqrt(jnp.sum(e**2) + 1e-6),
  ),
}
every_exact = pytest.mark.parametrize("name", EXACT)


def outputs():
  """Errors of all sizes around the thresholds, values, and gates."""
  draw = np.random.default_rng(0)
  v_TM, e_TM = draw.normal(size=(2, T, M))
  e_TM = e_TM * np.geomspace(0.01, 10, T)[:, None]
  threshold_T = draw.uniform(0.3, 1.5, size=T)
  return jnp.asarray(v_TM + e_TM), jnp.asarray(v_TM), {"threshold": jnp.asarray(threshold_T)}


@every_exact
def test_gradients_equal_autodiff_of_the_loss_and_the_reported_loss_is_it(x64, name):
  objective, again = EXACT[name]
  out_TM, v_TM, gates = outputs()
  loss_T, grad_TM = objective(out_TM, v_TM, gates)
  token = lambda out, v, gate: again(out - v, v, gate)
  expected_T, expected_TM = jax.vmap(jax.value_and_grad(token))(out_TM, v_TM, gates)
  assert_close((loss_T, grad_TM), (expected_T, expected_TM))


@every_exact
def test_gradients_of_a_memory_are_those_of_its_loss(x64, name):
  """Through two matrices, a norm and the key that is added, as outer products."""
  objective, again = EXACT[name]
  _, v_TM, gates = outputs()
  draw = np.random.default_rng(1)
  net = nets.mlp(
    key_dim=M, value_dim=M, lifted_dim=M, depth=2, expansion=2, activation="gelu", residual=True, norm="layer"
  )
  weights = {name: jnp.asarray(draw.normal(size=shape)) for name, shape in net.shapes}
  k_TK = jnp.asarray(draw.normal(size=(T, M)))
  body = descent.Descent(net, features.make("none", key_dim=M), objective, momentum=False)
  found = descent.surprise(body, {}, weights, k_TK, k_TK, v_TM, gates)

  def loss(weights, k_K, v_M, gate):
    h = jax.nn.gelu(k_K @ weights["w0"]) @ weights["w1"]
    h = (h - h.mean()) / jnp.sqrt(h.var() + 1e-6)
    return again(k_K + h - v_M, v_M, gate)

  gradient = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0, 0)))(weights, k_TK, v_TM, gates)
  products = {w: found.inputs[w][:, :, None] * found.grads[w][:, None, :] for w in weights}
  assert_close(products, gradient)
  one = functools.partial(descent.token_gradient, body, {}, weights)
  assert_close(jax.vmap(one)(k_TK, v_TM, gates), gradient, why="plain form")


@pytest.mark.parametrize("p,sharpness", [(1, 5.0), (1.5, 10.0), (3, 10.0), (4, 2.0)])
def test_the_gradient_of_lp_is_the_documented_one_and_nears_the_loss_s(x64, p, sharpness):
  out_TM, v_TM, _ = outputs()
  loss_T, grad_TM = objectives.lp(p, sharpness)(out_TM, v_TM, ())
  e = np.asarray(out_TM - v_TM)
  assert_close(grad_TM, np.tanh(sharpness * e) * (e**2 + 1e-6) ** ((p - 1) / 2))
  assert_close(loss_T, (np.abs(e) ** p).sum(-1) / p, tolerance=1e-3)
  true = np.sign(e) * np.abs(e) ** (p - 1)
  far = np.abs(e) > 4 / sharpness
  np.testing.assert_allclose(np.asarray(grad_TM)[far], true[far], rtol=2e-3)


def test_no_gradient_is_infinite_where_the_error_is_zero(x64):
  """Outer gradients go through the gradient: its own derivative must be finite too."""
  v_TM, gates = jnp.ones((2, M)), {"threshold": jnp.full(2, 0.5)}
  every = {name: exact for name, (exact, _) in EXACT.items()}
  every |= {f"lp {p}": objectives.lp(p, 10.0) for p in (1, 1.5, 3)}
  for name, objective in every.items():
    total = lambda out_TM, objective=objective: sum(x.sum() for x in objective(out_TM, v_TM, gates))
    value, grad = jax.value_and_grad(total)(v_TM)
    assert np.isfinite(value) and np.isfinite(np.asarray(grad)).all(), name


@pytest.mark.parametrize(
  "name,objective",
  [
    ("huber coordinate", objectives.huber("coordinate")),
    ("huber norm", objectives.huber("norm")),
    ("robust", objectives.robust(0.0)),
  ],
)
def test_without_a_threshold_or_shift_it_is_half_the_squared_error(x64, name, objective):
  out_TM, v_TM, _ = outputs()
  wide = {"threshold": jnp.full(T, 1e9)}
  assert_close(objective(out_TM, v_TM, wide), objectives.l2(out_TM, v_TM, ()), why=name)


def test_a_bound_keeps_the_direction_and_cuts_the_length(x64):
  square_T = jnp.asarray([0.0, 1e-12, 0.5, 4.0, 1e8])
  expected = np.minimum(1, 2 / np.maximum(np.sqrt(np.asarray(square_T)), 1e-300))
  assert_close(objectives.bound(square_T, 2.0), expected)
  assert_close(objectives.bound(square_T, None), np.ones(5))
  grad = jax.grad(lambda square: jnp.sum(objectives.bound(square, 2.0)))(square_T)
  assert np.isfinite(np.asarray(grad)).all()


@pytest.mark.parametrize(
  "make,said",
  [
    (lambda: objectives.lp(0.5, 10.0), "p=0.5"),
    (lambda: objectives.lp(3, 0.0), "sharpness=0.0"),
    (lambda: objectives.huber("both"), "coordinate, norm"),
    (lambda: objectives.robust(-1.0), "shift=-1.0"),
    (lambda: objectives.check_bound(0.0), "surprise_max=0.0"),
  ],
)
def test_options_out_of_range_are_refused_by_name(make, said):
  with pytest.raises(ValueError, match=said):
    make()
