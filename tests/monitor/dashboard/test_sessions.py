"""The page of sessions: numbers of a store, and a review that says who decided."""
import pytest

from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from atlas_jax.monitor.dashboard.charts import BarChart, Grid, Missing, Tiles
from atlas_jax.monitor.dashboard.views import View, sessions
from atlas_jax.monitor.run_folder import RunFolder


def trace(task, **more):
  return Trace.from_json({
    "task": task, "final_answer": "4", "execution_mode": "paired", "verified": True,
    "tokens": {"student": {"prompt": 3, "completion": 2}, "teacher": {"prompt": 7}},
    "reward_stats": {"score": 0.5}, "session_metadata": {"status": "succeeded"}, **more})


@pytest.fixture
def view(tmp_path):
  with open_store(f"sqlite:///{tmp_path}/{sessions.STORE}", create=True, writable=True) as store:
    store.write_all([trace("one"), trace("two", execution_mode="auto", verified=None, session_metadata={
      "status": "succeeded", "drift_alert": True})])
  (tmp_path / sessions.EVENTS).write_text('{"name": "route", "kind": "POINT"}\n{"torn')
  run = RunFolder(tmp_path)
  return View(run, (run,), "step")


def test_the_page_counts_lanes_tokens_and_what_waits(view):
  found = sessions.parts(view)
  tiles = {one.label: one.value for part in found if isinstance(part, Tiles) for one in part.tiles}
  assert tiles == {"Sessions": "2", "Verified": "50%", "Mean reward": "0.5", "Drift": "1",
                   "Pending review": "2"}
  bars = {part.title: dict(zip(part.labels, part.values)) for part in found if isinstance(part, BarChart)}
  assert bars == {"Lanes": {"auto": 1, "paired": 1}, "Tokens by role": {"student": 10, "teacher": 14},
                  "Events": {"route": 1}}
  queue, drift = (part for part in found if isinstance(part, Grid))
  assert {*queue.columns["task"]} == {"one", "two"} and drift.columns["task"] == ["two"]


def test_a_decision_needs_a_name_and_is_logged(view):
  url = sessions.default_url(view)
  number = sessions.read(url)[0].id
  with pytest.raises(ValueError, match="reviewer's name"):
    sessions.decide(url, number, "approved", who=" ")
  assert sessions.decide(url, number, "approved", who="Ada") == (
    f"Session {number} is approved, it was pending.")
  with pytest.raises(ValueError, match="say by --note why"):
    sessions.decide(url, number, "quarantined", who="Ada")
  with open_store(url) as store:
    assert [one["who"] for one in store.moves(number)] == ["Ada"]


def test_without_a_store_it_says_so(tmp_path):
  run = RunFolder(tmp_path)
  [part] = sessions.parts(View(run, (run,), "step"))
  assert isinstance(part, Missing)
