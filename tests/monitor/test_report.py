"""The report: a picture from metrics.jsonl alone."""
import json
import math
import threading

import numpy as np
import pytest

from atlas_jax.monitor import memory_panels, puzzle_panels, report
from atlas_jax.monitor.ledger import KINDS


def write_rows(workdir, rows):
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def full_rows(n=80, tokens=4096):
  for step in range(1, n + 1):
    loss = 2.0 + 3.5 * math.exp(-step / 15)
    row = {"step": step, "train/loss_nats": loss, "train/bits_per_byte": loss / math.log(2),
           "train/tokens_seen": step * tokens, "perf/tokens_per_s": 15000.0}
    row |= {f"memory/mix_gate_mean/layer_{layer}": 0.1 + 0.002 * step * (layer + 1) for layer in range(4)}
    if step % 20 == 0:
      row |= {"val/loss_nats": loss + 0.1, "val/bits_per_byte": (loss + 0.1) / math.log(2)}
    yield row
  yield {"step": n + 1, "eval/memory_gain_emptied_nats": 0.12, "eval/memory_gain_swapped_nats": 0.2,
         "val/loss_nats_by_position/000000-000063": 2.1, "val/tokens_by_position/000000-000063": 640,
         "eval/memory_gain_gate_zero_nats": -0.03, "eval/trigram_bits_per_byte": 3.9}


def puzzle_rows(n=60, **more):
  for step in range(1, n + 1):
    right = 1 - math.exp(-step / 20)
    row = {"step": step, "train/supervision_steps_seen": 64 * step, "train/lm_loss": 1.5 * (1 - right),
           "train/q_halt_loss": 0.2 * right, "train/lr": 1e-4 * min(step, 10),
           "perf/supervision_steps_per_s": 240.0}
    row |= {f"recent/{name}": right for name in ("accuracy", "exact_accuracy", "q_halt_accuracy")}
    row["recent/steps"] = 8 - 6 * right
    if step % 20 == 0:
      row |= {f"eval/all/{name}": 0.9 * right for name in ("accuracy", "exact_accuracy", "q_halt_accuracy")}
      row |= {"eval/all/lm_loss": 1.6 * (1 - right), "eval/all/q_halt_loss": 0.3, "eval/all/steps": 8.0}
      row |= {name: share * right for name, share in more.items()}
    yield row


def picture(path):
  import matplotlib.image
  return matplotlib.image.imread(path)


def test_the_report_has_its_size_and_something_in_every_panel(tmp_path):
  write_rows(tmp_path, full_rows())
  pixels = picture(report.write_report(tmp_path))[..., :3]
  assert pixels.shape == (1000, 1800, 3)
  assert (tmp_path / "report.png").exists()
  for panel in (pixels[60:480, 60:680], pixels[60:480, 760:], pixels[560:, 60:680], pixels[560:, 760:]):
    colored = np.ptp(panel, axis=-1) > 0.2  # Lines and bars have colours; text and axes have none.
    assert colored.sum() > 300


def test_the_report_of_a_run_on_puzzles_has_something_in_every_panel(tmp_path):
  write_rows(tmp_path, puzzle_rows())
  pixels = picture(report.write_report(tmp_path))[..., :3]
  assert pixels.shape == (1000, 1800, 3)
  for top in (90, 570):
    for left in (70, 670, 1260):
      colored = np.ptp(pixels[top:top + 330, left:left + 450], axis=-1) > 0.2
      assert colored.sum() > 300


def test_a_run_on_puzzles_with_few_rows_has_a_report(tmp_path):
  row = {"step": 1, "train/supervision_steps_seen": 4, "train/lm_loss": 2.0, "recent/exact_accuracy": 0.0}
  write_rows(tmp_path, [row])
  assert picture(report.write_report(tmp_path)).shape[:2] == (1000, 1800)


def test_a_run_on_arc_shows_its_attempts_in_place_of_tokens(tmp_path):
  passed = {"ARC/pass@10": 0.5, "ARC/pass@2": 0.4, "ARC/accumulated/pass@2": 0.6}
  write_rows(tmp_path, puzzle_rows(**passed))
  series = report.read_series(tmp_path / "metrics.jsonl")
  assert "pass_at_k" in puzzle_panels.names_of(series) and "accuracy" not in puzzle_panels.names_of(series)
  lines = panel(report.draw, series, "pass_at_k").lines
  assert [line.get_label() for line in lines] == ["pass@2: 38.0%", "pass@10: 47.5%"]
  assert puzzle_panels.headline(series) == "60 updates  ·  38.0% of held-out tasks solved in two attempts"
  write_rows(tmp_path, [*puzzle_rows(**passed), {"step": 61, "ARC/pass@2": 0.25, "ARC/n_tasks": 400.0}])
  series = report.read_series(tmp_path / "metrics.jsonl")
  assert puzzle_panels.headline(series).endswith("25.0% of 400 held-out tasks solved in two attempts")


def test_curves_of_puzzles_stand_against_updates(tmp_path):
  write_rows(tmp_path, puzzle_rows())
  axes = panel(report.draw, report.read_series(tmp_path / "metrics.jsonl"), "exact_accuracy")
  assert axes.get_xlabel() == "updates"
  trained, held_out = [line for line in axes.lines if not line.get_label().startswith("_")]
  np.testing.assert_array_equal(trained.get_xdata(), np.arange(1, 61))
  np.testing.assert_array_equal(held_out.get_xdata(), [20, 40, 60])
  assert held_out.get_label() == "held out: 85.5%"


def test_missing_series_are_left_out(tmp_path):
  write_rows(tmp_path, [{"step": 1, "train/loss_nats": 2.0}, {"step": 2, "train/loss_nats": None}])
  assert picture(report.write_report(tmp_path)).shape[:2] == (1000, 1800)
  (tmp_path / "metrics.jsonl").write_text("")
  report.write_report(tmp_path)


def test_summaries_skip_rows_without_the_metric(tmp_path):
  values = [*range(27), None, 30.0, 31.0, None, 35.0]
  write_rows(tmp_path, [{"step": step, "a": value} for step, value in enumerate(values)])
  rows = report.read_metrics(tmp_path)
  assert report.last_mean(rows, "a") == 32.0  # Of three of thirty.
  assert report.last_mean(rows[:9], "a") == 8.0
  assert report.median(rows, "a") == 14.5
  assert report.last_mean(rows, "b") is report.median(rows, "b") is None


@pytest.mark.parametrize("n", [3, 12, 60])
def test_the_final_loss_of_the_picture_is_that_of_the_summary(tmp_path, n):
  """A noisy loss, of few rows and of many that are smoothed."""
  draw = np.random.default_rng(1)
  write_rows(tmp_path, [{"step": step, "train/loss_nats": 2 + draw.normal()} for step in range(1, n + 1)])
  series = report.read_series(tmp_path / "metrics.jsonl")
  (line,) = panel(report.draw, series, "loss").lines[-1:]
  final = report.last_mean(report.read_metrics(tmp_path), "train/loss_nats")
  assert line.get_label() == f"train, {final:.3f} at the end"
  assert panel(report.draw, series, "objective").lines[-1].get_label() == f"in training: {final:.3g}"


def test_memory_gain_has_its_interval_and_says_on_how_much_text(tmp_path):
  gain = {"eval/memory_gain_emptied_nats": 0.12, "eval/memory_gain_emptied_nats_low": -0.01,
          "eval/memory_gain_emptied_nats_high": 0.3, "eval/memory_gain_gate_zero_nats": 0.5,
          "eval/memory_gain_tokens": 76_800, "eval/memory_gain_documents": 12}
  write_rows(tmp_path, [{"step": 1, **gain}])
  axes = panel(report.draw, report.read_series(tmp_path / "metrics.jsonl"), "memory_gain")
  assert axes.get_xlabel() == "76,800 tokens of 12 documents; 95% intervals over documents"
  texts = [text.get_text() for text in axes.texts]
  assert texts == ["+0.1200\n(-0.0100\nto +0.3000)", "+0.5000"]
  (bars,) = [each for each in axes.containers if hasattr(each, "has_yerr")]
  (ends,) = bars.lines[2]
  np.testing.assert_allclose(ends.get_segments()[0][:, 1], [-0.01, 0.3])


def test_the_headline_of_a_slow_run_does_not_say_zero(tmp_path):
  write_rows(tmp_path, [{"step": 1, "train/tokens_seen": 5, "perf/tokens_per_s": 0.41}])
  series = report.read_series(tmp_path / "metrics.jsonl")
  assert "0.41 tokens/s (median)" in report._headline("run", series)


def test_a_run_with_gradients_and_a_speed_shows_both(tmp_path):
  rows = [{"step": step, "train/loss_nats": 2.0, "train/lr": 1e-3, "grad/norm": 0.5,
           "perf/tokens_per_s": 100.0 * step,
           "perf/model_flops_per_s": 5.0, "perf/flops_fraction_of_peak": 0.25} for step in (1, 2, 3)]
  write_rows(tmp_path, rows)
  series = report.read_series(tmp_path / "metrics.jsonl")
  assert report.panels_of(series) == (*report.TEXT_PANELS, "pace", "speed")
  (line,) = panel(report.draw, series, "speed").lines
  assert line.get_label() == "200 tokens/s (median), 25.0% of the peak"
  np.testing.assert_array_equal(line.get_ydata(), [100, 200, 300])
  assert "in metrics.jsonl" in panel(report.draw, report.Series(), "speed").texts[0].get_text()
  puzzles = report.panels_of(report.Series({puzzle_panels.SEEN: (np.ones(1),) * 2,
                                            "grad/norm": (np.ones(1),) * 2}))
  assert puzzles[-1] == "pace"


def test_the_picture_says_what_the_run_trains(tmp_path, monkeypatch):
  from matplotlib.figure import Figure
  titles = []
  monkeypatch.setattr(Figure, "suptitle", lambda self, text, **more: titles.append(text))
  write_rows(tmp_path, [{"step": 1, "train/loss_nats": 2.0}])
  report.write_report(tmp_path)
  (tmp_path / "config.json").write_text('{"recipe": "trm", "seed": 4}')
  report.write_report(tmp_path, {"params": 1_500, "commit": "abc"})
  first, second = titles
  assert first == tmp_path.name
  assert second == f"{tmp_path.name}\ntrm  ·  1.5k parameters  ·  seed 4  ·  commit abc"


def test_a_gain_of_fewer_tokens_says_of_how_many(tmp_path):
  row = {"step": 1, "eval/memory_gain_emptied_nats": 0.12, "eval/memory_gain_tokens": 900,
         "eval/memory_gain_swapped_nats": 0.2, "eval/memory_gain_swapped_tokens": 600}
  write_rows(tmp_path, [row])
  axes = panel(report.draw, report.read_series(tmp_path / "metrics.jsonl"), "memory_gain")
  assert axes.get_xlabel() == "900 tokens\nof another row: 600 tokens"


def test_no_metrics_are_an_error_that_names_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="metrics.jsonl does not exist"):
    report.write_report(tmp_path)


def test_series_stand_against_tokens_and_skip_what_is_not_finite(tmp_path):
  write_rows(tmp_path, [
      {"step": 10, "train/tokens_seen": 100, "train/loss_nats": 3.0}, {"step": 15, "val/loss_nats": 2.5},
      {"step": 20, "train/tokens_seen": 200, "train/loss_nats": None}])
  series = report.read_series(tmp_path / "metrics.jsonl")
  np.testing.assert_array_equal(series["train/loss_nats"], [[100], [3.0]])
  np.testing.assert_array_equal(series["val/loss_nats"], [[150], [2.5]])
  assert series.x_label == "tokens seen"


def panel(draw, *args):
  from matplotlib.figure import Figure
  axes = Figure().subplots()
  draw(axes, *args)
  return axes


def test_a_run_with_an_account_of_time_has_a_panel_of_it(tmp_path):
  times = dict.fromkeys(KINDS, 1.0) | {"step": 13.0}
  write_rows(tmp_path, [{"step": 1, **{f"perf/time_{kind}_s": value for kind, value in times.items()}}])
  series = report.read_series(tmp_path / "metrics.jsonl")
  assert report.panels_of(series)[-1] == "time"
  axes = panel(report.draw, series, "time")
  assert axes.get_title("left") == "Where 20 s went"
  assert [text.get_text() for text in axes.texts] == ["65%" if kind == "step" else "5%" for kind in KINDS]


@pytest.mark.parametrize("name", [*report.TEXT_PANELS, *puzzle_panels.PANELS])
def test_each_panel_can_be_drawn_alone(tmp_path, name):
  of_text = name in report.TEXT_PANELS
  write_rows(tmp_path, full_rows() if of_text else puzzle_rows(**{"ARC/pass@2": 0.4}))
  axes = panel(report.draw, report.read_series(tmp_path / "metrics.jsonl"), name)
  assert axes.get_ylabel() and (axes.lines or axes.patches)
  assert "in metrics.jsonl" in panel(report.draw, report.Series(), name).texts[0].get_text()


def test_gates_before_their_floor_are_drawn_where_held_out_text_told_of_them(tmp_path):
  """With the line below which a gate counts as shut, in sight also where all are nearly shut."""
  name = "eval/raw_gate_mean/layer_"
  rows = [{"step": step, "train/loss_nats": 2.0, f"{name}10": 0.5 / step, f"{name}02": 0.004}
          for step in (1, 2, 4)]
  write_rows(tmp_path, rows)
  series = report.read_series(tmp_path / "metrics.jsonl")
  assert report.panels_of(series) == (*report.TEXT_PANELS, "raw_gates")
  axes = panel(report.draw, series, "raw_gates")
  assert [line.get_label() for line in axes.lines] == ["layer 2: 0.004", "layer 10: 0.125", "below 0.1: shut"]
  np.testing.assert_array_equal(axes.lines[1].get_ydata(), [0.5, 0.25, 0.125])
  assert axes.lines[-1].get_ydata()[0] == 0.1
  write_rows(tmp_path, [{"step": 1, f"{name}02": 0.004}])
  assert panel(report.draw, report.read_series(tmp_path / "metrics.jsonl"), "raw_gates").get_ylim()[1] > 0.1
  assert "in metrics.jsonl" in panel(report.draw, report.Series(), "raw_gates").texts[0].get_text()


def test_an_unknown_panel_is_an_error_that_names_the_known_ones():
  with pytest.raises(ValueError, match="'gate' is unknown; known are loss, bits_per_byte, gates"):
    report.draw(None, report.Series(), "gate")


def test_loss_by_position_is_drawn_in_the_order_of_positions(tmp_path):
  buckets = {"000128-up": 1.5, "000000-000063": 3.0, "000064-000127": 2.0}
  row = {f"val/loss_nats_by_position/{name}": loss for name, loss in buckets.items()}
  row |= {f"val/tokens_by_position/{name}": 1_000 for name in buckets}
  write_rows(tmp_path, [{"step": 1, **row}])
  series = report.read_series(tmp_path / "metrics.jsonl")
  axes = panel(memory_panels.draw_loss_by_position, series, {"window": 96})
  np.testing.assert_array_equal(axes.patches[0].get_data().values, [3.0, 2.0, 1.5])
  assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "64", "128"]
  np.testing.assert_array_equal(axes.lines[0].get_xdata(), 1.5)
  without = panel(memory_panels.draw_loss_by_position, report.Series())
  assert "in metrics.jsonl" in without.texts[0].get_text()


def by_position(metric, **buckets):
  return {f"{metric}/{name[1:].replace('_', '-')}": value for name, value in buckets.items()}


def test_what_the_memory_adds_at_each_position_stands_on_the_loss_of_the_same_tokens(tmp_path):
  first, second = "b000000_000063", "b000064_000127"
  row = {
    **by_position("val/loss_nats_by_position", **{first: 2.5, second: 2.4}),
    **by_position("val/tokens_by_position", **{first: 9_000, second: 8_000}),
    **by_position("eval/memory_gain_loss_nats_by_position", **{second: 2.0}),
    **by_position("eval/memory_gain_tokens_by_position", **{second: 300}),
    **by_position("eval/memory_gain_emptied_nats_by_position", **{second: 0.5}),
    "eval/memory_gain_emptied_nats_by_position/000064-000127_low": 0.1,
    **by_position("eval/memory_gain_swapped_loss_nats_by_position", **{second: 1.9}),
    **by_position("eval/memory_gain_swapped_nats_by_position", **{second: 0.25}),
    **by_position("eval/baseline_loss_nats_by_position", **{first: 2.6, second: 2.7}),
  }  # fmt: skip
  write_rows(tmp_path, [{"step": 1, **row}])
  axes = panel(memory_panels.draw_loss_by_position, report.read_series(tmp_path / "metrics.jsonl"))
  found = {patch.get_label(): patch.get_data().values.tolist() for patch in axes.patches}
  nan = pytest.approx(math.nan, nan_ok=True)
  assert found == {"as it is": [nan, 2.0], "as it is, all held-out text": [2.5, 2.4],
                   "memory emptied": [nan, 2.5], "memory of another row": [nan, 2.15],
                   "without memory, recorded, all held-out text": [2.6, 2.7]}
  assert [text.get_text() for text in axes.texts] == ["300"]


def test_following_shows_a_run_while_it_writes_and_at_its_end(tmp_path):
  seen, first = [], threading.Event()

  def show(rows):
    seen.append(len(rows))
    first.set()

  with report.following(tmp_path, show, every_s=0.01):
    write_rows(tmp_path, [{"step": 1}])
    assert first.wait(10)
    write_rows(tmp_path, [{"step": step} for step in (1, 2, 3)])
  assert seen[0] == 1 and seen[-1] == 3 and len(seen) == len(set(seen))


def test_following_nothing_shows_nothing_and_lets_errors_pass(tmp_path):
  with pytest.raises(KeyError), report.following(tmp_path, pytest.fail):
    raise KeyError


def test_a_table_has_a_row_per_row_and_nothing_where_a_metric_is_missing(tmp_path):
  rows = [{"step": 1, "a/b": 0.123456}, {"step": 2, "c": 3}]
  report.write_csv(rows, {"step": "step", "b": "a/b"}, tmp_path / "t.csv")
  assert (tmp_path / "t.csv").read_text() == "step,b\n1,0.12346\n2,\n"


def test_caveats_of_a_teachers_evaluation_stand_on_its_picture(tmp_path, monkeypatch):
  from matplotlib.figure import Figure

  rows = [{"step": step, "rollout/reward_mean": 0.5, "train/completion_tokens_seen": step} for step in (1, 2)]
  last = {"step": 3, "eval/teaching_graded_count": 8.0, "eval/teaching_silent_frac": 0.5}
  write_rows(tmp_path, [*rows, last])
  headings, suptitle = [], Figure.suptitle
  monkeypatch.setattr(Figure, "suptitle", lambda self, text, **more: (
    headings.append(text), suptitle(self, text, **more))[1])
  report.write_report(tmp_path)
  assert "Only 8 held-out questions were graded" in headings[0]
  assert "The guidance of 50% of the held-out questions was empty" in headings[0]
