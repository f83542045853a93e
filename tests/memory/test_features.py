"""Feature maps: the kernels they stand for, their widths, and how many pairs a matrix then holds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import features
from tests.helpers import assert_close
from tests.memory import oracles

K = 4
MAPS = [
  dict(kind="power", degree=1),
  dict(kind="power", degree=3),
  dict(kind="poly", degree=2),
  dict(kind="poly", degree=3),
  dict(kind="projected", degree=2, feature_dim=3),
  dict(kind="projected", degree=3, feature_dim=2),
  dict(kind="sketch", degree=3, feature_dim=6),
]
every_map = pytest.mark.parametrize("options", MAPS, ids=lambda o: f"{o['kind']}-{o['degree']}")


def small(options, seed=0):
  """The map, learned constants with noise, and queries and keys."""
  lift = features.make(key_dim=K, **options)
  draw = np.random.default_rng(seed)
  slow = jax.tree.map(
    lambda w: jnp.asarray(np.asarray(w) + 0.3 * draw.normal(size=w.shape)), lift.init(jax.random.key(0))
  )
  return lift, slow, *(jnp.asarray(draw.normal(size=(7, K))) for _ in range(2))


def kernel(options, slow, q_TK, k_TK):
  """sum_i c_i (q . k)^i / i!, between every query and key."""
  first = 1 if options["kind"] == "power" else 0
  q, k = (np.asarray(x) for x in (q_TK, k_TK))
  if "projection" in slow:
    q, k = q @ np.asarray(slow["projection"]), k @ np.asarray(slow["projection"])
  total = np.zeros((len(q), len(k)))
  for i, c in enumerate(np.asarray(slow["coefficients"]), first):
    power = (q**i) @ (k**i).T if options["kind"] == "power" else (q @ k.T) ** i
    total += c * power / math.factorial(i)
  return total


@every_map
def test_queries_and_keys_meet_in_the_kernel(x64, options):
  """Exactly; for the sketch, whose kernel holds on average, as the reference computes it."""
  lift, slow, q_TK, k_TK = small(options)
  met_TT = lift.queries(slow, q_TK) @ lift.keys(slow, k_TK).T
  if options["kind"] != "sketch":
    assert_close(met_TT, kernel(options, slow, q_TK, k_TK))
  names = dict(feature_map=options["kind"], degree=options["degree"], feature_dim=options.get("feature_dim"))
  wide = {name: np.asarray(w) for name, w in slow.items()}
  by_hand = [[oracles.features(wide, np.asarray(x), is_query, **names) for x in rows]
             for rows, is_query in ((q_TK, True), (k_TK, False))]  # fmt: skip
  assert_close((lift.queries(slow, q_TK), lift.keys(slow, k_TK)), tuple(np.array(x) for x in by_hand))


@every_map
def test_widths_parts_and_learned_constants_are_what_they_say(options):
  lift = features.make(key_dim=K, **options)
  learned = lift.init(jax.random.key(0))
  assert sum(lift.parts) == lift.width == lift.keys(learned, jnp.ones((2, 3, K))).shape[-1]
  assert lift.keys(learned, jnp.ones((2, 3, K))).shape == (2, 3, lift.width)
  assert learned["coefficients"].shape == (len(lift.parts),)
  assert (np.asarray(learned["coefficients"]) == 1).all()
  assert {x.dtype for x in jax.tree.leaves(learned)} == {jnp.dtype("float32")}
  if options["kind"] == "poly":
    assert lift.width == math.comb(K + options["degree"], options["degree"])
  if options["kind"] == "projected":
    assert learned["projection"].shape == (K, options["feature_dim"])


@pytest.mark.parametrize("groups", [1, 2])
def test_cells_and_their_gradients_are_those_of_a_softmax_brought_to_norm_one(x64, groups):
  lift, slow, x_TK, _ = small(dict(kind="cells", degree=2, feature_dim=6, cell_groups=groups))
  weight_TP = jax.random.normal(jax.random.key(3), (len(x_TK), 6))
  directions_KP = np.random.default_rng(0).standard_normal((x_TK.shape[1], 6))

  def plain(slow, x_TK):
    parts = []
    for of_group in np.split(directions_KP, groups, axis=1):
      answer_TP = jax.nn.softmax(x_TK * slow["sharpness"] @ of_group)
      parts.append(answer_TP / jnp.sqrt(jnp.sum(answer_TP**2, -1, keepdims=True) + 1e-6))
    return jnp.concatenate(parts, axis=-1) * groups**-0.5

  total = lambda map_of: lambda slow, x_TK: jnp.sum(weight_TP * map_of(slow, x_TK))
  for large in (1, 100):  # Exponents that float64 does not hold, too.
    assert_close(lift.keys(slow, large * x_TK), plain(slow, large * x_TK))
    found, expected = (jax.grad(total(one), (0, 1))(slow, large * x_TK) for one in (lift.keys, plain))
    assert_close((found[0]["sharpness"], found[1]), (expected[0]["sharpness"], expected[1]))


def test_no_map_leaves_keys_and_queries_as_they_are():
  lift = features.make("none", key_dim=K)
  x_TK = jnp.ones((3, K))
  assert lift.width == K and not lift.init(jax.random.key(0))
  assert lift.keys({}, x_TK) is x_TK and lift.queries({}, x_TK) is x_TK


def test_coefficients_act_on_queries_alone(x64):
  lift, slow, q_TK, _ = small(MAPS[2])
  off = slow | {"coefficients": jnp.zeros(3).at[1].set(2.0)}
  assert_close(lift.keys(off, q_TK), lift.keys(slow, q_TK))
  queries = np.asarray(lift.queries(off, q_TK))
  assert not queries[:, 0].any() and not queries[:, 1 + K :].any()
  assert_close(queries[:, 1 : 1 + K], 2 * np.asarray(q_TK))


def test_a_sketch_meets_the_kernel_on_average(x64):
  """Over random directions: products of random signs have the kernel's mean, and an error by their number."""
  lift = features.make("sketch", key_dim=6, degree=3, feature_dim=4096)
  draw = np.random.default_rng(3)
  unit = lambda x: jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))
  q_TK, k_TK = unit(draw.normal(size=(40, 6))), unit(draw.normal(size=(30, 6)))
  slow = {"coefficients": jnp.ones(4)}
  met = np.asarray(lift.queries(slow, q_TK) @ lift.keys(slow, k_TK).T)
  error = met - kernel(dict(kind="sketch"), slow, q_TK, k_TK)
  # A product of i signs of unit vectors has a variance below 3^i; here sum 3^i / i!^2 is 8.
  assert np.sqrt((error**2).mean()) < np.sqrt(8 / 4096)
  assert abs(error.mean()) < 0.01
  narrow = features.make("sketch", key_dim=6, degree=3, feature_dim=16)
  met = np.asarray(narrow.queries(slow, q_TK) @ narrow.keys(slow, k_TK).T)
  assert np.sqrt(((met - kernel(dict(kind="sketch"), slow, q_TK, k_TK)) ** 2).mean()) > 0.1


def test_sketches_are_the_same_in_every_process_and_stay_in_the_activations_dtype():
  lift = features.make("sketch", key_dim=K, degree=2, feature_dim=5)
  again = features.make("sketch", key_dim=K, degree=2, feature_dim=5)
  x_TK = jnp.asarray(np.random.default_rng(0).normal(size=(3, K)), jnp.bfloat16)
  assert lift.keys({}, x_TK).dtype == jnp.bfloat16
  assert (lift.keys({}, x_TK) == again.keys({}, x_TK)).all()


def test_a_matrix_over_polynomial_features_holds_more_pairs_than_keys_are_wide(x64):
  """Keys of 8 numbers have 45 features of degree 2; of a unit key, the squares add up to the constant."""
  draw = np.random.default_rng(0)
  k_TK = draw.normal(size=(45, 8))
  k_TK, v_TM = k_TK / np.linalg.norm(k_TK, axis=1, keepdims=True), draw.normal(size=(45, 3))
  for degree_of, count, exact in (("none", 8, True), ("none", 9, False), ("poly", 44, True)):
    lift = features.make(degree_of, key_dim=8)
    lifted = np.asarray(lift.keys({}, jnp.asarray(k_TK[:count])))
    stored = np.linalg.lstsq(lifted, v_TM[:count], rcond=None)[0]
    error = np.abs(lifted @ stored - v_TM[:count]).max()
    assert (error < 1e-6) == exact, f"{degree_of}: {count} pairs leave an error of {error:.1e}"


@pytest.mark.parametrize(
  "wrong,said",
  [
    (dict(kind="fourier"), "none, power, poly, projected, sketch"),
    (dict(kind="poly", degree=4), "degree=4"),
    (dict(kind="power", degree=0), "degree=0"),
    (dict(kind="sketch", feature_dim=0), "feature_dim=0"),
    (dict(kind="cells", feature_dim=6, cell_groups=4), "cell_groups=4 must .* divide .*feature_dim=6"),
    (dict(kind="cells", feature_dim=6, cell_groups=0), "cell_groups=0"),
    (dict(kind="poly", degree=2, cell_groups=2), "cell_groups=2 groups the cells of feature_map='cells'"),
  ],
)
def test_options_out_of_range_are_refused_by_name(wrong, said):
  with pytest.raises(ValueError, match=said):
    features.make(key_dim=K, **wrong)
