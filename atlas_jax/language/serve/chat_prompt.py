"""Prompts of chats: messages as the model's template shows them, behind the ids of a conversation."""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.data import messages as chat_messages
from atlas_jax.language.serve import conversations
from atlas_jax.language.serve.api_call import ReadContext
from atlas_jax.language.serve.api_error import invalid
from atlas_jax.language.serve.conversations import Conversation
from atlas_jax.language.serve.json_fields import JsonFields
from atlas_jax.language.serve.served_text import ServedText
from atlas_jax.language.serve.tools import ToolUse

FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


class ChatPrompt(NamedTuple):
  """A chat as the model reads it."""

  messages: tuple[Mapping, ...]  # all of the chat, those of its conversation among them
  ids: tuple[int, ...]


def template_values(fields: JsonFields, use: ToolUse) -> dict[str, Any]:
  """Takes what the request gives the template besides messages, and adds the tools."""
  values = dict(fields.take("chat_template_kwargs", dict, {}))
  for name in ("messages", "tools", "add_generation_prompt"):
    if name in values:
      raise invalid(f"chat_template_kwargs has {name!r}, which has a field of its own",
                    "chat_template_kwargs")
  return values | ({"tools": list(use.shown)} if use.shown else {})


def checked(messages: Any, text: ServedText) -> list[dict]:
  """Returns messages in the form that templates know.

  Args:
    messages: as the request has them.
    text: of the model.

  Raises:
    ApiError: for messages that cannot be, or have fields that no template shows.
  """
  template = text.need_template()
  try:
    found = chat_messages.check("the request", messages)
  except ValueError as error:
    raise invalid(str(error), "messages") from error
  for number, message in enumerate(found):
    for name in message:
      if name not in FIELDS:
        raise invalid(f"messages[{number}].{name} is not supported: a message has {', '.join(FIELDS)}",
                      f"messages[{number}].{name}")
    # Templates from before the role had this name know it as the system's.
    if message["role"] == "developer" and "developer" not in template.source:
      message["role"] = "system"
  return found


def build(messages: Sequence[Mapping], context: ReadContext, values: Mapping[str, Any]) -> ChatPrompt:
  """Returns the prompt of a chat's new messages.

  A conversation goes on from the very ids that it has, if the template shows its last answer as it was
  written. If not, because templates may drop thoughts or cut white space, all of it is shown anew: then the
  state of the part that both have in common is used.

  Raises:
    ApiError: if the template refuses the messages.
  """
  kept = context.conversation
  if kept is None or kept.kind is None:
    return ChatPrompt(tuple(messages), context.text.chat(messages, values))
  kept.need_kind(conversations.CHAT)
  whole = (*kept.messages, *messages)
  ids = _go_on(kept, messages, context.text, values)
  return ChatPrompt(whole, context.text.chat(whole, values) if ids is None else ids)


def _go_on(kept: Conversation, messages: Sequence[Mapping], text: ServedText,
           values: Mapping[str, Any]) -> tuple[int, ...] | None:
  if kept.written is None:
    return None
  *asked, answer = kept.messages
  try:
    ids = text.need_template().follow_up(asked, answer, messages, text.tokenizer, kept.written, **values)
  except ValueError as error:
    raise invalid(str(error), "messages") from error
  return None if ids is None else (*kept.tokens, *ids.tolist())
