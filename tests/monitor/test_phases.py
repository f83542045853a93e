"""Phases are told from held-out rows, of recorded runs and of made-up ones that try to mislead.

The fault that these tests are against: grokking told from accuracy on training batches, which then stopped
the run. `test_knowing_the_training_rows_is_no_grokking` fails when it is put back.
"""
import csv
import json
import math
import pathlib

import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax.monitor import accuracy_panel, phases, report
from experiments.grokking import analysis
from experiments.grokking.run import rows_of

ROOT = pathlib.Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "experiments/grokking/results.json").read_text())
USUAL = phases.Thresholds(**configs.default().monitor.phases)


def rows(accuracy, loss, **others):
  """Makes evaluations every 50 steps."""
  return [{"step": 50 * n + 50, phases.ACCURACY: a, phases.LOSS: nats, "eval/train_accuracy": 1.0, **others}
          for n, (a, nats) in enumerate(zip(accuracy, loss))]


def names(found):
  return [one.phase for one in phases.changes(found)]


def told(accuracy, loss, thresholds=USUAL):
  return names(phases.phases_of(rows(accuracy, loss), thresholds))


def test_the_recorded_run_memorises_then_generalises_then_has_grokked():
  row = RECORDED["plain/0"]
  curve = rows_of(row["curve"])
  found = phases.changes(phases.phases_of(curve, USUAL))
  assert [one.phase for one in found] == ["insufficient_data", "memorising", "generalising", "grokked"]
  # All of it from held-out rows: the file's own fields say when the training rows were known.
  memorised, _, grokked = (one.step for one in found[1:])
  assert row["train_accuracy_999_at_step"] < grokked and memorised < grokked
  assert row["held_out_accuracy_95_at_step"] <= grokked <= row["held_out_accuracy_95_at_step"] + 300
  at_first = next(one for one in curve if one["step"] >= row["train_accuracy_999_at_step"])
  assert at_first["eval/train_accuracy"] >= 0.999 and at_first[phases.ACCURACY] < 0.1


def test_recorded_pretraining_is_neither_memorising_nor_grokked_nor_overfitting():
  """A language model's one pass over its text: a batch is unseen when it is scored, and alone, so noisy."""
  with (ROOT / "experiments/embedded_corpus/curve.csv").open() as file:
    bits = [float(row["train_bits_per_byte"]) for row in csv.DictReader(file)]
  # Accuracy was not recorded: the likely size of a byte's probability stands for it, and is as noisy.
  found = told([2**-each for each in bits], bits)
  assert len(bits) == 200 and found == ["insufficient_data", "converged"]


def test_knowing_the_training_rows_is_no_grokking():
  chance, count = 1 / 97, 60
  assert told(np.full(count, chance), np.linspace(4.6, 14, count)) == ["insufficient_data", "memorising"]
  for loss in (np.full(count, 4.57), np.linspace(14, 13, count), np.linspace(14, 4.6, count)):
    found = told(np.full(count, chance), loss)
    assert not {"grokked", "generalising"} & set(found), found
  # Whatever the training rows say: they are not looked at.
  given = rows(np.full(count, chance), np.linspace(4.6, 14, count))
  other = [{**row, "eval/train_accuracy": 0.0} for row in given]
  assert phases.phases_of(given, USUAL) == phases.phases_of(other, USUAL)


@pytest.mark.parametrize("seed", range(20))
def test_noise_around_one_level_changes_nothing(seed):
  draw = np.random.default_rng(seed)
  noisy = np.r_[4.0, 3.0, 2.5, 2 + 0.05 * draw.normal(size=77)]
  found = told(np.clip(0.3 + 0.03 * draw.normal(size=80), 0, 1), noisy)
  assert not {"memorising", "grokked"} & set(found)
  assert len(found) <= 9, found  # A line through eight points of noise is steep now and then.
  still = told(np.full(40, 0.01), 4.6 + 0.01 * draw.normal(size=40))
  assert still == ["insufficient_data", "no_change"]


def test_healthy_pretraining_learns_and_converges():
  steps = np.arange(80)
  loss = 2 + 3 * np.exp(-steps / 10)
  assert told(0.5 * (1 - np.exp(-steps / 10)), loss) == ["insufficient_data", "generalising", "learning",
                                                         "converged"] or \
    told(0.5 * (1 - np.exp(-steps / 10)), loss) == ["insufficient_data", "generalising", "converged"]
  assert told(np.full(80, 0.2), loss)[:2] == ["insufficient_data", "learning"]


def test_a_held_out_loss_that_turns_is_overfitting_and_not_memorising():
  steps = np.arange(60)
  loss = 2 + 2 * np.exp(-steps / 5) + 0.02 * np.maximum(steps - 25, 0)
  found = told(0.5 * (1 - np.exp(-steps / 5)), loss)
  assert found[-1] == "overfitting" and "memorising" not in found
  falling = told(np.r_[np.full(20, 0.9), np.linspace(0.9, 0.4, 20)], np.full(40, 1.0))
  assert falling[-1] == "overfitting"


def test_too_few_evaluations_are_said_to_be_too_few():
  found = phases.phases_of(rows(np.ones(7), np.zeros(7)), USUAL)
  assert len(found) == 7 and names(found) == ["insufficient_data"]
  assert phases.in_words(found) == "insufficient_data from step 50"
  assert phases.phases_of([{"step": 3, "train/loss_nats": 1.0, "eval/train_accuracy": 1.0}], USUAL) == []


def test_a_number_that_is_not_finite_tells_nothing():
  accuracy = np.r_[np.full(10, 0.01), np.linspace(0.01, 1, 15), np.ones(15)]
  loss = np.r_[np.linspace(5, 9, 10), np.linspace(9, 0.01, 15), np.full(15, 0.01)]
  clean = rows(accuracy, loss)
  assert names(phases.phases_of(clean, USUAL))[-1] == "grokked"
  for wrong in (None, math.nan, math.inf):
    broken = [row for one in clean for row in (one, {**one, "step": one["step"] + 1, phases.ACCURACY: wrong},
                                               {**one, "step": one["step"] + 2, phases.LOSS: wrong})]
    found = phases.phases_of(broken, USUAL)
    assert len(found) == len(broken) and found[0::3] == phases.phases_of(clean, USUAL)
  nothing = phases.phases_of(rows([None] * 30, [None] * 30), USUAL)
  assert names(nothing) == ["insufficient_data"]


def test_a_resumed_run_is_told_the_same_as_one_that_was_never_stopped():
  curve = rows_of(RECORDED["plain/0"]["curve"])
  whole = phases.phases_of(curve, USUAL)
  for stop in range(0, len(curve), 7):
    assert phases.phases_of(curve[:stop], USUAL) == whole[:stop]


def test_every_threshold_counts():
  curve = rows_of(RECORDED["plain/0"]["curve"])
  usual = phases.phases_of(curve, USUAL)
  for field, other in (("window_evals", 12), ("confirm_evals", 5), ("high_accuracy", 0.5),
                       ("least_change", 0.9)):
    assert phases.phases_of(curve, USUAL._replace(**{field: other})) != usual, field


def test_one_evaluation_alone_confirms_nothing():
  accuracy, loss = np.full(30, 0.01), np.linspace(5, 9, 30)
  accuracy[15] = 1.0
  assert "grokked" not in told(accuracy, loss) and "generalising" not in told(accuracy, loss)


def test_metrics_name_the_phase_and_where_it_grokked_and_the_report_marks_it(tmp_path):
  curve = rows_of(RECORDED["plain/0"]["curve"])
  found = phases.phases_of(curve, USUAL)
  noted = [{**row, "train/tokens_seen": 512 * row["step"], "train/loss_nats": 1.0,
            **phases.scalars(found[:n + 1])} for n, row in enumerate(curve)]
  grokked = next(one.step for one in found if one.phase == "grokked")
  assert phases.scalars(found)[phases.GROKKED_AT] == grokked
  assert phases.GROKKED_AT not in phases.scalars(found[:5])
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in noted))
  series = report.read_series(tmp_path / "metrics.jsonl")
  marks = accuracy_panel.marks(series)
  assert [phase for _, phase in marks] == ["memorising", "generalising", "grokked"]
  assert marks[-1][0] == 512 * grokked
  assert "accuracy" in report.panels_of(series) and report.write_report(tmp_path).exists()
  without = {name: values for name, values in series.items() if not name.startswith("eval/")}
  assert "accuracy" not in report.panels_of(type(series)(without))


def test_the_table_of_the_study_is_what_its_file_holds():
  text = (ROOT / "experiments/grokking/README.md").read_text()
  assert analysis.table(RECORDED) in text
