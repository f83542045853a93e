"""Models behind chat endpoints as agents: roles, tools, tokens, keys."""
import json

import pytest

from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.runtime.agents.agent import Agent, AgentError, CallTokens, Tool, ToolRequest
from atlas_jax.runtime.agents.load import load
from tests.rollout.chat_server import Answer, said
from tests.runtime.agents.agents import MESSAGES, call

ADD = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}}, lambda a: a)


def made(server, **settings):
  return load({"kind": "openai", "url": server.url, "model": "m", "backoff_s": 0, **settings})


def wants(*calls, content=None):
  """An answer that asks for tools: (id, name, arguments as text) each."""
  listed = [{"id": key, "type": "function", "function": {"name": name, "arguments": arguments}}
            for key, name, arguments in calls]
  message = {"role": "assistant", "content": content, "tool_calls": listed}
  return Answer({"choices": [{"message": message}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})


def test_roles_stay_roles_and_no_key_is_needed(server, monkeypatch):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  agent = made(server, system="Be brief.", temperature=0.5, max_tokens=9, seed=1, extra={"user": "u"})
  guidance = {"role": "user", "name": "guidance", "content": "again"}
  reply = call(agent, [*MESSAGES, {"role": "assistant", "content": "5"}, guidance])
  assert isinstance(agent, Agent) and agent.idempotent and (agent.name, agent.version) == ("m", "m")
  assert (reply.text, reply.tokens, reply.tool_calls) == ("hello", CallTokens(7, 3), ())
  assert server.asked == [{"model": "m", "temperature": 0.5, "max_tokens": 9, "seed": 1, "user": "u",
                           "messages": [{"role": "system", "content": "Be brief."}, *MESSAGES,
                                        {"role": "assistant", "content": "5"}, guidance]}]
  assert "Authorization" not in server.headers[0]


def test_a_key_that_is_named_is_sent_and_must_be_set(server, monkeypatch):
  monkeypatch.setenv("AGENT_KEY", "planted-key")
  call(made(server, key_variable="AGENT_KEY"))
  assert server.headers[0]["Authorization"] == "Bearer planted-key"
  server.use([Answer("no planted-key here", 400)])
  with pytest.raises(AgentError) as raised:
    call(made(server, key_variable="AGENT_KEY"))
  assert "planted-key" not in str(raised.value) and raised.value.kind == "endpoint"
  assert isinstance(raised.value.__cause__, EndpointError) and raised.value.__cause__.tries == 1
  monkeypatch.delenv("AGENT_KEY")
  with pytest.raises(ValueError, match="agent: .*AGENT_KEY"):
    made(server, key_variable="AGENT_KEY")


def test_tools_are_offered_and_calls_are_read(server):
  server.use([wants(("1", "add", '{"a": 2}'), ("", "add", ""), ("3", "add", "{bad"), ("4", "add", "[1]"))])
  agent = made(server, tool_choice="required")
  reply = call(agent, tools=[ADD])
  assert server.asked[0]["tools"] == [{"type": "function", "function": {
    "name": "add", "description": "Adds.", "parameters": ADD.schema}}]
  assert server.asked[0]["tool_choice"] == "required"
  assert reply.tool_calls[:2] == (ToolRequest("1", "add", {"a": 2}), ToolRequest("call_1", "add", {}))
  assert "cannot be read" in reply.tool_calls[2].problem and "is list" in reply.tool_calls[3].problem
  call(agent, [*MESSAGES, {"role": "tool", "tool_call_id": "1", "content": "2"}], tools=[ADD])
  assert server.asked[1]["tool_choice"] == "auto"


def test_unstorable_characters_are_replaced_and_unnamed_calls_refused(server):
  server.use([Answer(json.dumps(said("a\x00b")).encode())])
  assert call(made(server)).text == "a\ufffdb"
  server.use([wants(("1", "", "{}"))])
  with pytest.raises(AgentError, match=r"tool_calls\[0\] has no name"):
    call(made(server), tools=[ADD])


def test_a_usage_that_is_not_said_is_not_zero(server):
  server.use([Answer(said("x", prompt_tokens=None))])
  assert call(made(server)).tokens == CallTokens(None, None)


def test_texts_name_no_tools():
  agent = load({"kind": "openai", "url": "http://127.0.0.1:9/v1", "model": "m", "form": "texts"})
  with pytest.raises(AgentError, match="name no tools"):
    call(agent, tools=[ADD])
