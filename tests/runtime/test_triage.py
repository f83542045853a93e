"""Triage by config: a function or a model looks at tasks, and can only make supervision stricter."""
import asyncio
import json
import types

import pytest

from atlas_jax.data.traces.store import open_store
from atlas_jax.rollout.chat_form import AskOptions
from atlas_jax.runtime import cli, triage
from atlas_jax.runtime.chat_models import FunctionModel, ModelError
from atlas_jax.runtime.evidence import Evidence
from atlas_jax.runtime.route import Dossier, route
from atlas_jax.runtime.triage import FunctionTriage, ModelTriage
from tests.runtime.parts import Script
from tests.runtime.worlds.sums import words

LOOKS = """
import time
def look(task, metadata):
  assert "ground_truth" not in metadata
  if "99" in task:
    return {"summary": "a pump", "risks": [{"severity": "critical", "description": "it floods"}], "tags": []}
  return {"risks": []}
def raises(task, metadata):
  raise RuntimeError("boom")
def sleeps(task, metadata):
  time.sleep(0.3)
def prose(task, metadata):
  return "all is well"
def misspelt(task, metadata):
  return {"risk": []}
"""


def routed(tmp_path, capsys, function, task="99+1="):
  """Runs a task whose lane is chosen with triage; returns its line and its record."""
  (tmp_path / "looks.py").write_text(LOOKS)
  more = {"routing.lane": "None", "triage.kind": "function", "triage.deadline_s": "0.1",
          "triage.function": f"{tmp_path}/looks.py:{function}"}
  cli.main(words(tmp_path, "run", f"--task={task}", "--json", **more))
  line = json.loads(capsys.readouterr().out)
  with open_store(f"sqlite:///{tmp_path}/atlas.db") as store:
    return line, store.session(line["session_id"]).record()


def test_a_risk_that_a_function_sees_makes_a_session_stricter(tmp_path, capsys):
  line, record = routed(tmp_path, capsys, "look")
  assert line["lane"] == "escalate" and record["routing"]["inputs"]["lanes"]["risk"] == "escalate"
  line, record = routed(tmp_path, capsys, "look", "1+1=")
  assert line["lane"] == "paired" and record["routing"]["inputs"]["lanes"]["risk"] == "auto"


@pytest.mark.parametrize(("function", "said"), [
  ("raises", "boom"), ("sleeps", "TimeoutError"), ("prose", "gave str"), ("misspelt", "the field 'risk'")])
def test_a_function_that_fails_counts_as_a_high_risk_and_the_record_says_so(tmp_path, capsys, function, said):
  line, record = routed(tmp_path, capsys, function, "1+1=")
  assert line["status"] == "succeeded" and record["routing"]["inputs"]["lanes"]["risk"] == "paired"
  [problem] = record["session_metadata"]["problems"]
  assert problem.startswith("triage failed: ") and said in problem


@pytest.mark.parametrize(("more", "said"), [
  ({}, "config.triage.kind='function' and config.routing.lane='paired'"),
  ({"routing.lane": "None", "triage.function": "None"}, "function=None with kind='function'"),
  ({"triage.kind": "endpoint"}, "config.triage.kind='endpoint' needs config.triage.url")])
def test_wrong_settings_are_named(tmp_path, capsys, more, said):
  given = {"triage.kind": "function", "triage.function": "a.py:b", **more}
  assert cli.main(words(tmp_path, "config", "validate", **given)) == 3
  assert said in capsys.readouterr().err


def test_a_dry_run_names_the_function_and_the_doctor_looks_for_it(tmp_path, capsys):
  given = {"routing.lane": "None", "triage.kind": "function", "triage.function": "nowhere.py:look"}
  assert cli.main(words(tmp_path, "run", "--task=a", "--dry-run", **given)) == 0
  listed = json.loads(capsys.readouterr().out)["imports"]
  assert {"field": "triage.function", "action": "imports", "name": "nowhere.py:look"} in listed
  assert cli.main(words(tmp_path, "doctor", **given)) == 1
  assert "triage      wrong: there is no file 'nowhere.py'" in capsys.readouterr().out


def test_a_model_is_shown_the_task_alone_and_its_tokens_count():
  word = {"summary": "sums", "risks": [{"severity": "high", "description": "money"}], "tags": ["sums"]}
  script = Script(json.dumps(word), "prose", "prose")
  look = ModelTriage(FunctionModel(script), AskOptions(), 5.0)
  found = asyncio.run(look("1+1", {"secret": "x"}))
  assert found[:3] == ("sums", ({"severity": "high", "description": "money"},), ("sums",))
  assert found.tokens.calls == 1 and json.loads(script.asked[0][1]["content"]) == {"task": "1+1"}
  with pytest.raises(ModelError, match="after one repair"):
    asyncio.run(look("1+1", {}))


def test_objects_of_the_sdk_are_read_and_no_word_makes_supervision_looser():
  risk = types.SimpleNamespace(severity=types.SimpleNamespace(value="Critical"), description="d")
  mine = types.SimpleNamespace(summary="s", risks=[risk], tags=["t"], complexity="low")

  async def look(task, metadata):
    return mine

  found = asyncio.run(FunctionTriage(look, 5.0)("a", {}))
  assert found == Dossier("s", ({"severity": "critical", "description": "d"},), ("t",))
  right = Evidence((True,) * 20)
  assert route(right, None).lane == "auto"
  for dossier in (Dossier(), triage.dossier_of({"risks": [{"severity": "low"}], "tags": ["safe"]})):
    assert route(right, None, dossier).lane == "auto"
