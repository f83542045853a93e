"""Checks with LangChain's classes ChatOpenAI and OpenAI, in an environment that has langchain-openai."""
import asyncio
import importlib
from typing import Any

from experiments.serving.target import ASKED, SCHEMA, TOOL, DoesNotApply, Target

langchain: Any = importlib.import_module("langchain_openai")
openai: Any = importlib.import_module("openai")
COLOURS = {"title": "colours", "description": "Colours.", **SCHEMA}
TOOLS = [{"type": "function", "function": TOOL}]


def usual(at: Target) -> dict:
  """Returns the fields of both classes."""
  return dict(model=at.model, base_url=at.api, api_key=at.token or "none", max_retries=0, timeout=120, seed=1)


def chat(at: Target, **fields: Any) -> Any:
  """Returns a chat model."""
  at.need_chat()
  return langchain.ChatOpenAI(**(usual(at) | fields))


def text(at: Target, **fields: Any) -> Any:
  """Returns a model of texts."""
  return langchain.OpenAI(**(usual(at) | dict(max_tokens=12) | fields))


def text_invoke(at: Target) -> None:
  """OpenAI: invoke, stream, batch, n"""
  model = text(at)
  whole = model.invoke("def f")
  assert "".join(model.stream("def f")) == whole
  assert model.batch(["def f", "def g"])[0] == whole
  assert len(text(at, n=2, best_of=2).generate(["def f"]).generations[0]) == 2


def chat_invoke(at: Target) -> None:
  """ChatOpenAI: invoke, messages, usage"""
  messages = [("system", "be short"), ("human", ASKED), ("ai", "No."), ("human", "?")]
  found = chat(at, max_tokens=16).invoke(messages)
  assert found.usage_metadata["output_tokens"] <= 16
  assert found.response_metadata["finish_reason"] in ("stop", "length")


def chat_stream(at: Target) -> None:
  """ChatOpenAI: stream with usage, astream"""
  model = chat(at, max_tokens=16, stream_usage=True)
  whole = model.invoke(ASKED).content
  parts = list(model.stream(ASKED))
  assert "".join(part.content for part in parts) == whole
  total = parts[0]
  for part in parts[1:]:
    total += part
  assert total.usage_metadata["output_tokens"] > 0

  async def stream() -> str:
    return "".join([part.content async for part in model.astream(ASKED)])

  assert asyncio.run(stream()) == whole


def chat_batch(at: Target) -> None:
  """ChatOpenAI: batch"""
  model = chat(at, max_tokens=8)
  assert [one.content for one in model.batch([ASKED] * 4)] == [model.invoke(ASKED).content] * 4


def chat_logprobs(at: Target) -> None:
  """ChatOpenAI: logprobs, top_logprobs, stop, penalties"""
  model = chat(at, max_tokens=4, logprobs=True, top_logprobs=2, frequency_penalty=0.5, presence_penalty=0.5,
               logit_bias={"40": -5})
  told = model.invoke(ASKED).response_metadata["logprobs"]["content"]
  assert all(len(one["top_logprobs"]) == 2 for one in told)
  assert chat(at, max_tokens=16, stop=["e"]).invoke(ASKED).content.count("e") == 0


def bind_tools(at: Target) -> str:
  """ChatOpenAI: bind_tools, demanded and free, streamed"""
  at.need_tools()
  model = chat(at, temperature=0)
  call, = model.bind_tools(TOOLS, tool_choice="get_weather").invoke(ASKED).tool_calls
  assert set(call["args"]) == {"location"}
  strict = model.bind_tools(TOOLS, tool_choice="any", strict=True, parallel_tool_calls=False)
  call, = strict.invoke(ASKED).tool_calls
  parts = list(model.bind_tools(TOOLS, tool_choice="required").stream(ASKED))
  total = parts[0]
  for part in parts[1:]:
    total += part
  assert total.tool_calls[0]["args"] == call["args"]
  free = model.bind_tools(TOOLS).invoke(ASKED)
  if not free.tool_calls:
    raise DoesNotApply("calls were made where they were demanded; this model makes none by itself")
  answered = {"role": "tool", "tool_call_id": free.tool_calls[0]["id"], "content": "rain"}
  assert model.bind_tools(TOOLS).invoke([("human", ASKED), free, answered]).content
  return "demanded calls, and the model's own with its answer to the result"


def structured_schema(at: Target) -> None:
  """ChatOpenAI: with_structured_output, json_schema"""
  found = chat(at).with_structured_output(COLOURS, method="json_schema", strict=True).invoke(ASKED)
  assert set(found) == {"colour", "bright"}
  pydantic: Any = importlib.import_module("pydantic")
  colours = pydantic.create_model("Colours", bright=(bool, ...))
  assert isinstance(chat(at).with_structured_output(colours).invoke(ASKED).bright, bool)


def structured_calls(at: Target) -> None:
  """ChatOpenAI: with_structured_output, function_calling"""
  at.need_tools()
  found = chat(at).with_structured_output(COLOURS, method="function_calling").invoke(ASKED)
  assert set(found) == {"colour", "bright"}


def structured_json(at: Target) -> None:
  """ChatOpenAI: with_structured_output, json_mode"""
  model = chat(at, max_tokens=200).with_structured_output(None, method="json_mode", include_raw=True)
  try:
    found = model.invoke(ASKED)
  except openai.LengthFinishReasonError as error:
    raise DoesNotApply("any object is allowed, and this model's did not end within 200 tokens") from error
  assert isinstance(found["parsed"], dict)


def responses(at: Target) -> None:
  """ChatOpenAI: use_responses_api, invoke and stream"""
  model = chat(at, use_responses_api=True, max_tokens=16, temperature=0, seed=None)
  whole = model.invoke(ASKED).text
  assert "".join(str(part.text) for part in model.stream(ASKED)) == str(whole)


def errors(at: Target) -> None:
  """errors come as those of the openai package"""
  try:
    text(at, model="none").invoke("x")
  except openai.NotFoundError as error:
    assert error.code == "model_not_found"
  else:
    raise AssertionError("no NotFoundError")


CHECKS = (text_invoke, chat_invoke, chat_stream, chat_batch, chat_logprobs, bind_tools, structured_schema,
          structured_calls, structured_json, responses, errors)
