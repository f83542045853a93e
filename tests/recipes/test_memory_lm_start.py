"""Runs of memory_lm that start from another run's parameters, on other text, with or without frozen ones."""

import logging as python_logging
import shutil

import jax
import numpy as np
import pytest
from absl import logging

from atlas_jax import command, recipes
from atlas_jax import config as configs
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.language import assets, pretraining
from atlas_jax.language import initial_model as starts
from atlas_jax.language import runs as serving
from tests import hf_fixture, runs
from tests.helpers import assert_same_bits, quick_compilation


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("memory_lm_start")


def train(config, workdir, **how):
  """Trains, and leaves what the program leaves; gives the parameters that the run ends with."""
  recipe = recipes.load(config, runs.one_device())
  workdir.mkdir(exist_ok=True)
  configs.save(config, workdir)
  recipe.assets.save(workdir)
  runs.run_lm(config, workdir, **how)
  return runs.saved(config, recipe, workdir)


@pytest.fixture(scope="module")
def first(folder):
  """A finished run with a moving average, and its state."""
  config = runs.lm_config(runs.write_corpus(folder / "text"), optim__steps=3, optim__ema_decay=0.5)
  return folder / "first", train(config, folder / "first")


@pytest.fixture(scope="module")
def other_text(folder):
  return runs.write_corpus(folder / "other", seed=7)


def config_of(text, first, **changes):
  return runs.lm_config(text, **{"model__path": str(first[0]), "optim__steps": 2, **changes})


def test_a_run_starts_from_anothers_average_on_other_text_with_a_fresh_optimizer(first, other_text, folder):
  config = config_of(other_text, first, seed=4, train__log_every_steps=1)
  recipe = recipes.load(config, runs.one_device())
  given = recipe.load(runs.one_device(), True)
  assert_same_bits(given.params, first[1].ema)
  assert np.any(first[1].ema["embed"] != first[1].params["embed"])
  state = train(config, folder / "second")
  rows = runs.rows_of(folder / "second")
  assert [row["step"] for row in rows if "train/loss_nats" in row] == [1, 2] and int(state.step) == 2
  assert rows[0]["train/lr"] == pytest.approx(config.optim.lr / 4)  # Warms up anew.
  leaves = zip(jax.tree.leaves(given.params), jax.tree.leaves(state.params))
  assert all(np.any(old != new) for old, new in leaves)


def test_the_new_run_is_used_and_gone_on_with_without_the_old_one(first, other_text, folder):
  old = folder / "gone"
  shutil.copytree(first[0], old)
  config = config_of(other_text, (old,), data__tokenizer="model")
  state = train(config, folder / "third")
  shutil.rmtree(old)
  used = configs.resolve(serving.config_of(folder / "third"))
  assert used.model.path is None
  opened = serving.open_tuned(used, folder / "third", runs.one_device())
  assert_same_bits(opened.params, state.params)
  assert recipes.load(used, runs.one_device()).load is None
  again = recipes.load(config_of(other_text, (folder / "third",)), runs.one_device())
  assert_same_bits(again.load(runs.one_device(), True).params, state.params)


def test_a_run_goes_on_after_the_one_it_started_from_is_gone(first, other_text, folder):
  old, workdir = folder / "lost", folder / "fourth"
  shutil.copytree(first[0], old)
  config = config_of(other_text, (old,), optim__steps=3, data__tokenizer="model")
  train(config, workdir, stop_at=2)
  shutil.rmtree(old)
  with pytest.raises(ValueError, match="is no folder"):
    recipes.load(config, runs.one_device())
  used = assets.with_copies_of_lost(config, workdir)
  runs.run_lm(used, workdir)
  assert int(runs.saved(used, recipes.load(used, runs.one_device()), workdir).step) == 3


def test_frozen_parameters_stay_those_of_the_old_run(first, other_text, folder):
  config = config_of(other_text, first, optim__freeze="blocks_1/memory/*,embed", optim__decay_of="all")
  state = train(config, folder / "frozen")
  assert_same_bits(state.params["embed"], first[1].ema["embed"])
  mine, theirs = (params["blocks_1"] for params in (state.params, first[1].ema))
  assert_same_bits(mine["memory"], theirs["memory"])
  assert np.any(mine["norm_mlp"]["scale"] != theirs["norm_mlp"]["scale"])


def test_a_stopped_run_goes_on_and_does_not_start_again(first, other_text, folder):
  config = config_of(other_text, first, optim__steps=3)
  whole = train(config, folder / "whole")
  train(config, folder / "parts", stop_at=2)
  assert_same_bits(train(config, folder / "parts").params, whole.params)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(model__width=48), "is a run of another model: config.model.width is 48, there 32"),
    (dict(model__memory__chunk_size=16), "config.model.memory.chunk_size is 16, there 8"),
    (dict(model__memory__rule="titans", model__memory__options={}), "memory.rule is 'titans', there 'delta'"),
    (dict(model__path=str(hf_fixture.FOLDER / "qwen2_tiny")), "is a pretrained model, .*config.recipe='sft'"),
    (dict(model__path="nowhere"), "config.model.path='nowhere' is no folder"),
    (dict(model__kind="decoder"), "config.model.kind='decoder': config.recipe='memory_lm' trains memory"),
  ],
)
def test_another_model_is_refused_by_the_fields_that_differ(first, other_text, changes, message):
  with pytest.raises(ValueError, match=message):
    recipes.load(config_of(other_text, first, **changes), runs.one_device())


def test_the_second_stage_of_tnt_starts_with_smaller_chunks_of_as_many_memories():
  second, first = (command.read_config(f"configs/memory_tnt.py:smoke{arg}") for arg in (",stage2=x", ""))
  assert second.model.path == "x" and second.model.memory.options.local_chunks == (1,)
  pretraining.check_same_model(second, first)
  first.model.memory.options.local_chunks = (8, 4)
  with pytest.raises(ValueError, match=r"local_chunks is \(1,\), there \(8, 4\)"):
    pretraining.check_same_model(second, first)


def test_a_run_of_a_decoder_is_refused(first, other_text, folder):
  config = configs.shrink(configs.default())
  config.update(recipe="sft")
  config.model.kind = "decoder"
  configs.save(configs.resolve(config), folder / "decoder")
  (folder / "decoder/checkpoints").mkdir()
  with pytest.raises(ValueError, match="is a run of config.recipe='sft' without a memory model"):
    recipes.load(config_of(other_text, (folder / "decoder",)), runs.one_device())


def test_speed_and_initial_values_may_differ(first, other_text):
  changes = dict(model__remat="block", model__memory__retention_init=0.9, model__dtype="bfloat16")
  assert recipes.load(config_of(other_text, first, **changes), runs.one_device()).load is not None


def test_another_tokenizer_of_as_many_ids_is_refused(first, other_text, folder):
  texts = [file.read_bytes() for file in sorted(other_text.glob("*.txt"))]
  tokenizers.train_bpe(texts, vocab_size=257, folder=folder / "bpe")
  config = config_of(other_text, first, data__tokenizer=str(folder / "bpe"))
  with pytest.raises(ValueError, match="is not the tokenizer of the run in config.model.path=.*=model"):
    recipes.load(config, runs.one_device())
  without = config_of(other_text, first, model__path=None, data__tokenizer="model")
  with pytest.raises(ValueError, match="tokenizer='model' is that of config.model.path, which is None"):
    recipes.load(without, runs.one_device())


@pytest.mark.parametrize("name, told", [("byte", True), ("model", False)])
def test_a_tokenizer_that_a_pretrained_model_does_not_have_is_told(caplog, tmp_path, name, told):
  pytest.importorskip("tokenizers")
  shutil.copytree(hf_fixture.FOLDER / "qwen2_tiny", tmp_path, dirs_exist_ok=True)
  shutil.copyfile(hf_fixture.FOLDER / "byte_tokenizer" / "tokenizer.json", tmp_path / "tokenizer.json")
  config = configs.shrink(configs.default())
  config.model.update(kind="decoder", path=str(tmp_path))
  config.data.tokenizer = name
  logging.use_absl_handler()
  with caplog.at_level(python_logging.WARNING, logger="absl"):
    starts.load_initial_model(configs.resolve(config)).read(runs.one_device(), True)
  assert ("is another tokenizer than that of config.model.path" in caplog.text) == told
