"""All other routes, hostile requests, clients that go away, a queue that is full."""
import asyncio
import json
import random

import pytest

from atlas_jax.language.serve import app
from tests.language.serve import scripted

TEXT = "/v1/completions"
ROUTES = (TEXT, "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize", "/v1/memory")


def client(script=lambda text: "ok", **options):
  return scripted.Client(scripted.service(script, **options))


def test_models_say_what_they_can_do():
  asked = client()
  found = asked.ask("/v1/models").json()["data"]
  assert [one["id"] for one in found] == ["base", "adapter"]
  assert (found[0]["chat"], found[0]["memory"], found[0]["state_bytes"]) == (True, True, 4096)
  assert asked.ask("/v1/models/adapter").json()["version"] == 4
  asked.refused("/v1/models/none", status=404)


def test_texts_become_ids_and_back():
  asked = client()
  found = asked.post("/tokenize", prompt="hé", return_token_strs=True)
  assert (found["tokens"], found["count"]) == ([256, *"hé".encode()], 4)
  assert asked.post("/detokenize", tokens=found["tokens"]) == {"prompt": "hé"}
  messages = [{"role": "user", "content": "x"}]
  assert asked.post("/tokenize", messages=messages)["tokens"] == list(asked.service.text.chat(messages, {}))
  asked.refused("/detokenize", {"tokens": [270]})
  asked.refused("/tokenize", {"prompt": "x", "more": 1})


def test_the_memory_is_told_for_each_id():
  found = client().post("/v1/memory", tokens=[256, 65])
  assert found["surprise"] == [256.0, 65.0]
  assert found["token_strs"] == ["", "A"]
  assert len(found["gate"]) == len(found["write_rate"]) == 2
  client().refused("/v1/memory", {"tokens": []})
  client().refused("/v1/memory", {"tokens": [1] * 65})
  assert client(trace=False).refused("/v1/memory", {"tokens": [1]})["code"] == "no_memory"
  client().refused("/v1/memory", {"tokens": [1], "model": "adapter"})  # Its memory is another's.


def test_health_and_metrics():
  asked = client(lambda text: "abc")
  asked.post(TEXT, prompt="x")
  text = asked.ask("/metrics").text
  assert 'atlas_jax_requests_total{route="/v1/completions",status="200"} 1.0' in text
  assert "atlas_jax_completion_tokens_total 4.0" in text
  assert "atlas_jax_scheduler_state_bytes 4096.0" in text
  assert asked.ask("/health").json() == {"status": "ok"}
  asked.service.draining = True
  assert asked.ask("/health").status_code == 503


def test_the_page_needs_nothing_from_elsewhere():
  asked = client()
  for path in app.PAGES:
    answer = asked.ask(path)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not [word for word in ("http://", "https://", "innerHTML", "eval(") if word in answer.text]


def test_a_full_queue_says_when_to_ask_again():
  scheduler = scripted.ScriptedScheduler(most=1)
  scheduler.may_write.clear()
  asked = client(scheduler=scheduler)
  # The second prompt finds no place, so the first one must not stay behind.
  answer = asked.ask(TEXT, {"prompt": ["x", "y"]})
  assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
  assert answer.json()["error"]["type"] == "rate_limit_error"
  assert not scheduler.streams
  scheduler.open = False
  answer = asked.ask(TEXT, {"prompt": "x"})
  assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slot(stream):
  scheduler = scripted.ScriptedScheduler(lambda text: "abc")
  made = scripted.service(scheduler=scheduler)

  async def leave():
    request = scripted.RawRequest(made, TEXT, {"prompt": ["x", "y"], "stream": stream, "conversation": None})
    scheduler.may_write.clear()
    running = asyncio.ensure_future(request.run())
    while len(scheduler.streams) < 2:
      await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    request.leave()
    await asyncio.wait_for(running, 5)

  asyncio.run(leave())
  assert len(scheduler.cancelled) == 2
  assert not scheduler.streams


def test_a_client_that_goes_away_while_its_request_is_queued_leaves_nothing():
  scheduler = scripted.LoadingScheduler()
  made = scripted.service(scheduler=scheduler)

  async def leave():
    request = scripted.RawRequest(made, TEXT, {"prompt": "x"})
    running = asyncio.ensure_future(request.run())
    await asyncio.to_thread(scheduler.queued.wait)
    request.leave()
    await asyncio.wait_for(running, 5)
    scheduler.loaded.set()

  asyncio.run(leave())
  assert len(scheduler.cancelled) == 1
  assert not scheduler.streams


def test_a_conversation_is_free_again_and_unchanged_after_its_client_went_away():
  scheduler = scripted.ScriptedScheduler(lambda text: "abc")
  made = scripted.service(scheduler=scheduler)

  async def leave():
    request = scripted.RawRequest(made, TEXT, {"prompt": "x", "stream": True, "conversation": "c"})
    request.leave()  # Before the first event is asked for.
    scheduler.may_write.clear()
    await asyncio.wait_for(request.run(), 5)

  asyncio.run(leave())
  scheduler.may_write.set()
  asked = scripted.Client(made)
  asked.refused("/v1/conversations/c", status=404)
  asked.post(TEXT, prompt="y", conversation="c")
  assert scheduler.asked[-1].prompt == (256, ord("y"))


def test_errors_of_completions_have_their_status_and_no_words_of_others():
  for error, status in ((RuntimeError("what others said"), 500), (ValueError("left its grammar"), 400)):
    asked = client(scheduler=scripted.ScriptedScheduler(error=error))
    found = asked.refused(TEXT, {"prompt": "x"}, status=status)
    assert ("others" in found["message"]) is False
  broken = scripted.ScriptedScheduler()
  broken.submit = None
  error = client(scheduler=broken).refused(TEXT, {"prompt": "x"}, status=500)
  assert "callable" not in error["message"]


BODIES = [
  b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}',
  b'{"a": NaN}',
  b'{"prompt": "a", "prompt": "b"}', b"[" * 60_000, b'{"a":' * 12_000,
  b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"seed": 1' + b"0" * 5000 + b"}",
  b'{"temperature": 1e999}',
  b"\x00", b'{"prompt": 1}{"prompt": 2}', b"x" * 70_000,
]  # fmt: skip


@pytest.mark.parametrize("path", ROUTES)
def test_hostile_bodies_are_refused(path):
  asked = client()
  for body in BODIES:
    answer = asked.ask(path, content=body, headers={"Content-Type": "application/json"}, method="POST")
    assert 400 <= answer.status_code < 500, body[:50]
    assert answer.json()["error"]["message"]
  assert asked.ask("/health").status_code == 200


def test_other_types_methods_and_routes_are_refused():
  asked = client()
  for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=latin-1"):
    asked.refused(TEXT, content=b'{"prompt": "x"}', headers={"Content-Type": kind}, status=415)
  zipped = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
  asked.refused(TEXT, content=b"x", headers=zipped, status=415)
  asked.refused(TEXT, method="GET", status=405)
  for path in ("/nothing", "/../etc/passwd", "/v1", "/docs", "/openapi.json", "/page", "/%00", "/metrics/"):
    asked.refused(path, status=404)


def test_random_requests_get_answers_below_500():
  draw = random.Random(0)
  values = [None, True, 0, -1, 2**70, 1.5, "", "x", [], ["x"], [[]], {}, {"a": 1}, "\u0000", "auto", [1, 2]]
  names = ["prompt", "messages", "input", "n", "max_tokens", "temperature", "stop", "logit_bias", "tools",
           "model", "tool_choice", "response_format", "stream_options", "seed", "logprobs", "conversation"]
  asked = client()
  for _ in range(300):
    body = {name: draw.choice(values) for name in draw.sample(names, draw.randrange(1, 6))}
    answer = asked.ask(draw.choice(ROUTES), body)
    assert answer.status_code < 500, json.dumps(body)
