"""What a recipe may add to the loop: given parameters, a reference, what a source tells, an end."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atlas_jax import state as states
from atlas_jax import train
from atlas_jax.evals import Eval, EvalOut
from atlas_jax.monitor import writer
from atlas_jax.recipes import Assets, ReferenceUpdate, Update
from atlas_jax.state import LoadedParams
from tests import runs
from tests.helpers import assert_close, assert_same_bits, quick_compilation

FOLLOWED = Update(reference=ReferenceUpdate(every_steps=2, weight=0.75))


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def drawn(config, recipe):
  return states.first(recipe.init, config.seed).params


def run(config, recipe, workdir):
  return train.run(config, recipe, runs.one_device(), workdir)


class Noting(runs.Watched):
  """A source that tells what it is handed."""

  def next(self, trained):
    self.before(trained)
    return self.source.next(trained)


def saved(config, recipe, workdir, step=None):
  return runs.saved(config, recipe, workdir, step=step)


def test_given_parameters_are_what_a_fresh_run_starts_from(tmp_path):
  config = runs.toy_config(optim__lr=1e-30, optim__weight_decay=0.0)
  recipe, asked = runs.toy_recipe(config), []

  def load(mesh, fresh):
    asked.append(fresh)
    given = jax.tree.map(lambda x: x + 5, drawn(config, recipe))
    return LoadedParams(given if fresh else None, {})

  run(config, recipe._replace(load=load), tmp_path)
  assert_close(saved(config, recipe, tmp_path).params["embed"], drawn(config, recipe)["embed"] + 5)
  run(runs.toy_config(optim__lr=1e-30, optim__weight_decay=0.0, optim__steps=8),
      recipe._replace(load=load), tmp_path)
  assert asked == [True, False]


def test_what_is_given_stands_in_for_what_is_frozen(tmp_path):
  """A source and an evaluation are handed it too."""
  config, got = runs.toy_config(optim__ema_decay=0.5), {}
  recipe = runs.toy_recipe(config)
  given = LoadedParams(frozen={"embed": jnp.full((3,), 7.0)})
  note = lambda name, trained: got.setdefault(name, []).append(jax.device_get(trained))
  source = Noting(recipe.source, lambda trained: note("source", trained))
  evaluate = lambda trained, *, step, workdir=None: note("eval", trained) or EvalOut({"x": 1.0})
  evals = {"e": Eval(evaluate, "end")}
  run(config, recipe._replace(load=lambda mesh, fresh: given, source=source, evals=evals), tmp_path)
  assert len(got["source"]) == 6 and len(got["eval"]) == 1
  for trained in (got["source"][0], got["eval"][0]):
    np.testing.assert_array_equal(trained.frozen["embed"], 7)
    np.testing.assert_array_equal(trained.frozen["mlp"]["bias"], 0)
  assert_same_bits(got["source"][0].params, drawn(config, recipe))
  assert_same_bits(got["eval"][0].params, saved(config, recipe, tmp_path).ema)


def test_what_is_given_must_be_of_the_models_shapes(tmp_path):
  config = runs.toy_config()
  given = LoadedParams(frozen={"embed": jnp.zeros((4,))})
  with pytest.raises(ValueError, match="embed is .*4.* there and .*3.* in this config"):
    run(config, runs.toy_recipe(config)._replace(load=lambda mesh, fresh: given), tmp_path)


def test_given_tables_are_what_a_fresh_run_starts_from():
  config = runs.toy_config()
  recipe = runs.toy_recipe(config)
  init = lambda rng: recipe.init(rng)._replace(tables={"rows": jnp.zeros((4, 2))})
  args = init, lambda params: optax.identity(), None, 0
  abstract = states.abstract(runs.one_device(), *args)
  state = states.build(abstract, *args, tables={"rows": jnp.full((4, 2), 3.0)})
  np.testing.assert_array_equal(state.tables["rows"], 3)
  assert_same_bits(state.params, states.build(abstract, *args).params)


def test_evaluations_begin_where_they_are_wanted_and_all_their_checkpoints_stay(tmp_path):
  seen = []
  evaluate = lambda trained, *, step, workdir=None: seen.append(step) or EvalOut({"x": 1.0})
  config = runs.toy_config(
    train__eval_every_steps=1, train__eval_from_step=4, checkpoint__every_eval=True, checkpoint__keep_last=1,
    checkpoint__every_steps=3, checkpoint__keep_best=0)  # fmt: skip
  recipe = runs.toy_recipe(config, evals={"e": Eval(evaluate, "every")})
  run(config, recipe, tmp_path)
  assert seen == [4, 5, 6]
  assert train.Checkpoints(tmp_path).steps() == [4, 5, 6]
  with pytest.raises(ValueError, match="eval_from_step=4 says when evaluations begin, .*_every_steps=None"):
    runs.toy_config(train__eval_from_step=4, train__eval_every_steps=None)


@pytest.mark.parametrize("stop", [None, 3])
def test_a_reference_follows_the_parameters_every_so_often(tmp_path, stop):
  config = runs.toy_config(checkpoint__every_steps=1, checkpoint__keep_last=9)
  before = (lambda step: runs.ask_to_stop() if step == stop else None) if stop else (lambda step: None)
  recipe = runs.toy_recipe(config, before=before)
  seen = []

  def loss(params, batch, *, frozen, carry, rng):
    out = runs.toy_recipe(config).loss(params, batch, frozen=frozen, carry=carry, rng=rng)
    return out._replace(metrics={**out.metrics, "toy/reference": jnp.sum(frozen["reference"]["embed"])})

  recipe = recipe._replace(loss=loss, update=FOLLOWED)
  if stop:
    assert run(config, recipe, tmp_path) == {}
    recipe = runs.toy_recipe(config)._replace(loss=loss, update=FOLLOWED)
  run(config, recipe, tmp_path)
  at = {step: saved(config, recipe, tmp_path, step) for step in range(1, 7)}
  seen = [row["toy/reference"] for row in runs.rows_of(tmp_path) if "toy/reference" in row]
  assert_close(at[1].anchor, drawn(config, recipe))
  mixed = jax.tree.map(lambda old, new: 0.25 * old + 0.75 * new, at[1].anchor, at[2].params)
  assert_close(at[2].anchor, mixed, tolerance=1e-6)
  assert_same_bits(at[3].anchor, at[2].anchor)
  assert_close(seen[0], jnp.sum(drawn(config, recipe)["embed"]), tolerance=1e-6)
  assert_close(seen[2], jnp.sum(at[2].anchor["embed"]), tolerance=1e-6)
  assert_close(seen[3], seen[2], tolerance=1e-6)


def test_what_a_source_tells_stands_in_the_row_of_its_update(tmp_path, monkeypatch):
  config = runs.toy_config(train__log_every_steps=2)
  recipe, written = runs.toy_recipe(config), []
  source = recipe.source
  source.metrics = lambda: EvalOut({"toy/step": float(source.step)}, f"batch {source.step}")
  monkeypatch.setattr(writer.MetricsWriter, "write_text", lambda self, *what: written.append(what))
  run(config, recipe, tmp_path)
  rows = [row for row in runs.rows_of(tmp_path) if "toy/step" in row]
  assert [(row["step"], row["toy/step"]) for row in rows] == [(2, 2.0), (4, 4.0), (6, 6.0)]
  assert written == [(step, "rollout/completions", f"batch {step}") for step in (2, 4, 6)]


def test_a_recipe_leaves_what_it_wants_behind_a_finished_run(tmp_path):
  config, left = runs.toy_config(optim__ema_decay=0.5), []
  recipe = runs.toy_recipe(config)
  export = lambda workdir, trained, summary: left.append((workdir, jax.device_get(trained), summary["steps"]))
  run(config, recipe._replace(assets=Assets(export=export)), tmp_path)
  [(workdir, trained, steps)] = left
  assert (workdir, steps) == (tmp_path, 6)
  assert_same_bits(trained.params, saved(config, recipe, tmp_path).ema)
