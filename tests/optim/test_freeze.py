"""Parameters that `config.optim.freeze` names stay as they are; the others are trained as ever."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atlas_jax import main, train, tree
from atlas_jax.optim import build, freeze
from atlas_jax.parallel import mesh as meshes
from tests import runs
from tests.helpers import assert_same_bits, quick_compilation
from tests.optim.test_build import FIELDS, small_params


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def names_of(mask):
  return {name for name, frozen in tree.named_leaves(mask) if frozen}


def test_frozen_numbers_are_counted():
  assert freeze.count(jax.eval_shape(small_params), "embed/*,final_norm/*") == 5 * 3 + 3


def ones_like(params):
  return jax.tree.map(jnp.ones_like, params)


@pytest.mark.parametrize(
  "patterns, names",
  [
    ("embed/*", {"embed/embedding"}),
    ("head/kernel, final_norm/scale", {"head/kernel", "final_norm/scale"}),
    ("*/gates/*", {"blocks/memory/gates/kernel", "blocks/memory/gates/retention_bias"}),
    ("*_conv/kernel", {"blocks/memory/query_conv/kernel"}),
    (None, set()),
  ],
)
def test_patterns_name_parameters_by_their_path(patterns, names):
  assert names_of(freeze.mask(jax.eval_shape(small_params), patterns)) == names


@pytest.mark.parametrize(
  "patterns, said",
  [
    ("embedd/*", "'embed/*'"),
    ("embed", "'embed/*'"),
    ("gates", "'*/gates/*'"),
    ("embed/*,blocks/memroy/*", "'blocks/memroy/*'"),
    ("blocks/memroy/*", "blocks/memory/*"),
    (" , ", "None"),
    ("", "None"),
  ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_names_that_are_near(patterns, said):
  with pytest.raises(ValueError) as error:
    build.build(small_params(), **FIELDS, freeze=patterns)
  assert f"config.optim.freeze={patterns!r}" in str(error.value) and said in str(error.value)


@pytest.mark.parametrize("name", ["adamw", "adam_atan2"])
@pytest.mark.parametrize("decay_of", ["all", "matrices"])
def test_frozen_parameters_get_no_update_and_no_decay_and_no_moments(name, decay_of):
  params, frozen = small_params(), "embed/*,*/gates/*"
  fields = {**FIELDS, "name": name, "decay_of": decay_of, "clip_norm": 1.0}
  optimizer = build.build(params, **fields, freeze=frozen)
  state = optimizer.init(params)
  updates, state = optimizer.update(ones_like(params), state, params)
  mask = freeze.mask(params, frozen)
  for (path, one), (_, update) in zip(tree.named_leaves(mask), tree.named_leaves(updates), strict=True):
    assert np.all(update == 0) == one, path
  held = [path for path, _ in tree.named_leaves(state) if "mu/" in path]
  assert len(held) == len(names_of(jax.tree.map(lambda one: not one, mask)))
  assert not [path for path in held if "gates" in path or "embedding" in path]


def test_what_is_trained_moves_as_if_the_frozen_parameters_were_none():
  params = small_params()
  fields = {**FIELDS, "clip_norm": 1.0, "decay_of": "all"}
  alone = {name: part for name, part in params.items() if name != "embed"}
  optimizer, oracle = build.build(params, **fields, freeze="embed/*"), build.build(alone, **fields)
  updates, _ = optimizer.update(ones_like(params), optimizer.init(params), params)
  wanted, _ = oracle.update(ones_like(alone), oracle.init(alone), alone)
  assert_same_bits({name: part for name, part in updates.items() if name != "embed"}, wanted)


def test_without_frozen_parameters_the_optimizers_state_is_what_it_was():
  params = small_params()
  assert isinstance(build.build(params, **FIELDS).init(params), tuple)
  shapes = jax.tree.structure(build.build(params, **FIELDS, freeze=None).init(params))
  assert shapes == jax.tree.structure(
    optax.chain(
      optax.identity(),
      optax.scale_by_adam(),
      optax.add_decayed_weights(0.5, mask=build.decay_mask(params)),
      optax.scale_by_learning_rate(lambda count: 0.1),
    ).init(params)
  )


# --- in the loop ---


def train_toy(workdir, *, mesh=None, stop_at=None, **changes):
  """Trains the toy recipe; gives its config, recipe and metrics."""
  config = runs.toy_config(**changes)
  before = lambda step: runs.ask_to_stop() if step == stop_at else None
  recipe = runs.toy_recipe(config, before=before)
  train.run(config, recipe, mesh or runs.one_device(), workdir)
  return config, recipe


def test_a_run_leaves_frozen_parameters_bit_for_bit_and_their_average_equals_them(tmp_path):
  config, recipe = train_toy(
    tmp_path, optim__freeze="embed", optim__ema_decay=0.9, optim__decay_of="all", optim__steps=20
  )
  state = runs.saved(config, recipe, tmp_path)
  start = train.states.build(
    train.abstract_state(config, recipe, runs.one_device())[0], *train.state_args(config, recipe)
  )
  assert_same_bits(state.params["embed"], start.params["embed"])
  assert_same_bits(state.ema["embed"], start.params["embed"])
  assert np.any(state.params["mlp"]["bias"] != start.params["mlp"]["bias"])
  assert np.any(state.ema["mlp"]["bias"] != state.params["mlp"]["bias"])
  rows = runs.rows_of(tmp_path)
  assert all(row["grad/norm/embed"] == 0 and row["update/to_weight_ratio/embed"] == 0 for row in rows)
  assert all(row["grad/norm"] == row["grad/norm/mlp"] > 0 for row in rows)


def test_a_stopped_run_with_frozen_parameters_goes_on_as_if_it_had_not_stopped(tmp_path):
  fields = dict(optim__freeze="*/bias", optim__ema_decay=0.9)
  config, recipe = train_toy(tmp_path / "whole", **fields)
  train_toy(tmp_path / "stopped", **fields, stop_at=3)
  assert runs.saved(config, recipe, tmp_path / "stopped").step < config.optim.steps
  train_toy(tmp_path / "stopped", **fields)
  whole, again = (runs.saved(config, recipe, tmp_path / name) for name in ("whole", "stopped"))
  assert_same_bits(jax.random.key_data(whole.rng), jax.random.key_data(again.rng))
  assert_same_bits(whole._replace(rng=()), again._replace(rng=()))


def test_a_run_on_a_mesh_freezes_the_same_parameters(tmp_path):
  mesh = meshes.make(devices=jax.devices()[:2], fsdp=2, data=1)
  config, recipe = train_toy(tmp_path, mesh=mesh, optim__freeze="embed")
  state = runs.saved(config, recipe, tmp_path, mesh=mesh)
  assert_same_bits(state.params["embed"], train.states.first(recipe.init, config.seed).params["embed"])
  assert np.all(state.params["mlp"]["bias"] != 0)


def test_freezing_everything_is_refused_before_anything_is_trained(tmp_path):
  with pytest.raises(ValueError, match=r"config.optim.freeze='\*' freezes all parameters.*embed, mlp"):
    train_toy(tmp_path, optim__freeze="*")
  assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_pattern_of_no_parameter_is_refused_before_anything_is_trained(tmp_path):
  with pytest.raises(ValueError, match="'mpl/.' matches none.*mlp/") as error:
    train_toy(tmp_path, optim__freeze="mpl/*")
  assert main.explain(error.value) == str(error.value)  # In one line, and not as a fault of the program.
