"""Twenty healthy runs of five recipes give no alarm, live or afterwards."""

import json

import pytest

from atlas_jax import recipes, train
from atlas_jax.monitor.alerts import afterwards
from tests import runs
from tests.helpers import quick_compilation
from tests.recipes.test_contract import config_of

NAMES = ("memory_lm", "episodic", "trm", "sft", "grpo")
SETTINGS = {"optim__steps": 48, "train__log_every_steps": 2, "train__eval_every_steps": 16,
            "checkpoint__every_steps": 1000, "monitor__tensorboard": False, "monitor__report": False}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp("healthy") / "text")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NAMES)
def test_a_healthy_run_gives_no_alarm(name, seed, corpus, tmp_path):
  config = config_of(name, corpus, seed=seed, **SETTINGS)
  with quick_compilation():
    train.run(config, recipes.load(config, runs.one_device(), tmp_path), runs.one_device(), tmp_path)
  events = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
  assert [event for event in events if event["severity"] != "info"] == []
  assert events[-1]["rule"] == "finished"
  verdict = afterwards.judge(tmp_path, free_gib=lambda place: 100.0)
  assert verdict.alarms == [] and verdict.step == config.optim.steps
