"""What is off by default in recursive models, each through the config; and that boards are learnt."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import recipes
from atlas_jax.recipes import trm
from atlas_jax.state import Trained
from tests import puzzle_runs, runs
from tests.helpers import assert_close, assert_same_bits, quick_compilation

STEPS = 3
QUICK = dict(trm__mixer="mlp", trm__positions="none", supervision__explore_prob=0.0)


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return puzzle_runs.write_built(tmp_path_factory.mktemp("trm_options") / "built")


@functools.cache
def begun(folder, change=puzzle_runs.stirred):
  """A recipe, what its runs start from with a table of noise, and two batches."""
  recipe = change(recipes.load(puzzle_runs.built_config(folder, **QUICK), runs.one_device()))
  start = jax.jit(recipe.init)(jax.random.key(0))
  noise = {name: jax.random.normal(jax.random.key(2), table.shape) for name, table in start.tables.items()}
  return recipe, start._replace(tables=noise), [recipe.source.next(None) for _ in range(2)]


def loss_of(folder, **changes):
  """The compiled loss of a config: (start, carry, batch) -> LossOut."""
  config = puzzle_runs.built_config(folder, **QUICK | changes)
  loss, tables = trm.loss_of(config, trm.model_of(config)), trm.tables_of(config)

  @jax.jit
  def apply(start, carry, batch):
    return loss(start.params, batch, frozen=start.frozen, carry=carry, rng=jax.random.key(3),
                rows=tables.rows(start.tables, batch, carry))  # fmt: skip

  return apply


# --- two supervision steps per update ---


@pytest.fixture(scope="module")
def one_and_two(folder):
  return loss_of(folder), loss_of(folder, supervision__steps_per_update=2)


def test_two_steps_per_update_are_two_updates_of_one_whose_weights_stay(folder, one_and_two):
  """Where no slot halts in between; the loss is the mean of both."""
  _, start, (batch, other) = begun(folder, lambda recipe: recipe)
  one, two = one_and_two
  first = one(start, start.carry, batch)
  second = one(start, first.carry, other)  # No slot is free: what is offered does not matter.
  both = two(start, start.carry, batch)
  assert not first.carry.pool.halted_B.any()
  assert_close(both.carry, second.carry)
  assert_close(both.loss, (first.loss + second.loss) / 2)
  assert both.seen == both.weight == first.seen + second.seen == 2 * batch["ids_B"].shape[0]
  for name in ("train/lm_loss", "train/q_halt_loss"):
    assert_close(both.metrics[name], (first.metrics[name] + second.metrics[name]) / 2)


def test_a_slot_that_halted_in_the_first_of_two_steps_stands_still_in_the_second(folder, one_and_two):
  _, start, (batch, _) = begun(folder)
  once, twice = (loss(start, start.carry, batch) for loss in one_and_two)
  early = np.asarray(once.carry.pool.halted_B)
  assert early.any() and not early.all()
  steps_B = np.asarray(twice.carry.pool.steps_B)
  np.testing.assert_array_equal(steps_B, np.where(early, 1, 2))
  assert np.asarray(twice.carry.pool.halted_B)[early].all()
  pick = lambda carry: jax.tree.map(lambda x: x[early], (carry.pool, carry.finished))
  assert_close(pick(twice.carry), pick(once.carry))
  done = int(twice.carry.pool.halted_B.sum())
  assert_close(twice.metrics["train/count"], np.float32(done / 8))
  assert_close(twice.metrics["train/steps"], np.float32(steps_B[twice.carry.pool.halted_B].sum() / 8))


# --- a logit for going on ---


def test_a_logit_for_going_on_is_trained_towards_the_best_that_follows(folder):
  _, start, (batch, _) = begun(folder)
  plain = loss_of(folder)(start, start.carry, batch)
  out = loss_of(folder, supervision__train_continue=True)(start, start.carry, batch)
  config = puzzle_runs.built_config(folder, **QUICK)
  model, pool = trm.model_of(config), out.carry.pool
  apply = lambda latents: model.apply(
    {"params": start.params}, pool.inputs_BT, start.tables["puzzles"][pool.ids_B], latents)  # fmt: skip
  fresh = tuple(jnp.broadcast_to(vector, x.shape) for vector, x in zip(start.frozen["reset"], pool.latents))
  now = apply(fresh)
  later = apply(now.latents)
  target_B = jax.nn.sigmoid(jnp.maximum(later.halt_logit_B, later.continue_logit_B))
  cross = lambda logit, target: -(target * jax.nn.log_sigmoid(logit)
                                  + (1 - target) * jax.nn.log_sigmoid(-logit))  # fmt: skip
  expected = jnp.mean(cross(now.continue_logit_B, target_B))
  assert_close(out.metrics["train/q_continue_loss"], expected)
  assert_close(out.loss, plain.loss + 0.5 * expected)
  np.testing.assert_array_equal(pool.halted_B, now.halt_logit_B > now.continue_logit_B)
  assert_close(pool.latents, plain.carry.pool.latents)  # The step that is looked ahead to is not kept.


# --- digits of the loss ---


def test_a_loss_in_float64_is_refused_before_data_are_read(tmp_path):
  for token_loss in ("stablemax", "softmax"):
    config = puzzle_runs.built_config(tmp_path / "nothing", supervision__loss_dtype="float64",
                                      supervision__token_loss=token_loss)  # fmt: skip
    with pytest.raises(ValueError, match="loss_dtype='float64' needs jax's 64-bit mode; set JAX_ENABLE_X64"):
      recipes.load(config, runs.one_device())


@pytest.mark.parametrize("token_loss", ("stablemax", "softmax"))
def test_a_loss_in_float64_is_that_in_float32(folder, token_loss):
  _, start, (batch, _) = begun(folder)
  plain = loss_of(folder, supervision__token_loss=token_loss)(start, start.carry, batch)
  with jax.enable_x64(True):
    loss = loss_of(folder, supervision__token_loss=token_loss, supervision__loss_dtype="float64")
    wide = loss(start, start.carry, batch)
    shapes = lambda carry: jax.tree.map(lambda x: (x.shape, x.dtype), carry)
    assert shapes(wide.carry) == shapes(start.carry)
    assert_close(wide.loss, plain.loss, tolerance=1e-6)
    assert_same_bits(wide.carry.pool.halted_B, plain.carry.pool.halted_B)


# --- evaluation ---


@functools.cache
def arc_run(folder):
  """What a run on ARC starts from, as its evaluation takes it."""
  recipe = puzzle_runs.stirred(recipes.load(puzzle_runs.arc_config(folder / "boards"), runs.one_device()))
  start = jax.jit(recipe.init)(jax.random.key(0))
  return Trained(start.params, start.frozen, start.tables)


def scores(folder, workdir=None, **changes):
  """What the evaluation of a config says of the start of a run."""
  recipe = recipes.load(puzzle_runs.arc_config(folder / "boards", **changes), runs.one_device())
  return recipe.evals["puzzles"].run(arc_run(folder), step=1, workdir=workdir).scalars


@pytest.fixture(scope="module")
def usual(folder):
  return scores(folder)


def test_puzzles_that_halt_early_make_room_for_others(folder, usual):
  halting = scores(folder, puzzle_eval__mode="halting")
  assert usual["eval/all/steps"] == STEPS
  assert 1 <= halting["eval/all/steps"] < STEPS
  assert halting["eval/all/steps_spent"] < usual["eval/all/steps_spent"]
  never = scores(folder, puzzle_eval__mode="halting", puzzle_eval__halt_threshold=1e9)
  same = usual.keys() - {name for name in usual if "cpu" in name or name.endswith("_s")}
  assert {name: never[name] for name in same} == {name: usual[name] for name in same}


def test_noisy_trajectories_and_the_other_rule_of_votes_are_options_of_a_config(folder, usual, tmp_path):
  noisy = dict(puzzle_eval__n_trajectories=2, puzzle_eval__noise_std=0.5)
  first = scores(folder, tmp_path, **noisy, puzzle_eval__vote="noisy_or")
  assert first.keys() >= usual.keys()
  assert all(math.isfinite(value) for value in first.values())
  assert first["eval/all/lm_loss"] != usual["eval/all/lm_loss"]
  assert (tmp_path / "evals" / "step_00000001" / "submission.json").is_file()


def test_trajectories_without_noise_are_refused(folder):
  with pytest.raises(ValueError, match="n_trajectories=2 with noise_std=0"):
    scores(folder, puzzle_eval__n_trajectories=2)


# --- learning ---


@pytest.mark.core
def test_sudokus_of_side_4_are_learnt(tmp_path):
  """Held-out boards, none of them a shuffle of a board trained on."""
  jax.config.update("jax_disable_most_optimizations", False)  # The fixture puts it back.
  config = runs.puzzle_config(
    tmp_path / "boards", "4x4,mlp", trm__width=48, trm__depth=1, trm__n_inner=2, supervision__n_supervision=4,
    optim__steps=120, optim__warmup_steps=20, optim__lr=4e-3, optim__ema_decay=0.95,
    train__eval_every_steps=None, checkpoint__every_steps=1_000, data__batch_rows=64, eval__batch_rows=64,
    puzzles__n_test=64)  # fmt: skip
  summary = puzzle_runs.run(config, tmp_path / "run", evals=True, change=lambda recipe: recipe)
  assert summary["all_exact_accuracy"] > 0.9
  rows = runs.rows_of(tmp_path / "run")
  assert rows[-1]["recent/steps"] < 3  # It says early that it is right.
