"""The route /v1/completions: texts, or ids, and what the model adds to them."""
from typing import Any

from atlas_jax.language.decoding.requests import MOST_TOP, EndEvent, TokenEvent
from atlas_jax.language.serve import conversations, token_report
from atlas_jax.language.serve.api_call import ApiCall, ReadContext, ReplyHead
from atlas_jax.language.serve.api_error import ApiError, invalid
from atlas_jax.language.serve.constrained import response_schema
from atlas_jax.language.serve.generation import ServedCompletion, ServedGeneration
from atlas_jax.language.serve.generation_fields import GenerationFields
from atlas_jax.language.serve.json_fields import JsonFields, whole_numbers

MAX_TOKENS = 16  # As public APIs have it, where a request says nothing.
OBJECT = "text_completion"


def read(fields: JsonFields, context: ReadContext) -> ApiCall:
  """Reads a request.

  Args:
    fields: of its body; the model's name and the conversation's were taken.
    context: of the server.

  Raises:
    ApiError: naming the field that cannot be.
  """
  logprobs = fields.take("logprobs", int, least=0, most=MOST_TOP)
  prompts = _prompts(fields, context)
  schema_fields = fields.inner("response_format")
  schema = None if schema_fields is None else response_schema(schema_fields, nested=True)
  fields.refuse("echo", "the prompt is known to you; return_token_ids tells its ids", allowed=(False,))
  fields.refuse("suffix", "no model here fills in the middle", allowed=("",))
  best_of = fields.take("best_of", int, least=1)
  max_tokens = fields.take("max_tokens", int, MAX_TOKENS, least=1)
  generation = GenerationFields.read(fields, max_tokens=max_tokens, top_logprobs=logprobs or 0)
  fields.done()
  if best_of not in (None, generation.n):
    raise invalid(f"best_of={best_of} must be n={generation.n}: all completions are returned", "best_of")
  if context.conversation is not None and (len(prompts) > 1 or generation.n > 1):
    raise invalid("a conversation has one prompt and one completion at a time", conversations.FIELD)
  allowed = None if schema is None else context.grammar_tokens().of_schema(schema, "response_format")
  requests = generation.requests(prompts, model=context.model, tenant=context.tenant, limits=context.limits,
                                 end_tokens=context.text.end_tokens, allowed=allowed)
  return ApiCall(requests, TextReply(context, generation, prompts, logprobs), generation.stream)


def _prompts(fields: JsonFields, context: ReadContext) -> list[tuple[int, ...]]:
  """Returns the ids of the prompts: texts, lists of ids, or a list of either."""
  opens = fields.take("add_special_tokens", bool, True)
  value = fields.need("prompt", object)
  is_one = isinstance(value, str) or isinstance(value, list) and value and all(
      isinstance(one, int) for one in value)
  if not is_one and not (isinstance(value, list) and value):
    raise invalid("prompt must be a text, a list of ids, or a list of either that is not empty", "prompt")
  found = [_prompt(one, f"prompt[{number}]" if not is_one else "prompt", context, opens)
           for number, one in enumerate([value] if is_one else value)]
  kept = context.conversation
  if kept is not None:
    kept.need_kind(conversations.TEXT)
    found = [(*kept.tokens, *one) for one in found]
  for number, ids in enumerate(found):
    if not ids:
      raise invalid(f"prompt {number} has no ids; give at least one", "prompt")
  return found


def _prompt(value: Any, name: str, context: ReadContext, opens: bool) -> tuple[int, ...]:
  if not isinstance(value, str):
    return whole_numbers(value, name, lambda one: 0 <= one < context.text.vocab_size)
  # A conversation that goes on is in the middle of its document.
  begun = context.conversation is not None and bool(context.conversation.tokens)
  return context.text.encode(value, opens_document=opens and not begun)


class TextReply:
  """Tells of completions of texts; see `Reply`."""

  def __init__(self, context: ReadContext, generation: GenerationFields, prompts: list[tuple[int, ...]],
               logprobs: int | None):
    """Takes what the request said; logprobs is None where none are told."""
    self._head = ReplyHead.new("cmpl-", context)
    self._text = context.text
    self._fields = generation
    self._prompts = prompts
    self._logprobs = logprobs
    self._offsets = [0] * (len(prompts) * generation.n)

  def whole(self, generation: ServedGeneration) -> dict[str, Any]:
    """Returns the answer when all is written."""
    choices = [self._choice(one, one.text, one.tokens, one.finish_reason, is_end=True)
               for one in generation.completions]
    return {**self._head.shape(OBJECT), "choices": choices, "usage": generation.usage, **self._head.ending}

  def opening(self) -> list[dict]:
    """Returns nothing: the first chunk has text."""
    return []

  def event(self, completion: ServedCompletion, event: TokenEvent | EndEvent) -> list[dict]:
    """Returns a chunk, or nothing where an id has no text to tell yet."""
    if isinstance(event, EndEvent):
      return [self._chunk(self._choice(completion, event.text, [], completion.finish_reason, is_end=True))]
    if not event.text and self._logprobs is None and not self._fields.returns_ids:
      return []
    return [self._chunk(self._choice(completion, event.text, [event], None, is_end=False))]

  def closing(self, generation: ServedGeneration) -> list[dict]:
    """Returns the usage, if it was asked for, and the conversation."""
    if not self._fields.includes_usage and not self._head.ending:
      return []
    usage = {"usage": generation.usage} if self._fields.includes_usage else {}
    return [{**self._head.shape(OBJECT), "choices": [], **usage, **self._head.ending}]

  def failure(self, error: ApiError) -> list[dict]:
    """Returns the error."""
    return [error.shape()]

  def message(self, completion: ServedCompletion) -> dict:
    """Returns nothing: a text has no messages."""
    del completion
    return {}

  def _chunk(self, choice: dict) -> dict[str, Any]:
    usage = {"usage": None} if self._fields.includes_usage else {}
    return {**self._head.shape(OBJECT), "choices": [choice], **usage}

  def _choice(self, completion: ServedCompletion, text: str, events: list[TokenEvent], reason: str | None, *,
              is_end: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"index": completion.number, "text": text, "logprobs": None,
                             "finish_reason": reason}
    if is_end:
      found["stop_reason"] = completion.stop_reason
    if self._logprobs is not None:
      offset = self._offsets[completion.number]
      logprobs = token_report.text_logprobs(self._text, events, self._logprobs, offset)
      self._offsets[completion.number] += sum(map(len, logprobs["tokens"]))
      found["logprobs"] = logprobs
    if self._fields.returns_ids:
      found |= token_report.trainer_fields(events)
      if is_end:
        found["prompt_token_ids"] = list(self._prompts[completion.number // self._fields.n])
        found |= token_report.weights_version(completion)
    return found
