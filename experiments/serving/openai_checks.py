"""Checks with the `openai` package: every answer is read by its types, every error is one of its classes."""
import asyncio
import concurrent.futures
import importlib
import json
import secrets
from typing import Any

from experiments.serving.target import ASKED, SCHEMA, TOOL, DoesNotApply, Target, ask

openai: Any = importlib.import_module("openai")
TOOLS = [{"type": "function", "function": TOOL}]
FORM = {"type": "json_schema", "json_schema": {"name": "colours", "schema": SCHEMA, "strict": True}}
USER = [{"role": "user", "content": ASKED}]


def client(at: Target, **options: Any) -> Any:
  """Returns a client that never asks twice, so that no error is hidden."""
  return openai.OpenAI(base_url=at.api, api_key=at.token or "none", max_retries=0, timeout=120, **options)


def caught(kind: Any, action: Any) -> Any:
  """Returns the error that an action must end with."""
  try:
    action()
  except kind as error:
    return error
  raise AssertionError(f"no {kind.__name__}")


def models(at: Target) -> None:
  """models: list, retrieve"""
  assert at.model in [one.id for one in client(at).models.list()]
  assert client(at).models.retrieve(at.model).object == "model"


def completion(at: Target) -> None:
  """completion: text, several prompts, ids, usage"""
  made = client(at).completions
  one = made.create(model=at.model, prompt="def f", max_tokens=8, seed=1)
  assert one.object == "text_completion"
  assert one.choices[0].finish_reason in ("length", "stop")
  assert one.usage.completion_tokens <= 8
  two = made.create(model=at.model, prompt=["def f", [5, 6, 7]], max_tokens=4, seed=1)
  assert [one.index for one in two.choices] == [0, 1]


def completion_n(at: Target) -> None:
  """completion: n, logprobs, stop, logit_bias, seed"""
  made = client(at).completions
  fields = dict(model=at.model, prompt="def f", max_tokens=8, seed=3, n=3, logprobs=2)
  found = made.create(**fields)
  assert len({one.index for one in found.choices}) == 3
  for one in found.choices:
    told = one.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == len(told.top_logprobs)
    assert all(value <= 0 for value in told.token_logprobs)
    assert all(len(top) <= 2 for top in told.top_logprobs)
  assert made.create(**fields).choices == found.choices
  forced = made.create(model=at.model, prompt="x", max_tokens=3, logit_bias={"65": 100}, temperature=0,
                      extra_body={"return_token_ids": True})
  assert forced.choices[0].model_extra["token_ids"] == [65] * 3
  text = forced.choices[0].text
  stopped = made.create(model=at.model, prompt="x", max_tokens=3, logit_bias={"65": 100}, temperature=0,
                       stop=[text[:1]])
  assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")


def completion_stream(at: Target) -> None:
  """completion: streaming with usage"""
  made = client(at).completions
  fields = dict(model=at.model, prompt="def f", max_tokens=16, seed=2)
  whole = made.create(**fields)
  parts = list(made.create(**fields, stream=True, stream_options={"include_usage": True}))
  assert "".join(one.choices[0].text for one in parts if one.choices) == whole.choices[0].text
  assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
  assert all(one.usage is None for one in parts[:-1])


def completion_schema(at: Target) -> None:
  """completion: response_format json_schema"""
  found = client(at).completions.create(model=at.model, prompt="x", max_tokens=120, seed=1,
                                        extra_body={"response_format": FORM})
  _check_schema(found.choices[0].text)


def _check_schema(text: str) -> None:
  value = json.loads(text)
  assert set(value) == {"colour", "bright"}
  assert value["colour"] in ("red", "blue")
  assert isinstance(value["bright"], bool)


def chat(at: Target) -> None:
  """chat: roles, several turns, usage"""
  at.need_chat()
  messages = [{"role": "developer", "content": "be short"}, *USER, {"role": "assistant", "content": "No."},
              {"role": "user", "content": [{"type": "text", "text": "why"}]}]
  found = client(at).chat.completions.create(model=at.model, messages=messages, max_completion_tokens=16,
                                             seed=1)
  assert found.choices[0].message.role == "assistant"
  assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def chat_without_template(at: Target) -> str:
  """chat: refused by name without a chat template"""
  if at.described["chat"]:
    raise DoesNotApply("the model has a chat template")
  for action in (lambda: client(at).chat.completions.create(model=at.model, messages=USER),
                 lambda: client(at).responses.create(model=at.model, input="x")):
    assert caught(openai.BadRequestError, action).code == "no_chat_template"
  return "BadRequestError, code no_chat_template, for chat and responses"


def chat_stream(at: Target) -> None:
  """chat: streaming with usage"""
  at.need_chat()
  made = client(at).chat.completions
  fields = dict(model=at.model, messages=USER, max_tokens=24, seed=4)
  whole = made.create(**fields)
  parts = list(made.create(**fields, stream=True, stream_options={"include_usage": True}))
  assert parts[0].choices[0].delta.role == "assistant"
  said = "".join(one.choices[0].delta.content or "" for one in parts if one.choices)
  assert said == whole.choices[0].message.content
  assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
  assert parts[-1].usage == whole.usage or parts[-1].usage.total_tokens == whole.usage.total_tokens
  with made.stream(**fields) as stream:
    for _ in stream:
      pass
    assert stream.get_final_completion().choices[0].message.content == said


def chat_logprobs(at: Target) -> None:
  """chat: n, logprobs, top_logprobs"""
  at.need_chat()
  found = client(at).chat.completions.create(model=at.model, messages=USER, max_tokens=8, seed=4, n=2,
                                             logprobs=True, top_logprobs=5, temperature=0)
  for choice in found.choices:
    told = choice.logprobs.content
    assert told
    assert all(len(one.top_logprobs) == 5 for one in told)
    assert all(one.logprob == one.top_logprobs[0].logprob for one in told)  # Greedy.
    assert b"".join(bytes(one.bytes or []) for one in told).decode().strip() == choice.message.content.strip()


def chat_schema(at: Target) -> None:
  """chat: response_format json_schema and json_object, parse()"""
  at.need_chat()
  made = client(at).chat.completions
  found = made.create(model=at.model, messages=USER, response_format=FORM, seed=1)
  _check_schema(found.choices[0].message.content)
  free = made.create(model=at.model, messages=USER, response_format={"type": "json_object"}, seed=1,
                    max_tokens=300)
  if free.choices[0].finish_reason == "stop":
    assert isinstance(json.loads(free.choices[0].message.content), dict)
  pydantic: Any = importlib.import_module("pydantic")
  colours = pydantic.create_model("Colours", bright=(bool, ...))
  assert isinstance(made.parse(model=at.model, messages=USER, response_format=colours, seed=1)
                    .choices[0].message.parsed.bright, bool)


def tools_auto(at: Target) -> str:
  """tools: called by the model itself, answered, streamed"""
  at.need_tools()
  made = client(at).chat.completions
  first = made.create(model=at.model, messages=USER, tools=TOOLS, temperature=0)
  if first.choices[0].finish_reason != "tool_calls":
    raise DoesNotApply(f"this model did not call the tool; it wrote {first.choices[0].message.content!r:.60}")
  call, = first.choices[0].message.tool_calls
  assert call.function.name == "get_weather"
  assert set(json.loads(call.function.arguments)) == {"location"}
  answered = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
  for message in (first.choices[0].message, first.choices[0].message.model_dump()):
    last = made.create(model=at.model, messages=[*USER, message, answered], tools=TOOLS, temperature=0)
    assert last.choices[0].message.content
  with made.stream(model=at.model, messages=USER, tools=TOOLS, temperature=0) as stream:
    for _ in stream:
      pass
    again = stream.get_final_completion().choices[0]
  assert again.finish_reason == "tool_calls"
  assert again.message.tool_calls[0].function.arguments == call.function.arguments
  return "the model called the tool, and answered with its result"


def tools_demanded(at: Target) -> None:
  """tools: tool_choice required, by name, none; parallel_tool_calls"""
  at.need_tools()
  made = client(at).chat.completions
  for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
    found = made.create(model=at.model, messages=USER, tools=TOOLS, tool_choice=choice, seed=1,
                       parallel_tool_calls=False)
    call, = found.choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"location"}
    assert found.choices[0].finish_reason in ("tool_calls", "stop")
  none = made.create(model=at.model, messages=USER, tools=TOOLS, tool_choice="none", max_tokens=16, seed=1)
  assert not none.choices[0].message.tool_calls


def responses(at: Target) -> None:
  """responses: text, instructions, streaming, logprobs"""
  at.need_chat()
  made = client(at).responses
  fields = dict(model=at.model, input=ASKED, instructions="be short", max_output_tokens=16, temperature=0)
  found = made.create(**fields)
  assert found.output[0].type == "message"
  assert found.usage.output_tokens <= 16
  with made.stream(**fields) as stream:
    kinds = [event.type for event in stream]
    last = stream.get_final_response()
  assert last.output_text == found.output_text
  assert kinds[:2] == ["response.created", "response.in_progress"]
  told = made.create(model=at.model, input=ASKED, max_output_tokens=4, top_logprobs=2,
                    include=["message.output_text.logprobs"])
  assert len(told.output[0].content[0].logprobs[0].top_logprobs) == 2


def responses_schema(at: Target) -> None:
  """responses: text.format json_schema, parse(), tools"""
  at.need_chat()
  made = client(at).responses
  form = {"type": "json_schema", "name": "colours", "schema": SCHEMA, "strict": True}
  _check_schema(made.create(model=at.model, input=ASKED, text={"format": form}, temperature=0).output_text)
  pydantic: Any = importlib.import_module("pydantic")
  colours = pydantic.create_model("Colours", bright=(bool, ...))
  parsed = made.parse(model=at.model, input=ASKED, text_format=colours, temperature=0).output_parsed
  assert isinstance(parsed.bright, bool)
  if at.described["tools"]:
    found = made.create(model=at.model, input=ASKED, tools=[{"type": "function", **TOOL, "strict": True}],
                       tool_choice="required", temperature=0)
    call, = [one for one in found.output if one.type == "function_call"]
    # As the package's own objects, and as plain values with a null for each field that is not there.
    for answer in (found.output, [one.model_dump() for one in found.output]):
      followed = made.create(model=at.model, temperature=0, max_output_tokens=16, input=[
          {"role": "user", "content": ASKED}, *answer,
          {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}])
      assert followed.status in ("completed", "incomplete")


def conversations(at: Target) -> None:
  """conversation: goes on by an id"""
  name = f"check-{secrets.token_hex(8)}"
  for number in range(2):
    found = client(at).completions.create(model=at.model, prompt=f"part {number} " * 60, max_tokens=4, seed=1,
                                          extra_body={"conversation": name})
  assert found.usage.prompt_tokens_details.cached_tokens > 0 or not _keeps_states(at)
  assert client(at).get(f"/conversations/{name}", cast_to=object)["id"] == name
  client(at).delete(f"/conversations/{name}", cast_to=object)


def _keeps_states(at: Target) -> bool:
  return b"atlas_jax_scheduler_store_states " in ask(at.url, "/metrics", at.token)


def bad_requests(at: Target) -> None:
  """errors: BadRequestError with param and code"""
  made = client(at).completions
  for fields, param in (({"temperature": -1}, "temperature"), ({"n": 0}, "n"), ({"prompt": []}, "prompt"),
                        ({"extra_body": {"temprature": 1}}, "temprature"),
                        ({"max_tokens": 10**7}, "max_tokens")):
    body = {"model": at.model, "prompt": "x"} | fields
    error = caught(openai.BadRequestError, lambda body=body: made.create(**body))
    assert error.param == param, (error.param, param)
    assert error.type == "invalid_request_error"
    assert error.body["message"]


def not_found(at: Target) -> None:
  """errors: NotFoundError for models and routes that are not there"""
  error = caught(openai.NotFoundError, lambda: client(at).completions.create(model="none", prompt="x"))
  assert error.code == "model_not_found"
  caught(openai.NotFoundError, lambda: client(at).models.retrieve("none"))
  caught(openai.NotFoundError, lambda: client(at).embeddings.create(model=at.model, input="x"))
  caught(openai.NotFoundError, lambda: client(at).images.generate(model=at.model, prompt="x"))


def other_media(at: Target) -> str:
  """images and audio: refused by name"""
  at.need_chat()
  parts: list[dict] = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                       {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
  for part in parts:
    body = dict(model=at.model, messages=[{"role": "user", "content": [part]}])
    error = caught(openai.BadRequestError, lambda body=body: client(at).chat.completions.create(**body))
    assert "messages" in error.param
  return "BadRequestError: models here read texts alone"


def authentication(at: Target) -> None:
  """errors: AuthenticationError"""
  at.need_token()
  wrong = openai.OpenAI(base_url=at.api, api_key="none", max_retries=0)
  error = caught(openai.AuthenticationError, lambda: wrong.completions.create(model=at.model, prompt="x"))
  assert error.code == "invalid_api_key"
  caught(openai.AuthenticationError, lambda: list(wrong.models.list()))


def rate_limit(at: Target) -> str:
  """errors: RateLimitError with Retry-After"""
  def one(number: int) -> Any:
    try:
      client(at).completions.create(model=at.model, prompt="x" * 40, max_tokens=200, seed=number,
                                    extra_body={"ignore_eos": True})
    except openai.RateLimitError as error:
      return error
    return None

  with concurrent.futures.ThreadPoolExecutor(48) as pool:
    errors = [error for error in pool.map(one, range(48)) if error is not None]
  if not errors:
    raise DoesNotApply("48 requests at once found place in the queue; start with a small queue_requests")
  assert int(errors[0].response.headers["retry-after"]) >= 1
  assert errors[0].type == "rate_limit_error"
  return f"{len(errors)} of 48 requests at once were told to come later, all others were answered"


def retries(at: Target) -> str:
  """errors: the package's own retries get through a full queue"""
  made = openai.AsyncOpenAI(base_url=at.api, api_key=at.token or "none", max_retries=12, timeout=120)

  async def all_of_them() -> list:
    return await asyncio.gather(*(made.completions.create(model=at.model, prompt="x", max_tokens=8, seed=seed)
                                  for seed in range(24)))

  assert len(asyncio.run(all_of_them())) == 24
  return "24 requests at once of the asynchronous client"


def cancellation(at: Target) -> str:
  """cancellation: a stream that is closed frees its slot"""
  at.wait_until_free(30)
  stream = client(at).completions.create(model=at.model, prompt="x", max_tokens=1_500, stream=True,
                                         extra_body={"ignore_eos": True})
  next(iter(stream))
  assert at.busy_slots() == 1
  stream.close()
  return f"free {at.wait_until_free():.2f} s after it was closed"


def timeouts(at: Target) -> str:
  """timeouts: APITimeoutError, and the slot is free"""
  fast = client(at).with_options(timeout=0.3)
  caught(openai.APITimeoutError, lambda: fast.completions.create(
      model=at.model, prompt="x", max_tokens=1_500, extra_body={"ignore_eos": True}))
  return f"free {at.wait_until_free():.2f} s after the client gave up"


CHECKS = (models, completion, completion_n, completion_stream, completion_schema, chat, chat_without_template,
          chat_stream, chat_logprobs, chat_schema, tools_auto, tools_demanded, responses, responses_schema,
          conversations, bad_requests, not_found, other_media, authentication, rate_limit, retries,
          cancellation, timeouts)
