"""Answers of the route /v1/responses, whole or as a stream of events with a number each."""
import json
import time
from collections.abc import Mapping
from typing import Any

from atlas_jax.language.decoding.requests import EndEvent, TokenEvent
from atlas_jax.language.serve import token_report
from atlas_jax.language.serve.api_call import ReadContext, ReplyHead, new_id
from atlas_jax.language.serve.api_error import ApiError
from atlas_jax.language.serve.chat_completions import message_of
from atlas_jax.language.serve.generation import ServedCompletion, ServedGeneration
from atlas_jax.language.serve.generation_fields import GenerationFields
from atlas_jax.language.serve.tools import CallReader, ToolCall, ToolUse


class ResponseReply:
  """Tells of one completion as a response; see `Reply`.

  Its output is items: a message if there is text, and an item for each call of a tool.
  """

  def __init__(self, context: ReadContext, generation: GenerationFields, prompt: tuple[int, ...], shows: bool,
               use: ToolUse, echoed: Mapping[str, Any]):
    """Takes what the request said; `echoed` are fields that come back as they were."""
    self._head = ReplyHead.new("resp_", context)
    self._text = context.text
    self._fields = generation
    self._prompt = prompt
    self._shows = shows
    self._use = use
    self._echoed = echoed
    self._reader = CallReader(use)
    self._number = 0
    self._items: list[dict] = []  # That a stream has sent whole.
    self._message: dict | None = None  # That a stream is telling.
    self._logprobs: list[dict] = []

  def whole(self, generation: ServedGeneration) -> dict[str, Any]:
    """Returns the answer when all is written."""
    completion = generation.completions[0]
    message = self.message(completion)
    items = []
    if message["content"] or "tool_calls" not in message:
      logprobs = self._of(completion.tokens)
      items.append(self._message_item(new_id("msg_"), [self._part(message["content"] or "", logprobs)]))
    for call in message.get("tool_calls", ()):
      items.append(self._call_item(ToolCall(call["id"], **call["function"])))
    return self._response(items, completion, generation)

  def message(self, completion: ServedCompletion) -> dict:
    """Returns the completion as a message."""
    return message_of(completion.text, self._use, self._reader)

  def opening(self) -> list[dict]:
    """Returns that the response has begun."""
    begun = self._shape([], "in_progress", None)
    return [self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun)]

  def event(self, completion: ServedCompletion, event: TokenEvent | EndEvent) -> list[dict]:
    """Returns what an event adds to the output."""
    said, calls = self._reader.push(event.text)
    is_end = isinstance(event, EndEvent)
    if is_end:
      rest, last = self._reader.flush()
      said += rest
      calls = calls + last
    logprobs = [] if isinstance(event, EndEvent) else self._of([event])
    events = self._text_events(said, logprobs) if said or logprobs and self._message else []
    for call in calls:
      events += [*self._close_message(), *self._call_events(call)]
    if is_end:
      # A response without any text has a message all the same, of an empty text.
      if not self._items and self._message is None:
        events += self._open_message()
      events += self._close_message()
    return events

  def closing(self, generation: ServedGeneration) -> list[dict]:
    """Returns the whole response, as the last event."""
    response = self._response(self._items, generation.completions[0], generation)
    return [self._event(f"response.{response['status']}", response=response)]

  def failure(self, error: ApiError) -> list[dict]:
    """Returns that the response has failed."""
    shape = error.shape()["error"]
    fields = {"code": shape["code"] or shape["type"], "message": shape["message"]}
    failed = self._shape(self._items, "failed", None) | {"error": fields}
    return [self._event("error", **fields, param=shape["param"]),
            self._event("response.failed", response=failed)]

  def _text_events(self, said: str, logprobs: list[dict]) -> list[dict]:
    events = [] if self._message else self._open_message()
    assert self._message is not None
    self._message["content"][0]["text"] += said
    self._logprobs += logprobs
    return [*events, self._event("response.output_text.delta", item_id=self._message["id"], content_index=0,
                                 output_index=len(self._items), delta=said, logprobs=logprobs)]

  def _open_message(self) -> list[dict]:
    self._logprobs = []
    self._message = self._message_item(new_id("msg_"), [self._part("", [])], "in_progress")
    at = {"output_index": len(self._items)}
    return [self._event("response.output_item.added", item=self._message | {"content": []}, **at),
            self._event("response.content_part.added", item_id=self._message["id"], content_index=0,
                        part=self._part("", []), **at)]

  def _close_message(self) -> list[dict]:
    if self._message is None:
      return []
    part = self._part(self._message["content"][0]["text"], self._logprobs)
    item = self._message_item(self._message["id"], [part])
    at = {"output_index": len(self._items), "item_id": item["id"], "content_index": 0}
    events = [self._event("response.output_text.done", text=part["text"], logprobs=self._logprobs, **at),
              self._event("response.content_part.done", part=part, **at),
              self._event("response.output_item.done", item=item, output_index=len(self._items))]
    self._items.append(item)
    self._message = None
    return events

  def _call_events(self, call: ToolCall) -> list[dict]:
    item = self._call_item(call)
    at = {"output_index": len(self._items)}
    begun = item | {"arguments": "", "status": "in_progress"}
    self._items.append(item)
    return [self._event("response.output_item.added", item=begun, **at),
            self._event("response.function_call_arguments.delta", item_id=item["id"], delta=call.arguments,
                        **at),
            self._event("response.function_call_arguments.done", item_id=item["id"], name=call.name,
                        arguments=call.arguments, **at),
            self._event("response.output_item.done", item=item, **at)]

  def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
    number = self._number
    self._number += 1
    # A copy: what is told must not change with what is told later.
    return json.loads(json.dumps({"type": kind, "sequence_number": number, **fields}))

  def _response(self, items: list[dict], completion: ServedCompletion,
                generation: ServedGeneration) -> dict[str, Any]:
    cut = completion.finish_reason == "length"
    shape = self._shape(items, "incomplete" if cut else "completed", generation.usage)
    trainer = {}
    if self._fields.returns_ids:
      trainer = {"prompt_token_ids": list(self._prompt), **token_report.trainer_fields(completion.tokens),
                 **token_report.weights_version(completion)}
    return shape | trainer

  def _shape(self, items: list[dict], status: str, usage: Mapping | None) -> dict[str, Any]:
    """Returns a response with all fields that the API has, of which clients check that they are there."""
    counts = None if usage is None else {
        "input_tokens": usage["prompt_tokens"], "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"]}
    conversation = None if self._head.conversation is None else {"id": self._head.conversation}
    fields = self._fields
    return {
        "id": self._head.id, "object": "response", "created_at": self._head.created, "status": status,
        "completed_at": int(time.time()) if status == "completed" else None, "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": self._head.model, "output": list(items), "usage": counts, "conversation": conversation,
        "temperature": fields.temperature, "top_p": 1.0 if fields.top_p is None else fields.top_p,
        "presence_penalty": fields.presence_penalty, "frequency_penalty": fields.frequency_penalty,
        "tools": [{"type": "function", "description": None, "parameters": None, "strict": None,
                   **tool["function"]} for tool in self._use.tools],
        "tool_choice": self._use.choice, "parallel_tool_calls": self._use.parallel, "store": False,
        "background": False, "truncation": "disabled", "previous_response_id": None, "reasoning": None,
        "service_tier": "default", "max_tool_calls": None, "safety_identifier": None,
        "prompt_cache_key": None, "user": fields.user or None, **self._echoed}

  def _message_item(self, name: str, parts: list[dict], status: str = "completed") -> dict[str, Any]:
    return {"type": "message", "id": name, "status": status, "role": "assistant", "content": parts}

  def _part(self, text: str, logprobs: list[dict]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

  def _call_item(self, call: ToolCall) -> dict[str, Any]:
    return {"type": "function_call", "id": f"fc_{call.id.removeprefix('call_')}", "call_id": call.id,
            "name": call.name, "arguments": call.arguments, "status": "completed"}

  def _of(self, events: list[TokenEvent]) -> list[dict]:
    return token_report.chat_logprobs(self._text, events, self._fields.top_logprobs) if self._shows else []
