"""The SDK's YAML read into settings: what has a place here, what has no effect and why, what is refused."""
import copy
import json

import pytest
import yaml

from atlas_jax.files.damage import Damaged
from atlas_jax.runtime import sdk_config

LLM = {"provider": "openai", "model": "some-model", "api_key_env": "SOME_KEY", "temperature": 0.2,
       "timeout_seconds": 20, "retry": {"attempts": 3, "backoff_seconds": 1.0}}
GIVEN = {
  "agent": {"type": "openai", "name": "a", "system_prompt": "Be brief.", "tools": [], "llm": LLM,
            "response_format": None},
  "student": {"max_plan_tokens": 9, "max_step_tokens": 9, "max_synthesis_tokens": 9, "prompt_guidance": {},
              "tool_choice": "required"},
  "teacher": {"llm": {**LLM, "api_base": "http://127.0.0.1:1/v1"}, "guidance_max_tokens": 9,
              "validation_max_tokens": 7, "prompt_guidance": {}},
  "orchestration": {"max_retries": 1, "step_timeout_seconds": 900, "rim_guidance_tag": "t",
                    "emit_intermediate_steps": True, "forced_mode": "paired"},
  "rim": {"small_model": LLM, "large_model": LLM, "active_judges": {}, "parallel_workers": 4,
          "variance_threshold": 0.15, "uncertainty_threshold": 0.3, "judge_prompt": "be fair"},
  "adaptive_teaching": {"certify_first_run": True, "default_tags": ["x"], "mode_override": None,
                        "probe": {"evidence_limit": 6, "fallback_mode": "coach", "timeout_seconds": 15,
                                  "thresholds": {"auto": 0.9, "paired": 0.7, "coach": 0.3}},
                        "reward": {"type": "rim", "timeout_seconds": 9}},
  "learning": {"provisional_acceptance": True, "gates": {"allowed_proper_nouns": []}, "history_limit": 5},
  "storage": {"database_url": "postgresql://localhost/atlas", "max_connections": 5},
  "runtime_safety": {"drift": {"window": 50, "z_threshold": 3.0}, "review": {"require_approval": True}},
  "metadata": {"team": "x"},
}
# Section 1.7 of the runtime's specification: keys that the SDK reads nowhere.
DEAD = {"orchestration.step_timeout_seconds", "orchestration.emit_intermediate_steps",
        "orchestration.rim_guidance_tag", "adaptive_teaching.certify_first_run",
        "adaptive_teaching.probe.evidence_limit", "adaptive_teaching.default_tags",
        "adaptive_teaching.reward.timeout_seconds", "student.max_plan_tokens", "student.max_step_tokens",
        "student.max_synthesis_tokens", "student.prompt_guidance", "teacher.guidance_max_tokens",
        "teacher.prompt_guidance", "rim.active_judges", "rim.parallel_workers",
        "learning.provisional_acceptance", "learning.gates.allowed_proper_nouns"}
RETRIES = {f"{name}.retry" for name in ("agent.llm", "teacher.llm", "rim.small_model", "rim.large_model")}


def changed(*places, to=None, drop=False):
  """The config with another value at a place."""
  given = copy.deepcopy(GIVEN)
  inner = given
  for name in places[:-1]:
    inner = inner[name]
  if drop:
    del inner[places[-1]]
  else:
    inner[places[-1]] = to
  return given


def test_every_key_has_a_place_or_a_warning(tmp_path):
  file = tmp_path / "sdk.yaml"
  file.write_text(yaml.safe_dump(GIVEN))
  found = sdk_config.load(file)
  assert {one.partition(" ")[0] for one in found.warnings} == DEAD | RETRIES
  endpoint = {"model": "some-model", "url": "https://api.openai.com/v1", "key_variable": "SOME_KEY",
              "temperature": 0.2, "timeout_s": 20, "deadline_s": 60}
  assert found.settings == {
    "agent": {"kind": "openai", "name": "a", "system": "Be brief.", "tool_choice": "required", **endpoint},
    "teacher": {**endpoint, "url": "http://127.0.0.1:1/v1", "max_tokens": 7},
    "lanes": {"max_attempts": 2, "forced": "paired"},
    "judges": {"small": endpoint, "large": endpoint, "variance_threshold": 0.15, "uncertainty_threshold": 0.3,
               "rubric": "be fair"},
    "probe": {"auto": 0.9, "paired": 0.7, "coach": 0.3, "fallback": "coach", "call_s": 15},
    "learner": {"history": 5}, "store": {"database_url": "postgresql://localhost/atlas", "connections": 5},
    "drift": {"window": 50, "z_threshold": 3.0}, "review": {"require_approval": True},
    "metadata": {"team": "x"}}
  assert set(found.settings) <= set(sdk_config.GROUPS)
  json.dumps(found.settings)


@pytest.mark.parametrize("given, said", [
  (changed("orchestration", "max_retry", to=1), "orchestration.max_retry is no key .* 'max_retries'"),
  (changed("agent", "llm", "modle", to=1), "agent.llm.modle is no key .* 'model'"),
  (changed("agent", "import_path", to="x"), "agent.import_path is no key"),  # Of another type of agent.
  (changed("agent", "type", to="opnai"), "agent.type='opnai' .* 'openai'"),
  (changed("agent", drop=True), "agent is missing"), (changed("teacher", drop=True), "teacher is missing"),
  (changed("agent", "llm", drop=True), "agent.llm is missing"),
  (changed("teacher", "llm", "model", drop=True), "teacher.llm.model is missing"),
  (changed("agent", "llm", "provider", to="bedrock"), "agent.llm.provider='bedrock' .*api_base"),
  (changed("rim", to=[1]), "rim is list"),
  (changed("orchestration", "max_retries", to="1"), "max_retries='1'"),
  (changed("adaptive_teaching", "reward", to={"type": "pthon"}), "must be rim or python"),
  (changed("adaptive_teaching", "reward", to={"type": "python"}), "reward.import_path is missing"),
  (changed("agent", "llm", "temperature", to="hot"), r"agent\.temperature='hot' is str"),
  ([1], "the config is list"),
])
def test_what_cannot_be_is_refused_with_its_place(given, said):
  with pytest.raises(ValueError, match=said):
    sdk_config.read(given)


def test_a_python_agent_keeps_its_function_and_folder():
  agent = {"type": "python", "name": "p", "system_prompt": "s", "import_path": "agents.mine",
           "attribute": "run", "working_directory": "./", "allow_generator": False, "llm": LLM,
           "tools": [{"name": "search", "description": "d", "parameters": {"type": "object"}}]}
  found = sdk_config.read(changed("agent", to=agent))
  assert found.settings["agent"] == {"kind": "python", "name": "p", "function": "agents.mine:run",
                                     "folder": "./"}
  assert found.settings["tools"] == [{"name": "search", "description": "d", "schema": {"type": "object"}}]
  said = [one for one in found.warnings if one.startswith(("agent", "student.tool"))]
  assert {one.partition(" ")[0] for one in said} == {
    "agent.tools[0]", "agent.allow_generator", "agent.llm.retry", "agent.system_prompt", "agent.llm",
    "student.tool_choice"}
  with pytest.raises(ValueError, match="agent.attribute is missing"):
    sdk_config.read(changed("agent", to={**agent, "attribute": None}))
  with pytest.raises(ValueError, match="agent.import_path is missing"):
    sdk_config.read(changed("agent", to={"type": "python", "name": "p"}))


def test_an_agent_of_http_sends_the_task_and_no_key_of_the_file():
  transport = {"base_url": "http://127.0.0.1:1/run", "headers": {"Authorization": "${TOKEN_X}", "X-A": "b"}}
  agent = {"type": "http_api", "name": "h", "system_prompt": "s", "transport": transport,
           "payload_template": {"mode": "{x}", "n": [1]}, "result_path": ["data", "output"]}
  found = sdk_config.read(changed("agent", to=agent))
  assert found.settings["agent"] == {
    "kind": "http", "name": "h", "url": "http://127.0.0.1:1/run", "headers": {"X-A": "b"},
    "header_variables": {"Authorization": "TOKEN_X"}, "result_path": ["data", "output"],
    "template": {"prompt": "{task}", "metadata": "{metadata}", "mode": "{{x}}", "n": [1]}}
  assert {"TOKEN_X", "SOME_KEY"} <= set(sdk_config.variables(found.settings))
  for place, value, said in (("payload_template", {"prompt": "x"}, "takes the place of the task"),
                             ("transport", {"headers": {}}, "base_url is missing"),
                             ("transport", {**transport, "headers": {"Authorization": "Bearer abc"}},
                              "holds a key")):
    with pytest.raises(ValueError, match=said) as raised:
      sdk_config.read(changed("agent", to={**agent, place: value}))
    assert "abc" not in str(raised.value)


def test_a_reward_of_python_is_a_grader():
  reward = {"type": "python", "import_path": "mine.rewards", "attribute": "score", "parameters": {"a": 1}}
  found = sdk_config.read(changed("adaptive_teaching", "reward", to=reward))
  assert found.settings["grader"] == {"function": "mine.rewards:score", "parameters": {"a": 1}}


def test_files_are_read_safely(tmp_path):
  file = tmp_path / "sdk.yaml"
  file.write_text("agent: !!python/object/apply:os.system ['touch ran']\n")
  with pytest.raises(Damaged, match="sdk.yaml"):
    sdk_config.load(file)
  file.write_text("agent: {type: x}\nteacher: {a: 1}\n")
  with pytest.raises(ValueError, match="sdk.yaml: .*agent.type='x'"):
    sdk_config.load(file)
  with pytest.raises(FileNotFoundError):
    sdk_config.load(tmp_path / "none.yaml")
