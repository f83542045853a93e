"""The preset that groks, small: it runs, it measures, and its options say what they refuse."""
import logging

import pytest

from atlas_jax import config as configs
from atlas_jax import main, readers, recipes
from atlas_jax.language import pretraining
from atlas_jax.language import runs as language_runs
from configs import modular
from tests import runs
from tests.helpers import quick_compilation


def config_of(**fields):
  config = modular.get_config("smoke")
  config.data.options = {"modulus": 7, "operation": "add"}
  config.monitor.tensorboard = False
  return runs.changed(config, fields)


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def test_a_run_measures_trained_and_held_out_pairs_and_keeps_the_best_by_held_out_ones(tmp_path):
  config = config_of(optim__steps=4, train__eval_every_steps=2, checkpoint__best_metric="held_out_accuracy")
  summary = runs.run_lm(config, tmp_path, evals=True)
  assert 0 <= summary["held_out_accuracy"] <= 1 and 0 <= summary["train_accuracy"] <= 1
  assert summary["held_out_loss_nats"] == pytest.approx(summary["val_loss_nats"], rel=1e-6)
  assert summary["phases"] == "insufficient_data from step 2"
  tokens = next(row["val/tokens"] for row in runs.rows_of(tmp_path) if "val/tokens" in row)
  assert tokens == sum(one["weight_BT"].sum() for one in held_out_batches(config))


def held_out_batches(config):
  source, found = pretraining.held_out_of(config, None), []
  while True:
    try:
      found.append(source.next(None))
    except StopIteration:
      return found


def test_the_preset_measures_accuracy_and_never_prunes_by_training_rows():
  config = configs.resolve(modular.get_config())
  assert config.eval.accuracy and config.checkpoint.best_metric == "held_out_accuracy"
  assert config.loss.kind == "softmax" and config.optim.orthogonal_grads is None


def test_stablemax_trains_and_is_measured_as_it_is_trained(tmp_path):
  config = config_of(loss__kind="stablemax")
  summary = runs.run_lm(config, tmp_path, evals=True)
  assert summary["held_out_loss_nats"] == pytest.approx(summary["val_loss_nats"], rel=1e-6)
  with pytest.raises(ValueError, match="--mode=generate takes a model's scores for those of a softmax"):
    language_runs.generate(config, tmp_path, "a")


def test_a_large_vocabulary_with_stablemax_is_warned_of(caplog, monkeypatch):
  monkeypatch.setattr(pretraining, "STABLEMAX_VOCABULARY", 256)
  for kind, said in (("softmax", False), ("stablemax", True)):
    with caplog.at_level(logging.WARNING):
      caplog.clear()
      recipes.load(config_of(loss__kind=kind), runs.one_device())
    assert ("config.loss.kind='stablemax' with config.model.vocab_size=257" in caplog.text) == said


@pytest.mark.parametrize(("fields", "message"), [
  ({"eval__sample_tokens": 8}, "config.eval.sample_tokens=8 takes logits for those of a softmax"),
  ({"eval__tasks": "lm_eval", "eval__lm_eval_tasks": "x"}, "config.eval.tasks='lm_eval' takes logits"),
  ({"model__memory_mix": "e2e", "model__inner__batch_tokens": 16},
   "config.model.memory_mix='e2e' takes logits"),
])
def test_what_reads_logits_of_a_softmax_is_refused_with_stablemax(fields, message):
  with pytest.raises(ValueError, match=message.replace(".", r"\.")):
    config_of(loss__kind="stablemax", **fields)


@pytest.mark.parametrize(("file", "name", "value"), [
  ("sft.py:cpu", "loss.kind", "stablemax"), ("grpo_arithmetic.py:cpu", "eval.accuracy", True),
  ("memory_40m.py:smoke", "monitor.phases.window_evals", 6), ("modular.py", "data.name", "files"),
  ("modular.py", "data.limit_bytes", 10), ("modular.py", "data.threads", 3)])
def test_fields_that_nothing_would_read_are_refused(file, name, value):
  config = main.read_config(f"configs/{file}")
  group, _, last = name.rpartition(".")
  configs.at(config, group)[last] = value
  with pytest.raises(ValueError, match=f"config.{name}".replace(".", r"\.")):
    readers.check(config)
