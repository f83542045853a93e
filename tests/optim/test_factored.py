"""Mean squares by rows and columns: against Adam where they are exact, by hand, and by their size."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import tree
from atlas_jax.optim import build, factored
from tests.optim.test_build import FIELDS

B1, B2 = 0.9, 0.95


def params():
  blocks = {"attention": {"q": {"kernel": jnp.ones((3, 64, 4, 16))}}, "norm": {"scale": jnp.ones((3, 64))}}
  return {"blocks": blocks, "embed": jnp.ones((96, 64))}


def made(**changes):
  return build.build(params(), **{**FIELDS, "weight_decay": 0.0, "lr": 1.0, **changes})


def normal(seed, like):
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32), like)


@pytest.mark.parametrize("shape, lead, matrix", [
    ((3, 64, 4, 16), 1, (3, 64, 64)),  # D, H, K: heads and their width are the columns.
    ((3, 4, 16, 64), 1, (3, 64, 64)),
    ((96, 64), 0, (1, 96, 64)),
    ((3, 64, 8), 1, None),  # Its columns are too few,
    ((64, 40, 40), 1, None),  # and here optax would take depth for one of its sides.
    ((3, 64), 1, None),
    ((64, 64), -1, None),
])
def test_leaves_are_read_as_stacked_matrices(shape, lead, matrix):
  assert factored.matrix_shape(shape, lead) == matrix


def test_a_leaf_keeps_rows_and_columns_and_the_mean_in_bfloat16():
  full, small = (jax.eval_shape(made(**moments).init, params()) for moments in
                 ({}, {"first_moment": "bfloat16", "second_moment": "factored"}))
  count = tree.count(params())
  assert tree.size_bytes(full) == 8 * count + 8
  # 2 bytes of mean; squares of 2 x 64 in each of 3 blocks, 96 + 64, and all of the scales.
  squares = 4 * (3 * 2 * 64 + 96 + 64 + 3 * 64)
  assert 0 <= tree.size_bytes(small) - 2 * count - squares <= 64  # Counts, and optax's placeholders.


def test_squares_of_a_product_of_rows_and_columns_give_adam():
  # Gradients r x c at every step: their mean squares are exact, and so is the mean of a constant.
  grads = jax.tree.map(jnp.ones_like, params())
  rows, columns = jnp.linspace(0.5, 2.0, 64), jnp.linspace(-1.0, 3.0, 64)
  outer = rows[:, None] * columns[None]
  grads["blocks"]["attention"]["q"]["kernel"] = jnp.broadcast_to(outer.reshape(64, 4, 16), (3, 64, 4, 16))
  adam, ours = made(), made(second_moment="factored")
  states = [adam.init(params()), ours.init(params())]
  for _ in range(3):
    (expected, states[0]), (found, states[1]) = (
        one.update(grads, state, params()) for one, state in zip((adam, ours), states, strict=True))
  for (name, a), b in zip(tree.named_leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)


def test_squares_in_bfloat16_are_those_of_adam_on_average_and_take_half():
  adam, ours = made(beta2=0.999), made(beta2=0.999, second_moment="bfloat16")
  states = [adam.init(params()), ours.init(params())]
  assert tree.size_bytes(states[1]) == tree.size_bytes(states[0]) - 2 * tree.count(params())
  updates = [jax.jit(optimizer.update) for optimizer in (adam, ours)]
  for step in range(50):
    grads = normal(step, params())
    states = [update(grads, state, params())[1] for update, state in zip(updates, states, strict=True)]
  full, half = (next(np.asarray(leaf, np.float64) for name, leaf in tree.named_leaves(state)
                     if "/nu/" in name and name.endswith("embed")) for state in states)
  # A step is a thousandth, of which rounding to the nearest would lose all in the end.
  assert abs((half / full).mean() - 1) < 1e-3
  assert np.abs(half / full - 1).max() < 0.1


def test_an_update_is_the_mean_of_normalized_gradients_by_hand():
  ours = made(second_moment="factored")
  state = ours.init(params())
  mean, rows, columns = 0.0, 0.0, 0.0
  for step in range(3):
    grads = normal(step, params())
    updates, state = ours.update(grads, state, params())
    g = np.asarray(grads["embed"], np.float64)
    rows, columns = (B2 * old + (1 - B2) * (g**2).mean(axis) for old, axis in ((rows, 1), (columns, 0)))
    right = 1 - B2 ** (step + 1)
    square = np.outer(rows / right, columns / right) / (rows / right).mean()
    scaled = g / np.sqrt(square)
    scaled = scaled / max(1.0, np.sqrt((scaled**2).mean()))
    mean = B1 * mean + (1 - B1) * scaled
    np.testing.assert_allclose(updates["embed"], -mean / (1 - B1 ** (step + 1)), rtol=2e-4, atol=1e-6)


def test_the_moments_of_adam_atan2_are_float32():
  with pytest.raises(ValueError, match="second_moment='factored' are not for name='adam_atan2'"):
    made(name="adam_atan2", second_moment="factored")
