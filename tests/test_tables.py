"""Tables of rows in the one loop: read and changed by the batch, saved, left alone by what goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax import train
from atlas_jax.evals import Eval, EvalOut
from atlas_jax.optim import sign_rows
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import Tables, Update
from tests import runs
from tests.helpers import assert_close, assert_same_bits, quick_compilation

N, E = 16, 3
TABLE_LR, DECAY = 0.5, 0.1


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


class RowSource(runs.ToySource):
  """Numbers as in a toy run, and which row of the table each row of the batch reads."""

  def next(self, trained):
    batch = super().next(trained)
    return batch | {"ids_B": np.random.default_rng(self.step).integers(0, N // 2, self.rows).astype(np.int32)}


def recipe_of(config, **source):
  """The toy recipe with a table: a batch's rows shift what is predicted."""
  toy = runs.toy_recipe(config)

  def init(rng):
    return toy.init(rng)._replace(tables={"shifts": jax.random.normal(rng, (N, E))})

  def loss(params, batch, *, rows, carry, **others):
    moved = {**batch, "x_BTD": batch["x_BTD"] + rows["shifts"][:, None]}
    return toy.loss(params, moved, carry=carry, **others)

  def update(tables, batch, carry, grads, *, scale):
    table = sign_rows.update(tables["shifts"], batch["ids_B"], grads["shifts"], rate=TABLE_LR * scale,
                             weight_decay=DECAY)  # fmt: skip
    return {"shifts": table}

  tables = Tables(lambda tables, batch, carry: {"shifts": tables["shifts"][batch["ids_B"]]}, update)
  rows = RowSource(config.data.batch_rows, **source)
  return toy._replace(init=init, loss=loss, update=Update(tables), source=rows)


def updates(config, n, mesh=None, **source):
  """The tables before and after each of n updates, the batches, and the metrics."""
  recipe, mesh = recipe_of(config, **source), mesh or runs.one_device()
  abstract, _ = train.abstract_state(config, recipe, mesh)
  state = states.build(abstract, *train.state_args(config, recipe))
  frozen = states.first(recipe.init, config.seed).frozen
  step = stepping.jit_step(config, recipe, mesh, state)
  tables, batches, metrics = [np.array(state.tables["shifts"])], [], []
  with hosts.StopFlag(mesh) as stop:
    for _ in range(n):
      batches.append(recipe.source.next(None))
      state, found = step(state, hosts.global_batch(mesh, batches[-1]), frozen, stop.array())
      tables.append(np.array(state.tables["shifts"]))
      metrics.append(jax.device_get(found))
  return tables, batches, metrics, state


def losses(metrics):
  return [row["train/loss_nats"] for row in metrics]


def test_rows_move_by_the_schedule_and_all_others_stay_bit_for_bit():
  """The learning rate of tables warms up with that of the parameters."""
  config = runs.toy_config()
  tables, batches, metrics, _ = updates(config, 4)
  for before, after, batch, row in zip(tables, tables[1:], batches, metrics):
    read = np.unique(batch["ids_B"])
    others = np.setdiff1d(np.arange(N), read)
    assert_same_bits(after[others], before[others])
    rate = TABLE_LR * row["train/lr"] / config.optim.lr
    moved = after[read] - before[read] * (1 - rate * DECAY)
    np.testing.assert_allclose(np.abs(moved), rate, rtol=1e-4)
  assert [round(float(row["train/lr"] / config.optim.lr), 3) for row in metrics[:3]] == [0.333, 0.667, 1.0]


@pytest.mark.parametrize("what", ("loss", "grad", "carry"))
def test_an_update_that_is_not_finite_leaves_tables_bit_for_bit(what):
  tables, _, metrics, _ = updates(runs.toy_config(), 3, bad={2: what})
  assert [int(row["train/skipped_updates"]) for row in metrics] == [0, 1, 1]
  np.testing.assert_array_equal(tables[2].view(np.int32), tables[1].view(np.int32))
  assert not np.array_equal(tables[3], tables[2])


def test_pieces_of_a_batch_give_the_rows_of_the_whole():
  whole, _, one, _ = updates(runs.toy_config(), 3)
  pieces, _, two, _ = updates(runs.toy_config(train__accumulate_steps=3), 3)
  for left, right in zip(whole, pieces):
    assert_close(left, right, tolerance=1e-3)  # Every piece has noise of its own, a thousandth.
  assert_close(losses(two), losses(one), tolerance=0.02)


def test_a_table_is_split_by_rows_and_gives_what_it_gives_on_one_device():
  config = runs.toy_config(data__batch_rows=8)
  whole, _, one, _ = updates(config, 3)
  cube = meshes.make(data=2, fsdp=2, tensor=2)
  split, _, eight, state = updates(config, 3, mesh=cube)
  assert state.tables["shifts"].sharding.shard_shape((N, E)) == (N // 4, E)
  for left, right in zip(split, whole):
    assert_close(left, right, tolerance=1e-5)
  assert_close(losses(eight), losses(one), tolerance=1e-5)


def test_tables_are_saved_and_handed_to_evaluations(tmp_path):
  config, handed = runs.toy_config(checkpoint__every_steps=2), []

  def look(trained, *, step, workdir):
    handed.append((step, np.array(trained.tables["shifts"]), workdir))
    return EvalOut({"eval/rows": float(len(trained.tables["shifts"]))})

  def start(workdir, **source):
    recipe = recipe_of(config, **source)._replace(evals={"look": Eval(look, "end")})
    return train.run(config, recipe, runs.one_device(), workdir)

  assert start(tmp_path / "whole")["rows"] == N
  ask = lambda step: runs.ask_to_stop() if step == 3 else None
  assert start(tmp_path / "cut", before=ask) == {}
  assert start(tmp_path / "cut")["resumed_from_step"] == 4
  (step, table, workdir), (_, again, _) = handed
  assert (step, workdir) == (6, tmp_path / "whole")
  assert_same_bits(again, table)
  expected = updates(config, 6)[0][-1]
  assert_same_bits(table, expected)
  found = runs.saved(config, recipe_of(config), tmp_path / "cut").tables["shifts"]
  assert_same_bits(found, expected)


def test_a_recipe_without_tables_has_none_in_its_state(tmp_path):
  config = runs.toy_config(optim__steps=1)
  train.run(config, runs.toy_recipe(config), runs.one_device(), tmp_path)
  assert runs.saved(config, runs.toy_recipe(config), tmp_path).tables == ()


def test_averages_and_moments_are_kept_of_parameters_only():
  config = runs.toy_config(optim__ema_decay=0.5)
  recipe = recipe_of(config)
  state = jax.eval_shape(lambda: states.create(*train.state_args(config, recipe)))
  table = (N, E)
  assert [leaf.shape for leaf in jax.tree.leaves(state.tables)] == [table]
  for field in ("params", "opt_state", "ema"):
    assert table not in [leaf.shape for leaf in jax.tree.leaves(getattr(state, field))], field
  assert jnp.result_type(state.tables["shifts"]) == jnp.float32


def test_with_all_parameters_frozen_only_rows_of_tables_learn():
  config = runs.toy_config(optim__freeze="*", optim__decay_of="all")
  start = states.first(recipe_of(config).init, config.seed).params
  tables, _, metrics, state = updates(config, 3)
  assert_same_bits(state.params, start)
  assert all(np.any(before != after) for before, after in zip(tables, tables[1:]))
  assert all(row["grad/norm"] == 0 for row in metrics)
