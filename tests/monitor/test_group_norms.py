"""Norms by group: of known trees, in the row of a run, and without any effect on what is trained."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import recipes, train, tree
from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax.monitor import group_norms
from tests import runs
from tests.helpers import assert_same_bits, full_compilation, quick_compilation


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.mark.parametrize("name, group", [
  ("embed", "embed"), ("head", "embed"), ("blocks_1/memory/qkv_kernel", "memory"),
  ("blocks_1/memory_out/kernel", "memory"), ("blocks_1/memory/gates/bias", "gates"),
  ("blocks_1/mix_gate/kernel", "gates"), ("blocks/attention/q/kernel", "attention"),
  ("blocks/mlp/down/kernel", "feed_forward"), ("level/block_0/token_mlp/out_kernel", "feed_forward"),
  ("blocks/norm_mlp/scale", "norms"), ("final_norm/scale", "norms"), ("halt_bias", "other"),
])  # fmt: skip
def test_parameters_of_all_recipes_have_their_group(name, group):
  assert group_norms.group_of(name) == group


def test_norms_are_those_of_the_leaves_of_a_group():
  params = {"embed": jnp.full((2, 2), 3.0), "mlp": {"a": jnp.ones((4,)), "b": jnp.ones((5,))}}
  grads = {"embed": jnp.zeros((2, 2)), "mlp": {"a": jnp.full((4,), 2.0), "b": jnp.zeros((5,))}}
  found = group_norms.of_update(grads, params, params)
  expected = {"train/grad_norm/embed": 0, "train/grad_norm/feed_forward": 4, "train/update_norm/embed": 6,
              "train/update_norm/feed_forward": 3, "train/param_norm/embed": 6,
              "train/param_norm/feed_forward": 3}
  assert {name: float(value) for name, value in found.items()} == expected


def test_a_run_with_them_is_bit_for_bit_one_without(tmp_path):
  corpus = runs.write_corpus(tmp_path / "text")
  configs = [runs.lm_config(corpus, optim__steps=4, train__log_every_steps=1, monitor__group_norms=on)
             for on in (True, False)]
  # As users compile: with few optimisations the compiler fuses the update into what else reads the gradients,
  # and rounds otherwise there.
  with full_compilation():
    for config in configs:
      runs.run_lm(config, tmp_path / str(config.monitor.group_norms))
  rows, without = (runs.rows_of(tmp_path / name) for name in ("True", "False"))
  extra = {f"train/{what}_norm/{group}" for what in ("grad", "update", "param")
           for group in ("embed", "memory", "gates", "attention", "feed_forward", "norms")}
  assert rows[-1].keys() - without[-1].keys() == extra
  assert [{name: row[name] for name in bare} for row, bare in zip(rows, without)] == without
  states = [_saved(config, tmp_path / str(config.monitor.group_norms)) for config in configs]
  assert_same_bits(*states)
  assert all(np.isfinite(row[name]) and row[name] > 0 for row in rows for name in extra)


def _saved(config, workdir):
  return runs.saved(config, recipes.load(config, runs.one_device()), workdir).params


def test_the_squares_of_all_groups_are_those_of_the_whole():
  params = {name: jnp.arange(1.0, 4.0) for name in ("embed", "halt_bias", "final_norm", "mlp", "mix_gate")}
  found = group_norms.of_update(params, params, params)
  total = sum(float(value) ** 2 for name, value in found.items() if name.startswith("train/grad_norm/"))
  assert total == pytest.approx(float(tree.global_norm(params)) ** 2)


def reductions(*, on):
  """How many reductions the compiled update of the small recipe makes."""
  config = runs.toy_config(monitor__group_norms=on)
  recipe = runs.toy_recipe(config)
  state = jax.eval_shape(lambda: states.create(*train.state_args(config, recipe)))
  frozen = jax.eval_shape(lambda: states.first(recipe.init, config.seed).frozen)
  step = jax.jit(stepping.make_step(config, recipe, state.params))
  with full_compilation():
    program = step.lower(state, recipe.source.next(None), frozen, jnp.zeros(1, jnp.int32)).compile()
  return program.as_text().count(" reduce(")


def test_norms_need_no_reduction_that_an_update_does_not_make_anyway():
  """The compiler makes each leaf's sum of squares once; only roots of a few numbers are added."""
  assert reductions(on=True) == reductions(on=False) > 0
