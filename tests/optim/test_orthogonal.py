"""Gradients without their part along the weights, against loops, and their place before clipping and Adam."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import tree
from atlas_jax.optim import build
from atlas_jax.optim.orthogonal import project
from tests import oracles
from tests.helpers import assert_close
from tests.optim.test_build import FIELDS, small_params


def drawn(shape, seed):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def drawn_tree(seed):
  leaves, form = jax.tree.flatten(small_params())
  return jax.tree.unflatten(form, [drawn(leaf.shape, seed + n) for n, leaf in enumerate(leaves)])


def prepared(grads, params, **fields):
  """Returns gradients as Adam is handed them: its first mean is a tenth of them."""
  optimizer = build.build(params, **{**FIELDS, **fields})
  state = optimizer.update(grads, optimizer.init(params), params)[1]
  return jax.tree.map(lambda mean: 10 * mean, state[1].mu)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_matrix_loses_a_fraction_of_its_own_direction(fraction):
  grad, weight = drawn((4, 5), 0), drawn((4, 5), 1)
  found = project(grad, weight, fraction=fraction)
  assert_close(found, oracles.orthogonal_grad(grad, weight, fraction))
  assert_close(jnp.vdot(found, weight), (1 - fraction) * jnp.vdot(grad, weight), tolerance=1e-5)


def test_a_step_of_the_whole_fraction_keeps_the_length_of_the_weights_to_first_order():
  grad, weight = drawn((6, 7), 2), drawn((6, 7), 3)
  length = lambda given, rate: jnp.linalg.norm(weight - rate * given)
  slope = jax.grad(length, argnums=1)
  assert abs(slope(project(grad, weight, fraction=1.0), 0.0)) < 1e-5 < abs(slope(grad, 0.0))


def test_stacked_blocks_and_heads_are_projected_each_by_itself_and_only_matrices_are():
  params, grads = drawn_tree(10), drawn_tree(50)
  found = dict(tree.named_leaves(prepared(grads, params, orthogonal_grads=1.0)))
  lead = dict(tree.named_leaves(build.own_axes(params)))
  assert {name: axes for name, axes in lead.items() if axes >= 0} == {
      "embed/embedding": 0, "head/kernel": 0, "blocks/memory/query/kernel": 1,
      "blocks/memory/initial_fast/w0": 2, "blocks/memory/slow/projection": 2}
  weights = dict(tree.named_leaves(params))
  for name, grad in tree.named_leaves(grads):
    parts = [()] if lead[name] <= 0 else np.ndindex(grad.shape[:lead[name]])
    for part in parts:
      expected = grad[part]
      if lead[name] >= 0:
        expected = oracles.orthogonal_grad(grad[part], weights[name][part], 1.0)
      assert_close(found[name][part], expected, why=f"{name}{part}")


def test_what_is_taken_out_uses_up_none_of_the_clipped_norm():
  params = {"w": drawn((3, 4), 4)}
  across = project(drawn((3, 4), 5), params["w"], fraction=1.0)
  across = 0.5 * across / jnp.linalg.norm(across)
  grads = {"w": across + 100 * params["w"]}
  found = prepared(grads, params, orthogonal_grads=1.0, clip_norm=1.0)
  assert_close(found["w"], across, tolerance=1e-4)  # 100 weights of the same float32 were added before.


def test_weights_of_zero_have_no_direction():
  grad = drawn((3, 4), 6)
  assert_close(project(grad, jnp.zeros((3, 4)), fraction=1.0), grad)


def test_the_state_keeps_its_form_so_that_checkpoints_fit():
  params = small_params()
  forms = {jax.tree.structure(build.build(params, **{**FIELDS, **fields}).init(params))
           for fields in ({}, {"orthogonal_grads": 0.5}, {"orthogonal_grads": 0.5, "clip_norm": 1.0})}
  assert len(forms) == 1


def test_sums_of_bfloat16_are_made_in_float32():
  weight, grad = jnp.ones((64, 64), jnp.bfloat16), jnp.ones((64, 64), jnp.bfloat16)
  found = project(grad, weight, fraction=1.0)
  assert found.dtype == jnp.bfloat16 and not np.asarray(found, np.float32).any()
