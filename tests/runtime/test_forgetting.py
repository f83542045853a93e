"""Memory streams by config: recorded and reviewed with their sessions, and deleted with them."""
import json

import pytest

from atlas_jax.data.traces import sql
from atlas_jax.data.traces.review import decide
from atlas_jax.data.traces.store import open_store
from atlas_jax.runtime import cli
from tests.language.serve import scripted
from tests.language.serve.test_http_server import serving

CONFIG = """
from atlas_jax.runtime import settings
def get_config(arg=None):
  config = settings.default()
  model = {"url": f"http://127.0.0.1:%d/v1", "tries": 1}
  if arg == "teacher":
    config.agent.update(kind="python", options={"function": "atlas_jax.runtime.worlds.arithmetic:student",
                                                "name": "sums"}, templates="plain")
    config.teacher.update(kind="endpoint", served_as="base", max_tokens=64, **model)
    config.routing.lane = "paired"
  else:
    config.agent.update(kind="openai", options={**model, "model": "base"})
    config.routing.lane = "auto"
  config.memory_streams.update(on=True, role=arg or "student")
  return config
"""


class Streams:
  """Commands of a runtime whose model is behind a scripted server."""

  def __init__(self, folder, capsys, port, role="student"):
    self.folder, self.capsys = folder, capsys
    (folder / "config.py").write_text(CONFIG % port)
    self.flags = [f"--config={folder}/config.py:{role}", f"--config.store.url=sqlite:///{folder}/a.db",
                  f"--config.store.spool={folder}/spool"]

  def __call__(self, *words):
    code = cli.main([*words, *self.flags])
    return code, self.capsys.readouterr()

  def run(self, task):
    """Runs a task and approves its session; returns its line and what is recorded of its stream."""
    _, said = self("run", f"--task={task}", "--json")
    line = json.loads(said.out)
    with open_store(f"sqlite:///{self.folder}/a.db", writable=True) as store:
      decide(store, line["session_id"], "approved", who="ada")
      [stream] = store.session(line["session_id"]).record()["session_metadata"]["memory_streams"]
    return line, stream

  def kept(self):
    return len(list((self.folder / "conversations").glob("*.json")))


@pytest.fixture
def service(tmp_path):
  return scripted.service(lambda text: '{"valid": true, "guidance": null}', folder=tmp_path / "conversations")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_forgetting_a_session_deletes_all_streams_that_hold_it(tmp_path, capsys, service, role):
  with serving(service, headers_s=5.0) as port:
    world = Streams(tmp_path, capsys, port, role)
    assert "streams     ok: of the " + role in world("doctor")[1].out
    first, begun = world.run("11+22=")
    second, branch = world.run("12+13=")
    third, _ = world.run("14+15=")
    assert begun["parent"] is None and branch["parent"] == begun["id"]
    assert branch["sessions"] == [first["session_key"], second["session_key"]] and world.kept() == 3
    code, said = world("forget", f"--session={second['session_key']}")
    # The third's too, which holds what the second wrote.
    assert code == 0 and "1 sessions, 0 lessons and 2 memory streams are deleted" in said.out
    assert world.kept() == 1 and world("forget", f"--session={second['session_key']}")[0] == 1
    code, said = world("forget", "--tenant=default")
    assert code == 0 and "2 sessions, 0 lessons and 1 memory streams" in said.out and world.kept() == 0


def test_what_a_server_does_not_delete_is_named_and_deleted_later(tmp_path, capsys, service):
  with serving(service, headers_s=5.0) as port:
    world = Streams(tmp_path, capsys, port)
    line, stream = world.run("11+22=")
  for _ in range(2):
    code, said = world("forget", f"--session={line['session_key']}")
    assert code == 5 and f"the memory stream {stream['id']} is not deleted" in said.err
  assert "0 sessions" in said.out and world.kept() == 1  # The session itself is gone at the first time.
  with open_store(f"sqlite:///{tmp_path}/a.db") as store, store.database.reading() as transaction:
    assert len(transaction.rows(sql.PLAYBOOK_KEYS)) == 1


def test_a_stream_that_a_crash_kept_from_being_listed_is_deleted_too(tmp_path, capsys, service):
  with serving(service, headers_s=5.0) as port:
    world = Streams(tmp_path, capsys, port)
    line, _ = world.run("11+22=")
    with open_store(f"sqlite:///{tmp_path}/a.db", writable=True) as store:
      with store.database.writing() as transaction:
        [(key,)] = transaction.rows(sql.PLAYBOOK_KEYS)
        transaction.run(sql.DROP_PLAYBOOK, key=key)
    code, said = world("forget", f"--session={line['session_key']}")
    assert code == 0 and world.kept() == 0


@pytest.mark.parametrize(("more", "said"), [
  ({"agent.kind": "python", "agent.options.function": "a:b"}, "config.agent"),
  ({"memory_streams.role": "teacher"}, "needs config.teacher.kind='endpoint', and it is 'none'"),
  ({"memory_streams.role": "judge"}, "must be one of student, teacher"),
  ({"memory_streams.most_tokens": "0"}, "config.memory_streams.most_tokens=0 must be at least 1")])
def test_wrong_settings_are_named(tmp_path, capsys, more, said):
  world = Streams(tmp_path, capsys, 9)
  code, told = world("config", "validate", *(f"--config.{name}={value}" for name, value in more.items()))
  assert code == 3 and said in told.err


def test_a_model_without_memory_is_named_by_the_doctor_and_takes_no_answer_away_unsaid(tmp_path, capsys):
  with serving(scripted.service(folder=tmp_path / "c", trace=False), headers_s=5.0) as port:
    world = Streams(tmp_path, capsys, port)
    code, said = world("doctor")
    assert code == 1 and "streams     wrong: " in said.out and "has no memory" in said.out
    code, said = world("run", "--task=1+1=", "--json")
    assert code == 1 and "has no memory" in json.loads(said.out)["problem"]
