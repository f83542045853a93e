"""Agents found in a folder of code: without importing it, then imported without secrets, and what changes."""
import json

import pytest

from atlas_jax.files.damage import Damaged
from atlas_jax.runtime import discover
from atlas_jax.runtime.agents.load import load
from tests.runtime.agents.agents import call

CODE = """
import os
open({ran!r}, "a").write("imported ")
print("noise", flush=True)


@atlas.agent
class Decorated:
  pass


class Actor:
  def act(self, task):
    pass


class Both:
  def reset(self): ...
  def step(self, action): ...


def run(prompt, metadata=None):
  return prompt + " " + str(sorted(name for name in os.environ if "KEY" in name))


def _private(task):
  pass


def helper(x, y):
  pass


def create_agent(size=3):
  return Graph()


def make_env(size):
  pass


class Graph:
  async def ainvoke(self, input):
    return "from a graph"


thing = 3
"""


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "pkg").mkdir()
  (tmp_path / "pkg" / "agent.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
  (tmp_path / "broken.py").write_text("def (:\n")
  (tmp_path / "latin.py").write_bytes(b"# \xff\n")
  (tmp_path / ".venv").mkdir()
  (tmp_path / ".venv" / "x.py").write_text("def run(task): pass\n")
  return tmp_path


def of(folder, name) -> discover.Candidate:
  return next(one for one in discover.find(folder).candidates if one.name == name)


def test_candidates_have_file_line_and_reason_and_nothing_is_imported(folder):
  found = discover.find(folder)
  assert [(one.role, one.name, one.line, one.what, one.why) for one in found.candidates] == [
    ("agent", "Decorated", 8, "class", "its decorator is atlas.agent"),
    ("agent", "run", 22, "function", "it takes (prompt, metadata)"),
    ("agent", "Actor", 12, "class", "it has act"),
    ("agent", "Graph", 42, "class", "it has ainvoke"),
    ("agent", "create_agent", 34, "maker", "its name says that it makes one"),
    ("environment", "Both", 17, "class", "it has reset and step"),
    ("environment", "make_env", 38, "maker", "its name says that it makes one")]
  assert {one.file for one in found.candidates} == {"pkg/agent.py"}
  assert [one.partition(":")[0] for one in found.unread] == ["broken.py", "latin.py"]
  assert not (folder / "ran").exists()
  with pytest.raises(ValueError, match="there is no folder"):
    discover.find(folder / "none")


def test_a_trusted_name_is_imported_in_a_process_without_secrets(folder, monkeypatch):
  monkeypatch.setenv("PLANTED_KEY", "planted-secret")
  probe = folder / "probe.py"
  probe.write_text("import os, pathlib\npathlib.Path('seen').write_text(repr(dict(os.environ)))\n\n"
                   "def run(task):\n  return task\n")
  assert discover.trusted(folder, "probe.py:run") == ("probe.py:run", "python", "task", None)
  assert "planted" not in (folder / "seen").read_text()
  assert str(folder) not in (folder / "seen").read_text()


@pytest.mark.parametrize("place, kind, said", [
  ("pkg/agent.py:create_agent", None, "NameError"),  # Its decorator is not defined there.
  ("maker.py:create_agent", "graph", None), ("maker.py:Graph", None, "it is a class"),
  ("maker.py:graph", "graph", None), ("maker.py:number", None, "cannot be called"),
  ("maker.py:crate_agent", None, "did you mean 'create_agent'"), ("maker.py:two", None, "needs b"),
])
def test_what_a_trusted_name_is(folder, place, kind, said):
  (folder / "maker.py").write_text(
    "class Graph:\n  async def ainvoke(self, input):\n    return 'x'\n\ndef create_agent(size=3):\n"
    "  return Graph()\n\ndef two(task, b):\n  pass\n\ngraph = Graph()\nnumber = 3\n")
  found = discover.trusted(folder, place)
  assert found.kind == kind and (said is None) == (found.problem is None)
  assert said is None or said in found.problem


@pytest.mark.parametrize("code, said", [
  ("import time; time.sleep(60)", "took more than 1 seconds"),
  ("import os; print('bye now', flush=True); os._exit(3)", "ended the process: bye now"),
])
def test_imports_that_hang_or_end_are_errors(folder, code, said):
  (folder / "bad.py").write_text(code)
  with pytest.raises(ValueError, match=said):
    discover.trusted(folder, "bad.py:run", timeout_s=1.0 if "sleep" in code else 30.0)
  with pytest.raises(ValueError, match="must be FILE.py:NAME"):
    discover.trusted(folder, "bad")


def test_a_candidate_becomes_an_agent(folder, monkeypatch):
  monkeypatch.chdir(folder)
  (folder / "plain.py").write_text("def run(task):\n  return f'did {task}'\n")
  chosen = next(one for one in discover.find(folder).candidates if one.file == "plain.py")
  assert call(load(discover.agent_config(chosen))).text == "did 2+2"
  with pytest.raises(ValueError, match="pkg/agent.py:Actor cannot be an agent as it is"):
    discover.agent_config(of(folder, "Actor"))
  assert discover.agent_config(of(folder, "create_agent")) == {"kind": "graph",
                                                               "object": "pkg/agent.py:create_agent"}
  bad = discover.Trusted("x", None, None, "why")
  with pytest.raises(ValueError, match="why"):
    discover.agent_config(of(folder, "run"), bad)


def test_changes_are_named_the_chosen_one_first(folder):
  found = discover.find(folder)
  path = discover.save(folder, found, of(folder, "run"), discover.Trusted("a:b", "python", "task", None))
  assert path == folder / ".atlas" / "discover.json" and discover.verify(folder) == []
  assert str(folder) not in path.read_text()  # It may be moved with the code.
  code = (folder / "pkg" / "agent.py").read_text()
  (folder / "pkg" / "agent.py").write_text(code.replace("thing = 3", "thing = 4"))
  assert discover.verify(folder) == ["pkg/agent.py has changed, outside of its candidates"]
  changed = code.replace("class Actor", "class Moved").replace('return prompt + " "', 'return prompt + "!"')
  (folder / "pkg" / "agent.py").write_text(changed)
  assert discover.verify(folder) == [
    "pkg/agent.py:run has changed (line 22)", "pkg/agent.py:Actor is gone (it was class in line 12)",
    "pkg/agent.py:Moved is new (line 12)"]


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"format": 1, "candidates": [{}]}',
                                     '{"format": 1, "candidates": [], "chosen": null, "files": {"a": 1}}'])
def test_a_damaged_file_is_refused_and_a_missing_one_says_what_to_do(folder, content):
  with pytest.raises(FileNotFoundError, match="atlas env init"):
    discover.verify(folder)
  (folder / ".atlas").mkdir()
  (folder / discover.FILE).write_text(content)
  with pytest.raises(Damaged, match="atlas env init"):
    discover.verify(folder)


def test_a_file_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch):
  path = discover.save(folder, discover.find(folder), None)
  before = json.loads(path.read_text())
  with pytest.raises(TypeError):
    discover.save(folder, discover.find(folder)._replace(unread=({1, 2},)), None)
  assert json.loads(path.read_text()) == before and [one.name for one in path.parent.iterdir()] == [path.name]
