"""The route that changes weights: who may, from where, in which order, and that a bad one changes nothing."""
import jax
import numpy as np
import pytest

from atlas_jax.language import weights_file
from atlas_jax.language.decoding.requests import CompletionRequest
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.serve import http_server, policy_weights
from atlas_jax.language.serve.access import TOKENS, TRAINER_TOKENS, Access
from atlas_jax.language.serve.json_fields import JsonFields
from atlas_jax.language.serve.memory_trace import MemoryTracer
from atlas_jax.language.serve.policy_weights import PolicyWeights
from tests.language.decoding import serving
from tests.language.languages import tiny
from tests.language.serve import scripted
from tests.recipes import test_grpo

TRAINER, USER = "a-trainer-of-enough-length", "a-user-of-enough-length"


def bearer(token):
  return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def scheduler():
  """A scheduler of a tiny model; nothing is compiled unless something is asked."""
  with serving.Scheduler(serving.Settings(room_tokens=64), serving.TOKENIZER) as made:
    made.load("base", *tiny("decoder"), version=50)
    yield made


def client_of(scheduler, folder, *, tokens=(), taken=lambda name, params: None):
  made = scripted.service(scheduler=scheduler)
  made.access = Access(tokens, (TRAINER,))
  if folder is not None:
    made.policy = PolicyWeights(scheduler, folder, taken)
  return scripted.Client(made)


def put(folder, name="a.safetensors", factor=2.0):
  language, params = tiny("decoder")
  params = jax.tree.map(lambda leaf: leaf * np.float32(factor), params)
  weights_file.write(folder / name, language, params)
  return params


def give(client, *, status=200, headers=None, **fields):
  body = {"model": "base", "file": "a.safetensors", "version": 1, "label": "r:1"} | fields
  answer = client.ask("/v1/weights", {name: value for name, value in body.items() if value is not None},
                      headers=bearer(TRAINER) if headers is None else headers)
  assert answer.status_code == status, answer.text
  return answer.json() if status == 200 else answer.json()["error"]["message"]


def test_weights_are_taken_and_told_of(scheduler, tmp_path):
  taken = []
  client = client_of(scheduler, tmp_path, taken=lambda *given: taken.append(given))
  kept, = client.ask("/v1/weights").json()["data"]
  assert kept == {"model": "base", "version": 50, "label": None, "vocab_size": 270, "max_model_len": None}
  params = put(tmp_path)
  assert give(client) == {"object": "weights", "model": "base", "version": 1, "label": "r:1"}
  found = scheduler.model("base").params
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(one, other)
  assert [name for name, _ in taken] == ["base"]
  assert client.ask("/v1/weights").json()["data"][0]["label"] == "r:1"
  # What came from elsewhere since has no label.
  scheduler.replace("base", params, 1)
  assert client.ask("/v1/weights").json()["data"][0]["label"] is None


def test_a_server_that_was_not_started_for_it_refuses(scheduler):
  client = client_of(scheduler, None)
  assert give(client, status=403) == policy_weights.CLOSED
  assert client.ask("/v1/weights").status_code == 403


def test_only_a_trainers_token_changes_weights(scheduler, tmp_path):
  put(tmp_path)
  for tokens, given in (((), {}), ((), bearer(USER)), ((USER,), bearer(USER))):
    client = client_of(scheduler, tmp_path, tokens=tokens)
    assert TRAINER_TOKENS in give(client, status=403, headers=given)
  client = client_of(scheduler, tmp_path, tokens=(USER,))
  give(client, status=401, headers={})
  assert scheduler.models() == {"base": 50}
  # Who may change weights may also ask; as somebody else than the user.
  tenants = {client.service.access.tenant({"authorization": f"Bearer {one}"}) for one in (USER, TRAINER)}
  assert len(tenants) == 2
  give(client)


def test_tokens_for_it_come_from_the_environment(monkeypatch):
  monkeypatch.delenv(TOKENS, raising=False)
  monkeypatch.delenv(TRAINER_TOKENS, raising=False)
  with pytest.raises(ValueError, match=TRAINER_TOKENS):
    Access.from_environment("127.0.0.1", takes_weights=True)
  monkeypatch.setenv(TRAINER_TOKENS, TRAINER)
  access = Access.from_environment("127.0.0.1", takes_weights=True)
  access.need_trainer({"authorization": f"Bearer {TRAINER}"})
  for tokens, trainers, match in ((TRAINER, TRAINER, "tokens of their own"), (USER, "short", TRAINER_TOKENS)):
    monkeypatch.setenv(TOKENS, tokens)
    monkeypatch.setenv(TRAINER_TOKENS, trainers)
    with pytest.raises(ValueError, match=match) as caught:
      Access.from_environment("127.0.0.1", takes_weights=True)
    assert TRAINER not in str(caught.value)


def test_a_server_is_not_started_for_it_without_such_tokens(tmp_path, monkeypatch):
  monkeypatch.delenv(TRAINER_TOKENS, raising=False)
  config = test_grpo.config_of(serve__weights_folder=str(tmp_path))
  with pytest.raises(ValueError, match=TRAINER_TOKENS):
    http_server.run(config, tmp_path, port=0)


def test_what_looks_at_the_memory_gets_the_new_weights_too(tmp_path):
  language, params = tiny("memory")
  newer = jax.tree.map(lambda leaf: leaf * np.float32(1.5), params)
  tracer, expected = MemoryTracer(language, params), MemoryTracer(language, newer)
  with serving.Scheduler(serving.Settings(), serving.TOKENIZER) as scheduler:
    scheduler.load("base", language, params, version=50)
    config = test_grpo.config_of(serve__weights_folder=str(tmp_path))
    made = policy_weights.of(config, scheduler, "base", tracer)
    weights_file.write(tmp_path / "a.safetensors", language, newer)
    made.take("base", JsonFields({"file": "a.safetensors", "version": 1, "label": "r:1"}))
    for one, other in zip(tracer(range(20)), expected(range(20)), strict=True):
      np.testing.assert_array_equal(one, other)
    assert policy_weights.of(test_grpo.config_of(), scheduler, "base", tracer) is None


def test_two_runs_do_not_take_turns(scheduler, tmp_path):
  put(tmp_path)
  client = client_of(scheduler, tmp_path)
  assert "started with" in give(client, status=409, after="r:0")
  give(client)
  give(client, label="r:2", version=2, after="r:1")
  # The same once more, as a client asks whose answer was lost.
  give(client, label="r:2", version=2, after="r:1")
  give(client, label="other:9", version=9)
  assert "'other:9'" in give(client, status=409, label="r:3", version=3, after="r:2")
  # A run that went back to a checkpoint begins again, with a lower version.
  give(client, label="r:1b", version=1)
  assert scheduler.models() == {"base": 1}


def test_files_are_those_of_the_folder_alone(scheduler, tmp_path):
  folder = tmp_path / "weights"
  folder.mkdir()
  put(tmp_path)
  (folder / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
  client = client_of(scheduler, folder)
  for file in ("../a.safetensors", str(tmp_path / "a.safetensors"), "a", "", ".safetensors",
               "a\0.safetensors", "x" * 200 + ".safetensors"):
    assert "must be the name of a file" in give(client, status=400, file=file)
  for file in ("a.safetensors", "link.safetensors"):
    assert "is not in the server's config.serve.weights_folder" in give(client, status=404, file=file)
  with pytest.raises(ValueError, match="is no folder; make it"):
    PolicyWeights(scheduler, tmp_path / "none", lambda name, params: None)


def test_a_bad_request_changes_nothing(scheduler, tmp_path):
  put(tmp_path)
  client = client_of(scheduler, tmp_path)
  (tmp_path / "broken.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
  other = tiny("decoder", rope_base=7.0)
  weights_file.write(tmp_path / "other.safetensors", *other)
  for fields, match in ((dict(file="broken.safetensors"), "not a whole safetensors"),
                        (dict(file="other.safetensors"), "rope_base=7.0"), (dict(version=-1), "at least 0"),
                        (dict(version="1"), "a whole number"), (dict(label=""), "1 to 200"),
                        (dict(label="x" * 201), "1 to 200"), (dict(file=None), "file is missing"),
                        (dict(wrong=1), "no field 'wrong'")):
    assert match in give(client, status=400, **fields)
  give(client, status=404, model="none")
  assert scheduler.models() == {"base": 50}
  assert scheduler.model("base").params is tiny("decoder")[1]
  assert client.ask("/v1/weights").json()["data"][0]["label"] is None


def test_a_request_ends_with_the_weights_it_began_with(tmp_path, monkeypatch):
  monkeypatch.setattr(serving.programs, "make", serving.shared_programs)
  put(tmp_path, factor=0.3)
  with serving.scheduler("decoder") as scheduler:
    client = client_of(scheduler, tmp_path)
    request = CompletionRequest((256, 5), SamplingOptions(max_tokens=30), seed=3)
    expected, = scheduler.submit(request).completions()
    stream = scheduler.submit(request)
    events = iter(stream)
    first = [next(events) for _ in range(3)]
    give(client, version=7)
    rest = list(events)
    assert [event.token for event in (*first, *rest[:-1])] == list(expected.tokens)
    assert rest[-1].version == expected.version
    after, = scheduler.submit(request).completions()
    assert after.version == 7
    assert list(after.tokens) != list(expected.tokens)
