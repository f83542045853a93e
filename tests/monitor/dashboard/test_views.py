"""Pages as data, of recorded runs and of runs that go wrong."""

import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest

from atlas_jax.monitor.dashboard import charts, figures, views
from atlas_jax.monitor.dashboard.charts import (
  BarChart,
  Grid,
  HeatMap,
  LineChart,
  Missing,
  Picture,
  ProgressBar,
  Tiles,
)
from atlas_jax.monitor.dashboard.views import View, alerts_health, completions, numerical_stability, overview
from atlas_jax.monitor.run_folder import AXES, RunFolder
from tests.monitor.dashboard import recorded

FLAGSHIP, GRPO, SUDOKU, MODULAR = "flagship_smoke", "grpo_sums", "sudoku_4x4", "modular_smoke"
CHARTS = (LineChart, HeatMap, BarChart)
# Page -> run -> titles that it must show.
SHOWN = {
  "live_training": {
    FLAGSHIP: ("Loss", "Perplexity", "Bits per byte", "Throughput", "Learning rate", "Fraction of the peak"),
    GRPO: ("Loss", "Reward", "Throughput"), SUDOKU: ("Loss", "Puzzles solved", "Throughput")},
  "memory_deep_dive": {FLAGSHIP: (
    "Raw gate, held out (before its floor)", "Applied gate, in training", "Half-life, held out",
    "Surprise, in training", "Recall of what was just written", "Right answers beyond the window",
    "Recall by distance", "Recall by items", "Recall by task", "What the memory is worth")},
  "numerical_stability": {FLAGSHIP: ("Gradient norm, of all parameters", "Gradient norm by group",
                                     "Update over weight by group", "Skipped updates, in all")},
  "phases": {MODULAR: ("Accuracy of the likeliest token", "Loss", "Changes")},
  "completions": {GRPO: ("What was written", "Reward over time", "Length over time", "Rewards")},
  "puzzles": {SUDOKU: ("Puzzles solved, every token right", "Supervision steps on a puzzle", "Tokens right")},
  "alerts_health": {FLAGSHIP: ("Memory health at the newest evaluation",)},
}


def read(path):
  run = RunFolder(path)
  run.read_all()
  return run


def parts_of(page, run, axis="step"):
  return views.pages()[page].parts(View(run, (run,) if run else (), axis))


def titles(parts):
  return [part.title for part in parts if hasattr(part, "title")]


def test_pages_are_found_by_their_files_and_in_order():
  found = views.pages()
  assert list(found)[:4] == ["overview", "live_training", "memory_deep_dive", "alerts_health"]
  assert sorted(page.ORDER for page in found.values()) == list(range(len(found)))
  assert len({page.TITLE for page in found.values()}) == len(found)


@pytest.mark.parametrize("name", recorded.NAMES)
@pytest.mark.parametrize("page", list(views.pages()))
def test_every_page_of_every_run_can_be_drawn_on_every_axis(page, name):
  run = read(recorded.RUNS / name)
  for axis in AXES:
    parts = parts_of(page, run, axis)
    assert parts
    for part in parts:
      if isinstance(part, CHARTS):
        assert figures.figure(part).data and len({len(column) for column in charts.table(part).values()}) == 1
      elif isinstance(part, Grid):
        assert len({len(column) for column in part.columns.values()}) == 1


@pytest.mark.parametrize(("page", "name"), [(page, name) for page, runs in SHOWN.items() for name in runs])
def test_pages_show_what_a_run_has(page, name):
  found = titles(parts_of(page, read(recorded.RUNS / name)))
  assert not {*SHOWN[page][name]} - {*found}


@pytest.mark.parametrize("page", list(views.pages()))
def test_every_page_says_what_an_empty_folder_lacks_and_what_to_do(tmp_path, page):
  for run in (None, read(tmp_path)):
    missing = [part for part in parts_of(page, run) if isinstance(part, Missing)]
    assert missing and all(part.what.endswith(".") and part.remedy for part in missing) or page == "overview"


def test_a_run_that_lacks_something_says_which_setting_writes_it():
  words = " ".join(f"{part.what} {part.remedy}"
                   for page in ("memory_deep_dive", "phases", "completions", "puzzles")
                   for part in parts_of(page, read(recorded.RUNS / MODULAR)) if isinstance(part, Missing))
  assert all(name in words for name in ("config.model.memory_mix", "config.recipe=grpo", "config.recipe=trm"))
  (missing,) = parts_of("phases", read(recorded.RUNS / FLAGSHIP))
  assert "config.eval.accuracy=True" in missing.remedy


def test_progress_and_tiles_have_the_newest_numbers():
  run = read(recorded.RUNS / FLAGSHIP)
  parts = parts_of("live_training", run)
  (progress,) = [part for part in parts if isinstance(part, ProgressBar)]
  assert progress.fraction == 1.0 and progress.words.endswith("finished")
  tiles = {tile.label: tile.value for part in parts if isinstance(part, Tiles) for tile in part.tiles}
  assert float(tiles["Held-out loss"]) == pytest.approx(run.metrics.last("val/loss_nats"), rel=1e-3)
  assert float(tiles["Perplexity"].replace(",",
                                           "")) == pytest.approx(np.exp(run.metrics.last("val/loss_nats")),
                                                                 1e-2)


def test_gains_have_their_intervals_and_say_on_how_much_text(tmp_path):
  row = {"step": 1, "eval/memory_gain_emptied_nats": 0.2, "eval/memory_gain_emptied_nats_low": 0.1,
         "eval/memory_gain_emptied_nats_high": 0.4, "eval/memory_gain_swapped_nats": -0.1,
         "eval/memory_gain_tokens": 4_096, "eval/memory_gain_documents": 8}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  chart = next(part for part in parts_of("memory_deep_dive", read(tmp_path)) if isinstance(part, BarChart))
  assert chart.values.tolist() == [0.2, -0.1] and chart.low.tolist() == [0.1, -0.1] and chart.high[0] == 0.4
  assert "4,096 tokens of 8 documents" in chart.note


def test_spectra_are_drawn_by_layer_and_rank(tmp_path):
  row = {"step": 1,
         "memory/x": 1.0} | {f"eval/singular_value_{rank:02}/layer_{layer:02}": 1 / (1 + rank + layer)
                                        for rank in range(10) for layer in (0, 3)}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  (chart,) = [part for part in parts_of("memory_deep_dive", read(tmp_path)) if isinstance(part, LineChart)]
  assert [one.label for one in chart.curves] == ["layer 0", "layer 3"] and chart.log
  np.testing.assert_allclose(chart.curves[0].y, 1 / np.arange(1, 11))


def test_spikes_of_the_loss_are_found_and_noise_is_none():
  draw = np.random.default_rng(0)
  step = np.arange(1.0, 2_001)
  loss = 2 + 3 * np.exp(-step / 100) + 0.02 * draw.normal(size=2_000)
  assert numerical_stability.spikes(step, loss).tolist() == []
  loss[[300, 301, 1_200]] += 2.0
  assert numerical_stability.spikes(step, loss).tolist() == [300, 1_200]
  assert numerical_stability.spikes(step[:40], loss[:40]).tolist() == []


def test_numbers_that_are_not_finite_are_counted_by_metric(tmp_path):
  rows = [{"step": step, "a": None if step in (3, 4) else 1.0, "b": 2.0} for step in range(1, 6)]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  table = numerical_stability.not_finite(read(tmp_path))
  assert table.columns == {"metric": ["a"], "times": [2], "first step": [3], "last step": [4]}


def test_rules_stand_with_the_worst_first_and_acknowledged_ones_last():
  seen = [{"rule": "loss_spike", "step": 20, "by": "me"}]
  found = alerts_health.rule_states(recorded.ALERTS, [])
  assert [(one.rule, one.state, one.times) for one in found] == [
    ("loss_spike", "firing", 1), ("gate_collapse", "recovered", 1), ("checkpoint_saved", "told", 0)]
  assert found[0].is_open and not alerts_health.rule_states(recorded.ALERTS, seen)[0].is_open
  # One that fires again later is to be seen again.
  again = {**recorded.ALERTS[2], "step": 30}
  assert alerts_health.rule_states([*recorded.ALERTS, again], seen)[0].is_open


def test_rules_of_the_config_that_told_nothing_are_quiet(tmp_path, monkeypatch):
  rule = type("Rule", (), {"name": "dead_memory", "severity": "critical", "metric": "eval/memory_norm/*"})
  module = types.ModuleType("made_rules")
  module.judged = lambda alerts, recipe: (rule,) if (alerts, recipe) == ({"off": ""}, "trm") else 1 / 0
  module.__spec__ = importlib.machinery.ModuleSpec("made_rules", None)
  monkeypatch.setitem(sys.modules, "made_rules", module)
  assert alerts_health.known_rules(read(tmp_path), "made_rules") == []
  (tmp_path / "config.json").write_text('{"recipe": "trm", "alerts": {"off": ""}}')
  (found,) = alerts_health.known_rules(read(tmp_path), "made_rules")
  assert (found.rule, found.state, found.text) == ("dead_memory", "quiet", "watches eval/memory_norm/*")


def test_an_acknowledgement_is_a_row_in_its_file(tmp_path):
  recorded.copy(tmp_path, FLAGSHIP, alerts=(FLAGSHIP,))
  run = read(tmp_path / FLAGSHIP)
  rule = alerts_health.rule_states(run.alerts.rows, [])[0]
  alerts_health.acknowledge(run, rule, by="someone", now=5.0)
  (row,) = [json.loads(line) for line in (run.path / "alerts_acknowledged.jsonl").read_text().splitlines()]
  assert row == {"time": 5.0, "rule": "loss_spike", "step": 20, "by": "someone"}
  run.look()
  assert not any(one.is_open for one in alerts_health.rule_states(run.alerts.rows, run.acknowledged.rows))


def test_completions_are_filtered_and_ordered():
  rows = [{"step": step, "prompt": f"p{step}", "completion": "Yes" if step % 2 else "no", "reward": step / 10,
           "advantage": 0.0 if step == 3 else 1.0, "reason": "stop" if step < 3 else "length",
           "length_tokens": 9 - step} for step in range(1, 5)]

  def steps(**filter_):
    return [row["step"] for row in completions.chosen(rows, completions.Filter(**filter_))]

  assert steps() == [4, 3, 2, 1] and steps(order="lowest reward first") == [1, 2, 3, 4]
  assert steps(order="highest reward first") == [4, 3, 2, 1] and steps(order="longest first") == [1, 2, 3, 4]
  assert steps(steps=(2, 3)) == [3, 2] and steps(rewards=(0.35, 1.0)) == [4]
  assert steps(reasons=("stop",)) == [2, 1] and steps(words="YES") == [3, 1]
  assert steps(only_learnt=True) == [4, 2, 1]


def test_a_completion_without_a_reward_or_with_a_foreign_field_is_shown():
  rows = [{"step": 1, "prompt": None, "completion": "x" * 9_000, "reward": None,
           "rewards": {"a": None, "b": 1.0}}]
  table = completions.table(completions.chosen(rows, completions.Filter(order="highest reward first")))
  assert table.columns["reward of b"] == [1.0] and len(table.columns["completion"][0]) == completions.CHARS


def test_runs_are_compared_on_one_axis(tmp_path):
  runs = [read(recorded.RUNS / name) for name in (FLAGSHIP, MODULAR, GRPO)]
  parts = overview.compared(runs, runs, ["val/loss_nats", "rollout/reward_mean"], "hours")
  table, held_out, without, reward, *_ = parts
  assert table.columns["run"] == [FLAGSHIP, MODULAR, GRPO] and table.columns["state"] == ["finished"] * 3
  assert [one.label for one in held_out.curves] == [FLAGSHIP, MODULAR] and GRPO in without.words
  assert [one.label
          for one in reward.curves] == [GRPO] and reward.curves[0].color == 2, "a run keeps its colour"


def test_the_pictures_of_the_newest_evaluation_are_shown():
  run = read(recorded.RUNS / SUDOKU)
  (picture,) = [part for part in parts_of("puzzles", run) if isinstance(part, Picture)]
  assert picture.path == run.pictures()[max(run.pictures())][0]


def test_puzzles_of_an_older_or_damaged_evaluation_are_told_of(tmp_path):
  recorded.copy(tmp_path, SUDOKU)
  run = read(tmp_path / SUDOKU)
  file = tmp_path / SUDOKU / "evals" / f"step_{max(run.pictures()):08d}" / "steps.json"
  assert [one for one in parts_of("puzzles", run) if isinstance(one, charts.BoardRow)]
  file.write_text("{")
  words = [one.words for one in parts_of("puzzles", run) if isinstance(one, charts.Words)]
  assert any("steps.json" in one for one in words)
  file.unlink()
  missing = [one for one in parts_of("puzzles", run) if isinstance(one, Missing)]
  assert missing and "config.puzzle_eval.pictures" in missing[0].remedy
