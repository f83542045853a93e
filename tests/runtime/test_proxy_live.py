"""A student of ours at work, and `atlas proxy` before its server: what is recorded is what was sampled."""
import asyncio
import json
import urllib.request

import jax
import numpy as np
import pytest

from atlas_jax import recipes
from atlas_jax.data.traces import review, served_tokens
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.language.pretrained import hf_import
from atlas_jax.runtime import canary, cli_deploy, cli_run, deploy
from atlas_jax.runtime.proxy import Proxy, ProxySettings
from atlas_jax.runtime.proxy_sessions import ProxySessions
from atlas_jax.runtime.redaction import Redactor
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from atlas_jax.state import Trained
from tests import runs
from tests.language.test_export import logits
from tests.rollout.test_served_source import served
from tests.runtime.checkpoints import export_student
from tests.runtime.worlds import sums

MESSAGES = [{"role": "user", "content": "17+25="}]
JSON = {"content-type": "application/json"}
DRAWN = {"max_tokens": 6, "temperature": 0.7, "top_k": 40, "seed": 5}
# By route: what is asked.
ASKED = {"chat/completions": {"messages": MESSAGES, **DRAWN, "n": 2},
         "completions": {"prompt": ["17+25=", [49, 43]], **DRAWN}}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
  """A student that learnt nothing, deployed: its folder, the settings of a runtime, and its deployment."""
  folder = tmp_path_factory.mktemp("deployed")
  settings = sums.load(folder, **{"deploy.probes": "2", "agent.kind": "python"})
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")  # Of the server, whose model is tiny.
    path = export_student(folder)
    one = asyncio.run(cli_deploy.deployed(settings, str(path), role="student", fraction=1.0))
  yield folder, settings, one
  deploy.stop_server(one.metadata["pid"])


def post(one, route, body):
  """Asks the server itself; returns what a proxy would record of its reply."""
  request = urllib.request.Request(f"{one.url}/{route}", json.dumps(body).encode(),
                                   JSON)
  with urllib.request.urlopen(request, timeout=60) as answer:
    return json.load(answer)


def recorded(tmp_path, one, bodies):
  """Sends requests through a proxy; returns the session of each."""
  url = f"sqlite:///{tmp_path}/store.db"

  async def main():
    store = RuntimeStore(StoreSettings(url=url, spool=str(tmp_path / "spool")))
    await store.open(create=True)
    proxy = Proxy(ProxySettings(upstream=one.url), ProxySessions(store, redactor=Redactor()))
    try:
      for number, (route, body) in enumerate(bodies):
        answer = await proxy.ask(route, json.dumps(body).encode(), {**JSON, "x-atlas-session": f"s{number}"})
        await answer({}, _never, _dropped)
        assert answer.status == 200, answer.body
    finally:
      await proxy.close()
      await store.close()
    assert not proxy.sessions.unrecorded

  asyncio.run(main())
  with open_store(url) as opened:
    found = [Trace.from_json(each.record()) for page in opened.pages(SessionQuery(review_statuses=None))
             for each in page]
  return sorted(found, key=lambda trace: trace.session_metadata["session_key"])


async def _never():
  await asyncio.Event().wait()


async def _dropped(message):
  del message


def test_the_record_of_a_proxy_has_the_very_ids_and_logprobs_that_were_sampled(tmp_path, deployed):
  folder, _, one = deployed
  model = one.metadata["served_as"]
  bodies = [(route, {"model": model, **body, "stream": stream}) for route, body in ASKED.items()
            for stream in (False, True)]
  traces = recorded(tmp_path, one, bodies)
  module, params, _ = hf_import.load(str(folder / "rl_checkpoint"), param_dtype="float32")
  for trace, (route, body) in zip(traces, bodies, strict=True):
    # The same seed draws the same: what the server says of it without a proxy, and not as a stream.
    said = post(one, route, {**body, "stream": False, "return_token_ids": True})
    rows = served_tokens.served_rows(trace)
    assert len(rows) == len(said["choices"]) == 2
    assert trace.session_metadata["token_source"] == served_tokens.SERVER
    for row, choice in zip(rows, said["choices"], strict=True):
      assert list(row.prompt_ids) == (choice.get("prompt_token_ids") or said["prompt_token_ids"])
      assert list(row.token_ids) == choice["token_ids"] and len(row.token_ids) == 6
      assert list(row.sampler_logprobs) == choice["sampler_logprobs"]  # Every bit of them.
      assert list(row.full_logprobs) == choice["full_logprobs"] != choice["sampler_logprobs"]
      assert row.weights_version == choice["weights_version"] == 0
    # And they are those of the weights that were exported, at the temperature that was asked for.
    ids = [*rows[0].prompt_ids, *rows[0].token_ids]
    scores_TV = jax.nn.log_softmax(logits(module, params, [ids])[0] / body["temperature"])
    places = np.arange(len(rows[0].prompt_ids) - 1, len(ids) - 1)
    np.testing.assert_allclose(rows[0].full_logprobs, scores_TV[places, list(rows[0].token_ids)], atol=1e-4)


def test_what_the_proxy_recorded_trains_the_model_without_a_second_encoding(tmp_path, deployed, monkeypatch):
  folder, _, one = deployed
  model = one.metadata["served_as"]
  body = {"model": model, "messages": MESSAGES, "n": 4, "max_tokens": 6, "temperature": 0.7}
  [trace] = recorded(tmp_path, one, [("chat/completions", body)])
  url = f"sqlite:///{tmp_path}/store.db"
  with open_store(url, writable=True) as opened:
    review.decide(opened, trace.session_id, "approved", who="ada")
  config = served(url, model__path=str(folder / "rl_checkpoint"), data__tokenizer="model",
                  data__max_prompt_tokens=64, sampler__temperature=0.7, rollout__updates_per_batch=2)
  mesh = runs.one_device()
  recipe = recipes.load(config, mesh)
  monkeypatch.setattr(type(recipe.source.tokenizer), "encode", lambda *_: pytest.fail("a text was encoded"))
  batch = recipe.source.next(Trained(load_initial_model(config).read(mesh, True)[0], {}))
  mask_BT = batch["completion_mask_BT"]
  rows = served_tokens.served_rows(trace)
  assert [ids_T[mask_T].tolist() for ids_T, mask_T in zip(batch["completion_BT"], mask_BT, strict=True)] == [
    list(row.token_ids) for row in rows]
  # The trainer's own log-probabilities are those of the server: the ratio that weighs a row is 1.
  recorded_B = [np.float32(row.sampler_logprobs) for row in rows]
  for ours_T, theirs_T, mask_T in zip(batch["old_logprob_BT"], recorded_B, mask_BT, strict=True):
    np.testing.assert_allclose(ours_T[mask_T], theirs_T, atol=1e-4)


def test_a_student_is_served_from_its_exported_weights_and_answers_sessions(deployed):
  folder, settings, one = deployed
  assert not (folder / "train").exists()  # Which a training that goes on would have changed.
  assert (one.role, one.state, one.metadata["form"]) == ("student", canary.CANARY, "chat")
  assert one.metadata["self_test"] == 1.0
  [found] = [each.result for each in asyncio.run(cli_run.through(settings, [{"task": "1+1="}], lane="auto"))]
  assert found.versions["student"] == one.version and found.answer is not None, found
  back, before = asyncio.run(cli_deploy.rolled_back(settings, "student"))
  assert (back.id, before) == (one.id, None)
  [again] = [each.result for each in asyncio.run(cli_run.through(settings, [{"task": "2+2="}], lane="auto"))]
  assert again.versions["student"] != one.version
