"""The route /v1/chat/completions: messages, and what the assistant answers or which tools it calls."""
from typing import Any

from atlas_jax.language.decoding.requests import MOST_TOP, EndEvent, TokenEvent
from atlas_jax.language.serve import chat_prompt, conversations, token_report, tools
from atlas_jax.language.serve.api_call import ApiCall, ReadContext, ReplyHead
from atlas_jax.language.serve.api_error import ApiError, invalid
from atlas_jax.language.serve.constrained import AllowedIds, response_schema
from atlas_jax.language.serve.generation import ServedCompletion, ServedGeneration
from atlas_jax.language.serve.generation_fields import NOT_STORED, GenerationFields
from atlas_jax.language.serve.json_fields import JsonFields
from atlas_jax.language.serve.tools import CallReader, ToolCall, ToolUse

CHUNK, WHOLE = "chat.completion.chunk", "chat.completion"
OTHERS = {"modalities": (["text"],), "reasoning_effort": (), "verbosity": (), "audio": (), "prediction": (),
          "web_search_options": (), "functions": (), "function_call": (), "metadata": ({},), "moderation": ()}
WHY = {"functions": "use tools", "function_call": "use tool_choice", "metadata": NOT_STORED,
       "reasoning_effort": "give the model's template what it knows in chat_template_kwargs"}


def read(fields: JsonFields, context: ReadContext) -> ApiCall:
  """Reads a request; arguments and errors as of `text_completions.read`."""
  source = context.text.need_template().source
  use = tools.read(fields, source, nested=True)
  messages = chat_prompt.checked(fields.need("messages", list), context.text)
  values = chat_prompt.template_values(fields, use)
  shows = fields.take("logprobs", bool, False)
  top = fields.take("top_logprobs", int, 0, least=0, most=MOST_TOP)
  if top and not shows:
    raise invalid(f"top_logprobs={top} needs logprobs=true", "top_logprobs")
  schema_fields = fields.inner("response_format")
  schema = None if schema_fields is None else response_schema(schema_fields, nested=True)
  for name, allowed in OTHERS.items():
    fields.refuse(name, WHY.get(name, "this server writes texts alone"), allowed=allowed)
  generation = GenerationFields.read(fields, max_tokens=_max_tokens(fields), top_logprobs=top)
  fields.done()
  if context.conversation is not None and generation.n > 1:
    raise invalid("a conversation has one completion at a time; leave n out", conversations.FIELD)
  constraint = constrain(use, schema, context, "response_format")
  prompt = chat_prompt.build(messages, context, values)
  requests = generation.requests(
      [prompt.ids], model=context.model, tenant=context.tenant, limits=context.limits,
      end_tokens=context.text.end_tokens, stop_strings=use.stop_strings, allowed=constraint)
  reply = ChatReply(context, generation, prompt.ids, shows, use)
  return ApiCall(requests, reply, generation.stream, prompt.messages)


def constrain(use: ToolUse, schema: Any, context: ReadContext, param: str) -> AllowedIds | None:
  """Returns what bounds an answer: a schema, or the grammar of a demanded call.

  Raises:
    ApiError: if there are both, or one of them cannot be followed.
  """
  call = tools.grammar(use)
  if schema is not None and use.shown:
    raise invalid(f"{param} and tools exclude each other: an answer cannot be bound to a schema and also "
                  "call a tool; set tool_choice='none', or leave one out", param)
  if schema is not None:
    return context.grammar_tokens().of_schema(schema, param)
  return None if call is None else context.grammar_tokens().of_grammar(call, "tools")


def _max_tokens(fields: JsonFields) -> int | None:
  old = fields.take("max_tokens", int, least=1)
  new = fields.take("max_completion_tokens", int, least=1)
  if None not in (old, new) and old != new:
    raise invalid(f"max_tokens={old} and max_completion_tokens={new} are the same bound; give one",
                  "max_tokens")
  return new if old is None else old


class ChatReply:
  """Tells of completions of a chat; see `Reply`."""

  def __init__(self, context: ReadContext, generation: GenerationFields, prompt: tuple[int, ...], shows: bool,
               use: ToolUse):
    """Takes what the request said; `shows` is whether log-probabilities are told."""
    self._head = ReplyHead.new("chatcmpl-", context)
    self._text = context.text
    self._fields = generation
    self._prompt = prompt
    self._shows = shows
    self._use = use
    self._readers = [CallReader(use) for _ in range(generation.n)]
    self._sent = [0] * generation.n  # Calls of each completion that a stream has sent.

  def whole(self, generation: ServedGeneration) -> dict[str, Any]:
    """Returns the answer when all is written."""
    choices = []
    for one in generation.completions:
      message = self.message(one)
      reason = "tool_calls" if "tool_calls" in message else one.finish_reason
      choices.append({"index": one.number, "message": message | {"refusal": None},
                      "logprobs": self._logprobs(one.tokens), "finish_reason": reason,
                      "stop_reason": one.stop_reason, **self._for_trainers(one, one.tokens, is_end=True)})
    prompt = {"prompt_token_ids": list(self._prompt)} if self._fields.returns_ids else {}
    return {**self._head.shape(WHOLE), "choices": choices, "usage": generation.usage, **prompt,
            **self._head.ending}

  def message(self, completion: ServedCompletion) -> dict:
    """Returns a completion as a message."""
    return message_of(completion.text, self._use, self._readers[completion.number])

  def opening(self) -> list[dict]:
    """Returns who speaks, for each completion."""
    prompt = {"prompt_token_ids": list(self._prompt)} if self._fields.returns_ids else {}
    return [self._chunk(number, {"role": "assistant", "content": ""}) | prompt
            for number in range(self._fields.n)]

  def event(self, completion: ServedCompletion, event: TokenEvent | EndEvent) -> list[dict]:
    """Returns chunks of text, of calls, and of the end."""
    number = completion.number
    reader = self._readers[number]
    said, calls = reader.push(event.text)
    if isinstance(event, EndEvent):
      rest, last = reader.flush()
      chunks = self._deltas(number, said + rest, calls + last, [])
      reason = "tool_calls" if reader.calls else completion.finish_reason
      end = {"stop_reason": completion.stop_reason, **self._for_trainers(completion, [], is_end=True)}
      return [*chunks, self._chunk(number, {}, reason, end)]
    return self._deltas(number, said, calls, [event])

  def _deltas(self, number: int, said: str, calls: list[ToolCall], events: list[TokenEvent]) -> list[dict]:
    chunks = []
    tells = events and (self._shows or self._fields.returns_ids)
    if said or tells:
      extra = token_report.trainer_fields(events) if self._fields.returns_ids else {}
      chunks.append(self._chunk(number, {"content": said}, None, extra, events))
    for call in calls:
      chunks.append(self._chunk(number, {"tool_calls": [{"index": self._sent[number], **call.shape()}]}))
      self._sent[number] += 1
    return chunks

  def closing(self, generation: ServedGeneration) -> list[dict]:
    """Returns the usage, if it was asked for, and the conversation."""
    if not self._fields.includes_usage and not self._head.ending:
      return []
    usage = {"usage": generation.usage} if self._fields.includes_usage else {}
    return [{**self._head.shape(CHUNK), "choices": [], **usage, **self._head.ending}]

  def failure(self, error: ApiError) -> list[dict]:
    """Returns the error."""
    return [error.shape()]

  def _chunk(self, number: int, delta: dict, reason: str | None = None, extra: dict | None = None,
             events: list[TokenEvent] | None = None) -> dict[str, Any]:
    choice = {"index": number, "delta": delta, "logprobs": self._logprobs(events) if events else None,
              "finish_reason": reason, **(extra or {})}
    usage = {"usage": None} if self._fields.includes_usage else {}
    return {**self._head.shape(CHUNK), "choices": [choice], **usage}

  def _logprobs(self, events: list[TokenEvent]) -> dict | None:
    if not self._shows:
      return None
    logprobs = token_report.chat_logprobs(self._text, events, self._fields.top_logprobs)
    return {"content": logprobs, "refusal": None}

  def _for_trainers(self, completion: ServedCompletion, events: list[TokenEvent], *, is_end: bool) -> dict:
    if not self._fields.returns_ids:
      return {}
    version = token_report.weights_version(completion) if is_end else {}
    return token_report.trainer_fields(events) | version


def message_of(text: str, use: ToolUse, streamed: CallReader) -> dict:
  """Returns a completion's text as a message of the assistant, its calls of tools apart.

  Args:
    text: all that the model wrote.
    use: the tools that it has seen.
    streamed: what read the text as it came, if it was streamed: then the calls have the ids that were told.
  """
  reader = CallReader(use)
  said, _ = reader.push(text)
  said += reader.flush()[0]
  calls = streamed.calls or reader.calls
  if not calls:
    return {"role": "assistant", "content": said}
  return {"role": "assistant", "content": said or None, "tool_calls": [call.shape() for call in calls]}
