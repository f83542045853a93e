"""The pages in Streamlit's own harness, on recorded runs, as they are and as they go wrong."""

import json
import pathlib

import pytest
from streamlit.testing.v1 import AppTest

from atlas_jax.monitor.dashboard import app, render, views
from tests.monitor.dashboard import recorded

SCRIPT = pathlib.Path(app.__file__)
FLAGSHIP = "flagship_smoke"


@pytest.fixture
def opened(tmp_path, monkeypatch):
  """Opens the dashboard on a folder of its own."""
  monkeypatch.setattr(render, "PAUSE_S", 0.0)  # There is no browser that could paint meanwhile.
  monkeypatch.setattr("sys.argv", ["app.py", f"--runs={tmp_path}", "--refresh_s=3"])

  def run(**choices):
    page = AppTest.from_file(str(SCRIPT), default_timeout=60)
    for name, value in choices.items():
      page.query_params[name] = value
    return page.run()

  return run


def words(page):
  return " ".join(one.value for kind in (page.info, page.warning, page.error, page.caption) for one in kind)


def ok(page):
  assert not page.exception, [one.value for one in page.exception]
  return page


@pytest.mark.parametrize("name", list(views.pages()))
def test_every_page_shows_recorded_runs(tmp_path, opened, name):
  recorded.copy(tmp_path, alerts=(FLAGSHIP,))
  page = ok(opened(page=name))
  assert page.header[0].value == views.pages()[name].TITLE
  for run in recorded.NAMES:
    ok(page.sidebar.selectbox(key="run").set_value(run).run())
    assert page.header[0].value == views.pages()[name].TITLE, "another run keeps the page"


@pytest.mark.parametrize("name", list(views.pages()))
def test_every_page_stands_an_empty_folder_and_a_broken_run(tmp_path, opened, name):
  assert page_says_something(ok(opened(page=name)))
  broken = tmp_path / "broken"
  broken.mkdir()
  (broken / "config.json").write_text('{"recipe": ')
  assert page_says_something(ok(opened(page=name)))
  lines = ['{"step": 1, "train/loss_nats": NaN, "grad/norm": null}', "garbage",
           '{"step": 2, "train/loss_nats": 2.0}',
           '{"step": 3, "train/lo']
  (broken / "metrics.jsonl").write_text("\n".join(lines))
  (broken / "alerts.jsonl").write_text('{"rule": 3}\nnot json\n{"state": "firing"}\n')
  (broken / "completions").mkdir()
  (broken / "completions" / "00000000.jsonl").write_text('{"prompt": 1}\n{"step": 1, "reward": "x"}\n{"st')
  page = ok(opened(page=name))
  assert "1 lines of metrics.jsonl are no rows" in words(page) and "config.json cannot be read" in words(page)


def page_says_something(page):
  return bool(page.info) or bool(page.caption) or bool(page.dataframe)


def test_a_run_that_appears_later_can_be_chosen(tmp_path, opened):
  page = ok(opened())
  assert not page.sidebar.selectbox and "no run in this folder yet" in words(page)
  recorded.copy(tmp_path, FLAGSHIP)
  ok(page.run())
  assert page.sidebar.selectbox(key="run").value == FLAGSHIP
  recorded.copy(tmp_path, "grpo_sums")
  ok(page.run())
  assert page.sidebar.selectbox(key="run").value == FLAGSHIP, "the choice stays"
  assert {*page.sidebar.selectbox(key="run").options} == {FLAGSHIP, "grpo_sums"}


def test_new_rows_are_there_at_the_next_refresh(tmp_path, opened):
  recorded.copy(tmp_path, FLAGSHIP)
  page = ok(opened(page="live_training"))
  with (tmp_path / FLAGSHIP / "metrics.jsonl").open("a") as out:
    out.write(json.dumps({"step": 9_000, "val/loss_nats": 0.125}) + "\n")
  ok(page.run())
  assert {one.label: one.value for one in page.metric}["Held-out loss"] == "0.125"


def test_the_address_names_the_page_the_run_and_the_axis(tmp_path, opened):
  recorded.copy(tmp_path)
  page = ok(opened(page="puzzles", run="sudoku_4x4", axis="hours"))
  assert page.header[0].value == "Puzzles" and page.sidebar.selectbox(key="run").value == "sudoku_4x4"
  assert page.sidebar.radio(key="axis").value == "hours"
  ok(page.sidebar.radio(key="page").set_value("live_training").run())
  assert page.query_params["page"] in ("live_training", ["live_training"])
  unknown = ok(opened(page="nothing", run="nobody"))
  assert unknown.header[0].value == "Runs"


def test_a_supervision_step_of_a_puzzle_is_chosen_and_stays(tmp_path, opened):
  recorded.copy(tmp_path)
  page = ok(opened(page="puzzles", run="sudoku_4x4"))
  (slider,) = [one for one in page.slider if one.label == "Supervision step"]
  assert slider.value == slider.max == 8
  captions = lambda: [one.value for one in page.caption]
  assert "answer after step 8" in captions()
  ok(slider.set_value(2).run())
  ok(page.run())
  assert "answer after step 2" in captions() and "answer after step 8" not in captions()
  (puzzle,) = [one for one in page.selectbox if one.label == "Puzzle"]
  first = [one.value for one in page.markdown if ": step 2 of 8" in one.value]
  ok(puzzle.set_value(1).run())
  second = [one.value for one in page.markdown if ": step 2 of 8" in one.value]
  assert len(first) == len(second) == 1 and first != second


def test_an_alert_is_acknowledged_once(tmp_path, opened):
  recorded.copy(tmp_path, FLAGSHIP, alerts=(FLAGSHIP,))
  page = ok(opened(page="alerts_health"))
  assert {one.label: one.value for one in page.metric}["Not acknowledged"] == "1"
  page.text_input(key="acknowledged_by").set_value("Ada")
  (button,) = [one for one in page.button if one.label == "Acknowledge loss_spike"]
  ok(button.click().run())
  (row,) = [json.loads(line)
            for line in (tmp_path / FLAGSHIP / "alerts_acknowledged.jsonl").read_text().splitlines()]
  assert (row["rule"], row["step"], row["by"]) == ("loss_spike", 20, "Ada")
  assert {one.label: one.value for one in page.metric}["Not acknowledged"] == "0"
  assert not [one for one in page.button if one.label.startswith("Acknowledge")]


def test_completions_are_filtered_by_what_the_reader_asks(tmp_path, opened):
  recorded.copy(tmp_path, "grpo_sums")
  page = ok(opened(page="completions"))
  whole = {one.label: one.value for one in page.metric}["Completions"]
  ok(page.text_input(key="completion_words").set_value("nothing that was written").run())
  assert whole != "0" and {one.label: one.value for one in page.metric}["Completions"] == "0"


def test_choices_of_the_comparison_stay_while_runs_come(tmp_path, opened):
  recorded.copy(tmp_path, FLAGSHIP, "modular_smoke")
  page = ok(opened(page="overview"))
  ok(page.multiselect(key="compared_metrics").set_value(["grad/norm"]).run())
  recorded.copy(tmp_path, "grpo_sums")
  ok(page.run())
  assert page.multiselect(key="compared_metrics").value == ["grad/norm"]
  assert len(page.get("plotly_chart")) == 1
