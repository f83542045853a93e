"""Updates of the recursive recipe one by one: slots, rows, averages and metrics; and the original's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import recipes
from atlas_jax.models import act
from atlas_jax.optim import accumulate
from atlas_jax.puzzles import trm_import
from atlas_jax.recipes import trm
from tests import puzzle_runs, runs
from tests import trm_fixture as fixture
from tests.helpers import assert_close, assert_same_bits, quick_compilation

UPDATES, ROWS, LAST = 7, 8, 3
PLAIN = dict(optim__ema_decay=0.75, supervision__explore_prob=0.0)
METRICS = {
  *("train/count", "train/accuracy", "train/exact_accuracy", "train/q_halt_accuracy", "train/steps"),
  *("train/lm_loss", "train/q_halt_loss", "train/lr"),
}


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return puzzle_runs.write_built(tmp_path_factory.mktemp("trm") / "built")


@pytest.fixture(scope="module")
def config(folder):
  return puzzle_runs.built_config(folder, **PLAIN)


@pytest.fixture(scope="module")
def told(config):
  """Some updates: the states before and after each, the batches offered, and the metrics."""
  parts = puzzle_runs.parts_of(config)
  states, batches, metrics = [parts.state], [], []
  for _ in range(UPDATES):
    batches.append(parts.recipe.source.next(None))
    state, found = puzzle_runs.update(parts, states[-1], batches[-1])
    states.append(state)
    metrics.append(found)
  return states, batches, metrics


def each_update(told):
  """The pool before and after each update, and the batch offered in between."""
  states, batches, _ = told
  return [(before.carry.pool, after.carry.pool, batch)
          for before, after, batch in zip(states, states[1:], batches)]  # fmt: skip


# --- the original's numbers ---


@functools.lru_cache
def like_the_original(name):
  """Three steps of the fixture through the recipe: gradients, loss, metrics and carry of each."""
  model, params, reset, table_NE = fixture.loaded(name)
  config = runs.puzzle_config(".", supervision__explore_prob=0.0, supervision__n_supervision=LAST,
                              data__batch_rows=5)  # fmt: skip
  tables, tables_of = {"puzzles": table_NE}, trm.tables_of(config)
  finished = {name: jnp.full((5,), trm.NEVER) for name in trm.OVER_FINISHED}
  carry, seen = trm.Carry(act.empty_pool(model, 5, model.seq_len), finished), []
  differentiate = jax.jit(lambda batch, carry, rows: accumulate.gradients(
    trm.loss_of(config, model), params, batch, carry, frozen={"reset": reset}, rng=jax.random.key(0), parts=1,
    rows=rows))  # fmt: skip
  for step in range(1, LAST + 1):
    batch = fixture.batch(name, step)
    grads, out = differentiate(batch, carry, tables_of.rows(tables, batch, carry))
    carry = out.carry
    seen.append((grads, out, trm.finish_of(5)(out.metrics)))
  return model, seen


@pytest.mark.parametrize("name", ("model_att_rope", "model_mlp_t"))
def test_three_updates_without_a_change_of_weights_are_the_original_s(name):
  model, seen = like_the_original(name)
  for step, (_, out, metrics) in enumerate(seen, 1):
    expected = fixture.part(name, f"step{step}/")
    assert_close(out.loss * 5, np.float32(expected["loss"]))
    count = max(float(expected["metric/count"]), 1)
    for key, value in fixture.part(name, f"step{step}/metric/").items():
      over = {"count": 1, "lm_loss": 5, "q_halt_loss": 5}.get(key, count)
      if key in trm.OVER_FINISHED and not expected["metric/count"]:
        assert np.isnan(metrics[f"train/{key}"])
      else:
        assert_close(metrics[f"train/{key}"], np.float32(value / over), why=f"{key} of step {step}")
    pool = out.carry.pool
    np.testing.assert_array_equal(pool.halted_B, expected["halted"])
    np.testing.assert_array_equal(pool.steps_B, expected["steps"])
    np.testing.assert_array_equal(pool.ids_B, expected["current/puzzle_identifiers"])
    assert_close(pool.latents, (expected["z_H"], expected["z_L"]))
  (grads, rows_BE), expected = seen[-1][0], fixture.part(name, "grad/")
  assert_close(rows_BE, expected.pop("puzzle_emb.local_weights"), tolerance=1e-6)
  resets = {key: np.zeros(model.width, np.float32) for key in ("H_init", "L_init")}
  assert_close(grads, trm_import.params_of(expected | resets, model)[0])


# --- slots ---


def test_slots_that_halted_take_the_row_offered_and_others_pass_over_theirs(told):
  taken = []
  for before, after, batch in each_update(told):
    for name in ("inputs_BT", "labels_BT", "ids_B"):
      for row in range(ROWS):
        source = batch[name] if before.halted_B[row] else getattr(before, name)
        np.testing.assert_array_equal(getattr(after, name)[row], source[row])
    np.testing.assert_array_equal(after.steps_B, np.where(before.halted_B, 0, before.steps_B) + 1)
    taken.append(before.halted_B.sum())
  assert taken[0] == ROWS and any(0 < count < ROWS for count in taken[1:]), taken


def test_every_slot_halts_by_its_last_step(told):
  steps = np.stack([after.steps_B for _, after, _ in each_update(told)])
  halted = np.stack([after.halted_B for _, after, _ in each_update(told)])
  assert halted[steps == LAST].all() and steps.max() == LAST
  assert halted[steps < LAST].any() and not halted.all()


def test_exploration_only_postpones_halting(config, told):
  """With it in every step, no slot halts before its second one, and all that do halt would without it too."""
  states, batches, _ = told
  parts = puzzle_runs.parts_of(config)
  always = runs.changed(config.as_configdict(), {"supervision__explore_prob": 1.0})
  loss = jax.jit(trm.loss_of(always, trm.model_of(always)))
  for before, after, batch in zip(states[:5], states[1:], batches):
    rows = parts.recipe.update.tables.rows(before.tables, batch, before.carry)
    out = loss(before.params, batch, frozen=parts.frozen, carry=before.carry, rng=before.rng, rows=rows)
    explored, plain = out.carry.pool, after.carry.pool
    np.testing.assert_array_equal(explored.steps_B, plain.steps_B)
    assert not np.any(explored.halted_B & ~plain.halted_B)
    assert not np.any(explored.halted_B & (plain.steps_B == 1))
    assert np.all(explored.halted_B[plain.steps_B == LAST])


# --- the table ---


def test_only_rows_of_puzzles_in_slots_change(told):
  states, batches, _ = told
  passed_over = 0
  for before, after, batch in zip(states, states[1:], batches):
    table, new = before.tables["puzzles"], after.tables["puzzles"]
    changed = np.flatnonzero((table != new).any(axis=1))
    np.testing.assert_array_equal(changed, np.unique(after.carry.pool.ids_B))
    passed_over += len(np.setdiff1d(batch["ids_B"], after.carry.pool.ids_B))
  assert passed_over, "puzzles must be offered in vain, or this shows nothing"


def test_rows_move_by_the_rate_and_only_they_are_decayed(config, told):
  states, _, metrics = told
  for before, after, row in zip(states, states[1:], metrics):
    ids = np.unique(after.carry.pool.ids_B)
    rate = config.table.lr * row["train/lr"] / config.optim.lr
    kept = before.tables["puzzles"][ids] * (1 - rate * config.table.weight_decay)
    moved = np.abs(after.tables["puzzles"][ids] - kept)
    np.testing.assert_allclose(moved, rate, rtol=1e-3)


def test_an_update_that_is_not_finite_leaves_rows_pool_and_average(config, told):
  parts, state, batch = puzzle_runs.parts_of(config), told[0][2], told[1][2]
  assert state.carry.pool.halted_B.any(), "only slots that take a puzzle start from the reset vectors"
  nowhere = jax.tree.map(lambda start: start * np.nan, parts.frozen)
  after, metrics = puzzle_runs.update(parts, state, batch, frozen=nowhere)
  assert np.isnan(metrics["train/loss_nats"]) and metrics["train/skipped_updates"] == 1
  for field in ("params", "opt_state", "ema", "carry"):
    assert_same_bits(getattr(after, field), getattr(state, field), why=field)
  table, new = state.tables["puzzles"], after.tables["puzzles"]
  np.testing.assert_array_equal(new.view(np.int32), table.view(np.int32))


def test_parts_of_a_batch_give_the_update_of_the_whole(config, told):
  states, batches, metrics = told
  parts = puzzle_runs.parts_of(runs.changed(config.as_configdict(), {"train__accumulate_steps": 2}))
  for i in (2, 4):
    after, found = puzzle_runs.update(parts, states[i], batches[i])
    assert_same_bits(after.tables, states[i + 1].tables)
    for name in ("inputs_BT", "ids_B", "steps_B", "halted_B"):
      assert_same_bits(getattr(after.carry.pool, name), getattr(states[i + 1].carry.pool, name))
    assert_close(after.carry.finished, states[i + 1].carry.finished)
    assert found.keys() == metrics[i].keys()
    for name, value in found.items():
      if not name.startswith(("grad/", "update/")):
        np.testing.assert_allclose(value, metrics[i][name], rtol=1e-5, atol=1e-6, err_msg=name)


# --- what is told of an update ---


def test_metrics_have_the_names_that_are_known(told):
  for row in told[2]:
    assert row.keys() >= METRICS, METRICS - row.keys()


def test_metrics_are_of_the_slots_that_finished_a_puzzle(told):
  recent = {}
  for (_, after, _), state, row in zip(each_update(told), told[0][1:], told[2]):
    done = after.halted_B
    assert row["train/count"] == done.sum()
    recent |= {slot: int(after.steps_B[slot]) for slot in np.flatnonzero(done)}
    finished = state.carry.finished
    assert_close(row["recent/steps"], np.mean(list(recent.values()), dtype=np.float32))
    assert_close(row["train/loss_nats"], row["train/lm_loss"] + 0.5 * row["train/q_halt_loss"])
    for name in trm.OVER_FINISHED:
      assert_close(row[f"train/{name}"], finished[name][done].mean(dtype=np.float32), why=name)
      known = finished[name][finished["steps"] != trm.NEVER]
      assert_close(row[f"recent/{name}"], known.mean(dtype=np.float32), why=name)
      assert known.min() >= 0


def test_where_no_slot_finished_means_over_them_are_not_a_number(config):
  assert config.supervision.n_supervision > 1
  recipe = recipes.load(config, runs.one_device())
  means = {f"{group}/{name}": jnp.zeros(()) for group in ("train", "recent") for name in trm.OVER_FINISHED}
  found = recipe.accounting.finish(means | {"train/count": jnp.zeros(()), "recent/known": jnp.zeros(())})
  assert {name for name, value in found.items() if np.isnan(value)} == set(recipe.accounting.optional)
  assert found["train/count"] == 0


def test_the_average_follows_its_recurrence(told):
  states = told[0]
  assert_same_bits(states[0].ema, states[0].params)
  for before, after in zip(states, states[1:]):
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before.ema, after.params)
    assert_close(after.ema, expected)
    assert not np.array_equal(after.ema["head"], after.params["head"])
