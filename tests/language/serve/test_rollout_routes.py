"""The routes of a rollout server beside those of the original, call by call, with what differs by name."""
import json

import pytest

from atlas_jax.language.serve.access import Access
from tests.language.serve import scripted
from tests.program import ROOT

API = json.loads((ROOT / "tests/fixtures/arc_atlas/rollout_server_api.json").read_text())
# What differs from the original, by call: its place in the fixture -> why.
DEVIATIONS = {
  5: "init_communicator: weights come as a file, by /v1/weights",
  6: "update_named_param: weights come as a file, by /v1/weights",
  7: "update_named_param: refused before its fields are looked at",
  9: "close_communicator: there is none to close",
  10: "an unknown path: errors have the shape of this server's other routes",
}
EXTRA = {"weight_versions"}  # In replies of /generate/: which weights wrote each completion.


@pytest.fixture
def client():
  return scripted.Client(scripted.service(lambda text: text[:1]))


def test_every_route_of_the_original_is_here(client):
  for method, path in API["routes"]:
    status = client.ask(path, {} if method == "POST" else None, method=method).status_code
    assert status not in (404, 405), (method, path)


CALLS = list(enumerate(API["calls"]))


@pytest.mark.parametrize("number, call", [one for one in CALLS if one[0] not in DEVIATIONS])
def test_a_call_is_answered_as_the_original_answers_it(client, number, call):
  answer = client.ask(call["path"], call["body"], method=call["method"])
  assert answer.status_code == call["status"], answer.text
  found = answer.json()
  expected = call["json"]
  if call["path"] != "/generate/" or call["status"] != 200:
    if "message" in expected:  # Its words are the server's own.
      assert set(found) == {"message"} and found["message"]
    else:
      assert found == expected
    return
  # The fixture's ids are those of a stand-in for a model: how many there are is what the contract says.
  assert set(found) - EXTRA == set(expected)
  assert len(found["completion_ids"]) == len(expected["completion_ids"])
  assert all(one and all(isinstance(token, int) for token in one) for one in found["completion_ids"])
  assert found["weight_versions"] == [3] * len(found["completion_ids"])


@pytest.mark.parametrize("number", sorted(DEVIATIONS))
def test_what_differs_is_refused_by_name(client, number):
  call = API["calls"][number]
  answer = client.ask(call["path"], call["body"], method=call["method"])
  assert answer.status_code == (404 if call["path"] == "/nope" else 501)
  error = answer.json()["error"]["message"]
  assert error == "there is no such route" if call["path"] == "/nope" else "/v1/weights" in error


def test_requests_become_those_of_the_original(client):
  calls = [call for call in API["calls"] if call["path"] == "/generate/" and call["status"] == 200]
  for call, recorded in zip(calls, API["recorded"]["generate"], strict=True):
    before = len(client.service.scheduler.asked)
    assert client.ask("/generate/", call["body"]).status_code == 200
    asked = client.service.scheduler.asked[before:]
    wanted = recorded["sampling"]
    assert len(asked) == len(recorded["prompts"])
    for request in asked:
      options = request.sampling
      assert (options.n, options.temperature, options.max_tokens) == (
        wanted["n"], wanted["temperature"], wanted["max_tokens"])  # fmt: skip
      assert options.repetition_penalty == wanted["repetition_penalty"]
      # 1, -1 and 0 stand for no bound.
      assert (options.top_p or 1.0, options.top_k or -1, options.min_p or 0.0) == (
        wanted["top_p"], wanted["top_k"], wanted["min_p"])  # fmt: skip
      assert (request.allowed is not None) == (wanted["guided_decoding"] is not None)


def test_a_regular_expression_is_followed(client):
  found = client.post("/generate/", prompts=["xyz"], guided_decoding_regex="a+", max_tokens=5)
  ids, = found["completion_ids"]
  assert ids and set(ids) <= {ord("a"), 256, 260} and ids[0] == ord("a")
  client.refused("/generate/", {"prompts": ["x"], "guided_decoding_regex": "("})


WRONG = [{"prompts": []}, {"prompts": [1]}, {"prompts": ["a"], "stream": True},
         {"prompts": ["a"], "temprature": 1}]  # fmt: skip


@pytest.mark.parametrize("body", WRONG)
def test_what_cannot_be_is_refused(client, body):
  client.refused("/generate/", body)


def test_who_may_not_ask_is_refused_everywhere():
  service = scripted.service()
  service.access = Access(("a-token-of-enough-length",))
  client = scripted.Client(service)
  for method, path in API["routes"]:
    if path == "/health/":
      continue
    assert client.ask(path, {} if method == "POST" else None, method=method).status_code == 401, path
