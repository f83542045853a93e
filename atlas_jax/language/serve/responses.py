"""The route /v1/responses, of texts: a chat in another form, whose items are told one by one."""
import json
from collections.abc import Mapping
from typing import Any

from atlas_jax.language.decoding.requests import MOST_TOP
from atlas_jax.language.serve import chat_prompt, tools
from atlas_jax.language.serve.api_call import ApiCall, ReadContext
from atlas_jax.language.serve.api_error import invalid
from atlas_jax.language.serve.chat_completions import constrain
from atlas_jax.language.serve.constrained import response_schema
from atlas_jax.language.serve.generation_fields import GenerationFields
from atlas_jax.language.serve.json_fields import JsonFields, each, kind_of
from atlas_jax.language.serve.response_reply import ResponseReply

PARTS = ("input_text", "output_text", "text")
LOGPROBS = "message.output_text.logprobs"
OTHERS = {"previous_response_id": (), "background": (False,), "reasoning": ({},), "prompt": (),
          "max_tool_calls": (), "truncation": ("disabled",), "context_management": (), "moderation": ()}
WHY = {"previous_response_id": "use the field 'conversation', an id of your own",
       "reasoning": "give the model's template what it knows in chat_template_kwargs",
       "background": "wait for the answer, or stream it",
       "truncation": "send fewer messages; nothing is cut off here"}


def read(fields: JsonFields, context: ReadContext) -> ApiCall:
  """Reads a request; arguments and errors as of `text_completions.read`."""
  source = context.text.need_template().source
  use = tools.read(fields, source, nested=False)
  instructions = fields.take("instructions", str)
  messages = _messages(fields.need("input", object), instructions, context)
  values = chat_prompt.template_values(fields, use)
  shows = LOGPROBS in _include(fields.take("include", list, []))
  top = fields.take("top_logprobs", int, 0, least=0, most=MOST_TOP)
  form = _text_format(fields)
  metadata = fields.take("metadata", dict, {})
  for name, allowed in OTHERS.items():
    fields.refuse(name, WHY.get(name, "this server has it not"), allowed=allowed)
  max_tokens = fields.take("max_output_tokens", int, least=1)
  generation = GenerationFields.read(fields, max_tokens=max_tokens, top_logprobs=top)
  fields.done()
  if generation.n > 1:
    raise invalid("a response has one completion; leave n out", "n")
  schema = None if form is None else response_schema(JsonFields(form, "text.format"), nested=False)
  constraint = constrain(use, schema, context, "text.format")
  prompt = chat_prompt.build(messages, context, values)
  requests = generation.requests(
      [prompt.ids], model=context.model, tenant=context.tenant, limits=context.limits,
      end_tokens=context.text.end_tokens, stop_strings=use.stop_strings, allowed=constraint)
  echoed = {"instructions": instructions, "max_output_tokens": max_tokens, "metadata": metadata,
            "text": {"format": form or {"type": "text"}}, "top_logprobs": top}
  reply = ResponseReply(context, generation, prompt.ids, shows or bool(top), use, echoed)
  return ApiCall(requests, reply, generation.stream, prompt.messages)


def _include(values: list) -> list:
  unknown = [one for one in values if one != LOGPROBS]
  if unknown:
    raise invalid(f"include={unknown[0]!r} is not supported; there is {LOGPROBS!r}", "include",
                  "unsupported_parameter")
  return values


def _text_format(fields: JsonFields) -> Mapping | None:
  inner = fields.inner("text")
  if inner is None:
    return None
  form = inner.take("format", dict)
  inner.refuse("verbosity", "say in the instructions how long the answer should be")
  inner.done()
  return form


def _messages(value: Any, instructions: str | None, context: ReadContext) -> list[dict]:
  """Returns the input as messages in the form that templates know."""
  items = [{"role": "user", "content": value}] if isinstance(value, str) else value
  if not isinstance(items, list) or not items:
    raise invalid("input must be a text, or a list of items that is not empty", "input")
  messages: list[dict] = []
  for at, item in each(items, "input"):
    _add(messages, JsonFields(item, at))
  if instructions is not None and not _has_begun(context, instructions):
    messages.insert(0, {"role": "system", "content": instructions})
  return chat_prompt.checked(messages, context.text)


def _has_begun(context: ReadContext, instructions: str) -> bool:
  """Returns whether a conversation has its instructions already; others in its middle are refused."""
  kept = context.conversation
  if kept is None or kept.kind is None:
    return False
  first = kept.messages[0] if kept.messages else {}
  if (first.get("role"), first.get("content")) != ("system", instructions):
    raise invalid("instructions stand at the start of a conversation, and this one has begun with others; "
                  "leave them out, or begin another", "instructions")
  return True


def _add(messages: list[dict], item: JsonFields) -> None:
  """Adds what an item of the input says."""
  kind = item.take("type", str, "message")
  for name in ("id", "status"):  # Of items that were told before and come back.
    item.take(name, str)
  if kind == "message":
    role = item.need("role", str, choices=("system", "developer", "user", "assistant"))
    messages.append({"role": role, "content": _content(item)})
    item.take("phase", str)
  elif kind == "function_call":
    call = {"id": item.need("call_id", str), "type": "function", "function": {
        "name": item.need("name", str), "arguments": item.need("arguments", str)}}
    # Calls of one turn are items of their own here, and one message to a template.
    if messages and messages[-1]["role"] == "assistant":
      messages[-1].setdefault("tool_calls", []).append(call)
    else:
      messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
  elif kind == "function_call_output":
    name = item.need("call_id", str)
    messages.append({"role": "tool", "tool_call_id": name, "content": _content(item, "output")})
  else:
    raise invalid(f"{item.name('type')}={kind!r} is not supported; an item is a message, a function_call or "
                  "a function_call_output", item.name("type"), "unsupported_parameter")
  item.done()


def _content(item: JsonFields, field: str = "content") -> str:
  value = item.need(field, object)
  if isinstance(value, str):
    return value
  if not isinstance(value, list):
    if field == "content":
      raise invalid(f"{item.name(field)} is {kind_of(value)}, and must be a text or a list of parts",
                    item.name(field))
    return json.dumps(value, ensure_ascii=False)  # Of a tool, which answers with whatever it has.
  texts = []
  for at, part in each(value, item.name(field)):
    inner = JsonFields(part, at)
    kind = inner.need("type", str)
    if kind not in PARTS:
      raise invalid(f"{at}.type={kind!r} is not supported: this server reads texts alone", f"{at}.type",
                    "unsupported_parameter")
    texts.append(inner.need("text", str))
    for name in ("annotations", "logprobs"):  # Of answers that come back.
      inner.take(name, list)
    inner.done()
  return "\n".join(texts)
