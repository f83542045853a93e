"""Faults of updates, of those that recipes/test_original_faults.py lists, put back against a check each."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax import train, tree
from atlas_jax.optim import accumulate, build, schedules
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from tests import runs, test_train
from tests.helpers import assert_close, quick_compilation
from tests.optim import test_build


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def norms_are_of_the_gradient():
  """Checks what an update says of its gradient against the gradient of its loss."""
  config = runs.toy_config()
  (before, _), (row,) = test_train.updates(config, 1)
  recipe = runs.toy_recipe(config)
  batch, frozen = recipe.source.next(None), states.first(recipe.init, config.seed).frozen
  rng = jax.random.fold_in(jax.random.fold_in(before.rng, 0), 0)
  given = dict(frozen=frozen, carry=before.carry, rng=rng)
  grads = jax.grad(lambda params: recipe.loss(params, batch, **given).loss)(before.params)
  found = [row[f"grad/norm{part}"] for part in ("", "/embed", "/mlp")]
  expected = [tree.global_norm(part) for part in (grads, grads["embed"], grads["mlp"])]
  np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-4, err_msg="norms of the gradient")


def test_norms_of_cleared_gradients_are_noticed(monkeypatch):
  """Fault 13."""
  norms_are_of_the_gradient()
  of_groups = tree.group_norms
  monkeypatch.setattr(tree, "group_norms", lambda grads, *args, **given: of_groups(
      jax.tree.map(jnp.zeros_like, grads), *args, **given))
  with pytest.raises(AssertionError, match="norms of the gradient"):
    norms_are_of_the_gradient()


def test_norms_of_scaled_gradients_are_noticed(monkeypatch):
  """Fault 19."""
  inner = accumulate.gradients

  def scaled(loss, *others, **fields):
    return inner(lambda *args, **given: (out := loss(*args, **given))._replace(loss=2.0**16 * out.loss),
                 *others, **fields)

  monkeypatch.setattr(accumulate, "gradients", scaled)
  with pytest.raises(AssertionError, match="norms of the gradient"):
    norms_are_of_the_gradient()


def first_update_is_small():
  """Checks that the first update moves by the first rate of the warm-up; Adam's is of its very length."""
  config = runs.toy_config()
  (before, after), _ = test_train.updates(config, 1)
  moved = np.abs(np.asarray(after.params["embed"] - before.params["embed"]))
  assert_close(moved, np.full(3, config.optim.lr / config.optim.warmup_steps), why="moved", tolerance=1e-4)


def test_a_first_update_at_the_peak_is_noticed(monkeypatch):
  """Fault 14."""
  first_update_is_small()
  schedule = schedules.schedule

  def warmed_up_too_late(**fields):
    rate = schedule(**fields)
    return lambda count: jnp.where(count == 0, fields["lr"], rate(count))

  monkeypatch.setattr(schedules, "schedule", warmed_up_too_late)
  with pytest.raises(AssertionError, match="moved"):
    first_update_is_small()


def decays_matrices_alone(**changes):
  """Checks that without gradients no vector of a model moves, and matrices do."""
  params = test_build.small_params()
  optimizer = build.build(params, **{**test_build.FIELDS, **changes})
  grads = jax.tree.map(jnp.zeros_like, params)
  update = jax.jit(lambda params: optimizer.update(grads, optimizer.init(params), params))
  moved = {name: bool(np.any(leaf)) for name, leaf in tree.named_leaves(update(params)[0])}
  vectors = [name for name in moved if name.endswith(("scale", "bias"))]
  assert moved["head/kernel"] and len(vectors) == 4
  assert not any(moved[name] for name in vectors), "norms and biases are decayed"


def test_decay_of_norms_and_biases_is_noticed():
  """Fault 16."""
  decays_matrices_alone()
  with pytest.raises(AssertionError, match="norms and biases are decayed"):
    decays_matrices_alone(decay_of="all")


def gradient_norm(devices: int) -> float:
  """Makes one update on so many devices."""
  config = runs.toy_config(data__batch_rows=8)
  recipe, mesh = runs.toy_recipe(config), meshes.make(devices=jax.devices()[:devices])
  abstract, _ = train.abstract_state(config, recipe, mesh)
  frozen = states.first(recipe.init, config.seed).frozen
  state = states.build(abstract, *train.state_args(config, recipe))
  step = stepping.jit_step(config, recipe, mesh, state)
  batch = hosts.global_batch(mesh, recipe.source.next(None))
  with hosts.StopFlag(mesh) as stop:
    return float(step(state, batch, frozen, stop.array())[1]["grad/norm"])


def devices_agree():
  """Checks that eight devices find the gradient of one."""
  assert gradient_norm(8) == pytest.approx(alone(), rel=1e-5), "eight devices have another gradient"


alone = functools.lru_cache(lambda: gradient_norm(1))


def test_gradients_that_devices_keep_to_themselves_are_noticed(monkeypatch):
  """Fault 17: a replica that takes its own rows' gradient for that of the batch."""
  devices_agree()
  gradients = accumulate.gradients

  def of_the_first(loss, params, batch, carry, **fields):
    own = jax.tree.map(lambda x: x[:1], (batch, carry))
    return gradients(loss, params, *own, **fields)[0], gradients(loss, params, batch, carry, **fields)[1]

  monkeypatch.setattr(accumulate, "gradients", of_the_first)
  with pytest.raises(AssertionError, match="eight devices have another gradient"):
    devices_agree()
