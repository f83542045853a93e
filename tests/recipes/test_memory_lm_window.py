"""Training with a shorter window: what an update sees, and that a resumed run is the uninterrupted one.

Rows without attention: drawn anew for each update, and nothing at all where none are asked for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import recipes, tree
from atlas_jax.evals import baseline
from atlas_jax.language import pretraining
from atlas_jax.optim import windows
from atlas_jax.state import Trained
from tests import runs
from tests.helpers import assert_close, assert_same_bits, quick_compilation
from tests.recipes.test_memory_lm import first_update, numbers, trained, trained_rows

RANDOM = dict(window__kind="random", window__least_tokens=2)
DROPPED = dict(window__drop_frac=0.5)
DELAYED = dict(window__kind="delayed", window__least_tokens=2, window__delay_steps=4)


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp("window") / "text")


@pytest.mark.parametrize("fields", [RANDOM, DELAYED], ids=["random", "delayed"])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(corpus, tmp_path, fields):
  """With accumulation, whose pieces all see one window."""
  config = runs.lm_config(corpus, **fields, train__accumulate_steps=2, optim__steps=7)
  runs.run_lm(config, tmp_path / "whole")
  assert runs.run_lm(config, tmp_path / "cut", stop_at=3) == {}
  assert runs.run_lm(config, tmp_path / "cut")["resumed_from_step"] == 4
  assert trained_rows(tmp_path / "cut") == trained_rows(tmp_path / "whole")
  assert_same_bits(*(numbers(trained(config, tmp_path / name)) for name in ("cut", "whole")))
  seen = [row["train/window_tokens"] for row in trained_rows(tmp_path / "whole")]
  window = pretraining.by_step_of(config)
  np.testing.assert_allclose(seen, [window(np.int32(step))["seen_tokens"] for step in range(7)], rtol=1e-6)
  assert min(seen) >= 2 and max(seen) <= 8 and len(set(seen)) > 1


def test_an_update_is_that_of_a_model_of_the_window(corpus):
  """The same loss and gradients; the attention state alone is of another length."""
  narrowed, _ = first_update(runs.lm_config(corpus, **DELAYED))
  alone, _ = first_update(runs.lm_config(corpus, model__window_tokens=2))
  assert_close(narrowed.params, alone.params, tolerance=1e-4)
  assert_close(narrowed.opt_state, alone.opt_state, tolerance=1e-4)
  whole, _ = first_update(runs.lm_config(corpus))
  assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-5
             for a, b in zip(narrowed.params["embed"], whole.params["embed"]))


def test_evaluation_sees_the_whole_window(corpus):
  mesh = runs.one_device()
  found = []
  for fields in ({}, RANDOM):
    config = runs.lm_config(corpus, **fields)
    recipe = recipes.load(config, mesh)
    params = pretraining.init_params(config, pretraining.model_of(config), np.uint32([0, 1]))
    found.append(recipe.evals["perplexity"].run(Trained(params), step=0).scalars)
  assert found[0] == found[1]


def test_a_run_with_the_full_window_gives_its_loss_nothing_more(corpus):
  assert recipes.load(runs.lm_config(corpus), runs.one_device()).update.by_step is None


def test_recorded_figures_hold_for_the_window_they_were_trained_with(corpus):
  whole, narrowed = (pretraining.setting_of(runs.lm_config(corpus, **fields)) for fields in ({}, RANDOM))
  assert baseline.differences(whole, narrowed) == [
    f"config.window.{name}='nothing' there, {value!r} here"
    for name, value in (("delay_steps", None), ("kind", "random"), ("least_tokens", 2))]
  dropped = pretraining.setting_of(runs.lm_config(corpus, **DROPPED))
  assert baseline.differences(whole, dropped) == ["config.window.drop_frac='nothing' there, 0.5 here"]


def test_a_workdir_keeps_its_window(corpus, tmp_path):
  configs.save(runs.lm_config(corpus), tmp_path)
  with pytest.raises(ValueError, match="config.window.kind was 'full', is 'random'"):
    configs.check_same(runs.lm_config(corpus, **RANDOM), tmp_path)


# --- rows without attention ---


def loss_of(corpus, **fields):
  """The loss of a batch by parameters and key, and the function that draws the parameters."""
  config = runs.lm_config(corpus, data__carry=False, **fields)
  recipe = recipes.load(config, runs.one_device())
  batch = {name: jnp.asarray(x) for name, x in recipe.source.next(None).items()}

  def loss(params, rng):
    out = recipe.loss(params, batch, frozen=(), carry=(), rng=rng)
    return out.loss, out.metrics

  return loss, lambda key: recipe.init(key).params


def test_a_run_draws_rows_anew_for_each_update(corpus, tmp_path):
  """From its key and the update's number alone, so that a run that goes on draws what it would have drawn."""
  config = runs.lm_config(corpus, **DROPPED, optim__steps=6)
  runs.run_lm(config, tmp_path)
  kept = [row["train/attention_kept_frac"] for row in trained_rows(tmp_path)]
  root = trained(config, tmp_path).rng
  keys = [jax.random.fold_in(jax.random.fold_in(root, step), 0) for step in range(6)]
  np.testing.assert_allclose(kept, [windows.kept_rows(key, 4, 0.5).mean() for key in keys], rtol=1e-6)
  assert len(set(kept)) > 2


def test_a_loss_with_all_rows_dropped_leaves_attention_without_a_gradient(corpus):
  loss, init = loss_of(corpus, window__drop_frac=1.0)
  params = jax.jit(init)(jax.random.key(0))
  gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(params, jax.random.key(0))
  assert metrics["train/attention_kept_frac"] == 0
  found = {name: np.any(np.asarray(grad) != 0) for name, grad in tree.named_leaves(gradient)}
  attention = {name for name in found if "/attention/" in name}
  assert len(attention) == 4 and not any(found[name] for name in attention)
  # The first block has no memory, hence no other reader of its norm.
  assert {name for name in found if not found[name]} == attention | {"blocks_0/norm_mix/scale"}


def test_a_loss_that_drops_no_rows_is_the_program_without_dropping(corpus, monkeypatch):
  """It takes no key, and is the same where rows cannot be drawn."""

  def program(key, **fields):
    loss, init = loss_of(corpus, **fields)
    return jax.jit(loss).lower(jax.eval_shape(init, jax.random.key(0)), key).as_text()

  key = jax.random.key(0)
  plain = program(key)
  assert program(None) == plain
  assert program(key, **DROPPED) != plain
  monkeypatch.setattr(windows, "kept_rows", lambda rng, rows, drop_frac: None)
  assert program(key) == plain
