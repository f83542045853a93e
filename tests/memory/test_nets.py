"""Networks of memories: what they compute, and that their gradients are those of the recall loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import descent, features, nets, objectives
from tests.helpers import assert_close, quick_compilation
from tests.memory import oracles

T, K = 6, 5


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


ACTIVATE = {
  "silu": jax.nn.swish,
  "gelu": jax.nn.gelu,
  "relu2": lambda x: jnp.maximum(x, 0) ** 2,
  "identity": lambda x: x,
}
# Every activation, depth, norm, with and without biases and residual; without, all widths differ.
MLPS = [dict(depth=2, activation=name, residual=residual) for name in ACTIVATE for residual in (True, False)]
MLPS += [
  dict(depth=depth, activation="silu", residual=residual) for depth, residual in ((1, True), (3, False))
]
MLPS += [dict(depth=2, activation="gelu", residual=residual, norm="layer") for residual in (True, False)]
MLPS += [dict(depth=2, activation="silu", residual=False, norm="unit")]
MLPS += [dict(depth=depth, activation="gelu", residual=True, norm="affine", biases=True) for depth in (1, 2)]
GATED = [dict(activation=name, residual=name == "gelu") for name in ACTIVATE]


def label(form):
  return "-".join(f"{name}={value}" for name, value in form.items())


def widths(form):
  """key_dim, value_dim, width of lifted keys."""
  return (K, K, 6) if form["residual"] else (K, 4, 6)


def make(form):
  """The network, random weights and constants, and tokens (keys, lifted keys, values)."""
  key_dim, value_dim, lifted_dim = widths(form)
  maker = nets.mlp if "depth" in form else nets.gated
  net = maker(key_dim=key_dim, value_dim=value_dim, lifted_dim=lifted_dim, expansion=1.5, **form)
  draw = np.random.default_rng(0)
  weights = {name: jnp.asarray(draw.normal(size=shape) * 0.6) for name, shape in net.shapes}
  slow = {name: jnp.asarray(begin + draw.normal(size=shape) * 0.2) for name, shape, begin in net.slow}
  tokens = [jnp.asarray(draw.normal(size=(T, width))) for width in (key_dim, lifted_dim, value_dim)]
  return net, weights, slow, tokens


def mlp_again(form, weights, slow, k_K, lifted_P):
  """The recall of one key, written again."""
  h = lifted_P
  for i in range(form["depth"]):
    h = (ACTIVATE[form["activation"]](h) if i else h) @ weights[f"w{i}"]
    h = h + weights[f"b{i}"][0] if form.get("biases") else h
  if form.get("norm"):
    h = (h - h.mean()) / jnp.sqrt(((h - h.mean()) ** 2).mean() + 1e-6)
  if form.get("norm") == "unit":
    h = h / len(h) ** 0.5
  if form.get("norm") == "affine":
    h = h * slow["norm_scale"] + slow["norm_bias"]
  return k_K + h if form["residual"] else h


def gated_again(form, weights, slow, k_K, lifted_P):
  out = (ACTIVATE[form["activation"]](lifted_P @ weights["gate"]) * (lifted_P @ weights["up"])) @ weights[
    "out"
  ]
  return k_K + out if form["residual"] else out


def test_every_activation_and_norm_is_tried():
  assert set(nets.ACTIVATIONS) == set(ACTIVATE) == set(oracles.ACTIVATIONS)
  assert {form.get("norm") for form in MLPS} == set(nets.NORMS)


@pytest.mark.core
@pytest.mark.parametrize("form", [*MLPS, *GATED], ids=label)
def test_gradients_of_all_products_equal_autodiff_of_the_recall_loss(x64, form):
  """Each token's gradient is its product of inputs and gradients; the reference loops agree with both."""
  net, weights, slow, (k_TK, lifted_TP, v_TM) = make(form)
  recall = functools.partial(mlp_again if "depth" in form else gated_again, form)

  def loss(weights, k_K, lifted_P, v_M):
    return 0.5 * jnp.sum((recall(weights, slow, k_K, lifted_P) - v_M) ** 2)

  each = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0, 0, 0))
  loss_T, gradient = jax.jit(each)(weights, k_TK, lifted_TP, v_TM)
  body = descent.Descent(net, features.make("none", key_dim=K), objectives.l2, momentum=False)
  found = descent.surprise(body, slow, weights, lifted_TP, k_TK, v_TM, ())
  products = {w: found.inputs[w][:, :, None] * found.grads[w][:, None, :] for w in weights}
  assert_close(products, gradient, why="gradient of each token")
  assert_close(found.loss_C, loss_T, why="loss")
  norm_T = np.sqrt(sum(np.sum(np.asarray(g) ** 2, (1, 2)) for g in gradient.values()))
  assert_close(found.norm_C, norm_T, why="norm of each gradient")
  if not form.get("biases"):
    loop = (oracles.mlp if "depth" in form else oracles.gated)(**form)
    wide = {name: np.asarray(w) for name, w in weights.items()}
    for t in range(T):
      by_hand = loop.gradient(
        wide, slow, np.asarray(k_TK[t]), np.asarray(lifted_TP[t]), lambda o, t=t: o - v_TM[t]
      )
      assert_close(
        by_hand, jax.tree.map(lambda g, t=t: np.asarray(g[t]), gradient), why=f"reference, token {t}"
      )


@pytest.mark.parametrize("form", [MLPS[0], MLPS[-1], GATED[0]], ids=label)
def test_recalling_many_keys_equals_recalling_each(x64, form):
  net, weights, slow, (k_TK, lifted_TP, _) = make(form)
  once = net.apply(slow, weights, k_TK.reshape(2, 3, -1), lifted_TP.reshape(2, 3, -1))
  each = [net.apply(slow, weights, k, lifted) for k, lifted in zip(k_TK, lifted_TP)]
  assert_close(once.reshape(T, -1), jnp.stack(each))


@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_a_bound_shortens_long_gradients_of_all_weights_together(x64, bound):
  net, weights, slow, (k_TK, lifted_TP, v_TM) = make(MLPS[0])
  free = descent.Descent(net, features.make("none", key_dim=K), objectives.l2, momentum=False)
  plain = descent.surprise(free, slow, weights, lifted_TP, k_TK, v_TM, ())
  bound_ = descent.surprise(free._replace(surprise_max=bound), slow, weights, lifted_TP, k_TK, v_TM, ())
  share_T1 = np.minimum(1, bound / np.asarray(plain.norm_C))[:, None]
  assert bound > 1 or (share_T1 < 1).all()
  assert_close(bound_.grads, {w: share_T1 * np.asarray(grad) for w, grad in plain.grads.items()})
  assert_close(bound_.norm_C, plain.norm_C, why="the norm is that before the bound")


def test_networks_have_the_widths_they_were_asked_for_and_start_from_unit_gain():
  net = nets.mlp(
    key_dim=6,
    value_dim=4,
    lifted_dim=9,
    depth=3,
    expansion=2.5,
    activation="silu",
    residual=False,
    biases=True,
  )
  fast = net.init_fast(jax.random.key(0))
  assert {name: w.shape for name, w in fast.items()} == {
    "w0": (9, 10), "w1": (10, 10), "w2": (10, 4), "b0": (1, 10), "b1": (1, 10), "b2": (1, 4)
  }  # fmt: skip
  assert not any(np.asarray(fast[f"b{i}"]).any() for i in range(3))
  wide = nets.gated(key_dim=64, value_dim=96, lifted_dim=64, expansion=2, activation="silu", residual=False)
  fast = wide.init_fast(jax.random.key(0))
  assert {name: w.shape for name, w in fast.items()} == {"gate": (64, 192), "up": (64, 192), "out": (192, 96)}
  for name, w in fast.items():
    assert w.dtype == jnp.float32
    assert abs(np.std(np.asarray(w)) * np.sqrt(w.shape[0]) - 1) < 0.05, name


@pytest.mark.parametrize(
  "wrong,said",
  [
    (dict(depth=0), "depth=0"),
    (dict(expansion=0), "expansion=0"),
    (dict(activation="tanhh"), "silu, gelu, relu2, identity"),
    (dict(value_dim=4), "residual=True needs keys and values of one width, got 5 and 4"),
    (dict(norm="batch"), "norm='batch'"),
  ],
)
def test_options_out_of_range_are_refused_by_name(wrong, said):
  good = dict(
    key_dim=5, value_dim=5, lifted_dim=5, depth=2, expansion=1, activation="silu", residual=True, norm=None
  )
  with pytest.raises(ValueError, match=said):
    nets.mlp(**good | wrong)
