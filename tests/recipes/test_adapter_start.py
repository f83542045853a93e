"""Runs that start from adapters in PEFT's format: what they train, refuse, say, and leave to use them."""

import json
import logging as python_logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from atlas_jax import config as configs
from atlas_jax import recipes
from atlas_jax.language import assets, export, initial_model
from atlas_jax.language import runs as serving
from atlas_jax.language.pretrained import adapters as folders
from atlas_jax.language.pretrained import hf_import, peft
from atlas_jax.models import lora
from atlas_jax.workdir import CHECKPOINTS
from configs import grpo_arithmetic
from tests import hf_fixture, program, runs, tuning
from tests.helpers import assert_close, assert_same_bits, quick_compilation

QWEN = str(hf_fixture.FOLDER / "qwen2_tiny")
OPTIONS = dict(rank=3, alpha=12, targets=("q", "down"), scaling="sqrt_rank")


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture
def made(tmp_path):
  """A folder of adapters that change the model, and their numbers."""
  model = hf_fixture.load("qwen2_tiny")[0].copy(lora=OPTIONS)
  draw = np.random.default_rng(8)
  random = lambda leaf: jnp.asarray(draw.normal(0, 0.05, leaf.shape), jnp.float32)
  adapters = jax.tree.map(random, lora.split(hf_import.abstract(model))[0])
  peft.save(tmp_path / "made", model, adapters, base=QWEN)
  return tmp_path / "made", adapters


def config_of(folder, **changes):
  return tuning.config_of(**tuning.published(**{"lora__path": str(folder), **changes}))


def change(folder, **settings):
  """Changes the config of adapters."""
  file = folder / "adapter_config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_a_run_starts_from_the_adapters_and_the_options_of_the_folder(made):
  folder, adapters = made
  opened = initial_model.load_initial_model(config_of(folder))
  assert opened.adapted and opened.language.module.lora == OPTIONS
  params, rest = opened.read(runs.one_device(), True)
  assert_same_bits(params, adapters)
  assert_same_bits(rest["base"], hf_import.load(QWEN, param_dtype="float32").params)
  assert opened.read(runs.one_device(), False)[0] is None


def test_training_goes_on_from_them_and_the_run_is_used_without_their_folder(made, tmp_path):
  folder, adapters = made
  config = config_of(folder, optim__lr=1e-4, optim__steps=2, data__held_out_frac=0.0)
  recipe = recipes.load(config, runs.one_device())
  (tmp_path / "run").mkdir()
  recipe.assets.save(tmp_path / "run")
  runs.run_lm(config, tmp_path / "run")
  configs.save(config, tmp_path / "run")
  trained = runs.saved(config, recipe, tmp_path / "run").params
  assert_close(trained, adapters, tolerance=2e-2)
  assert all(np.any(old != new) for old, new in zip(jax.tree.leaves(adapters), jax.tree.leaves(trained)))
  shutil.rmtree(folder)
  used = configs.resolve(serving.config_of(tmp_path / "run"))
  opened = serving.open_tuned(used, tmp_path / "run", runs.one_device())
  base = hf_import.load(QWEN, param_dtype="float32").params
  assert_close(opened.params, lora.merge(lora.join(trained, base), OPTIONS), tolerance=1e-6)
  export.run(used, tmp_path / "run", tmp_path / "again", adapters=True)
  assert peft.describe(tmp_path / "again")[:2] == (OPTIONS, QWEN)
  start = initial_model.load_initial_model(config_of(tmp_path / "again"))
  assert_same_bits(start.read(runs.one_device(), True)[0], trained)
  further = initial_model.load_initial_model(config_of(folder, lora__path=None,
                                                       model__path=str(tmp_path / "run")))
  assert_close(further.read(runs.one_device(), True)[0], opened.params, tolerance=1e-6)


def test_a_run_goes_on_after_the_folder_of_its_adapters_is_gone(made, tmp_path):
  folder, workdir = made[0], tmp_path / "run"
  config = config_of(folder, optim__steps=2, data__held_out_frac=0.0)
  workdir.mkdir()
  recipes.load(config, runs.one_device()).assets.save(workdir)
  runs.run_lm(config, workdir, stop_at=1)
  shutil.rmtree(folder)
  with pytest.raises(ValueError, match="is no folder"):
    recipes.load(config, runs.one_device())
  used = assets.with_copies_of_lost(config, workdir)
  runs.run_lm(used, workdir)
  assert int(runs.saved(used, recipes.load(used, runs.one_device()), workdir).step) == 2


def test_adapters_of_a_run_that_was_trained_further_are_refused(tmp_path):
  base, workdir = tmp_path / "base", tmp_path / "run"
  first = tuning.config_of(**tuning.published(optim__steps=1, data__held_out_frac=0.0))
  runs.run_lm(first, base)
  configs.save(first, base)
  config = tuning.config_of(model__path=str(base), lora__rank=2)
  workdir.mkdir()
  recipes.load(config, runs.one_device()).assets.save(workdir)
  configs.save(config, workdir)
  assert serving.config_of(workdir).model.path == str(base)
  (base / CHECKPOINTS / "9").mkdir()
  (workdir / CHECKPOINTS / "1").mkdir(parents=True)
  message = "base' is at step 9, and was at 1 when the run in .*run began"
  with pytest.raises(ValueError, match=message):
    serving.config_of(workdir)
  with pytest.raises(ValueError, match=message):
    assets.with_copies_of_lost(config, workdir)


@pytest.mark.parametrize("fields", [{"lora__rank": 2}, {"policy__kl_weight": 0.1}])
def test_what_is_read_at_every_start_must_still_be_there(fields, tmp_path):
  """Else the reference would be drawn anew."""
  fields = {"model__path": str(tmp_path / "lost"), **fields}
  config = runs.changed(grpo_arithmetic.get_config("smoke"), fields)
  (tmp_path / "run" / CHECKPOINTS / "1").mkdir(parents=True)
  with pytest.raises(ValueError, match="lost' is no folder any more, .*run belong to what was there"):
    assets.with_copies_of_lost(config, tmp_path / "run")


def test_half_of_the_adapters_can_be_frozen(made, tmp_path):
  folder, adapters = made
  config = config_of(folder, optim__freeze="*/lora_a", optim__steps=2, data__held_out_frac=0.0)
  runs.run_lm(config, tmp_path / "run")
  trained = runs.saved(config, recipes.load(config, runs.one_device()), tmp_path / "run").params
  for part in ("q", "down"):
    group = "attention" if part == "q" else "mlp"
    old, new = adapters["blocks"][group][part], trained["blocks"][group][part]
    assert_same_bits(new["lora_a"], old["lora_a"])
    assert np.any(new["lora_b"] != old["lora_b"])


def test_a_reference_is_the_model_with_the_adapters_it_started_from(made):
  folder, adapters = made
  config = grpo_arithmetic.get_config("smoke")
  config.model.update(path=QWEN)
  config.lora.path = str(folder)
  config.policy.kl_weight = 0.1
  recipe = recipes.load(configs.resolve(config), runs.one_device())
  for fresh in (True, False):
    given = recipe.load(runs.one_device(), fresh)
    assert_same_bits(given.frozen["reference"], adapters)
    assert (given.params is not None) == fresh


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(lora__rank=8), "config.lora.rank=8, and the adapters of config.lora.path=.* have 3"),
    (dict(lora__alpha=2.0), "config.lora.alpha=2.0, and the adapters .* have 12"),
    (dict(lora__targets="q,v"), "config.lora.targets='q,v', and the adapters .* have 'q,down'"),
    (dict(model__path=None), "config.model.path=None draws a new one; set config.model.path"),
    (dict(lora__path="nowhere"), "config.lora.path='nowhere' is no folder; give one with adapter_config"),
    (dict(lora__path=QWEN), "adapter_config.json is missing"),
  ],
)
def test_what_does_not_fit_the_folder_is_refused(made, fields, message):
  with pytest.raises(ValueError, match=message):
    initial_model.load_initial_model(config_of(made[0], **fields))


def test_fields_that_repeat_the_folder_are_accepted(made):
  same = dict(lora__rank=3, lora__alpha=12.0, lora__targets="down,q", lora__scaling="sqrt_rank")
  assert initial_model.load_initial_model(config_of(made[0], **same)).language.module.lora == OPTIONS


def test_adapters_that_change_their_base_are_refused_before_anything_is_read(made):
  change(made[0], init_lora_weights="pissa")
  with pytest.raises(ValueError, match="init_lora_weights='pissa' is not supported"):
    recipes.load(config_of(made[0]), runs.one_device())


def test_a_run_is_no_folder_of_adapters(made, tmp_path):
  (tmp_path / "run" / CHECKPOINTS).mkdir(parents=True)
  with pytest.raises(ValueError, match="is the workdir of a run; .*--mode=export --adapters"):
    initial_model.load_initial_model(config_of(tmp_path / "run"))


def warnings_of(caplog, folder, **changes):
  """What is said when the adapters are read."""
  logging.use_absl_handler()
  with caplog.at_level(python_logging.WARNING, logger="absl"):
    initial_model.load_initial_model(config_of(folder, **changes)).read(runs.one_device(), True)
  return caplog.text


def test_adapters_of_their_own_model_are_read_without_a_word(made, caplog):
  assert "adapters" not in warnings_of(caplog, made[0])


@pytest.mark.parametrize("base", ["some/other", None, "/no/folder"])
def test_adapters_of_another_model_are_named_with_both(made, caplog, base):
  change(made[0], base_model_name_or_path=base)
  said = warnings_of(caplog, made[0])
  assert (base or "a model that is not named") in said and QWEN in said


def test_dropout_and_frozen_halves_of_their_making_are_told(made, caplog):
  change(made[0], lora_dropout=0.1, init_lora_weights="mica")
  said = warnings_of(caplog, made[0])
  assert "lora_dropout=0.1, which is not applied" in said and "config.optim.freeze='*/lora_b'" in said


@pytest.mark.parametrize(
  "base, path, same",
  [
    ("Qwen/Qwen2.5-0.5B", "hf:Qwen/Qwen2.5-0.5B", True),
    ("Qwen/Qwen2.5-0.5B", "/models/qwen2.5-0.5b/", True),
    ("Qwen/Qwen2.5-0.5B", "/hub/models--Qwen--Qwen2.5-0.5B/snapshots/ab12", True),
    ("Qwen/Qwen2.5-0.5B", "hf:Qwen/Qwen2.5-0.5B-Instruct", False),
    (QWEN, f"{QWEN}/../qwen2_tiny", True),
    (QWEN, str(hf_fixture.FOLDER / "llama_tiny"), False),
    (None, QWEN, False),
  ],
)
def test_models_are_the_same_by_folder_or_by_the_end_of_their_names(base, path, same):
  assert folders.is_same_model(base, path) == same


@pytest.mark.slow
def test_the_program_trains_evaluates_and_writes_with_adapters_whose_folder_is_gone(made, tmp_path):
  flags = tuning.flags_of(**tuning.published(lora__path=str(made[0]), data__max_problems=8))
  workdir = f"--workdir={tmp_path / 'run'}"
  done = program.run(*flags, workdir)
  assert done.code == 0, done.err
  shutil.rmtree(made[0])
  for mode in (["--mode=eval"], ["--mode=generate", "--prompt=1+1=", "--tokens=3"]):
    done = program.run(*mode, workdir)
    assert done.code == 0 and done.out, done.err
