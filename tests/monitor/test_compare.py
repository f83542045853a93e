"""Several runs in one picture and one table."""

import json
import subprocess
import sys

import numpy as np
import pytest

from atlas_jax.monitor import compare


def run(folder, *, loss, steps=100, tokens=10, **summary):
  folder.mkdir(parents=True)
  with (folder / "metrics.jsonl").open("w") as out:
    for step in range(1, steps + 1):
      row = {"step": step, "train/loss_nats": loss + 1 / step, "train/tokens_seen": tokens * step,
             "perf/tokens_per_s": 50.0, "perf/time_step_s": 36.0 * step}
      if step % 50 == 0:
        row |= {"val/loss_nats": loss + 0.1, "eval/memory_gain_swapped_nats": 0.2,
                "eval/memory_gain_swapped_nats_low": 0.1, "eval/memory_gain_swapped_nats_high": 0.3}
      out.write(json.dumps(row) + "\n")
  (folder / "config.json").write_text(json.dumps({"recipe": "memory_lm", "seed": 1,
                                                  "optim": {"steps": steps}}))
  if summary:
    (folder / "summary.json").write_text(json.dumps(summary))
  return folder


@pytest.fixture
def runs(tmp_path):
  return [run(tmp_path / "a", loss=2.0, params=1_000), run(tmp_path / "b", loss=3.0, steps=50, tokens=20)]


def test_a_row_has_what_a_run_reached(runs):
  first, second = (compare.row_of(one) for one in compare.read(runs))
  assert (first["run"], first["params"], first["steps"], first["state"]) == ("a", 1_000, 100, "finished")
  assert first["val/loss_nats"] == 2.1 and (first["gain_low"], first["gain_high"]) == (0.1, 0.3)
  assert first["seen"] == second["seen"] == 1_000 and first["hours"] == 1.0 and second["hours"] == 0.5
  assert first["train/loss_nats"] == pytest.approx(2 + np.mean(1 / np.arange(96, 101)))
  assert second["params"] is None and second["state"] == "stopped" and second["per_s"] == 50


def test_the_command_draws_a_picture_and_prints_a_table(runs, tmp_path):
  import matplotlib.image
  command = [sys.executable, "-m", "atlas_jax.monitor.report", "--compare", *map(str, runs),
             f"--out={tmp_path / 'x.png'}"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  head, *lines = done.stdout.splitlines()
  assert head.split()[0] == "run" and [line.split()[0] for line in lines] == ["a", "b"]
  pixels = matplotlib.image.imread(tmp_path / "x.png")[..., :3]
  colored = np.ptp(pixels, axis=-1) > 0.2
  assert pixels.shape[1] == 1_200 and colored[:, :600].sum() > 300 and colored[:, 600:].sum() > 300


def test_json_has_a_line_per_run(runs, tmp_path, capsys):
  assert compare.main(["--compare", *map(str, runs), f"--out={tmp_path / 'x.png'}", "--json",
                       "--axis=hours"]) == 0
  rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [row["run"] for row in rows] == ["a", "b"] and rows[0]["unit"] == "tokens"


def test_runs_of_one_name_are_told_apart(tmp_path):
  paths = [run(tmp_path / folder / "run", loss=2.0, steps=3) for folder in ("one", "two")]
  assert [one.name for one in compare.read(paths)] == ["one/run", "two/run"]


def test_chosen_metrics_are_drawn_and_unknown_ones_are_refused(runs, tmp_path, capsys):
  out = tmp_path / "x.png"
  assert compare.main(["--compare", str(runs[0]), f"--out={out}",
                       "--metrics=val/loss_nats"]) == 0 and out.exists()
  assert compare.main(["--compare", str(runs[0]), "--metrics=val/los"]) == 2
  assert "val/los: no run has that; runs have" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--compare"], ["nowhere"], ["--compare", "nowhere"]])
def test_wrong_arguments_are_refused_in_words(arguments, capsys):
  with pytest.raises(SystemExit):
    compare.parse(arguments)
  assert "run director" in capsys.readouterr().err or arguments == ["--compare"]


def test_the_report_of_a_run_is_drawn_anew(runs, capsys):
  assert compare.main([str(runs[0])]) == 0
  assert (runs[0] / "report.png").stat().st_size > 10_000
  assert capsys.readouterr().out.strip().endswith("report.png")


def test_gains_are_drawn_with_their_intervals(runs):
  from matplotlib.figure import Figure
  axes = Figure().subplots()
  compare._draw_panel(axes, compare.read(runs), "eval/memory_gain_swapped_nats", "step")
  assert len(axes.collections) == len(axes.lines) == 2
  bottom, top = axes.collections[0].get_datalim(axes.transData).get_points()[:, 1]
  assert (bottom, top) == (0.1, 0.3)


def test_a_panel_says_what_its_runs_do_not_have(runs):
  from matplotlib.figure import Figure
  axes = Figure().subplots()
  compare._draw_panel(axes, compare.read(runs), "grad/norm", "tokens")
  assert "no grad/norm against tokens" in axes.texts[0].get_text()
