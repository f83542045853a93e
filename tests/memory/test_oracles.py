"""The reference loops rest on right pieces: gradients, objectives, orthogonalisation and feature maps.

Pure NumPy. Gradients written by hand are held against central differences of the loss.
"""

import functools
import importlib
import math

import numpy as np
import pytest

from tests.memory import oracles

K, M, F = 4, 4, 3
ACTIVATIONS = sorted(oracles.ACTIVATIONS)
THRESHOLD = {"threshold": 0.4}
# Those whose gradient is exactly that of their loss.
OBJECTIVES = {
  "l2": oracles.l2,
  "dot": oracles.inner_product,
  "huber coordinate": oracles.huber("coordinate"),
  "huber norm": oracles.huber("norm"),
  "robust": oracles.robust(0.7),
}


def numbers(*shape, seed):
  return 0.7 * np.random.default_rng([seed, *shape]).normal(size=shape)


def differences(loss, x, step=1e-6):
  """Central differences of a scalar function by every entry of an array."""
  grad = np.zeros_like(x)
  for index in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[index] += step
    down[index] -= step
    grad[index] = (loss(up) - loss(down)) / (2 * step)
  return grad


def check_gradient(net, weights, slow, *, lifted_dim=K, objective=oracles.l2):
  x, lifted, v = numbers(K, seed=1), numbers(lifted_dim, seed=2), numbers(M, seed=3)
  grad_of = lambda out: objective(out, v, THRESHOLD)[1]
  found = net.gradient(weights, slow, x, lifted, grad_of)
  assert sorted(found) == sorted(weights)
  for name in weights:
    loss = lambda w, name=name: objective(net.read(weights | {name: w}, slow, x, lifted), v, THRESHOLD)[0]
    np.testing.assert_allclose(found[name], differences(loss, weights[name]), atol=1e-7, err_msg=name)


def mlp_weights(depth, lifted_dim=K, *, biases=False):
  widths = (lifted_dim, *(F,) * (depth - 1), M)
  weights = {f"w{i}": numbers(*widths[i : i + 2], seed=10 + i) for i in range(depth)}
  if biases:
    weights |= {f"b{i}": numbers(1, widths[i + 1], seed=20 + i) for i in range(depth)}
  return weights


SLOW = {"norm_scale": 1 + numbers(M, seed=30), "norm_bias": numbers(M, seed=31)}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [None, "layer", "affine"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_of_an_mlp_are_those_of_its_loss(depth, norm, activation):
  net = oracles.mlp(depth=depth, activation=activation, residual=True, norm=norm)
  check_gradient(net, mlp_weights(depth), SLOW)


@pytest.mark.parametrize("depth", [1, 2])
def test_gradients_of_biases_and_of_lifted_keys_are_those_of_the_loss(depth):
  net = oracles.mlp(depth=depth, activation="gelu", residual=False, norm="affine")
  check_gradient(net, mlp_weights(depth, 6, biases=True), SLOW, lifted_dim=6)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_a_gated_network_are_those_of_its_loss(activation, residual):
  weights = {name: numbers(6, F, seed=seed) for seed, name in enumerate(("gate", "up"))}
  weights["out"] = numbers(F, M, seed=5)
  check_gradient(oracles.gated(activation=activation, residual=residual), weights, {}, lifted_dim=6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_objectives_are_those_of_their_loss(name):
  net = oracles.mlp(depth=2, activation="gelu", residual=True, norm="layer")
  check_gradient(net, mlp_weights(2), {}, objective=OBJECTIVES[name])
  for size in (0.01, 0.3, 3.0):  # On both sides of the Huber losses' border.
    out, v = size * numbers(M, seed=6), np.zeros(M)
    loss = lambda out, v=v: OBJECTIVES[name](out, v, THRESHOLD)[0]
    np.testing.assert_allclose(
      OBJECTIVES[name](out, v, THRESHOLD)[1], differences(loss, out, step=1e-7), atol=1e-6
    )


@pytest.mark.parametrize("p", [1.5, 3])
def test_the_gradient_of_lp_has_a_smooth_sign_and_is_the_loss_s_where_errors_are_large(p):
  objective = oracles.lp(p, sharpness=10)
  e = np.array([-2.0, -1e-3, 0.0, 0.5])
  loss, grad = objective(e, np.zeros(4), {})
  assert loss == pytest.approx((2**p + 1e-3**p + 0.5**p) / p)
  documented = [math.tanh(10 * x) * (x * x + 1e-6) ** ((p - 1) / 2) for x in e]
  np.testing.assert_allclose(grad, documented, rtol=1e-12)
  true = differences(lambda e: objective(e, np.zeros(4), {})[0], e)
  np.testing.assert_allclose(grad[[0, 3]], true[[0, 3]], rtol=2e-4)


def test_a_layer_norm_has_mean_zero_and_variance_one():
  y = oracles.layer_norm(numbers(50, seed=1))
  assert abs(y.mean()) < 1e-12 and y.var() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(8, 16), (16, 8)])
def test_newton_schulz_brings_singular_values_near_one(shape):
  scale = math.sqrt(max(1, shape[1] / shape[0]))
  for seed in range(8):
    x = numbers(*shape, seed=seed)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    y = oracles.newton_schulz(x) / scale
    found = np.linalg.svd(y, compute_uv=False)
    assert 0.65 < found.min() and found.max() < 1.25
    turned = u.T @ y @ v.T
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-9)
    np.testing.assert_allclose(oracles.newton_schulz(100 * x) / scale, y, atol=1e-5)


@pytest.mark.parametrize("degree", [2, 3])
def test_polynomial_features_meet_in_the_truncated_exponential(degree):
  q, k = numbers(5, seed=1), numbers(5, seed=2)
  coefficients = 1 + numbers(degree + 1, seed=3)
  slow = {"coefficients": coefficients, "projection": numbers(5, 3, seed=4)}
  lift = functools.partial(oracles.features, slow, feature_map="poly", degree=degree)
  terms = lambda product: [c * product**i / math.factorial(i) for i, c in enumerate(coefficients)]
  assert lift(q, True) @ lift(k, False) == pytest.approx(sum(terms(q @ k)), rel=1e-12)
  assert len(lift(k, False)) == math.comb(5 + degree, degree)
  lift = functools.partial(oracles.features, slow, feature_map="projected", degree=degree)
  projected = (q @ slow["projection"]) @ (k @ slow["projection"])
  assert lift(q, True) @ lift(k, False) == pytest.approx(sum(terms(projected)), rel=1e-12)


def test_powers_meet_in_sums_of_powers_of_products():
  q, k, c = numbers(5, seed=1), numbers(5, seed=2), np.array([0.5, 2.0, -1.0])
  lift = functools.partial(oracles.features, {"coefficients": c}, feature_map="power", degree=3)
  terms = [c[i - 1] * ((q * k) ** i).sum() / math.factorial(i) for i in (1, 2, 3)]
  assert lift(q, True) @ lift(k, False) == pytest.approx(sum(terms), rel=1e-12)


def test_a_sketch_nears_the_polynomial_as_it_widens():
  q, k = (x / np.linalg.norm(x) for x in (numbers(5, seed=1), numbers(5, seed=2)))
  true = 1 + q @ k + (q @ k) ** 2 / 2
  lift = functools.partial(oracles.features, {"coefficients": np.ones(3)}, feature_map="sketch")
  wide = lift(q, True, feature_dim=40_000) @ lift(k, False, feature_dim=40_000)
  assert wide == pytest.approx(true, abs=0.03)
  assert lift(k, False, feature_dim=7).shape == (15,)


def linear_case(length=10):
  fast = {"w0": numbers(K, M, seed=40)}
  tokens = [numbers(length, K, seed=41), numbers(length, K, seed=42), numbers(length, M, seed=43)]
  rate = np.random.default_rng(44).uniform(0.3, 0.9, (4, length))
  gates = dict(retention=rate[0], momentum=rate[1], write_rate=rate[2], context=rate[3][:, None] ** [0, 1, 2])
  return {"fast": fast, "slow": {}}, tokens, gates


def rule(name):
  return importlib.import_module(f"tests.memory.oracles.{name}").run


def without(gates, *names):
  return {name: gate for name, gate in gates.items() if name not in names}


def test_a_token_of_padding_is_as_if_it_were_not_there_where_the_chunk_is_one_token():
  learned, tokens, gates = linear_case()
  real = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 0])
  cut = lambda x: x[real == 1]
  options = dict(depth=1, residual=False, window_size=3, chunk_size=1, momentum=True)
  padded = rule("omega")(learned, tokens, gates, write_T=real, **options)
  plain = rule("omega")(
    learned, [cut(x) for x in tokens], {name: cut(x) for name, x in gates.items()}, **options
  )
  np.testing.assert_allclose(cut(padded.out_TM), plain.out_TM, rtol=1e-12)
  np.testing.assert_allclose(padded.fast["w0"], plain.fast["w0"], rtol=1e-12)
  np.testing.assert_allclose(padded.momentum["w0"], plain.momentum["w0"], rtol=1e-12)


def test_a_reset_forgets_weights_momentum_and_window():
  learned, tokens, gates = linear_case(12)
  reset = np.zeros(12)
  reset[8] = 1
  options = dict(depth=1, residual=False, window_size=3, chunk_size=4, momentum=True)
  whole = rule("omega")(learned, tokens, gates, reset_T=reset, **options)
  alone = rule("omega")(
    learned, [x[8:] for x in tokens], {name: x[8:] for name, x in gates.items()}, **options
  )
  np.testing.assert_array_equal(whole.out_TM[8:], alone.out_TM)
  np.testing.assert_array_equal(whole.fast["w0"], alone.fast["w0"])


def test_retention_is_descent_on_the_inner_product_and_linear_attention_keeps_all():
  learned, tokens, gates = linear_case()
  gates = without(gates, "momentum", "context")
  options = dict(depth=1, surprise_max=None, fade_to="zero", chunk_size=4)
  descended = rule("dla")(learned, tokens, gates, **options)
  kept = rule("retention")(learned, tokens, gates, chunk_size=4)
  np.testing.assert_allclose(kept.out_TM, descended.out_TM, rtol=1e-10, atol=1e-12)
  full = rule("retention")(learned, tokens, gates | {"retention": np.ones(10)}, chunk_size=4)
  plain = rule("linear_attention")(learned, tokens, without(gates, "retention"), chunk_size=4)
  np.testing.assert_array_equal(full.out_TM, plain.out_TM)


def test_the_delta_rule_without_momentum_is_the_product_form():
  """W_t = a W - r k (W^T k - v)^T: what the key recalls is replaced, at the weights before the token."""
  learned, tokens, gates = linear_case()
  q, k, v = tokens
  w, out = learned["fast"]["w0"], []
  for t in range(10):
    w = gates["retention"][t] * w - gates["write_rate"][t] * np.outer(k[t], k[t] @ w - v[t])
    out.append(q[t] @ w)
  found = rule("delta")(learned, tokens, without(gates, "context"), chunk_size=4, momentum=False)
  np.testing.assert_allclose(found.out_TM, out, rtol=1e-12)
  assert found.momentum == {}


def test_a_full_chunk_acts_at_its_end_and_padding_alone_does_not():
  learned, tokens, gates = linear_case(8)
  write = np.array([1, 1, 1, 0, 0, 0, 0, 0])
  options = dict(depth=1, residual=False, norm=None, activation="identity", threshold=0.1, chunk_size=4)
  start = lambda n: ([x[:n] for x in tokens], {name: x[:n] for name, x in gates.items() if name != "context"})
  before = rule("elastic_net")(learned, *start(3), **options).fast["w0"]
  closed = np.sign(before) * np.maximum(np.abs(before) - 0.1, 0)
  for n in (4, 8):
    after = rule("elastic_net")(learned, *start(n), write_T=write[:n], **options).fast["w0"]
    np.testing.assert_array_equal(after, closed)
