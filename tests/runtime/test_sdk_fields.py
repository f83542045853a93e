"""`--sdk-config`: a file of the Atlas SDK runs, dead keys are warned of by name, and unknown ones refused."""
import json
import re

import pytest
import yaml

from atlas_jax.runtime import cli, sdk_fields, settings
from tests.rollout.chat_server import Answer
from tests.runtime.test_sdk_config import DEAD, GIVEN, LLM, changed

WORLD = "atlas_jax.runtime.worlds.arithmetic"


def written(tmp_path, given):
  file = tmp_path / "sdk.yaml"
  file.write_text(yaml.safe_dump(given))
  return str(file)


def test_every_field_has_its_place_and_every_other_key_a_warning(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("SOME_KEY", "k")
  assert cli.main(["config", "validate", f"--sdk-config={written(tmp_path, GIVEN)}",
                   "--config.routing.lane=coach"]) == 0
  said = capsys.readouterr()
  found = json.loads(said.out)
  assert (found["agent"]["kind"], found["agent"]["options"]["system"]) == ("openai", "Be brief.")
  assert found["teacher"]["served_as"] == "some-model" and found["teacher"]["max_tokens"] == 7
  assert found["routing"]["lane"] == "coach" and found["session"]["max_attempts"] == 2
  assert (found["routing"]["auto_from"], found["routing"]["fallback"]) == (0.9, "coach")
  assert found["judges"]["on"] and found["judges"]["options"]["models"]["large_model"] == "some-model"
  assert found["store"]["url"] == "postgresql://localhost/atlas" and found["metadata"] == {"team": "x"}
  for name in (*DEAD, "rim: rubric", "storage: connections", "runtime_safety.drift", "runtime_safety.review",
               "learning: history", "adaptive_teaching.probe has no llm", "rim.small_model: temperature"):
    assert f"sdk.yaml: {name}" in said.err, name


@pytest.mark.parametrize(("given", "said"), [
  (changed("orchestration", "max_retry", to=1), "orchestration.max_retry is no key .* 'max_retries'"),
  (changed("teacher", drop=True), "teacher is missing"),
  (changed("orchestration", "forced_mode", to="fast"), "config.routing.lane='fast' must be one of auto"),
  (changed("storage", "database_url", to=7), "config.store.url=7 must be a text"),
  (changed("adaptive_teaching", "probe", "thresholds", "auto", to=3), "config.routing.auto_from=3")])
def test_wrong_files_are_refused_by_name(tmp_path, capsys, given, said):
  file = written(tmp_path, given)
  for command in (["config", "validate"], ["run", "--task=a"]):
    assert cli.main([*command, f"--sdk-config={file}"]) == 3
    assert re.search(said, capsys.readouterr().err)
  assert cli.main(["doctor", f"--sdk-config={file}"]) == 3
  assert re.search(said, capsys.readouterr().out)


def test_one_config_is_given_and_it_is_there(tmp_path, capsys):
  assert cli.main(["run", "--task=a", "--config=x.py", "--sdk-config=y.yaml"]) == 2
  assert cli.main(["run", "--task=a", f"--sdk-config={tmp_path}/y.yaml"]) == 3
  assert "y.yaml: there is no such file" in capsys.readouterr().err


def test_a_file_of_the_sdk_runs(tmp_path, capsys, server):
  server.use(lambda number, body: Answer({"choices": [{"message": {"content": json.dumps(
    {"valid": True, "guidance": None})}}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}))
  given = {"agent": {"type": "python", "name": "sums", "import_path": WORLD, "attribute": "student"},
           "teacher": {"llm": {"provider": "openai", "model": "m", "api_base": server.url}},
           "student": {"max_plan_tokens": 9}, "storage": {"database_url": f"sqlite:///{tmp_path}/atlas.db"},
           "orchestration": {"max_retries": 1, "forced_mode": "paired"}}
  flags = [f"--sdk-config={written(tmp_path, given)}", f"--config.store.spool={tmp_path}/spool"]
  assert cli.main(["run", "--task=11+22=", "--json", *flags]) == 0
  said = capsys.readouterr()
  line = json.loads(said.out)
  assert (line["answer"], line["verified"], line["lane"]) == ("33", True, "paired")
  assert "warning" in said.err and "student.max_plan_tokens has no effect" in said.err
  cli.main(["doctor", *flags])  # A server of tests does not say that it is healthy, which is another matter.
  assert "agent       ok: sums" in capsys.readouterr().out


def test_other_parts_of_the_sdk_have_a_place(tmp_path, monkeypatch):
  monkeypatch.setenv("SOME_KEY", "k")
  given = {**GIVEN, "learning": {"llm": LLM, "enabled": True}, "adaptive_teaching": {
    "triage_adapter": "mine:look", "enabled": True, "probe": {"llm": LLM, "timeout_seconds": 300},
    "reward": {"type": "python", "import_path": "mine", "attribute": "score", "parameters": {"a": 1}}},
    "orchestration": {"max_retries": 0}}
  found = sdk_fields.read(written(tmp_path, given), {})
  made = settings.of_config(found.config)
  assert made.lessons is not None and made.learner.kind == "endpoint" and made.session.max_attempts == 1
  assert made.triage.function == "mine:look" and made.grader == "mine:score" and made.judges is None
  assert made.probe.endpoint.timeout_s == 300.0 and made.lane is None
  said = " ".join(found.warnings)
  assert "rim has no effect: the reward is the function" in said and "parameters={'a': 1}" in said
  off = sdk_fields.read(written(tmp_path, changed("adaptive_teaching", "enabled", to=False)), {})
  assert off.config.routing.lane == "paired" and off.config.learner.kind == "none"
