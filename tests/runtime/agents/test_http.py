"""Addresses of HTTP as agents: what is sent and where, what is read, tries, keys."""
import json

import pytest

from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.runtime.agents import load
from atlas_jax.runtime.agents.agent import Agent, AgentError
from tests.rollout.chat_server import Answer
from tests.runtime.agents.agents import MESSAGES, call
from tests.runtime.agents.test_openai import ADD


def made(server, **settings):
  return load.load({"kind": "http", "url": f"{server.url}/run", "backoff_s": 0, **settings})


def body(value, **more):
  return Answer(json.dumps(value).encode(), **more)


def test_the_template_is_filled_in_one_pass_and_the_path_is_the_one_given(server):
  server.use([body({"data": [{"output": "four"}]})])
  template = {"q": "T: {task} {{x}}", "messages": "{messages}", "n": [1, "{attempt}", None],
              "m": "{metadata}", "s": "{session}/{step}"}
  agent = made(server, template=template, result_path=["data", 0, "output"], headers={"X-A": "b"})
  messages = [{"role": "user", "content": "say {metadata} \x00 {{y}}"}]
  assert isinstance(agent, Agent) and agent.name == "127.0.0.1" and agent.version is None
  assert call(agent, messages).text == "four"
  assert server.asked == [{"q": "T: say {metadata} \x00 {{y}} {x}", "messages": messages, "n": [1, 1, None],
                           "m": {"who": "a test"}, "s": "k1/null"}]
  assert server.headers[0]["X-A"] == "b" and server.headers[0]["Idempotency-Key"]


@pytest.mark.parametrize("answer, text", [
  (Answer(b"plain words"), "plain words"), (body("quoted"), "quoted"), (body({"a": 1}), '{"a":1}'),
  (Answer(b'{"x": NaN}'), '{"x":null}'), (body("a\x00b"), "a\ufffdb"), (Answer(b"\xff"), "\ufffd"),
], ids=["text", "string", "object", "nan", "nul", "bytes"])
def test_bodies_are_answers(server, answer, text):
  server.use([answer])
  assert call(made(server)).text == text
  assert server.asked == [{"prompt": "2+2", "metadata": {"who": "a test"}}]


def test_an_answer_may_ask_for_tools(server):
  server.use([body({"content": None, "tool_calls": [{"name": "add", "arguments": {"a": 1}}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 2}})])
  reply = call(made(server), tools=[ADD])
  assert reply.tool_calls[0].arguments == {"a": 1} and reply.tokens[:2] == (1, 2)


@pytest.mark.parametrize("answer, path, said", [
  (body({"data": 1}), ["dat"], r"leads nowhere at \['dat'\]; there are data"),
  (body([1]), [3], "leads nowhere"), (Answer(b"no json"), ["a"], "leads into JSON"),
  (body({"a": None}), ["a"], "returned None"),
], ids=["name", "place", "text", "null"])
def test_answers_that_cannot_be_used_are_refused(server, answer, path, said):
  server.use([answer])
  with pytest.raises(AgentError, match=said):
    call(made(server, result_path=path))


@pytest.mark.parametrize("answer, kind, tries", [
  (Answer("no", 400), "status", 1), (Answer("no", 404), "status", 1), (Answer("moved", 307), "status", 1),
  (Answer("busy", 429), "status", 3), (Answer("down", 503), "status", 3), (Answer(drop=True), "connect", 3),
  (Answer("x", wait_s=5.0), "timeout", 3),
], ids=["400", "404", "307", "429", "503", "dropped", "slow"])
def test_tries_are_made_where_they_may_help(server, answer, kind, tries):
  server.use([answer])
  with pytest.raises(AgentError) as raised:
    call(made(server, timeout_s=0.1 if kind == "timeout" else 5.0))
  error = raised.value.__cause__
  assert isinstance(error, EndpointError) and raised.value.kind == "endpoint"
  assert (error.kind, error.tries, len(server.asked)) == (kind, tries, tries)
  assert len({one["Idempotency-Key"] for one in server.headers}) == 1


def test_a_busy_address_is_asked_again(server):
  server.use([Answer("busy", 429), body("there")])
  assert call(made(server)).text == "there"


def test_keys_come_from_the_environment_and_are_in_no_error(server, monkeypatch):
  monkeypatch.setenv("AGENT_TOKEN", "planted-key")
  server.use([Answer("bad planted-key", 401)])
  with pytest.raises(AgentError) as raised:
    call(made(server, header_variables={"Authorization": "AGENT_TOKEN"}))
  assert server.headers[0]["Authorization"] == "planted-key" and "planted" not in str(raised.value)
  server.use([Answer("I was given planted-key")])
  assert call(made(server, header_variables={"X": "AGENT_TOKEN"})).text == "I was given ***"
  monkeypatch.delenv("AGENT_TOKEN")
  with pytest.raises(ValueError, match="agent: header_variables.Authorization names .* AGENT_TOKEN"):
    made(server, header_variables={"Authorization": "AGENT_TOKEN"})


@pytest.mark.parametrize("settings, said", [
  ({"template": {"q": "hello"}}, "neither {task} nor {messages}"),
  ({"template": {"q": "{tsk}", "r": "{task}"}}, r"template\.q of an agent has {tsk}.*did you mean 'task'"),
  ({"template": {"q": ["{task} {}"]}}, r"template\.q\[0\]"), ({"url": "x"}, "must be http"),
  ({"url": "http://a:b@h/x"}, "name or password"), ({"tries": 0}, "at least 1"),
  ({"headers": {"A": "x"}, "header_variables": {"a": "HOME"}}, "both set a"),
])
def test_settings_that_would_not_send_the_task_are_refused(settings, said):
  with pytest.raises(ValueError, match=said):
    load.check({"kind": "http", "url": "http://h/run", **settings})


def test_guidance_is_in_the_task_that_is_sent(server):
  server.use([body("x")])
  call(made(server), [*MESSAGES, {"role": "user", "name": "guidance", "content": "Again."}])
  assert server.asked[0]["prompt"] == "2+2\n\nAgain."
