"""What the loop relies on holds for every file in recipes/; only shapes are computed."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import command, recipes, train, tree
from atlas_jax import config as configs
from atlas_jax.evals import Eval
from atlas_jax.fields import mixes
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from tests import runs, teachers

# What each recipe is tried with, besides its smoke test's settings.
LAYOUTS = {
  "memory_lm": ({}, {"data__carry": False}, {"model__memory_mix": "none"}, {"model__memory_mix": "conv"},
                {"model__memory_mix": "context"}, {"model__memory_mix": "only"},
                {"model__memory_mix": "e2e", "model__inner__batch_tokens": 8},
                {"model__memory__writes": False}, {"model__ngram_embed__max_n": 3}),
  "episodic": ({}, {"data__carry": False}, {"episode__text_frac": 0.0}, {"window__drop_frac": 0.5},
               {"model__memory_mix": "layer"}, {"episode__read_target": 0.5, "episode__usage_weight": 1.0}),
  "trm": (
    *({}, {"trm__mixer": "mlp", "trm__positions": "none"}, {"trm__row_width": 0, "trm__n_prefix": 0}),
    *({"trm__variant": variant} for variant in ("single", "hrm", "transformer")),
    *({"supervision__steps_per_update": 2}, {"supervision__train_continue": True}),
  ),
  "sft": ({}, {"sft__loss": "dft"}, {"data__packed": False}, {"lora__rank": 2}, {"model__kind": "memory"}),
  "grpo": (
    *({}, {"policy__preset": "gspo"}, {"policy__preset": "cispo"}, {"advantage__kind": "ranked"}),
    *({"policy__kl_weight": 0.1}, {"policy__kl_weight": 0.1, "policy__reference_every_steps": 2}),
    *({"lora__rank": 2, "policy__kl_weight": 0.1}, {"rollout__updates_per_batch": 2}),
    {"policy__entropy_weight": 0.1},
    *({"rollout__zero_std_groups": "resample"}, {"model__kind": "memory"}),
  ),
  "teacher": ({}, {"lora__rank": 2, "policy__kl_weight": 0.1},
              {"model__kind": "memory", "teacher__sampler": "atlas_jax.rollout.toy_student"},
              {"teacher__shown": "attempt", "teacher__verdict_weight": 0.5,
               "teacher__sampler": "atlas_jax.rollout.toy_student"}),
  "gkd": (
    *({}, {"distill__beta": 1.0}, {"distill__alpha": 0.5}, {"distill__alignment": "spans"}),
    *({"lora__rank": 2}, {"distill__on_policy_frac": 1.0}, {"distill__off_policy_source": "teacher"}),
    {"model__kind": "memory"},
  ),
  "ranked": ({}, {"ranked__objective": "group_relative", "ranked__kl_weight": 0.1}, {"lora__rank": 2}),
}
# Where the smallest runs of the others stand.
SMOKE = {
  "sft": "configs/sft.py:smoke",
  "grpo": "configs/grpo_arithmetic.py:smoke",
  "teacher": "configs/teacher_rcl.py:smoke",
  "gkd": "configs/gkd.py:smoke",
  "ranked": "configs/atlas_ranked.py:smoke",
}
EACH_LAYOUT = [(name, fields) for name in recipes.names() for fields in LAYOUTS[name]]


def config_of(name, corpus, **fields):
  """A small config of a recipe."""
  if name == "trm":
    return runs.puzzle_config(corpus, **fields)
  if name == "gkd":
    fields = {"distill__teacher": str(teachers.published(corpus.parent / "teacher")), **fields}
  if name == "episodic":
    gated = fields.get("model__memory_mix", "gate") in mixes("gate")
    fields = {**runs.EPISODES, **({"model__gate_floor": 0.05} if gated else {}), **fields}
  if name in SMOKE:
    return runs.changed(command.read_config(SMOKE[name]), {"monitor__tensorboard": False, **fields})
  return runs.lm_config(corpus, recipe=name, **fields)


def test_every_recipe_is_tried():
  assert set(LAYOUTS) == set(recipes.names())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp("contract") / "text")


@pytest.fixture(scope="module", params=recipes.names())
def loaded(request, corpus):
  config = config_of(request.param, corpus)
  return config, recipes.load(config, runs.one_device())


def drawn(recipe):
  """What training starts from, as arrays."""
  return _drawn(recipe.init)


@functools.lru_cache
def _drawn(init):
  return jax.jit(init)(jax.random.key(0))


def trained_of(recipe):
  """What a source is handed at first; what would be read from files is drawn."""
  start = drawn(recipe)
  return Trained(start.params, start.frozen, start.tables)


def started(recipe):
  return jax.eval_shape(recipe.init, jax.random.key(0))


def outcome(recipe, start, batch):
  def loss(params, batch, frozen, carry, tables):
    rows = {} if recipe.update.tables is None else {"rows": recipe.update.tables.rows(tables, batch, carry)}
    return recipe.loss(params, batch, frozen=frozen, carry=carry, rng=jax.random.key(0), **rows)

  return jax.eval_shape(loss, start.params, batch, start.frozen, start.carry, start.tables)


def shapes(tree_of_arrays):
  return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree_of_arrays)


def test_every_recipe_is_found_by_its_file_name():
  assert "memory_lm" in recipes.names()
  assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in recipes.names())


def test_a_recipe_has_few_fields_and_four_are_enough():
  assert len(recipes.Recipe._fields) <= 8
  assert len(recipes.Recipe._fields) - len(recipes.Recipe._field_defaults) == 4


def test_an_unknown_recipe_is_refused_with_the_known_ones(corpus):
  with pytest.raises(ValueError, match=r"config.recipe='memory_ml' is unknown; recipes are .*memory_lm"):
    recipes.load(runs.lm_config(corpus, recipe="memory_ml"), runs.one_device())


def test_a_name_with_dots_is_imported_as_it_stands(corpus):
  config = runs.lm_config(corpus, recipe="atlas_jax.recipes.memory_lm")
  assert isinstance(recipes.load(config, runs.one_device()), recipes.Recipe)


def test_parameters_are_float32_and_the_carry_leads_with_rows(loaded):
  config, recipe = loaded
  start = started(recipe)
  assert tree.count(start.params) > 0
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(start.params)} == {"float32"}
  assert all(leaf.shape[0] == config.data.batch_rows for leaf in jax.tree.leaves(start.carry))


@pytest.mark.parametrize(("name", "fields"), EACH_LAYOUT)
def test_a_loss_gives_numbers_and_the_carry_it_was_given(name, fields, corpus):
  recipe = recipes.load(config_of(name, corpus, **fields), runs.one_device())
  start = started(recipe)
  if recipe.update.reference is not None:
    start = start._replace(frozen={**(start.frozen or {}), "reference": start.params})
  out = outcome(recipe, start, recipe.source.next(trained_of(recipe)))
  assert (out.loss.shape, out.loss.dtype) == ((), jnp.float32)
  assert out.weight.shape == ()
  assert shapes(out.carry) == shapes(start.carry)
  for metric, value in jax.eval_shape(recipe.accounting.finish, out.metrics).items():
    assert value.shape == (), metric
    assert re.fullmatch(r"[a-z]+(/[a-z0-9_.]+)+", metric), metric


def test_a_batch_is_numpy_arrays_that_lead_with_rows(loaded):
  config, recipe = loaded
  for name, array in recipe.source.next(trained_of(recipe)).items():
    assert isinstance(array, np.ndarray) and len(array) == config.data.batch_rows, name


def test_a_source_goes_on_from_its_state(loaded, corpus):
  config, recipe = loaded
  source, trained = recipe.source, trained_of(recipe)
  source.next(trained)
  state = json.loads(json.dumps(source.state()))
  expected = source.next(trained)
  again = recipes.load(config, runs.one_device()).source
  again.restore(state)
  for name, array in again.next(trained).items():
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_source_says_where_its_rows_come_from(loaded):
  config, recipe = loaded
  origins = recipe.source.provenance(0)
  assert len(origins) == config.data.batch_rows
  assert all(re.fullmatch(r".+@\d+", origin) for origin in origins)


def test_evaluations_say_when_they_are_made(loaded):
  _, recipe = loaded
  assert recipe.evals
  for found in recipe.evals.values():
    assert isinstance(found, Eval) and found.when in ("every", "end")


def test_every_recipe_is_made_for_a_mesh_of_many_devices(loaded):
  config, _ = loaded
  assert recipes.load(config, meshes.make(data=2, fsdp=2, tensor=2)).evals.keys()


def test_parameters_of_every_recipe_can_be_frozen_but_not_all_where_nothing_else_is_trained(loaded):
  config, recipe = loaded
  first, second, *_ = [name for name, _ in tree.named_leaves(drawn(recipe).params)]

  def moments(freeze):
    changed = config.as_configdict()
    changed.optim.freeze = freeze
    state, _ = train.abstract_state(configs.resolve(changed), recipe, runs.one_device())
    return [name.partition("mu/")[2] for name, _ in tree.named_leaves(state.opt_state)]

  assert first not in moments(first) and second in moments(first)
  if recipe.update.tables is not None:
    assert not any(moments("*"))
    return
  with pytest.raises(ValueError, match="freezes all parameters"):
    moments("*")
