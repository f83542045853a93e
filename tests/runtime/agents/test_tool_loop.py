"""The loop of tools: rounds, checks of arguments, errors that the agent is told, cancelled calls, events."""
import asyncio
import dataclasses
import threading

import pytest

from atlas_jax.runtime.agents.agent import AgentError, AgentReply, CallTokens, Tool, ToolRequest
from atlas_jax.runtime.agents.load import load
from atlas_jax.runtime.agents.python import PythonAgent
from atlas_jax.runtime.agents.threads import AgentThreads
from atlas_jax.runtime.agents.tool_loop import LAST_ROUND, ToolLoop, ToolLoopSettings
from atlas_jax.runtime.events import EventLog
from tests.rollout.chat_server import Answer
from tests.runtime.agents.agents import MESSAGES, SESSION
from tests.runtime.agents.test_openai import wants
from tests.runtime.agents.test_threads import settled

ADD = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
       "required": ["a", "b"], "additionalProperties": False}


def add(a, b):
  return a + b


async def add_later(a, b):
  await asyncio.sleep(0)
  return {"sum": a + b}


def fail(**arguments):
  raise ValueError(f"no {sorted(arguments)}")


TOOLS = (Tool("add", "Adds.", ADD, add), Tool("add_later", "Adds.", ADD, add_later),
         Tool("fail", "Fails.", {"type": "object"}, fail),
         Tool("nan", "", {}, lambda: {"x": float("nan"), "t": "a\x00"}),
         Tool("bytes", "", {}, lambda: b"x"), Tool("exit", "", {}, lambda: exit(1)),
         Tool("long", "", {}, lambda: "y" * 50))


def scripted(*replies):
  """An agent that gives replies one after another, and keeps the messages of each call."""
  left, asked = list(replies), []

  def agent(messages, tools):
    asked.append(messages)
    return left.pop(0)

  return PythonAgent(agent), asked


def asks(*calls, text=""):
  """A reply that asks for tools: (name, arguments) each."""
  return AgentReply(text, tuple(ToolRequest(f"c{number}", name, arguments)
                                for number, (name, arguments) in enumerate(calls)), CallTokens(5, 2))


def run(loop, log=None):
  return asyncio.run(loop.answer(MESSAGES, session=SESSION, log=log, parent=7 if log else None))


def logged():
  events = []
  return EventLog("k1", events.append, first_span=8), events


def test_tools_are_run_until_the_agent_answers():
  agent, asked = scripted(asks(("add", {"a": 2, "b": 2}), ("add_later", {"a": 1, "b": 1})),
                          AgentReply("4", (), CallTokens(9, 1)))
  log, events = logged()
  loop = ToolLoop(agent, TOOLS)
  reply = run(loop, log)
  assert (reply.text, reply.tool_calls, reply.tokens) == ("4", (), CallTokens(14, 3, 2))
  assert [(one.round, one.name, one.status, one.text) for one in loop.calls] == [
    (1, "add", "ok", "4"), (1, "add_later", "ok", '{"sum":2}')]
  assert loop.rounds == 2 and asked[1] == [*MESSAGES, *loop.messages]
  assert loop.messages[0]["tool_calls"][0] == {"id": "c0", "type": "function", "function": {
    "name": "add", "arguments": '{"a":2,"b":2}'}}
  assert loop.messages[1] == {"role": "tool", "tool_call_id": "c0", "name": "add", "content": "4"}
  assert [(one.name, one.kind, one.actor, one.span, one.parent) for one in events] == [
    ("tool", "START", "tool", 8, 7), ("tool", "END", "tool", 8, 7),
    ("tool", "START", "tool", 9, 7), ("tool", "END", "tool", 9, 7)]
  assert events[0].data == {"id": "c0", "name": "add", "arguments": {"a": 2, "b": 2}}
  assert events[1].data["status"] == "ok" and events[1].data["text"] == "4"


@pytest.mark.parametrize("call, status, said", [
  (("add", {"a": 1}), "refused", "lacks 'b'"),
  (("add", {"a": 1, "b": "2"}), "refused", "must be integer"),
  (("add", {"a": True, "b": 1}), "refused", "must be integer"),
  (("add", {"a": 1, "b": 2, "c": 3}), "refused", "may have only"),
  (("ad", {}), "refused", "there is no tool 'ad'; did you mean 'add'"),
  (("fail", {"z": 1}), "error", "raised ValueError: no ['z']"),
  (("bytes", {}), "error", "bytes"),
  (("exit", {}), "error", "SystemExit"),
])
def test_what_goes_wrong_is_told_to_the_agent(call, status, said):
  agent, _ = scripted(asks(call), AgentReply("sorry"))
  loop = ToolLoop(agent, TOOLS)
  assert run(loop).text == "sorry"
  assert loop.calls[0].status == status and said in loop.calls[0].text
  assert loop.messages[-1]["content"].startswith('{"error":')


def test_arguments_that_cannot_be_read_are_told_and_results_are_storable(server):
  server.use([wants(("1", "add", "{bad"), ("2", "nan", "{}"), ("3", "long", "")), "done"])
  agent = load({"kind": "openai", "url": server.url, "model": "m"})
  loop = ToolLoop(agent, TOOLS, settings=ToolLoopSettings(result_chars=40))
  assert run(loop).text == "done"
  assert [one.status for one in loop.calls] == ["refused", "ok", "ok"]
  sent = server.asked[1]["messages"]
  assert [one["role"] for one in sent] == ["user", "assistant", "tool", "tool", "tool"]
  assert sent[1]["tool_calls"][0]["function"]["arguments"] == "{}"
  assert sent[3]["content"] == '{"x":null,"t":"a\ufffd"}'
  assert sent[4]["content"] == "y" * 40 + "... (cut: 50 characters, 40 are shown)"


def test_the_last_round_says_so_and_runs_no_tool():
  replies = [asks(("add", {"a": 1, "b": 1})) for _ in range(8)]
  agent, asked = scripted(*replies)
  loop = ToolLoop(agent, TOOLS)
  with pytest.raises(AgentError, match="still asks for tools after 8 rounds") as raised:
    run(loop)
  assert raised.value.kind == "tools" and loop.tokens == CallTokens(40, 16, 8)
  assert [one.status for one in loop.calls] == ["ok"] * 7 + ["refused"]
  assert asked[7][-1] == {"role": "user", "name": "runtime", "content": LAST_ROUND}
  agent, _ = scripted(asks(("add", {"a": 1, "b": 1})), asks(("add", {}), text="2 then"))
  assert run(ToolLoop(agent, TOOLS, settings=ToolLoopSettings(rounds=2))).text == "2 then"


def test_calls_are_bounded_over_all_rounds():
  many = [("add", {"a": 1, "b": 1})] * 3
  agent, _ = scripted(asks(*many), AgentReply("2"))
  loop = ToolLoop(agent, TOOLS, settings=ToolLoopSettings(calls=2))
  assert run(loop).text == "2" and [one.status for one in loop.calls] == ["ok", "ok", "refused"]


def test_a_call_that_takes_too_long_is_told_and_counted_late():
  go = threading.Event()
  threads = AgentThreads(2)
  slow = (Tool("hang", "", {}, lambda: go.wait(5)), Tool("wait", "", {}, asyncio.Event().wait))
  agent, _ = scripted(asks(("hang", {}), ("wait", {})), AgentReply("no tool"))
  loop = ToolLoop(agent, slow, settings=ToolLoopSettings(call_s=0.05), threads=threads)
  assert run(loop).text == "no tool"
  assert [one.status for one in loop.calls] == ["timed_out", "timed_out"] and threads.late == 1
  go.set()
  settled(lambda: threads.discarded == 1)


def test_a_cancelled_call_ends_in_the_events_and_tokens_are_kept():
  agent, _ = scripted(asks(("wait", {})))
  log, events = logged()
  loop = ToolLoop(agent, [Tool("wait", "", {}, asyncio.Event().wait)])

  async def cancelled():
    async with asyncio.timeout(0.05):
      await loop.answer(MESSAGES, session=SESSION, log=log)

  with pytest.raises(TimeoutError):
    asyncio.run(cancelled())
  assert [one.kind for one in events] == ["START", "END"] and events[1].data["status"] == "cancelled"
  assert loop.tokens == CallTokens(5, 2) and loop.calls[0].status == "cancelled"


def test_a_tool_that_raises_a_timeout_of_its_own_has_failed():
  def own():
    raise TimeoutError("of its own")
  agent, _ = scripted(asks(("own", {})), AgentReply("x"))
  loop = ToolLoop(agent, [Tool("own", "", {}, own)])
  run(loop)
  assert loop.calls[0].status == "error" and "of its own" in loop.calls[0].text


def test_tokens_before_a_failure_of_the_agent_are_kept(server):
  server.use([wants(("1", "add", '{"a": 1, "b": 1}')), Answer("bad", 400)])
  loop = ToolLoop(load({"kind": "openai", "url": server.url, "model": "m"}), TOOLS)
  with pytest.raises(AgentError):
    run(loop)
  assert loop.tokens == CallTokens(5, 2) and loop.rounds == 2


def test_an_agent_without_tools_is_asked_once_and_settings_are_checked():
  agent, _ = scripted(AgentReply("4"))
  loop = ToolLoop(agent)
  assert run(loop) == AgentReply("4") and loop.rounds == 1 and not loop.messages
  with pytest.raises(ValueError, match="two tools have one name"):
    ToolLoop(agent, [TOOLS[0], dataclasses.replace(TOOLS[1], name="add")])
  for name, value in (("rounds", 0), ("calls", 0), ("result_chars", 0), ("call_s", 0.0)):
    with pytest.raises(ValueError, match=name):
      ToolLoopSettings(**{name: value})
