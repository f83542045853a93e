"""Memory streams of sessions: who may read one, that it is branched and not shared, and that all is off."""
import asyncio
import contextlib

import pytest

from atlas_jax.data.traces.review import decide
from atlas_jax.data.traces.store import open_store
from atlas_jax.rollout import rewards
from atlas_jax.rollout.endpoint import Endpoint, EndpointError
from atlas_jax.rollout.endpoint_settings import EndpointSettings
from atlas_jax.runtime import memory_streams
from atlas_jax.runtime.agents.openai import OpenAIAgent, OpenAIAgentSettings
from atlas_jax.runtime.memory_streams import MemoryStreams, StreamSettings
from atlas_jax.runtime.pool import SessionPool
from atlas_jax.runtime.scoring import GraderAndJudges
from atlas_jax.runtime.session import FixedLane, SessionParts, SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from tests.language.serve import scripted
from tests.language.serve.test_http_server import serving

KEY = "t/family"


class World:
  """A server, a store and sessions whose student has a stream."""

  def __init__(self, folder, **settings):
    self.folder = folder
    self.url = f"sqlite:///{folder}/t.db"
    self.settings = StreamSettings(**{"on": True, **settings})

  def run(self, *keys, learning_key=KEY, tenant="t", version="1"):
    """Runs sessions one after another; returns the streams' counts and the texts that the model read."""
    # A server that was started again: only its folder is the same.
    made = scripted.service(lambda text: "ok", folder=self.folder / "conversations")
    made.conversations._most = 100

    async def main(port):
      endpoint = Endpoint(EndpointSettings(f"http://127.0.0.1:{port}/v1", "base", tries=1))
      async with contextlib.AsyncExitStack() as stack:
        store = RuntimeStore(StoreSettings(self.url, str(self.folder / "spool")))
        await store.open(create=True)
        stack.push_async_callback(store.close)
        stack.push_async_callback(endpoint.close)
        streams = MemoryStreams(store, endpoint, self.settings)

        def parts(spec):
          how = OpenAIAgentSettings(endpoint.settings.url, "base", version=version)
          agent = OpenAIAgent(how, endpoint=streams.endpoint_of(spec, version))
          return SessionParts(agent, None, FixedLane("auto"), GraderAndJudges(rewards.load("correct")))

        pool = SessionPool(parts, store)
        specs = [SessionSpec(key, f"say {key}", tenant=tenant, learning_key=learning_key) for key in keys]
        results = [await pool.run(one) for one in specs]
        return streams.counts, results

    with serving(made, headers_s=5.0) as port:
      self.counts, self.results = asyncio.run(main(port))
    return [scripted.TOKENIZER.decode([one for one in request.prompt if one < 256])
            for request in made.scheduler.asked]

  def review(self, key, status):
    number = next(one.session_id for one in self.known if one.session_key == key)
    with open_store(self.url, writable=True) as store:
      decide(store, number, status, who="ada", note="planted" if status == "quarantined" else None)

  def first(self, *keys, **more):
    found = self.run(*keys, **more)
    self.known = [*getattr(self, "known", []), *self.results]
    return found


def test_only_approved_streams_are_read_and_a_branch_leaves_them_as_they_are(tmp_path):
  world = World(tmp_path)
  world.first("one")
  assert world.results[0].answer == "ok" and world.counts == {"begun": 1}
  (read,) = world.first("two")
  assert "say one" not in read and world.counts == {"unread: review": 1, "begun": 1}
  world.review("one", "approved")
  three, = world.first("three")
  assert "say one" in three and "ok" in three and "say two" not in three
  assert world.counts["branched"] == 1
  four, = world.first("four")  # "three" is not approved, and "one" has not changed.
  assert "say one" in four and "say three" not in four
  world.review("three", "approved")
  five, = world.first("five")
  assert "say one" in five and "say three" in five
  # What was built on a session that is quarantined later is read no more.
  world.review("one", "quarantined")
  six, = world.first("six")
  assert not any(f"say {word}" in six for word in ("one", "three"))


def test_other_tenants_families_and_versions_read_nothing(tmp_path):
  world = World(tmp_path)
  world.first("one")
  world.review("one", "approved")
  for more in ({"tenant": "u", "learning_key": "u/family"}, {"learning_key": "t/other"}, {"version": "2"}):
    (read,) = world.run(f"k{sorted(more)}{len(str(more))}", **more)
    assert "say one" not in read and world.counts["begun"] == 1
  with pytest.raises(ValueError, match="not of its tenant"):
    world.run("foreign", tenant="u")  # Another tenant's key, though the runtime derives none such.
  spec = SessionSpec("one", "x", tenant="u", learning_key="u/family")
  assert memory_streams.stream_id(spec, "student") != memory_streams.stream_id(
    SessionSpec("one", "x", tenant="t", learning_key=KEY), "student")


def test_long_streams_are_left_and_old_ones_deleted(tmp_path):
  world = World(tmp_path, most_tokens=5, most_streams=2)
  for key in ("one", "two", "three"):
    world.first(key)
    world.review(key, "approved")
  assert world.counts["unread: size"] == 2 and world.counts["begun"] == 1
  files = list((tmp_path / "conversations").glob("*.json"))
  assert len(files) == 2


def test_it_is_off_unless_asked_for(tmp_path):
  world = World(tmp_path, on=False)
  world.first("one")
  assert world.counts == {} and not list((tmp_path / "conversations").glob("*.json"))
  assert not StreamSettings().on
  with pytest.raises(ValueError, match=r"streams\.role"):
    StreamSettings(role="judge")


def test_a_later_request_of_a_session_sends_what_is_new_alone(tmp_path):
  async def main(port):
    endpoint = Endpoint(EndpointSettings(f"http://127.0.0.1:{port}/v1", "base", tries=1))
    store = RuntimeStore(StoreSettings(f"sqlite:///{tmp_path}/t.db", str(tmp_path / "spool")))
    await store.open(create=True)
    streams = MemoryStreams(store, endpoint, StreamSettings(on=True))
    spec = SessionSpec("k", "x", tenant="t", learning_key=KEY)
    try:
      model = streams.endpoint_of(spec, "1")
      asked = [{"role": "user", "content": "question"}]
      reply = await model.ask(asked)
      more = [*asked, {"role": "assistant", "content": reply.text}, {"role": "user", "content": "guidance"}]
      await model.ask(more)
      _, (entry,) = await store.read_playbook(f"{KEY}~student")
      return entry, await streams.ids_of(KEY)
    finally:
      await endpoint.close()
      await store.close()

  made = scripted.service(lambda text: "ok", folder=tmp_path / "c")
  with serving(made, headers_s=5.0) as port:
    entry, ids = asyncio.run(main(port))
  second = scripted.TOKENIZER.decode([one for one in made.scheduler.asked[1].prompt if one < 256])
  assert second.count("question") == 1 and second.count("guidance") == 1
  assert ids == [entry["id"]] and entry["tokens"] >= len(made.scheduler.asked[1].prompt)


def test_a_model_without_memory_is_refused(tmp_path):
  async def main(port):
    endpoint = Endpoint(EndpointSettings(f"http://127.0.0.1:{port}/v1", "base", tries=1))
    store = RuntimeStore(StoreSettings(f"sqlite:///{tmp_path}/t.db", str(tmp_path / "spool")))
    await store.open(create=True)
    streams = MemoryStreams(store, endpoint, StreamSettings(on=True))
    try:
      with pytest.raises(EndpointError, match="has no memory"):
        await streams.opened(SessionSpec("k", "x", tenant="t", learning_key=KEY), "1")
      assert (await endpoint.call("GET", "conversations/none"))[0] == 404
    finally:
      await endpoint.close()
      await store.close()

  with serving(scripted.service(folder=tmp_path / "c", trace=False), headers_s=5.0) as port:
    asyncio.run(main(port))
