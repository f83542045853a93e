"""Replies that a proxy passes on: streams put together as whole replies, and what of them is recorded."""
import json
from collections.abc import Mapping, Sequence
from typing import Any

JOINED = ("content", "refusal", "reasoning", "reasoning_content", "text", "arguments")  # Texts in pieces.
LISTED = ("token_ids", "sampler_logprobs", "full_logprobs", "content", "tokens", "token_logprobs",
          "top_logprobs", "text_offset")  # Lists in pieces.


class StreamReader:
  """Reads server-sent events from bytes as they come.

  Attributes:
    chunks: the objects so far.
    is_whole: whether the stream said that it is at its end.
    problem: an error that the stream told of.
  """

  def __init__(self):
    """Starts empty."""
    self.chunks: list[dict[str, Any]] = []
    self.is_whole = False
    self.problem: str | None = None
    self._rest = b""

  def push(self, part: bytes) -> None:
    """Takes bytes."""
    *lines, self._rest = (self._rest + part).split(b"\n")
    for line in lines:
      if line.startswith(b"data:"):
        self._data(line[len(b"data:"):].strip())

  def _data(self, data: bytes) -> None:
    if data == b"[DONE]":
      self.is_whole = True
      return
    try:
      found = json.loads(data)
    except ValueError:  # It is passed on as it is; what cannot be read is not recorded as a reply.
      found = None
    if not isinstance(found, dict):
      self.problem = "the stream had a line that is no JSON object"
    elif "error" in found:
      self.problem = json.dumps(found["error"])
    else:
      self.chunks.append(found)


def assembled(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the whole reply that the chunks of a stream say."""
  whole: dict[str, Any] = {}
  choices: dict[int, dict[str, Any]] = {}
  for chunk in chunks:
    for name, value in chunk.items():
      if name != "choices" and (value is not None or name not in whole):
        whole[name] = value
    for piece in chunk.get("choices") or ():
      _join_choice(choices.setdefault(piece.get("index", 0), {}), piece)
  if isinstance(whole.get("object"), str):
    whole["object"] = whole["object"].removesuffix(".chunk")
  return {**whole, "choices": [choices[index] for index in sorted(choices)]}


def _join_choice(into: dict[str, Any], piece: Mapping[str, Any]) -> None:
  for name, value in piece.items():
    if name == "delta":
      _join_message(into.setdefault("message", {}), value or {})
    elif name == "logprobs" and isinstance(value, Mapping):
      _join(into[name], value) if isinstance(into.get(name), dict) else into.update({name: {**value}})
    elif value is not None or name not in into:
      _join(into, {name: value})


def _join_message(into: dict[str, Any], delta: Mapping[str, Any]) -> None:
  for name, value in delta.items():
    if name != "tool_calls":
      _join(into, {name: value})
      continue
    calls = into.setdefault(name, [])
    for call in value or ():
      index = call.get("index", len(calls))
      while len(calls) <= index:
        calls.append({})
      own = calls[index]
      _join(own.setdefault("function", {}), call.get("function") or {})
      own.update({key: one for key, one in call.items()
                  if key not in ("index", "function") and one is not None})


def _join(into: dict[str, Any], pieces: Mapping[str, Any]) -> None:
  for name, value in pieces.items():
    before = into.get(name)
    if isinstance(before, str) and isinstance(value, str) and name in JOINED:
      into[name] = before + value
    elif isinstance(before, list) and isinstance(value, list) and name in LISTED:
      into[name] = [*before, *value]
    elif value is not None or name not in into:
      into[name] = value


def texts(reply: Any) -> list[str]:
  """Returns the texts of a reply's choices."""
  return [found if isinstance(found := message(one).get("content"), str) else "" for one in choices(reply)]


def choices(reply: Any) -> list[dict[str, Any]]:
  """Returns the choices of a reply."""
  found = reply.get("choices") if isinstance(reply, Mapping) else None
  return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def message(choice: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a choice says as a message of the assistant."""
  found = choice.get("message")
  return dict(found) if isinstance(found, dict) else {"role": "assistant", "content": choice.get("text")}


def usage(reply: Any) -> dict[str, int]:
  """Returns {prompt, completion, calls} of a reply, without what it does not say."""
  said = reply.get("usage") if isinstance(reply, Mapping) else None
  named = {"prompt": "prompt_tokens", "completion": "completion_tokens"}
  counts = {ours: said[theirs] for ours, theirs in named.items()
            if isinstance(said, Mapping) and type(said.get(theirs)) is int}
  return {**counts, "calls": 1}


def without_ids(reply: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a reply without token ids and log-probabilities, which spell out what redaction took away."""
  dropped = ("prompt_token_ids", "token_ids", "sampler_logprobs", "full_logprobs", "logprobs")
  kept = {name: value for name, value in reply.items() if name not in dropped}
  return {**kept, "choices": [{name: value for name, value in one.items() if name not in dropped}
                              for one in choices(reply)]}
