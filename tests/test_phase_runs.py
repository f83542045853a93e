"""Phases as a run tells them: in its log, its rows, its summary; whatever they are, it goes on to its end."""
import logging

import pytest

from atlas_jax import train
from atlas_jax.evals import Eval, EvalOut
from atlas_jax.monitor import phases
from tests import runs

ACCURACY = [0.01] * 8 + [0.2, 0.5, 0.8, 0.95] + [1.0] * 8
LOSS = [4.6, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0, 6.0, 3.0, 1.0, 0.2] + [0.01] * 8


def config_of(**fields):
  usual = dict(optim__steps=20, train__eval_every_steps=1, checkpoint__every_steps=5,
               monitor__phases__window_evals=5, monitor__phases__confirm_evals=2)
  return runs.toy_config(**{**usual, **fields})


def start(config, workdir, *, before=lambda step: None):
  """Runs the loop with an evaluation whose numbers are given."""
  def run(trained, *, step, workdir):
    # Training rows are known from the first update on: that alone must tell nothing.
    return EvalOut({"eval/train_accuracy": 1.0, phases.ACCURACY: ACCURACY[step - 1],
                    phases.LOSS: LOSS[step - 1]})

  recipe = runs.toy_recipe(config, evals={"accuracy": Eval(run, "every")}, before=before)
  return train.run(config, recipe, runs.one_device(), workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("phases")
  return workdir, start(config_of(), workdir)


def test_a_run_that_has_grokked_goes_on_to_its_end_and_its_summary_says_when(whole):
  workdir, summary = whole
  assert summary["steps"] == 20 and summary["phase"] == "grokked"
  told = summary["phases"].split(", ")
  assert [part.split()[0] for part in told] == ["insufficient_data", "memorising", "generalising", "grokked"]
  rows = runs.rows_of(workdir)
  first = next(row["step"] for row in rows if row[phases.PHASE] == phases.PHASES.index("grokked"))
  assert 12 <= first < 20 and summary["grokked_at_step"] == first
  assert told[-1] == f"grokked from step {first}"
  assert phases.GROKKED_AT in rows[-1] and phases.GROKKED_AT not in rows[first - 2]


def test_a_resumed_run_tells_the_same_phases_and_logs_each_change_once(whole, tmp_path, caplog):
  config = config_of()
  with caplog.at_level(logging.INFO):
    ask = lambda step: runs.ask_to_stop() if step == 9 else None
    assert start(config, tmp_path, before=ask) == {}
    summary = start(config, tmp_path)
  assert runs.rows_of(tmp_path) == runs.rows_of(whole[0])
  assert summary["phases"] == whole[1]["phases"]
  changes = [line for line in caplog.messages if line.startswith("held-out accuracy")]
  assert len(changes) == 3 and "memorising from step 6 on, insufficient_data before" in changes[0]


def test_thresholds_are_those_of_the_config(tmp_path):
  summary = start(config_of(monitor__phases__confirm_evals=4), tmp_path)
  assert summary["phases"].split(", ")[1] == "memorising from step 8"


def test_a_run_that_measures_no_accuracy_has_no_phase(tmp_path):
  config = config_of()
  loss = Eval(lambda trained, **_: EvalOut({"val/a": 1.0}), "every")
  recipe = runs.toy_recipe(config, evals={"loss": loss})
  summary = train.run(config, recipe, runs.one_device(), tmp_path)
  assert "phase" not in summary and phases.PHASE not in runs.rows_of(tmp_path)[-1]
