"""The route /v1/responses: items in and out, and a stream whose events can be put together again."""
import pytest

from tests.language.serve import scripted
from tests.language.serve.test_tools import CALL, TOOL

PATH = "/v1/responses"
FLAT = {"type": "function", **TOOL["function"]}


def client(script=lambda text: "ok", **options):
  return scripted.Client(scripted.service(script, **options))


def shown(asked, number=0):
  return bytes(one for one in asked.service.scheduler.asked[number].prompt if one < 256).decode()


def test_a_text_is_answered_by_one_message():
  asked = client()
  found = asked.post(PATH, input="hello", instructions="be kind", metadata={"a": "b"})
  assert (found["object"], found["status"], found["metadata"]) == ("response", "completed", {"a": "b"})
  item, = found["output"]
  assert (item["type"], item["role"]) == ("message", "assistant")
  assert item["content"] == [{"type": "output_text", "text": "ok", "annotations": [], "logprobs": []}]
  assert found["usage"]["output_tokens"] == 3
  assert shown(asked).startswith("system\nbe kind\nuser\nhello")
  cut = asked.post(PATH, input="hello", max_output_tokens=1)
  assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_items_are_messages_calls_and_their_answers():
  asked = client(lambda text: CALL, template=scripted.TOOLS)
  parts = [{"type": "input_text", "text": "add"}]
  first = asked.post(PATH, input=[{"role": "user", "content": parts}], tools=[FLAT])
  call, = first["output"]
  assert (call["type"], call["name"], call["arguments"]) == ("function_call", "add", '{"a": 1}')
  answer = {"type": "function_call_output", "call_id": call["call_id"], "output": "2"}
  nulls = {"async_": None, "namespace": None}  # As the openai package gives an item back.
  back = [{"role": "user", "content": "add"}, call | nulls, answer]
  asked.post(PATH, input=back, tools=[FLAT])
  assert "assistant\n" + CALL in shown(asked, 1)
  assert "tool\n2" in shown(asked, 1)


def test_a_stream_puts_together_what_the_whole_has():
  asked = client(lambda text: f"So.{CALL}", template=scripted.TOOLS)
  events = asked.stream(PATH, input="hello", tools=[FLAT])
  assert [one["sequence_number"] for one in events] == list(range(len(events)))
  kinds = [one["type"] for one in events]
  assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                       "response.content_part.added"]
  assert kinds[-1] == "response.completed"
  text = "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta")
  assert text == "So."
  items = [one["item"] for one in events if one["type"] == "response.output_item.done"]
  assert items == events[-1]["response"]["output"]
  assert [one["type"] for one in items] == ["message", "function_call"]
  assert [one["output_index"] for one in events if one["type"] == "response.output_item.added"] == [0, 1]
  assert events[0]["response"]["output"] == []
  assert events[-1]["response"]["usage"]["total_tokens"] > 0


def test_an_empty_answer_is_a_message_all_the_same():
  asked = client(lambda text: "")
  assert asked.post(PATH, input="x")["output"][0]["content"][0]["text"] == ""
  assert asked.stream(PATH, input="x")[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_schemas_log_probabilities_and_conversations():
  form = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "boolean"}}}
  found = client(lambda text: "x").post(PATH, input="x", text=form)
  assert found["output"][0]["content"][0]["text"] in ("true", "false")
  found = client().post(PATH, input="x", include=["message.output_text.logprobs"], top_logprobs=1)
  assert len(found["output"][0]["content"][0]["logprobs"]) == 3
  asked = client()
  for word in ("one", "two"):
    told = asked.post(PATH, input=word, conversation="c", instructions="i")
  assert told["conversation"] == {"id": "c"}
  assert shown(asked, 1).count("system\ni") == 1
  assert "one" in shown(asked, 1)
  asked.refused(PATH, {"input": "x", "conversation": "c", "instructions": "others"})


def test_a_failure_in_a_stream_is_an_event():
  scheduler = scripted.ScriptedScheduler(error=RuntimeError("secret words"))
  events = client(scheduler=scheduler).stream(PATH, input="x")
  assert events[-1]["type"] == "response.failed"
  assert "secret" not in str(events)


REFUSED = [
  ({}, "input"), ({"input": []}, "input"), ({"input": 3}, "input"), ({"input": "x", "n": 2}, "n"),
  ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
  ({"input": [{"role": "user", "content": {"a": "b"}}]}, "input[0].content"),
  ({"input": [{"type": "reasoning"}]}, "input[0].type"),
  ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
   "input[0].content[0].type"),
  ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
  ({"input": "x", "background": True}, "background"), ({"input": "x", "include": ["reasoning"]}, "include"),
  ({"input": "x", "reasoning": {"effort": "low"}}, "reasoning"),
  ({"input": "x", "max_tokens": 3}, "max_tokens"),
  ({"input": "x", "text": {"verbosity": "low"}}, "text.verbosity"),
  ({"input": "x", "truncation": "auto"}, "truncation"),
  ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_cannot_be_is_refused_by_name(body, param):
  assert client().refused(PATH, body)["param"] == param
