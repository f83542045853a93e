"""The client of chat endpoints: tries, pauses, deadlines, the circuit, usage, schemas and saved replies."""
import asyncio
import itertools
import random
import secrets
import time

import pytest

from atlas_jax.rollout import endpoint_limits
from atlas_jax.rollout.endpoint import (
  AskOptions,
  ChatRequest,
  Endpoint,
  EndpointError,
  EndpointSettings,
)
from atlas_jax.rollout.reply_cache import ReplyCache
from tests.rollout.chat_server import Answer, said

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
          "additionalProperties": False}


class Clock:
  """Seconds that pass where something sleeps, and the pauses that were taken."""

  def __init__(self):
    self.now = 0.0
    self.pauses = []

  def __call__(self):
    return self.now

  async def sleep(self, seconds):
    self.pauses.append(seconds)
    self.now += seconds


def made(server, *, clock=None, **settings) -> Endpoint:
  """An endpoint of the server that waits for nothing."""
  clock = clock or Clock()
  given = {"url": server.url, "model": "m", "timeout_s": 5.0, "deadline_s": 20.0, **settings}
  return Endpoint(EndpointSettings(**given), clock=clock, sleep=clock.sleep, rng=random.Random(0))


def ask(endpoint, messages=MESSAGES, **options):
  """The reply, or the error, in a loop of its own."""
  return asyncio.run(endpoint.ask(messages, options=options or None))


def failed(endpoint, **options) -> EndpointError:
  """The error of a request."""
  with pytest.raises(EndpointError) as raised:
    ask(endpoint, **options)
  return raised.value


def test_a_reply_has_its_text_its_tokens_and_the_whole_answer(server):
  endpoint = made(server)
  reply = ask(endpoint, temperature=0.5, max_tokens=4, seed=1, stop=["x"], top_p=0.9, extra={"n": 1})
  assert (reply.text, reply.usage, reply.tries, reply.is_cached) == ("hello", (7, 3), 1, False)
  assert reply.raw == said("hello")
  assert server.asked == [{"model": "m", "messages": MESSAGES, "temperature": 0.5, "max_tokens": 4, "seed": 1,
                           "stop": ["x"], "top_p": 0.9, "n": 1}]
  assert "Authorization" not in server.headers[0]
  server.use([Answer(said("more", prompt_tokens=None))])
  assert ask(endpoint).usage == (None, None)
  assert endpoint.usage["prompt_tokens"] == 7 and endpoint.usage["completion_tokens"] == 3
  assert endpoint.usage["asks"] == endpoint.usage["requests"] == 2 and endpoint.usage["unmetered"] == 1


def test_a_model_without_a_chat_template_goes_on_from_one_text(server):
  server.use([Answer({"choices": [{"text": "132"}], "usage": {"prompt_tokens": 6, "completion_tokens": 3}})])
  endpoint = made(server, form="texts")
  reply = ask(endpoint, max_tokens=4)
  assert (reply.text, reply.usage) == ("132", (6, 3))
  assert server.asked == [{"model": "m", "prompt": "hi", "max_tokens": 4}]
  with pytest.raises(ValueError, match="2 messages cannot be one prompt"):
    ask(endpoint, [*MESSAGES, *MESSAGES])
  with pytest.raises(ValueError, match="form='words' of an endpoint must be one of chat, texts"):
    made(server, form="words")


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_statuses_that_may_pass_are_tried_again_with_one_idempotency_key(server, status):
  clock = Clock()
  server.use([Answer("busy", status), Answer("busy", status), "there"])
  endpoint = made(server, clock=clock, backoff_s=1.0)
  reply = ask(endpoint)
  assert (reply.text, reply.tries) == ("there", 3)
  assert len({headers["Idempotency-Key"] for headers in server.headers}) == 1
  assert len(clock.pauses) == 2 and 0 <= clock.pauses[0] <= 1 and 0 <= clock.pauses[1] <= 2
  ask(endpoint)
  assert len({headers["Idempotency-Key"] for headers in server.headers}) == 2


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422])
def test_other_statuses_are_never_tried_again(server, status):
  server.use([Answer("no such model", status)])
  error = failed(made(server))
  assert (error.kind, error.status, error.tries) == ("status", status, 1) and "no such model" in str(error)
  assert len(server.asked) == 1


@pytest.mark.parametrize("answer, kind", [
  (Answer("busy", 500), "status"), (Answer(drop=True), "connect"), (Answer("<html>"), "reply"),
  (Answer({"choices": []}), "reply"), (Answer({"choices": [{"message": {"content": 3}}]}), "reply"),
  (Answer("[" * 100_000), "reply"), (Answer("x", headers={"Content-Encoding": "gzip"}), "reply")])
def test_a_failure_that_stays_is_told_after_all_tries(server, answer, kind):
  server.use([answer])
  error = failed(made(server, tries=2))
  assert (error.kind, error.tries, len(server.asked)) == (kind, 2, 2)


@pytest.mark.parametrize("answer", [
  Answer("", wait_s=5.0), Answer(said("slow"), pieces=60, piece_s=0.05)], ids=["never", "drop by drop"])
def test_one_try_and_all_tries_end(server, answer):
  server.use([answer])
  began = time.monotonic()
  assert failed(made(server, timeout_s=0.1, tries=2)).kind == "timeout"
  endpoint = Endpoint(EndpointSettings(url=server.url, model="m", timeout_s=0.2, deadline_s=0.3, tries=9,
                                       backoff_s=0.0))
  error = failed(endpoint)
  assert (error.kind, error.tries) == ("deadline", 2)
  assert time.monotonic() - began < 5


def test_a_server_that_is_not_there_is_no_connection(server):
  error = failed(made(server, url="http://127.0.0.1:9/v1", tries=2))
  assert (error.kind, error.status, error.tries) == ("connect", None, 2)


@pytest.mark.parametrize("header, least", [("3", 3), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("soon", 0)])
def test_retry_after_is_honoured(server, header, least):
  clock = Clock()
  server.use([Answer("", 429, {"Retry-After": header}), "there"])
  assert ask(made(server, clock=clock, backoff_s=0.0)).text == "there"
  assert clock.pauses == [least]


def test_a_pause_beyond_the_deadline_is_not_begun(server):
  clock = Clock()
  server.use([Answer("later", 503, {"Retry-After": "3600"})])
  error = failed(made(server, clock=clock))
  assert (error.kind, error.status, error.tries, clock.pauses) == ("status", 503, 1, [])


def test_the_circuit_opens_after_failures_in_a_row_and_one_request_closes_it(server):
  clock = Clock()
  server.use([Answer("", 500)])
  endpoint = made(server, clock=clock, tries=1, circuit_failures=3, circuit_open_s=30.0)
  kinds = [failed(endpoint).kind for _ in range(5)]
  assert kinds == ["status"] * 3 + ["circuit"] * 2 and len(server.asked) == 3
  clock.now += 31
  assert [failed(endpoint).kind for _ in range(2)] == ["status", "circuit"] and len(server.asked) == 4
  clock.now += 31
  server.use([Answer("", 400), "there"])  # It answers, whatever it says: it is no outage.
  assert failed(endpoint).status == 400 and ask(endpoint).text == "there"
  assert endpoint.circuit.opened == 2


def test_the_circuit_does_not_count_a_server_that_wants_less(server):
  server.use([Answer("", 429)])
  endpoint = made(server, tries=1, circuit_failures=2)
  assert [failed(endpoint).status for _ in range(4)] == [429] * 4


def test_all_are_asked_in_one_loop_and_each_has_its_own_error(server):
  server.use(lambda number, body: Answer("no", 400) if body["messages"][0]["content"] == "2" else
             body["messages"][0]["content"])
  endpoint = made(server, parallel_requests=2)
  requests = [ChatRequest([{"role": "user", "content": str(n)}], {"temperature": 0.0}) for n in range(4)]
  for _ in range(2):  # The loop and its connections are there the second time.
    given = endpoint.ask_all(requests, concurrency=3)
    assert [one.status if isinstance(one, EndpointError) else one.text for one in given] == \
        ["0", "1", 400, "3"]
  assert endpoint.usage["failed"] == 2


def test_no_more_than_so_many_are_asked_at_a_time(server):
  running, most = itertools.count(), []
  active = []

  def script(number, body):
    active.append(next(running))
    most.append(len(active))
    time.sleep(0.02)
    active.pop()
    return "x"

  server.use(script)
  made(server, parallel_requests=3).ask_all([ChatRequest(MESSAGES)] * 9, concurrency=9)
  assert len(most) == 9 and max(most) <= 3


def test_a_reply_must_fit_its_schema_and_is_mended_once(server):
  server.use(["sure!", '```json\n{"n": 4}\n```'])
  reply = ask(made(server), schema=SCHEMA)
  assert reply.data == {"n": 4} and reply.usage == (14, 6) and reply.tries == 2
  first, second = server.asked
  assert first["response_format"]["json_schema"]["schema"] == SCHEMA
  assert second["messages"][:1] == MESSAGES and second["messages"][1]["content"] == "sure!"
  assert "not JSON" in second["messages"][2]["content"]
  server.use(['{"n": "4"}'])
  error = failed(made(server), schema=SCHEMA)
  assert error.kind == "schema" and error.tries == 2 and "$.n" in str(error)
  server.use(['{"n": NaN}'])
  assert failed(made(server), schema=SCHEMA, repair=False).tries == 1


@pytest.mark.parametrize("form", ["json_object", "none"])
def test_servers_without_schemas_can_be_asked(server, form):
  server.use(['{"n": 1}'])
  assert ask(made(server, response_format=form), schema=SCHEMA).data == {"n": 1}
  assert server.asked[0].get("response_format") == ({"type": form} if form == "json_object" else None)


def test_saved_replies_are_not_asked_again(server, tmp_path):
  server.use(lambda number, body: f'{{"n": {number}}}')
  endpoint = made(server, cache_dir=str(tmp_path / "replies"))
  first = ask(endpoint, schema=SCHEMA, temperature=0.2)
  again = ask(made(server, cache_dir=str(tmp_path / "replies")), schema=SCHEMA, temperature=0.2)
  assert first.data == again.data == {"n": 0} and again.is_cached and again.usage == first.usage
  assert len(server.asked) == 1
  assert ask(endpoint, schema=SCHEMA, temperature=0.5).data == {"n": 1}
  assert ask(endpoint, schema=SCHEMA, temperature=0.5, cached=False).data == {"n": 2}
  server.use([Answer("", 500)])
  assert failed(endpoint, temperature=0.9).status == 500  # Failures are not saved.
  server.use(["ok"])
  assert ask(endpoint, temperature=0.9).text == "ok"
  assert endpoint.usage["cached"] == 0


def test_a_damaged_saved_reply_is_asked_again(server, tmp_path):
  endpoint = made(server, cache_dir=str(tmp_path))
  ask(endpoint)
  file, = tmp_path.glob("*/*.json")
  file.write_text(file.read_text().replace("hello", "hallo"))
  assert ask(endpoint).text == "hello" and len(server.asked) == 2
  assert ask(endpoint).is_cached


def test_programs_that_open_one_new_folder_at_once_have_one_secret(tmp_path, monkeypatch):
  draw, others = secrets.token_bytes, []

  def meanwhile(count):  # Another program opens it while this one draws.
    monkeypatch.setattr(secrets, "token_bytes", draw)
    others.append(ReplyCache(tmp_path).secret)
    return draw(count)

  monkeypatch.setattr(secrets, "token_bytes", meanwhile)
  assert ReplyCache(tmp_path).secret == others[0] and len(others[0]) == 32
  assert [file.name for file in tmp_path.iterdir()] == ["secret"]
  assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_the_key_comes_from_the_environment_and_is_in_no_message(server, monkeypatch, tmp_path):
  monkeypatch.setenv("JUDGE_KEY", "sk-planted")
  server.use([Answer("bad key sk-planted", 401)])
  endpoint = made(server, key_variable="JUDGE_KEY", cache_dir=str(tmp_path))
  error = failed(endpoint)
  assert server.headers[0]["Authorization"] == "Bearer sk-planted"
  assert "***" in str(error) and "planted" not in f"{error}{error!r}{endpoint!r}{endpoint.settings}"
  server.use(["hello"])
  ask(endpoint)
  assert not any(b"planted" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
  # Quoted across the place where a message is cut, and in a reply that is saved.
  for before in range(289, 302):
    server.use([Answer("x" * before + "sk-planted", 401)])
    assert "sk-pl" not in str(failed(endpoint, seed=before))
  server.use([Answer({**said("sk-planted"), "debug": "Bearer sk-planted"})])
  reply = ask(endpoint, seed=1)
  assert "sk-planted" not in f"{reply}" and reply.text == "***"
  assert not any(b"planted" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
  for wrong in ("sk-pla\nnted", "sk-plantéd", "Bearer sk-planted"):
    monkeypatch.setenv("JUDGE_KEY", wrong)
    with pytest.raises(ValueError, match="JUDGE_KEY has a blank") as error:
      made(server, key_variable="JUDGE_KEY")
    assert "sk-pla" not in str(error.value)
  monkeypatch.delenv("JUDGE_KEY")
  with pytest.raises(ValueError, match="JUDGE_KEY"):
    made(server, key_variable="JUDGE_KEY")


@pytest.mark.parametrize("changes, named", [
  ({"url": "ftp://x"}, "url"), ({"url": "http://me:secret@x/v1"}, "name, password"), ({"model": ""}, "model"),
  ({"timeout_s": 0.0}, "timeout_s"), ({"tries": 0}, "tries"), ({"backoff_s": -1.0}, "backoff_s"),
  ({"timeout_s": 9.0, "deadline_s": 3.0}, "deadline_s"), ({"response_format": "xml"}, "response_format")])
def test_settings_that_cannot_be_are_refused(changes, named):
  with pytest.raises(ValueError, match=named) as raised:
    EndpointSettings(**{"url": "http://127.0.0.1:1/v1", "model": "m", **changes})
  assert "secret" not in str(raised.value)


@pytest.mark.parametrize("messages, options, named", [
  ([], {}, "messages"), ([{"content": "x"}], {}, "messages"),
  (MESSAGES, {"temperature": float("nan")}, "JSON"),
  (MESSAGES, {"extra": {"model": "x"}}, "model"), (MESSAGES, {"schema": {"pattern": "x"}}, "pattern")])
def test_requests_that_cannot_be_are_refused_before_they_are_sent(server, messages, options, named):
  with pytest.raises(ValueError, match=named):
    ask(made(server), messages, **options)
  assert not server.asked
  with pytest.raises(TypeError, match="tempretaure"):
    ask(made(server), tempretaure=1)


def test_half_characters_and_tool_calls_pass(server):
  server.use([Answer({"choices": [{"message": {"content": None, "tool_calls": [{"id": "1"}]}}]})])
  assert ask(made(server), [{"role": "user", "content": "\ud800"}]).text == ""
  assert AskOptions().extra == {}


def test_a_server_that_wants_less_is_asked_for_less_at_a_time():
  limit = endpoint_limits.CallLimit(8)
  limit.overloaded()
  limit.overloaded()
  assert limit.limit == 2
  for _ in range(3):
    limit.overloaded()
  assert limit.limit == 1
  for _ in range(10 * endpoint_limits.GROWS_AFTER):
    limit.succeeded()
  assert limit.limit == 8


def test_a_request_that_is_given_up_leaves_room_for_others(server):
  server.use(lambda number, body: Answer(said("late"), wait_s=5.0) if number == 0 else "there")
  endpoint = made(server, parallel_requests=1)

  async def both():
    first = asyncio.create_task(endpoint.ask(MESSAGES))
    while not server.asked:
      await asyncio.sleep(0.01)
    second = asyncio.create_task(endpoint.ask(MESSAGES))
    await asyncio.sleep(0.05)
    first.cancel()
    return (await second).text, first

  text, first = asyncio.run(both())
  assert text == "there" and endpoint.circuit.admits()


def test_the_turn_of_one_that_is_given_up_goes_to_the_next():
  async def entered(limit, done):
    async with limit:
      done.append(1)

  async def main():
    limit, done = endpoint_limits.CallLimit(1), []
    await limit.__aenter__()
    tasks = [asyncio.create_task(entered(limit, done)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()  # While it waits.
    await limit.__aexit__()
    tasks[1].cancel()  # When its turn has come.
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    return done, [task.cancelled() for task in tasks]

  assert asyncio.run(main()) == ([1], [True, True, False])


@pytest.mark.parametrize("tries, least, most", [(1, 0, 1), (3, 0, 4), (99, 0, 5)])
def test_pauses_are_drawn_below_a_bound_that_doubles(tries, least, most):
  drawn = [endpoint_limits.pause_s(tries, 1.0, 5.0, random.Random(seed)) for seed in range(200)]
  assert least <= min(drawn) < 0.1 * most and 0.9 * most < max(drawn) <= most
