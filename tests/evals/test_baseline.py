"""Recorded figures: read early, compared with nothing that was made otherwise, never left out in silence."""

import json

import numpy as np
import pytest

from atlas_jax.evals import baseline
from atlas_jax.state import Trained

SETTING = {"data.sha256": "1f", "data.python": "3.11.7", "config.optim.steps": 360}
SUMMARY = {"val_bits_per_byte": 2.25, "val_loss_nats_by_position_000000-000063": 2.0, "steps": 360,
           "params": 200, "val_tokens_by_position_000000-000063": 900.0}


def write(tmp_path, **changed):
  found = baseline.record(SETTING, SUMMARY, command="python -m it", date="2026-11-29")
  (tmp_path / "it.json").write_text(json.dumps({**found, **changed}))
  return str(tmp_path / "it.json")


def test_a_run_of_the_same_setting_reports_what_was_recorded(tmp_path):
  path = write(tmp_path)
  out = baseline.make(baseline.read(path), path, dict(SETTING))(Trained(np.zeros(202)), step=1)
  assert out.scalars == {"eval/baseline_bits_per_byte": 2.25,
                         "eval/baseline_loss_nats_by_position/000000-000063": 2.0}
  assert out.notes == {"baseline_command": "python -m it"} and out.text == ""


@pytest.mark.parametrize("here,words", [
  ({"data.python": "3.12.1"}, "data.python='3.11.7' there, '3.12.1' here$"),
  ({"config.optim.steps": 40}, "config.optim.steps=360 there, 40 here$"),
  ({"config.data.carry": True}, "config.data.carry='nothing' there, True here$"),
])  # fmt: skip
def test_a_run_of_another_setting_has_none_of_it_and_says_why(tmp_path, here, words):
  path = write(tmp_path)
  out = baseline.make(baseline.read(path), path, {**SETTING, **here})(Trained(np.zeros(200)), step=1)
  assert not out.scalars and not out.notes
  with pytest.raises(ValueError, match=f"recorded in {path} are left out.*: {words}"):
    raise ValueError(out.text)


def test_a_model_of_another_size_has_none_of_it_and_says_why(tmp_path):
  path = write(tmp_path)
  out = baseline.make(baseline.read(path), path, dict(SETTING))(Trained(np.zeros(210)), step=1)
  assert not out.scalars and out.text.endswith("another setting: 200 parameters there, 210 here")


@pytest.mark.parametrize("changed,words", [
  ({"loss_nats_by_position": {"0-63": 2.0}}, "loss_nats_by_position has 0-63, and buckets of positions"),
  ({"bits_per_byte": "2.25"}, "holds no figures where they are expected"),
  ({"bits_per_byte": float("nan")}, "holds no figures where they are expected"),
  ({"loss_nats_by_position": {"000000-000063": None}}, "holds no figures where they are expected"),
  ({"params": "many"}, "holds no figures where they are expected"),
  ({"setting": None}, "holds no figures where they are expected"),
  ({"seed": 0}, "is no file of recorded figures .*'seed'.*; write it with scripts/record_baseline.py"),
])  # fmt: skip
def test_a_file_that_cannot_be_is_refused_and_named(tmp_path, changed, words):
  path = write(tmp_path, **changed)
  with pytest.raises(ValueError, match=f"config.eval.baseline='{path}'.*{words}"):
    baseline.read(path)


def test_a_file_that_is_not_there_or_is_no_json_is_refused_and_named(tmp_path):
  with pytest.raises(ValueError, match="config.eval.baseline='nowhere.json' is no file; write it with"):
    baseline.read("nowhere.json")
  (tmp_path / "it.json").write_text("{")
  with pytest.raises(ValueError, match="is no file of recorded figures"):
    baseline.read(str(tmp_path / "it.json"))


def test_a_run_without_positions_cannot_be_recorded():
  with pytest.raises(ValueError, match="has no val_bits_per_byte by position"):
    baseline.record(SETTING, {"val_bits_per_byte": 2.0}, command="it", date="2026-11-29")
