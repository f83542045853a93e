"""Traces of some updates are where TensorBoard looks for them, also if the run ends before their last."""
import gzip
import json

import pytest

from atlas_jax import train
from atlas_jax.monitor.trace import StepTrace
from tests import runs
from tests.helpers import quick_compilation


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def traces(workdir):
  return sorted((workdir / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb"))


def start(workdir, **changes):
  config = runs.toy_config(**changes)
  return train.run(config, runs.toy_recipe(config), runs.one_device(), workdir)


@pytest.mark.parametrize("steps", ["2:3", "5:40"])
def test_a_run_leaves_a_trace_of_its_updates(steps, tmp_path):
  plain = start(tmp_path / "plain")
  assert traces(tmp_path / "plain") == []
  summary = start(tmp_path / "traced", monitor__profile_steps=steps)
  found, = traces(tmp_path / "traced")
  assert found.stat().st_size > 1000
  events = json.loads(gzip.decompress(next(found.parent.glob("*.trace.json.gz")).read_bytes()))["traceEvents"]
  assert sum(str(event.get("name", "")).startswith("PjitFunction(step)") for event in events) >= 2
  # What is trained does not change.
  assert summary["train_loss_nats"] == plain["train_loss_nats"]


def test_updates_outside_of_the_range_begin_nothing(tmp_path):
  trace = StepTrace(tmp_path, "4:5")
  for step in (1, 3, 6):
    trace.before(step)
    assert not trace.ends(step)
  trace.close(6)
  assert traces(tmp_path) == []


def test_a_process_that_does_not_record_ends_where_the_others_do(tmp_path):
  trace = StepTrace(tmp_path, "4:5", records=False)
  for step in range(1, 6):
    trace.before(step)
    assert trace.ends(step) == (step == 5)
    trace.end(step)
  assert not trace.ends(5) and traces(tmp_path) == []


@pytest.mark.parametrize("text", ["20", "5:4", "0:3", "a:b", "1:2:3"])
def test_other_texts_are_refused(text):
  with pytest.raises(ValueError, match=r"profile_steps.*such as 20:25"):
    runs.toy_config(monitor__profile_steps=text)
