"""The report of language models that are tuned: its panels are those of what the run wrote."""
import json

import numpy as np
import pytest

from atlas_jax.monitor import report, tuning_panels

SHARED = {"train/lr": 1e-3, "grad/norm": 2.0}
ROWS = {
    "grpo": {**SHARED, "rollout/reward_mean": 0.5, "rollout/reward/letters_mean": 0.7,
             "rollout/reward/marked_mean": 0.3, "rollout/length_mean_tokens": 12.0,
             "rollout/length_max_tokens": 30.0, "rollout/truncated_frac": 0.2,
             "rollout/flat_groups_frac": 0.4, "policy/entropy_nats": 1.5, "policy/kl_nats": 0.01,
             "policy/clip_high_frac": 0.0, "policy/clip_low_frac": 0.002, "policy/sampler_gap_nats": 1e-4,
             "train/loss_nats": -0.1, "train/completion_tokens_seen": 1_000},
    "sft": {**SHARED, "sft/nll_nats": 1.2, "train/loss_nats": 1.2, "sft/probability_mean": 0.5,
            "sft/counted_frac": 0.7, "sft/filled_frac": 0.9, "train/tokens_seen": 1_000},
    "gkd": {**SHARED, "distill/on_policy_frac": 1.0, "train/loss_nats": 0.3, "rollout/length_tokens": 9.0,
            "rollout/ended_frac": 0.8, "train/completion_tokens_seen": 1_000},
    "ranked": {**SHARED, "ranked/pairs": 3.0, "ranked/pairs_right_frac": 0.8, "ranked/preference_nats": 2.0,
               "ranked/pair_nats": 0.4, "ranked/best_nats": 1.9, "train/loss_nats": 2.2,
               "train/prompts_seen": 64}}
HELD_OUT = {
    "grpo": {"val/accuracy": 0.6, "val/reward": 0.55, "val/length_tokens": 11.0, "val/ended_frac": 0.9},
    "sft": {"val/accuracy": 0.6, "val/loss_nats": 1.3, "val/ended_frac": 0.9},
    "gkd": {"val/accuracy": 0.6, "val/divergence_nats": 0.4, "teacher/accuracy": 0.9},
    "ranked": {"val/loss_nats": 2.3, "val/pairs_right_frac": 0.7, "val/top1_frac": 0.6, "val/best_nats": 2.0}}


def series_of(tmp_path, *rows):
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return report.read_series(tmp_path / "metrics.jsonl")


def rows_of(kind, n=4):
  rows = [{"step": step, **ROWS[kind]} for step in range(1, n + 1)]
  for row in rows:
    row |= {name: value * row["step"] for name, value in row.items() if name.endswith("_seen")}
  rows[-1] |= HELD_OUT[kind]
  return rows


def drawn(series, name):
  from matplotlib.figure import Figure
  axes = Figure().subplots()
  report.draw(axes, series, name)
  return axes


def labels(axes):
  return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("kind", ROWS)
def test_a_report_has_the_panels_of_its_kind_and_none_is_empty(tmp_path, kind):
  series = series_of(tmp_path, *rows_of(kind))
  names = report.panels_of(series)
  assert names == list(tuning_panels.KINDS.values())[list(ROWS).index(kind)]
  for name in names:
    axes = drawn(series, name)
    assert axes.get_ylabel() and axes.lines and labels(axes) and not axes.texts
    assert axes.get_xlabel() == ("tokens seen" if kind == "sft" else "updates")


@pytest.mark.parametrize(("kind", "shape"), [
    ("grpo", (1000, 2400)), ("sft", (1000, 1400)), ("gkd", (1000, 1800)), ("ranked", (1000, 1800))])
def test_a_picture_is_as_large_as_its_panels_need(tmp_path, kind, shape):
  import matplotlib.image
  series_of(tmp_path, *rows_of(kind))
  assert matplotlib.image.imread(report.write_report(tmp_path)).shape[:2] == shape


def test_a_panel_of_which_nothing_was_written_is_left_out(tmp_path):
  row = {"step": 1, "sft/nll_nats": 1.2, "train/loss_nats": 1.2, "train/lr": 1e-3}
  series = series_of(tmp_path, row)
  assert report.panels_of(series) == ("recorded_loss", "pace")
  report.write_report(tmp_path)


def test_a_memory_model_that_is_tuned_shows_its_gates_too(tmp_path):
  gates = {f"memory/mix_gate_mean/layer_{layer:02}": 0.4 for layer in range(2)}
  series = series_of(tmp_path, *({**row, **gates} for row in rows_of("grpo", n=1)))
  assert report.panels_of(series)[-1] == "gates"
  assert all(line.get_marker() == "o" for line in drawn(series, "gates").lines)
  import matplotlib.image
  assert matplotlib.image.imread(report.write_report(tmp_path)).shape[:2] == (1500, 1800)  # Of nine panels.


def test_a_run_that_tunes_nothing_has_none_of_these(tmp_path):
  series = series_of(tmp_path, {"step": 1, "train/loss_nats": 2.0, "val/accuracy": 0.5})
  assert not tuning_panels.names_of(series)
  assert report.panels_of(series) == report.TEXT_PANELS


def test_a_line_of_one_point_has_a_marker_and_longer_ones_have_none(tmp_path):
  one, four = (series_of(tmp_path, *rows_of("ranked", n=n)) for n in (1, 4))
  assert drawn(one, "ranked_loss").lines[0].get_marker() == "o"
  assert drawn(four, "ranked_loss").lines[0].get_marker() == "None"
  assert drawn(four, "ranked_loss").lines[1].get_marker() == "o"  # Held out, at the end alone.
  assert drawn(one, "loss").lines[0].get_marker() == "o"


def test_the_objective_of_a_policy_has_no_unit(tmp_path):
  series = series_of(tmp_path, *rows_of("grpo"))
  assert "nats" not in drawn(series, "objective").get_ylabel()


def test_rewards_have_their_names_unless_there_is_one_alone(tmp_path):
  rows = rows_of("grpo")
  found = labels(drawn(series_of(tmp_path, *rows), "reward"))
  assert found == ["reward: 0.5", "held out: 0.55", "letters: 0.7", "marked: 0.3"]
  for row in rows:
    del row["rollout/reward/marked_mean"]
    row["rollout/reward/letters_mean"] = row["rollout/reward_mean"]
  assert labels(drawn(series_of(tmp_path, *rows), "reward")) == ["reward: 0.5", "held out: 0.55"]


def test_a_held_out_reward_far_above_the_others_is_in_sight(tmp_path):
  rows = rows_of("grpo", n=80)
  rows = [{**row, "rollout/reward_mean": 0.2 + 0.001 * row["step"]} for row in rows]
  rows[-1]["val/reward"] = 1.0
  assert drawn(series_of(tmp_path, *rows), "reward").get_ylim()[1] > 1


def test_what_is_minimised_is_shown_where_it_is_not_the_loss_of_tokens(tmp_path):
  rows = rows_of("sft")
  assert len(labels(drawn(series_of(tmp_path, *rows), "recorded_loss"))) == 2
  other = [{**row, "train/loss_nats": 0.2} for row in rows]
  assert labels(drawn(series_of(tmp_path, *other), "recorded_loss"))[-1] == "what is minimised: 0.2"


def test_what_has_another_size_stands_against_the_right_axis(tmp_path):
  series = series_of(tmp_path, *rows_of("grpo"))
  axes = drawn(series, "entropy")
  assert [one.get_ylabel() for one in axes.figure.axes] == ["entropy, nats per token", "KL, nats per token"]
  assert labels(axes) == ["entropy: 1.5", "KL, right axis: 0.01"]


def test_what_would_stand_on_the_right_alone_stands_on_the_left(tmp_path):
  rows = rows_of("grpo")
  for row in rows:
    del row["policy/entropy_nats"]
  axes = drawn(series_of(tmp_path, *rows), "entropy")
  assert len(axes.figure.axes) == 1 and axes.get_ylabel() == "KL, nats per token"
  assert labels(axes) == ["KL: 0.01"]


def test_the_teacher_is_a_line_across(tmp_path):
  axes = drawn(series_of(tmp_path, *rows_of("gkd")), "answers")
  assert labels(axes) == ["right: 60.0%", "teacher right: 90.0%"]
  np.testing.assert_array_equal(axes.lines[-1].get_ydata(), 0.9)


def test_divergence_is_per_token_or_per_span(tmp_path):
  rows = rows_of("gkd")
  assert drawn(series_of(tmp_path, *rows), "distance").get_ylabel() == "nats per token"
  spans = [{**row, "train/spans_seen": 3} for row in rows]
  assert drawn(series_of(tmp_path, *spans), "distance").get_ylabel() == "nats per span of text"


def test_the_students_share_is_that_of_all_texts_so_far(tmp_path):
  rows = [{**row, "distill/on_policy_frac": share} for row, share in zip(rows_of("gkd"), (1, 0, 0, 1))]
  series = series_of(tmp_path, *rows)
  np.testing.assert_allclose(drawn(series, "writers").lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 2])
  np.testing.assert_array_equal(series["distill/on_policy_frac"][1], [1, 0, 0, 1])


def test_a_learning_rate_is_drawn_as_it_was_set(tmp_path):
  rates = np.linspace(1e-3, 0, 60)
  rows = [{**row, "train/lr": rate} for row, rate in zip(rows_of("sft", n=60), rates)]
  np.testing.assert_allclose(drawn(series_of(tmp_path, *rows), "pace").lines[0].get_ydata(), rates)


def test_panels_of_few_evaluations_reach_as_far_as_the_others(tmp_path):
  rows = rows_of("sft", n=8)
  rows[3]["val/accuracy"] = rows[7].pop("val/accuracy")
  series = series_of(tmp_path, *rows)
  assert drawn(series, "answers").get_xlim() == drawn(series, "pace").get_xlim() == (0, 1.04 * 8_000)


def test_the_headline_says_length_speed_and_what_was_reached(tmp_path):
  rows = [{**row, "perf/completion_tokens_per_s": 250.0} for row in rows_of("grpo")]
  assert tuning_panels.headline(series_of(tmp_path, *rows)) == (
      "4 updates  ·  4k completion tokens  ·  250 completion tokens/s (median)  ·  "
      "60.0% of held-out problems right")
  assert tuning_panels.headline(series_of(tmp_path, *rows_of("ranked"))) == (
      "4 updates  ·  256 prompts  ·  70.0% of held-out pairs in order")


@pytest.mark.parametrize("name", tuning_panels.PANELS)
def test_a_panel_without_its_metrics_names_the_one_it_misses(name):
  assert "in metrics.jsonl" in drawn(report.Series(), name).texts[0].get_text()
