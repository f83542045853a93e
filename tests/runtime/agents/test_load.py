"""Agents by kind: every kind is found, errors name the field, imports are listed without importing."""
import pathlib

import pytest

from atlas_jax.runtime.agents import load
from tests.runtime.agents.agents import call

HERE = pathlib.Path(__file__).parent / "agents.py"


def test_every_adapter_is_a_kind():
  assert {"python", "openai"} <= set(load.KINDS)


def test_a_python_agent_is_loaded_by_file_or_module():
  for name in (f"{HERE}:echo", "tests.runtime.agents.agents:echo"):
    agent = load.load({"kind": "python", "function": name, "idempotent": True})
    assert call(agent).text == "echo 2+2" and agent.idempotent


@pytest.mark.parametrize("given, said", [
  ({"kind": "pyhton"}, r"agent\.kind='pyhton' .* did you mean 'python'"),
  ({}, r"agent\.kind=None"),
  ({"kind": ["x"]}, r"agent\.kind=\['x'\]"),
  ("python", "agent is str"),
  ({"kind": "python"}, r"agent\.function is missing; it must be a text"),
  ({"kind": "python", "function": ""}, "agent: function is missing"),
  ({"kind": "python", "functoin": "x"}, r"agent\.functoin is no field; did you mean 'function'"),
  ({"kind": "python", "function": 3}, r"agent\.function=3 is int; it must be a text"),
  ({"kind": "python", "function": "a:b", "idempotent": 1}, r"agent\.idempotent=1 is int"),
  ({"kind": "python", "function": "a:b", "name": 1}, r"agent\.name=1 is int; it must be a text or null"),
  ({"kind": "openai", "url": "ftp://x", "model": "m"}, "agent: the url of an endpoint"),
  ({"kind": "openai", "url": "http://x/v1", "model": "m", "tries": True}, r"agent\.tries=True is bool"),
  ({"kind": "openai", "url": "http://x/v1", "model": "m", "tries": 0}, "agent: tries=0"),
  ({"kind": "openai", "url": "http://x/v1", "model": "m", "extra": []}, r"agent\.extra=\[\] is list"),
  ({"kind": "openai", "url": "http://x/v1", "model": "m", "tool_choice": "no"}, "agent: tool_choice='no'"),
])
def test_errors_name_the_field(given, said):
  with pytest.raises(ValueError, match=said):
    load.check(given)


def test_errors_of_loading_name_the_field_too():
  with pytest.raises(ValueError, match=r"student: .*has no 'ech'; did you mean 'echo'"):
    load.load({"kind": "python", "function": f"{HERE}:ech"}, field="student")


def test_imports_are_listed_without_importing(tmp_path):
  file = tmp_path / "agent.py"
  file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n\ndef run(task):\n  return task\n")
  given = {"kind": "python", "function": f"{file}:run"}
  load.check(given)
  assert load.imports(given) == [("agent.function", "imports", f"{file}:run")]
  assert str(load.imports(given)[0]) == f"agent.function imports {file}:run"
  assert not (tmp_path / "ran").exists()
  assert load.imports({"kind": "openai", "url": "http://x/v1", "model": "m"}) == []
  assert call(load.load(given)).text == "2+2" and (tmp_path / "ran").exists()
