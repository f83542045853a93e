"""Training with a shorter window: what an update sees, and that a resumed run is the uninterrupted one."""

import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import recipes
from atlas_jax.evals import baseline
from atlas_jax.language import pretraining
from atlas_jax.state import Trained
from tests import runs
from tests.helpers import assert_close, assert_same_bits, quick_compilation
from tests.recipes.test_memory_lm import first_update, numbers, trained, trained_rows

RANDOM = dict(window__kind="random", window__least_tokens=2)
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


def test_a_workdir_keeps_its_window(corpus, tmp_path):
  configs.save(runs.lm_config(corpus), tmp_path)
  with pytest.raises(ValueError, match="config.window.kind was 'full', is 'random'"):
    configs.check_same(runs.lm_config(corpus, **RANDOM), tmp_path)
