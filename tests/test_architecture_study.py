"""The study of architectures: its arms can be built at equal sizes, run, and be drawn."""

import json

import pytest

from atlas_jax import config as configs
from atlas_jax.data import recall
from experiments import arms
from experiments.recall_by_architecture import analysis, config, run
from tests import program


@pytest.mark.parametrize("arm", run.ARMS, ids=lambda arm: arm.name)
def test_arms_have_as_many_parameters(arm):
  fields = arms.fitted(arm, run.PARAMS)
  assert abs(arms.parameters(arm.config, fields) / run.PARAMS - 1) < 0.011


@pytest.mark.parametrize("task", run.TASKS)
def test_what_is_asked_for_stands_beyond_the_reach_of_attention(task):
  found = configs.resolve(config.get_config(f"task={task}"))
  asked = {name: found.eval[name] for name in recall.load(task).reads}
  for given in (asked, found.data.options):
    gap = given["task_gap_tokens"] if task == "niah" else int(given["mqar_distances"].partition(",")[0])
    assert gap > found.model.depth * (found.model.window_tokens - 1)


def test_an_unknown_task_is_refused():
  with pytest.raises(ValueError, match="'task=mqra' is unknown; did you mean 'mqar'"):
    config.get_config("task=mqra")


@pytest.mark.slow
def test_a_run_is_trained_and_asked(tmp_path):
  spec = "experiments/recall_by_architecture/config.py:task=niah,smoke"
  done = program.run(f"--config={spec}", f"--workdir={tmp_path}/run", "--config.eval.batch_rows=8")
  assert done.code == 0, done.err
  summary = json.loads((tmp_path / "run/summary.json").read_text())
  assert summary["recall_niah_texts"] == 2 and summary["recall_niah_beyond_reach_accuracy"] <= 1


def test_tables_and_pictures_hold_what_was_found(tmp_path):
  rows = {f"gate_mqar/{seed}": {"recall_mqar_accuracy": 0.9 + seed / 50, "recall_mqar_emptied_accuracy": 0.03,
                                "recall_mqar_distance_192_accuracy": 0.9, "params": 1, "cpu_s": 2.0}
          for seed in range(2)}  # fmt: skip
  table = arms.table(rows, run.ARMS, run.columns("mqar"))
  assert "| gate_mqar | memory beside attention, through a gate | 2 | 0.910" in table
  analysis.draw(rows, tmp_path / "x.png")
  assert (tmp_path / "x.png").stat().st_size > 1_000
