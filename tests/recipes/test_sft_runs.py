"""Runs of supervised tuning: from pretrained models, with adapters, from memory models; stopped; learning."""
import jax
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import opening, recipes
from atlas_jax.data.sft import Example
from atlas_jax.language.initial_model import load_initial_model, merge_frozen
from atlas_jax.language.pretrained import hf_import
from atlas_jax.recipes import sft
from atlas_jax.state import Trained
from tests import hf_fixture, runs, tuning
from tests.helpers import assert_same_bits, quick_compilation


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def run(config, workdir, **how):
  """Trains; gives the recipe and the parameters it ends with."""
  runs.run_lm(config, workdir, **how)
  recipe = recipes.load(config, runs.one_device())
  return recipe, runs.saved(config, recipe, workdir).params


def test_a_stopped_run_goes_on_as_if_it_never_was(tmp_path):
  config = tuning.config_of(optim__steps=5, checkpoint__every_steps=2, train__log_every_steps=1)
  _, whole_run = run(config, tmp_path / "whole")
  runs.run_lm(config, tmp_path / "parts", stop_at=3)
  _, resumed = run(config, tmp_path / "parts")
  assert_same_bits(resumed, whole_run)
  assert runs.rows_of(tmp_path / "parts") == runs.rows_of(tmp_path / "whole")


def test_the_first_loss_of_a_pretrained_model_is_the_one_transformers_would_give():
  """Computed from recorded logits of the model: the row is a recorded text."""
  recorded = hf_fixture.reference("qwen2_tiny")
  ids_T, logits_TV = recorded["input_ids"][0], recorded["logits"][0].astype(np.float64)
  assert recorded["attention_mask"][0].all()
  config = tuning.config_of(**tuning.published())
  start = load_initial_model(config)
  params, _ = start.read(runs.one_device(), True)
  learn_T = np.arange(len(ids_T)) >= 3
  example = Example("row@1", ids_T.astype(np.int32), learn_T)
  source = sft.source_of(config, start, [example], "held_out")
  out = sft.loss_of(config, start)(params, source.next(), frozen=(), carry=(), rng=jax.random.key(0))
  logprob_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
  expected = -np.mean([logprob_TV[place - 1, ids_T[place]] for place in range(3, len(ids_T))])
  assert out.loss == pytest.approx(expected, abs=1e-4) and out.weight == len(ids_T) - 3


def test_adapters_alone_are_trained_and_evaluations_see_the_whole(tmp_path):
  config = tuning.config_of(**tuning.published(lora__rank=2, lora__targets="q,v", optim__lr=0.01))
  recipe, adapters = run(config, tmp_path, evals=True)
  assert set(adapters["blocks"]["attention"]) == {"q", "v"} and "mlp" not in adapters["blocks"]
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(adapters))  # B began at zero.
  given = recipe.load(runs.one_device(), False)
  assert given.params is None
  base = hf_import.load(config.model.path, param_dtype="float32").params
  assert_same_bits(given.frozen["base"], base)
  trained = Trained(adapters, given.frozen)
  loss = recipe.evals["examples"].run(trained, step=2).scalars["val/loss_nats"]
  score = lambda params, batch, frozen: sft.score_of(config, load_initial_model(config))(params, batch,
                                                                                         frozen)[0]
  found = sft.examples_of(config, load_initial_model(config), sft.problems_of(config, "held_out"))
  source = sft.source_of(config, load_initial_model(config), found, "held_out")
  nats = count = 0.0
  for step in range(source.steps_per_epoch):
    batch = source.batch(step)
    nats -= float((score(merge_frozen(adapters, {"base": base}), batch, ()) * batch["weight_BT"]).sum())
    count += batch["weight_BT"].sum()
  assert loss == pytest.approx(nats / count, rel=1e-5)


def test_adapters_of_a_stopped_run_go_on_bit_for_bit(tmp_path):
  config = tuning.config_of(optim__steps=4, checkpoint__every_steps=2, train__log_every_steps=1,
                            data__held_out_frac=0.0, **tuning.published(lora__rank=2))
  _, unbroken = run(config, tmp_path / "whole")
  runs.run_lm(config, tmp_path / "parts", stop_at=2)
  assert_same_bits(run(config, tmp_path / "parts")[1], unbroken)


def test_a_run_of_a_memory_model_is_tuned_further(tmp_path):
  corpus = runs.write_corpus(tmp_path / "text")
  earlier = runs.lm_config(corpus, optim__steps=3)
  runs.run_lm(earlier, tmp_path / "read")
  before = runs.saved(earlier, recipes.load(earlier, runs.one_device()), tmp_path / "read").params
  configs.save(earlier, tmp_path / "read")
  recipes.load(earlier, runs.one_device()).assets.save(tmp_path / "read")
  config = tuning.config_of("memory", model__path=str(tmp_path / "read"), data__tokenizer="model",
                            optim__lr=1e-3)
  start = load_initial_model(config)
  params, _ = start.read(runs.one_device(), True)
  assert_same_bits(params, before)
  _, after = run(config, tmp_path / "tuned", evals=True)
  assert np.abs(after["embed"] - before["embed"]).max() > 0
  rows = runs.rows_of(tmp_path / "tuned")
  assert {"val/loss_nats", "val/accuracy"} <= set(rows[-1])
  assert any(name.startswith("memory/") for name in rows[0])


def test_epochs_set_the_length_of_a_run():
  config = tuning.config_of(optim__steps=None, data__epochs=3)
  recipe = recipes.load(config, runs.one_device())
  rows = recipe.source.rows
  assert opening.with_steps(config, recipe).optim.steps == -(-3 * rows // 4)


def test_a_small_decoder_learns_the_form_of_answers_in_seconds(tmp_path):
  """configs/sft.py:cpu learns sums of two digits to the last one, in minutes."""
  config = tuning.config_of(
      data__options={"operations": "+", "digits": 1}, data__max_problems=400, data__batch_rows=8,
      decoder__width=64, optim__steps=120, optim__lr=5e-3, optim__warmup_steps=10, eval__max_problems=5,
      data__held_out_frac=0.15, sampler__max_tokens=16)
  summary = runs.run_lm(config, tmp_path, evals=True)
  assert summary["train_loss_nats"] < 0.8 and summary["val_loss_nats"] < 1.0  # 5.5 before.
  assert summary["val_ended_frac"] == 1.0
