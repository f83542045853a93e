"""A run without memory is recorded by the script, and a run with one reports it if they can be compared."""

import json
import sys

import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import recipes
from atlas_jax.state import Trained
from tests import program, runs
from tests.helpers import quick_compilation

SAME = {"optim__steps": 2, "checkpoint__every_steps": 2, "eval__sample_tokens": 0, "eval__baselines": False,
        "monitor__tensorboard": False, "monitor__report": False, "monitor__progress": False}
WITHOUT = {"model__memory_mix": "none", "model__ff_width": 74}  # As many parameters as with a memory.


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp("recorded") / "text")


def run(config, workdir, **options):
  """Trains, as the program does: with its config beside the run."""
  configs.save(config, workdir)
  return runs.run_lm(config, workdir, **options)


def record(workdir, out):
  return program.spawn(sys.executable, "scripts/record_baseline.py", f"--workdir={workdir}", f"--out={out}",
                       "--command=the command", PYTHONPATH=".")


@pytest.fixture(scope="module")
def recorded(corpus, tmp_path_factory):
  """The file that the script writes of a finished run, and the run's summary."""
  folder = tmp_path_factory.mktemp("recorded")
  summary = run(runs.lm_config(corpus, **SAME, **WITHOUT), folder / "run", evals=True)
  done = record(folder / "run", folder / "kept/it.json")
  assert done.code == 0, done.err
  assert json.loads(done.out) == json.loads((folder / "kept/it.json").read_text())
  return f"{folder}/kept/it.json", summary


def end_of(config, size):
  """What the evaluation of the recorded figures gives for a model of so many parameters."""
  recipe = recipes.load(config, runs.one_device())
  recipe.source.close()
  return recipe.evals["baseline"].run(Trained(np.zeros(size)), step=2)


def test_the_figures_stand_in_the_summary_of_a_run_like_it(recorded, corpus, tmp_path):
  path, other = recorded
  config = runs.lm_config(corpus, **SAME, eval__baseline=path)
  summary = run(config, tmp_path / "run", evals=True)
  assert summary["baseline_bits_per_byte"] == other["val_bits_per_byte"]
  assert summary["baseline_command"] == "the command"
  assert json.loads((tmp_path / "run/summary.json").read_text()) == summary
  curve = {name: value for name, value in other.items() if name.startswith("val_loss_nats_by_position")}
  assert curve and curve == {f"val_{name.removeprefix('baseline_')}": value for name, value in summary.items()
                             if name.startswith("baseline_loss_nats")}
  for name in ("emptied", "swapped", "writes_off"):
    assert f"memory_gain_{name}_nats" in summary
    assert any(each.startswith(f"memory_gain_{name}_nats_by_position_") for each in summary)


@pytest.mark.parametrize("field,value,words", [
  ("optim__steps", 3, "config.optim.steps=2 there, 3 here"),
  ("eval__max_tokens", 256, "config.eval.max_tokens=512 there, 256 here"),
  ("data__held_out_frac", 0.2, "held_out_frac="),
  ("data__limit_bytes", 3000, "data.sha256="),
  ("model__window_tokens", 4, "config.model.window_tokens="),
])  # fmt: skip
def test_figures_of_another_setting_are_left_out_with_a_line(recorded, corpus, field, value, words):
  path, other = recorded
  out = end_of(runs.lm_config(corpus, **{**SAME, "eval__baseline": path, field: value}), other["params"])
  assert not out.scalars and not out.notes and "are left out" in out.text and words in out.text


def test_a_wrong_file_stops_a_run_before_it_starts(corpus):
  with pytest.raises(ValueError, match="config.eval.baseline='gone.json' is no file"):
    recipes.load(runs.lm_config(corpus, **SAME, eval__baseline="gone.json"), runs.one_device())


def test_only_finished_runs_without_memory_are_recorded(corpus, tmp_path):
  done = record(tmp_path, tmp_path / "it.json")
  assert done.code == 1 and "record_baseline: --workdir=" in done.err and "is no finished run" in done.err
  run(runs.lm_config(corpus, **SAME), tmp_path / "run")
  done = record(tmp_path / "run", tmp_path / "it.json")
  assert done.code == 1 and "is no run of a model without memory" in done.err, done.err
  assert not (tmp_path / "it.json").exists()
