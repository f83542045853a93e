"""The route /v1/completions: every field is used, and told back as clients read it."""
import json

import pytest

from tests.language.serve import scripted

PATH = "/v1/completions"


def client(script=lambda text: "ok", **options):
  return scripted.Client(scripted.service(script, **options))


def test_a_text_is_answered_with_its_usage():
  asked = client(lambda text: text.upper())
  found = asked.post(PATH, prompt="abc", model="adapter")
  choice, = found["choices"]
  assert choice["text"] == "ABC"
  assert choice["finish_reason"] == "stop"
  assert choice["stop_reason"] == 260
  assert found["object"] == "text_completion"
  assert found["model"] == "adapter"
  assert found["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8,
                            "prompt_tokens_details": {"cached_tokens": 0}}
  request, = asked.service.scheduler.asked
  assert request.model == "adapter"
  assert request.prompt == (256, *b"abc")
  assert request.sampling.max_tokens == 16


def test_every_field_reaches_the_scheduler():
  asked = client()
  asked.post(PATH, prompt="x", n=2, max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=-1,
             logprobs=3, repetition_penalty=1.5, presence_penalty=-1, frequency_penalty=2,
             logit_bias={"65": -100}, stop=["a", "b"],
             stop_token_ids=[9], ignore_eos=True, best_of=2, echo=False, suffix=None)
  request, = asked.service.scheduler.asked
  options = request.sampling
  assert (options.n, options.max_tokens, options.temperature, options.top_p) == (2, 7, 0.5, 0.9)
  assert (options.top_k, options.min_p, options.repetition_penalty) == (5, 0.1, 1.5)
  assert (options.stop_tokens, options.stop_strings) == ((9,), ("a", "b"))
  assert (request.presence_penalty, request.frequency_penalty, request.logit_bias) == (-1, 2, {65: -100.0})
  assert (request.seed, request.top_logprobs) == (2**64 - 1, 3)


def test_prompts_are_texts_or_ids_and_choices_stand_in_their_order():
  asked = client(lambda text: text + "!")
  found = asked.post(PATH, prompt=["a", "b"], n=2, seed=3)
  assert [one["text"] for one in found["choices"]] == ["a!", "a!", "b!", "b!"]
  assert [one["index"] for one in found["choices"]] == [0, 1, 2, 3]
  assert sorted(one.place for one in asked.service.scheduler.asked) == [0, 1]
  assert found["usage"]["prompt_tokens"] == 4  # Of each prompt once.
  asked.post(PATH, prompt=[256, 65])
  asked.post(PATH, prompt=[[65], [66]])
  asked.post(PATH, prompt="A", add_special_tokens=False)
  assert {one.prompt for one in asked.service.scheduler.asked[2:]} == {(256, 65), (65,), (66,)}


def test_a_stream_has_the_same_text_and_the_usage_at_its_end():
  asked = client(lambda text: "one é two")
  whole = asked.post(PATH, prompt="x")
  chunks = asked.stream(PATH, prompt="x", stream_options={"include_usage": True})
  *told, usage = chunks
  assert "".join(one["choices"][0]["text"] for one in told) == whole["choices"][0]["text"] == "one é two"
  assert [one["choices"][0]["finish_reason"] for one in told][-2:] == [None, "stop"]
  assert usage["choices"] == []
  assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
  assert len({one["id"] for one in chunks}) == 1
  assert all("usage" not in one for one in asked.stream(PATH, prompt="x"))


def test_a_stop_string_is_no_part_of_the_text():
  asked = client(lambda text: "one STOP two")
  for found in (asked.post(PATH, prompt="x", stop="STOP")["choices"][0],
                asked.stream(PATH, prompt="x", stop="STOP")[-1]["choices"][0]):
    assert found["finish_reason"] == "stop"
    assert found["stop_reason"] == "STOP"
  text = "".join(one["choices"][0]["text"] for one in asked.stream(PATH, prompt="x", stop="STOP"))
  assert text == "one "
  assert asked.post(PATH, prompt="x", max_tokens=3)["choices"][0]["finish_reason"] == "length"


def test_log_probabilities_and_ids_are_told_on_request():
  asked = client(lambda text: "hé")
  plain = asked.post(PATH, prompt="x")["choices"][0]
  assert plain["logprobs"] is None
  assert "token_ids" not in plain
  found = asked.post(PATH, prompt="x", logprobs=2, return_token_ids=True)["choices"][0]
  assert found["logprobs"]["token_logprobs"] == [-1.0] * 4
  assert found["logprobs"]["text_offset"] == [0, 1, 2, 3]
  assert found["logprobs"]["tokens"][0] == "h"
  assert len(found["logprobs"]["top_logprobs"][0]) == 2
  assert found["token_ids"] == [*"hé".encode(), 260]
  assert found["prompt_token_ids"] == [256, ord("x")]
  assert found["sampler_logprobs"] == [-0.5] * 4
  assert found["full_logprobs"] == [-0.75] * 4
  assert found["weights_version"] == 3
  told = asked.stream(PATH, prompt="x", logprobs=0, return_token_ids=True)
  assert sum((one["choices"][0]["token_ids"] for one in told), []) == found["token_ids"]
  assert told[-1]["choices"][0]["prompt_token_ids"] == [256, ord("x")]


def test_an_answer_follows_its_schema():
  schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
            "additionalProperties": False}
  form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
  found = client(lambda text: "no json at all").post(PATH, prompt="x", response_format=form)
  assert json.loads(found["choices"][0]["text"]) == {"a": 0}


REFUSED = [
  ({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": 3}, "prompt"), ({"prompt": [1, "a"]}, "prompt[0]"),
  ({"prompt": [270]}, "prompt"), ({"prompt": [True]}, "prompt"), ({"prompt": ["a", 1]}, "prompt[1]"),
  ({"prompt": "x", "n": 0}, "n"), ({"prompt": "x", "n": 9}, "n"), ({"prompt": "x", "n": "2"}, "n"),
  ({"prompt": "x", "max_tokens": 0}, "max_tokens"), ({"prompt": "x", "max_tokens": 101}, "max_tokens"),
  ({"prompt": "x", "temperature": -1}, "temperature"), ({"prompt": "x", "top_p": 0}, "top_p"),
  ({"prompt": "x", "top_p": 1.5}, "top_p"), ({"prompt": "x", "logprobs": 21}, "logprobs"),
  ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
  ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias"),
  ({"prompt": "x", "logit_bias": {"1": "2"}}, "logit_bias"), ({"prompt": "x", "stop": ""}, "stop"),
  ({"prompt": "x", "stop": ["a"] * 17}, "stop"), ({"prompt": "x", "stop": "a" * 1001}, "stop"),
  ({"prompt": "x", "echo": True}, "echo"), ({"prompt": "x", "best_of": 2}, "best_of"),
  ({"prompt": "x", "suffix": "y"}, "suffix"), ({"prompt": "x", "frobnicate": 1}, "frobnicate"),
  ({"prompt": "x", "min_tokens": 2}, "min_tokens"), ({"prompt": "x", "store": True}, "store"),
  ({"prompt": "x", "stream_options": {"x": 1}}, "stream_options.x"), ({"prompt": "x", "seed": 2**63}, "seed"),
  ({"prompt": "x", "response_format": {"type": "xml"}}, "response_format.type"),
  ({"prompt": "x", "response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
  ({"prompt": "x", "presence_penalty": 3}, "presence_penalty"), ({"prompt": "x", "user": 3}, "user"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_a_field_that_cannot_be_is_refused_by_name(body, param):
  error = client().refused(PATH, body)
  assert error["param"] == param
  assert error["type"] == "invalid_request_error"


def test_ids_that_the_model_has_not_and_models_that_are_not_there_are_refused():
  error = client().refused(PATH, {"prompt": "x", "model": "gpt"}, status=404)
  assert error["code"] == "model_not_found"
  assert "base" in error["message"]
  assert "logit_bias" in client().refused(PATH, {"prompt": "x", "logit_bias": {"270": 1}})["message"]


def test_a_prompt_that_is_too_long_says_how_much_room_there_is():
  asked = client(longest_tokens=10)
  assert asked.refused(PATH, {"prompt": "x" * 20})["code"] == "context_length_exceeded"
  assert asked.refused(PATH, {"prompt": "x" * 4, "max_tokens": 6})["code"] == "context_length_exceeded"
  asked.post(PATH, prompt="x" * 4, max_tokens=5)
