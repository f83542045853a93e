"""The route /v1/chat/completions: messages, tools and schemas, whole and as a stream."""
import json

import pytest

from tests.language.serve import scripted
from tests.language.serve.test_tools import CALL, TOOL

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def client(script=lambda text: "ok", **options):
  return scripted.Client(scripted.service(script, **options))


def shown(asked, number=0):
  """Returns the text of a prompt that the scheduler was asked."""
  return bytes(one for one in asked.service.scheduler.asked[number].prompt if one < 256).decode()


def test_a_chat_is_shown_by_its_template_and_answered():
  asked = client()
  found = asked.post(PATH, messages=[{"role": "system", "content": "s"}, *HELLO], max_completion_tokens=9)
  choice, = found["choices"]
  assert choice["message"] == {"role": "assistant", "content": "ok", "refusal": None}
  assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
  assert found["object"] == "chat.completion"
  request, = asked.service.scheduler.asked
  assert request.prompt == asked.service.text.chat([{"role": "system", "content": "s"}, *HELLO], {})
  assert request.sampling.max_tokens == 9
  asked.post(PATH, messages=HELLO)
  assert asked.service.scheduler.asked[1].sampling.max_tokens == 100  # All that a completion may have.


def test_a_stream_begins_with_the_role_and_has_the_text_of_the_whole():
  asked = client(lambda text: "a b")
  chunks = asked.stream(PATH, messages=HELLO, n=2, stream_options={"include_usage": True})
  for number in (0, 1):
    own = [one["choices"][0] for one in chunks if one["choices"] and one["choices"][0]["index"] == number]
    assert own[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["delta"].get("content", "") for one in own) == "a b"
    assert own[-1]["finish_reason"] == "stop"
  assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_log_probabilities_have_bytes_and_the_likeliest():
  asked = client(lambda text: "é")
  found = asked.post(PATH, messages=HELLO, logprobs=True, top_logprobs=2, return_token_ids=True)
  choice, = found["choices"]
  told = choice["logprobs"]["content"]
  assert [one["bytes"] for one in told] == [[0xC3], [0xA9], []]
  assert all(len(one["top_logprobs"]) == 2 for one in told)
  assert choice["token_ids"] == [0xC3, 0xA9, 260]
  assert found["prompt_token_ids"][0] == 259
  client().refused(PATH, {"messages": HELLO, "top_logprobs": 2})
  streamed = asked.stream(PATH, messages=HELLO, logprobs=True, return_token_ids=True)
  ids = sum((one["choices"][0].get("token_ids", []) for one in streamed), [])
  assert ids == choice["token_ids"]


def test_calls_of_tools_are_read_and_shown_again():
  asked = client(lambda text: f"I call.\n{CALL}", template=scripted.TOOLS)
  found = asked.post(PATH, messages=HELLO, tools=[TOOL])
  choice, = found["choices"]
  assert choice["finish_reason"] == "tool_calls"
  assert choice["message"]["content"] == "I call."
  call, = choice["message"]["tool_calls"]
  assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
  assert '"Adds."' in shown(asked)
  # What came back goes in again, with the tool's answer.
  back = [*HELLO, choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "2"}]
  asked.post(PATH, messages=back, tools=[TOOL])
  assert '"arguments": {"a": 1}' in shown(asked, 1)


def test_a_stream_tells_calls_as_calls():
  asked = client(lambda text: f"So.{CALL}{CALL}", template=scripted.TOOLS, max_tokens=400)
  chunks = asked.stream(PATH, messages=HELLO, tools=[TOOL])
  deltas = [one["choices"][0]["delta"] for one in chunks]
  assert "".join(one.get("content", "") for one in deltas) == "So."
  calls = sum((one.get("tool_calls", []) for one in deltas), [])
  assert [one["index"] for one in calls] == [0, 1]
  assert len({one["id"] for one in calls}) == 2
  assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_may_be_demanded_or_forbidden():
  for choice in ("required", {"type": "function", "function": {"name": "add"}}):
    found = client(lambda text: "no", template=scripted.TOOLS).post(
      PATH, messages=HELLO, tools=[TOOL], tool_choice=choice)["choices"][0]
    assert json.loads(found["message"]["tool_calls"][0]["function"]["arguments"]).keys() == {"a"}
  asked = client(lambda text: CALL, template=scripted.TOOLS)
  found = asked.post(PATH, messages=HELLO, tools=[TOOL], tool_choice="none")["choices"][0]
  assert found["message"]["content"] == CALL
  assert "Adds" not in shown(asked)
  found = client(lambda text: CALL + CALL, template=scripted.TOOLS, max_tokens=400).post(
    PATH, messages=HELLO, tools=[TOOL], parallel_tool_calls=False)["choices"][0]
  assert len(found["message"]["tool_calls"]) == 1


def test_an_answer_is_an_object_where_that_is_asked_for():
  found = client(lambda text: "{}").post(PATH, messages=HELLO, response_format={"type": "json_object"})
  assert found["choices"][0]["message"]["content"] == "{}"
  form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "boolean"}}}
  found = client(lambda text: "maybe").post(PATH, messages=HELLO, response_format=form)
  assert found["choices"][0]["message"]["content"] in ("true", "false")


def test_a_developer_is_the_system_to_templates_that_do_not_know_the_name():
  asked = client()
  asked.post(PATH, messages=[{"role": "developer", "content": "d"}, *HELLO])
  assert "system\nd" in shown(asked)


def test_special_tokens_in_what_a_user_says_are_text():
  asked = client()
  asked.post(PATH, messages=[{"role": "user", "content": "<|im_end|>"}])
  assert asked.service.scheduler.asked[0].prompt.count(260) == 1


REFUSED = [
  ({}, "messages"), ({"messages": []}, "messages"), ({"messages": "x"}, "messages"),
  ({"messages": [{"role": "user"}]}, "messages"), ({"messages": [{"role": "x", "content": "y"}]}, "messages"),
  ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
  ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages"),
  ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
  ({"messages": HELLO, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
  ({"messages": HELLO, "functions": []}, "functions"),
  ({"messages": HELLO, "reasoning_effort": "low"}, "reasoning_effort"),
  ({"messages": HELLO, "modalities": ["audio"]}, "modalities"),
  ({"messages": HELLO, "prompt": "x"}, "prompt"),
  ({"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
  ({"messages": HELLO, "tools": [TOOL]}, "tools"),
  ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_cannot_be_is_refused_by_name(body, param):
  assert client().refused(PATH, body)["param"] == param


def test_a_model_without_a_template_says_where_to_ask():
  error = client(template=None).refused(PATH, {"messages": HELLO})
  assert error["code"] == "no_chat_template"
  assert "/v1/completions" in error["message"]


def test_a_template_may_be_given_values_of_any_name():
  asked = client()
  names = ("template", "tokenizer", "written", "asked", "answer", "then", "values", "role", "loop", "")
  for conversation in ("c", "c"):  # The second one goes on.
    values = dict.fromkeys(names, 1)
    asked.post(PATH, messages=HELLO, conversation=conversation, chat_template_kwargs=values)
  assert "self" in asked.refused(PATH, {"messages": HELLO, "chat_template_kwargs": {"self": 1}})["message"]
