"""Memory streams of a real server with a tiny memory model: a branch goes on from its parent's very ids."""
import asyncio

import pytest

from atlas_jax.data.traces.review import decide
from atlas_jax.data.traces.store import open_store
from atlas_jax.rollout.endpoint import Endpoint
from atlas_jax.rollout.endpoint_settings import EndpointSettings
from atlas_jax.runtime.agents.openai import OpenAIAgent, OpenAIAgentSettings
from atlas_jax.runtime.memory_streams import MemoryStreams, StreamSettings, stream_id
from atlas_jax.runtime.pool import SessionPool
from atlas_jax.runtime.session import FixedLane, SessionParts, SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from tests.language.serve import live

KEY = "t/family"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
  return live.leave_run(tmp_path_factory.mktemp("live") / "model")


def sessions(folder, port, model, *keys):
  """Runs sessions; returns the ids that their streams hold."""
  async def main():
    endpoint = Endpoint(EndpointSettings(f"http://127.0.0.1:{port}/v1", model, tries=1, form="texts"))
    store = RuntimeStore(StoreSettings(f"sqlite:///{folder}/t.db", f"{folder}/spool"))
    await store.open(create=True)
    streams = MemoryStreams(store, endpoint, StreamSettings(on=True))

    def parts(spec):
      how = OpenAIAgentSettings(endpoint.settings.url, model, max_tokens=4, temperature=0.0, version="1",
                                form="texts")
      return SessionParts(OpenAIAgent(how, endpoint=streams.endpoint_of(spec, "1")), None, FixedLane("auto"))

    found = {}
    try:
      for key in keys:
        spec = SessionSpec(key, f"task {key}", tenant="t", learning_key=KEY)
        result = await SessionPool(parts, store).run(spec)
        assert result.answer is not None, result
        _, kept = await endpoint.call("GET", f"conversations/{stream_id(spec, 'student')}")
        found[key] = kept["tokens"]
        with open_store(f"sqlite:///{folder}/t.db", writable=True) as reviews:
          decide(reviews, result.session_id, "approved", who="ada")
    finally:
      await endpoint.close()
      await store.close()
    return found

  return asyncio.run(main())


def test_a_stream_goes_on_over_a_restart_of_the_server(run_folder, tmp_path):
  flags = [*live.SMALL, f"--config.serve.folder={tmp_path / 'served'}"]
  with live.Server(run_folder, *flags, env=live.ENV) as server:
    model = run_folder.name
    first = sessions(tmp_path, server.port, model, "one")
  with live.Server(run_folder, *flags, env=live.ENV) as server:
    second = sessions(tmp_path, server.port, model, "two")
  assert second["two"][:len(first["one"])] == first["one"] and len(second["two"]) > len(first["one"])
