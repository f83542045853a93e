"""The model computes what the original computes: outputs, latents, halting, losses, metrics and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses import recursion
from atlas_jax.models import act
from atlas_jax.puzzles import trm_import
from tests import trm_fixture as fixture
from tests.helpers import assert_close

FILES = ("model_att_rope", "model_mlp_t")
GRADIENT_TOLERANCE = 1e-4  # Sums over all positions and calls; the fixture's own suggestion.
ROWS, STEPS = 5, 3


@functools.lru_cache
def run(name):
  """Three training steps with refills: per step (pool that worked, Out, pool after, loss, metrics)."""
  model, params, reset, table_NE = fixture.loaded(name)
  pool, seen = act.empty_pool(model, ROWS, model.seq_len), []
  for step in range(1, STEPS + 1):
    pool = act.refill(pool, fixture.batch(name, step), reset)
    out = fixture.step_of(model)(params, pool.inputs_BT, table_NE[pool.ids_B], pool.latents)
    after_B, halted_B = act.halt(pool.steps_B, out.halt_logit_B, jax.random.key(step), n_supervision=STEPS,
                                 explore_prob=0.0)  # fmt: skip
    loss, metrics = recursion.recursion_loss(out.logits_BTV, out.halt_logit_B, pool.labels_BT,
                                             halted_B=halted_B, steps_B=after_B)  # fmt: skip
    seen.append((pool, out, halted_B, loss, metrics))
    pool = pool._replace(latents=out.latents, steps_B=after_B, halted_B=halted_B)
  return seen


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("step", range(STEPS))
def test_a_training_step_gives_what_the_original_gives(name, step):
  pool, out, halted_B, loss, metrics = run(name)[step]
  expected = fixture.part(name, f"step{step + 1}/")
  assert_close(out.logits_BTV, expected["logits"])
  assert_close(out.halt_logit_B, expected["q_halt_logits"])
  assert_close(out.continue_logit_B, expected["q_continue_logits"])
  assert_close(out.latents[0], expected["z_H"])
  assert_close(out.latents[1], expected["z_L"])
  assert_close(loss, np.float32(expected["loss"]))
  for key, value in fixture.part(name, f"step{step + 1}/metric/").items():
    assert_close(metrics[key], np.float32(value), why=key)
  exact = {"preds": jnp.argmax(out.logits_BTV, axis=-1), "halted": halted_B, "steps": pool.steps_B + 1,
           "current/inputs": pool.inputs_BT, "current/labels": pool.labels_BT,
           "current/puzzle_identifiers": pool.ids_B}  # fmt: skip
  for key, value in exact.items():
    np.testing.assert_array_equal(value, expected[key], err_msg=key)


@pytest.mark.parametrize("name", FILES)
def test_every_gradient_is_the_original_s(name):
  model, params, _, table_NE = fixture.loaded(name)
  pool, _, halted_B, *_ = run(name)[-1]

  def loss(params, rows_BE):
    out = model.apply({"params": params}, pool.inputs_BT, rows_BE, pool.latents)
    total, _ = recursion.recursion_loss(out.logits_BTV, out.halt_logit_B, pool.labels_BT, halted_B=halted_B,
                                        steps_B=pool.steps_B)  # fmt: skip
    return total / ROWS

  grads, rows_BE = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, table_NE[pool.ids_B])
  expected = fixture.part(name, "grad/")
  allowed = lambda x: GRADIENT_TOLERANCE * np.abs(np.asarray(x)).max()
  rows = expected.pop("puzzle_emb.local_weights")
  np.testing.assert_allclose(rows_BE, rows, rtol=0, atol=allowed(rows))
  resets = {key: np.zeros(model.width, np.float32) for key in ("H_init", "L_init")}
  theirs, _, _ = trm_import.params_of(expected | resets, model)
  pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(theirs), strict=True)
  for (path, ours), other in pairs:
    np.testing.assert_allclose(ours, other, rtol=0, atol=allowed(other), err_msg=str(path))


@pytest.mark.parametrize("name", FILES)
def test_evaluation_gives_every_puzzle_all_its_steps(name):
  model, params, reset, table_NE = fixture.loaded(name)
  expected = fixture.part(name, "eval/")
  pool = act.refill(act.empty_pool(model, ROWS, model.seq_len), fixture.batch(name, 1), reset)
  for step in range(1, STEPS + 1):
    out = fixture.step_of(model)(params, pool.inputs_BT, table_NE[pool.ids_B], pool.latents)
    steps_B, halted_B = act.halt_eval(pool.steps_B, out.halt_logit_B, n_supervision=STEPS)
    pool = pool._replace(latents=out.latents, steps_B=steps_B, halted_B=halted_B)
    assert bool(halted_B.all()) == bool(halted_B.any()) == (step == expected["n_steps"])
  loss, metrics = recursion.recursion_loss(out.logits_BTV, out.halt_logit_B, pool.labels_BT,
                                           halted_B=halted_B, steps_B=steps_B)  # fmt: skip
  assert_close(out.logits_BTV, expected["logits"])
  assert_close(out.halt_logit_B, expected["q_halt_logits"])
  assert_close(loss, np.float32(expected["loss"]))
  for key, value in fixture.part(name, "eval/metric/").items():
    assert_close(metrics[key], np.float32(value), why=key)
