"""Python functions as agents: kinds of functions, replies of every type, refusals, versions."""
import asyncio
import functools
import math
import threading

import pytest

from atlas_jax.runtime.agents import python
from atlas_jax.runtime.agents.agent import Agent, AgentError, AgentReply, CallTokens, ToolRequest
from atlas_jax.runtime.agents.python import PythonAgent
from tests.runtime.agents.agents import MESSAGES, call, echo

GUIDED = (*MESSAGES, {"role": "assistant", "content": "5"},
          {"role": "user", "name": "guidance", "content": "Count again."})


async def coroutine(messages):
  return messages[-1]["content"]


async def async_parts(task):
  for part in ("an", "swer to ", task):
    yield part


def parts(task):
  yield from ("an", "swer to ", task)


class Callable:
  async def __call__(self, prompt, metadata):
    return f"{prompt} for {metadata['who']}"


@pytest.mark.parametrize("function, answer", [
  (echo, "echo 2+2"),
  (coroutine, "2+2"),
  (async_parts, "answer to 2+2"),
  (parts, "answer to 2+2"),
  (Callable(), "2+2 for a test"),
  (functools.partial(echo), "echo 2+2"),
  (lambda messages: coroutine(messages), "2+2"),
  (lambda prompt, metadata, extra=3, **more: f"{prompt} {metadata['who']} {extra}", "2+2 a test 3"),
  (lambda task, /: task, "2+2"),
  (lambda task, session, tools: f"{session.key} {len(tools)} {session.attempt}", "k1 0 1"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_function_of_any_kind_answers(function, answer):
  agent = PythonAgent(function)
  assert isinstance(agent, Agent)
  assert call(agent).text == answer


def test_a_function_that_takes_text_is_given_guidance_and_turns_too():
  assert call(PythonAgent(echo), GUIDED).text == "echo 2+2\n\n[assistant]\n5\n\nCount again."
  assert call(PythonAgent(coroutine), GUIDED).text == "Count again."


@pytest.mark.parametrize("value, text", [
  ({"a": [1, 2]}, '{"a":[1,2]}'), ([1, (2, 3)], "[1,[2,3]]"), (4, "4"), (True, "true"), ("", ""),
  ({"x": math.nan, "y": math.inf}, '{"x":null,"y":null}'), ("a\x00b", "a\ufffdb"),
  ("half \ud83d", "half \ufffd"), ({"a\x00": "\ud800"}, '{"a\ufffd":"\ufffd"}'),
  ("x" * 300_000, "x" * 300_000), ({"tool_calls": [{"name": "f"}]}, '{"tool_calls":[{"name":"f"}]}'),
], ids=["object", "list", "number", "boolean", "empty", "nan-inside", "nul", "surrogate", "both", "long",
        "calls-without-tools"])
def test_values_are_answers_that_every_store_takes(value, text):
  assert call(PythonAgent(lambda task: value)).text == text


@pytest.mark.parametrize("value, said", [
  (None, "returned None"), (math.nan, "nan, which is no answer"), (b"x", "bytes"), ({1: 2}, "no text"),
  ({"a": object()}, "object"), ("x" * 1_000_001, "1000001 characters"), (iter([1]), "yielded int"),
  (iter([]), "yielded nothing"),
], ids=["none", "nan", "bytes", "names", "object", "huge", "numbers", "nothing"])
def test_values_that_are_no_answer_are_refused(value, said):
  with pytest.raises(AgentError, match=said) as raised:
    call(PythonAgent(lambda task: value))
  assert raised.value.kind == "reply"


def test_a_value_that_contains_itself_is_refused():
  value = []
  value.append(value)
  with pytest.raises(AgentError, match="more than 100 lists"):
    call(PythonAgent(lambda task: value))


def test_a_reply_of_its_own_keeps_its_calls_and_tokens():
  reply = AgentReply("a\x00", (ToolRequest("1", "f", {}),), CallTokens(3, 4))
  found = call(PythonAgent(lambda task: reply))
  assert found == AgentReply("a\ufffd", (ToolRequest("1", "f", {}),), CallTokens(3, 4))


def raising(error):
  def agent(task):
    raise error
  return agent


def raising_async(error):
  async def agent(task):
    raise error
  return agent


@pytest.mark.parametrize("make", [raising, raising_async])
@pytest.mark.parametrize("error", [ValueError("no way"), SystemExit(3), StopIteration("x"),
                                   asyncio.CancelledError()], ids=lambda error: type(error).__name__)
def test_what_an_agent_raises_is_an_error_of_the_agent(make, error):
  with pytest.raises(AgentError) as raised:
    call(PythonAgent(make(error)))
  assert raised.value.kind == "raised" and "agent" in str(raised.value)


@pytest.mark.parametrize("function, said", [
  (lambda: 1, "takes nothing"), (lambda x: x, "takes x"), (lambda task, messages: 1, "takes task, messages"),
  (lambda task, more: 1, "needs more"), (lambda *args: 1, "takes nothing"),
  (lambda session, /, task: 1, "by position"), (Callable, "is a class"), (3, "cannot be called"),
], ids=["none", "unknown", "two", "other", "any", "position", "class", "number"])
def test_functions_that_cannot_be_called_are_refused_with_what_is_needed(function, said):
  with pytest.raises(ValueError, match=said):
    PythonAgent(function)


def test_the_version_is_the_source_and_may_be_named():
  assert PythonAgent(echo).version == PythonAgent(functools.partial(echo)).version
  assert PythonAgent(echo).version != PythonAgent(coroutine).version
  assert PythonAgent(echo, version="7", name="e", idempotent=True).version == "7"
  assert PythonAgent(echo).name == "echo" and not PythonAgent(echo).idempotent
  assert python.source_hash(print) is None


def test_two_agents_at_once_share_nothing():
  barrier = threading.Barrier(8)

  def agent(messages, metadata, session):
    metadata["seen"] = session.key
    messages.append({"role": "user", "content": session.key})
    barrier.wait(5)
    return f"{metadata['seen']} {messages[-1]['content']} {len(messages)} {sorted(metadata)}"

  async def both():
    made = [PythonAgent(agent), PythonAgent(agent)]
    metadata = {"who": "x"}
    from tests.runtime.agents.agents import SESSION
    sessions = [SESSION._replace(key=f"k{number}", metadata=metadata) for number in range(8)]
    calls = [made[number % 2](MESSAGES, session=one) for number, one in enumerate(sessions)]
    return await asyncio.gather(*calls), metadata

  replies, metadata = asyncio.run(both())
  assert [one.text for one in replies] == [f"k{n} k{n} 2 ['seen', 'who']" for n in range(8)]
  assert metadata == {"who": "x"} and len(MESSAGES) == 1


def test_an_async_generator_that_is_cancelled_is_closed():
  closed = []

  async def agent(task):
    try:
      yield "a"
      await asyncio.Event().wait()
    finally:
      closed.append(task)

  with pytest.raises(TimeoutError):
    call(PythonAgent(agent), within_s=0.05)
  assert closed == ["2+2"]
