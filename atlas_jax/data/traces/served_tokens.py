"""Tokens of recorded answers as the server that wrote them told them.

A policy gradient needs the ids that were sampled, and their log-probabilities under the weights that sampled
them. Encoding an answer's text again gives other ids where a text can be cut in several ways, so that nobody
does it here: an answer without its server's ids is refused. grpo learns from such answers with
config.traces.completions="served"; else it takes, as teacher does, from traces the questions alone.
"""
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from atlas_jax.data.traces.record import Trace

REASONS = {
    "not_proxied": "no proxy recorded the session",
    "no_server_tokens": "the answer has no token ids of the server that wrote it",
}
SERVER = "server"  # The token_source of an exchange whose ids are of its server; else it is null.


class NoServerTokens(ValueError):
  """An answer whose ids are not known from the server that wrote it."""


class ServedRow(NamedTuple):
  """One answer."""

  where: str  # session, exchange and choice
  prompt_ids: tuple[int, ...]
  token_ids: tuple[int, ...]
  sampler_logprobs: tuple[float, ...]  # in the distribution that was sampled from
  full_logprobs: tuple[float, ...]     # in that of the model
  weights_version: int | None


class ServedAnswer(NamedTuple):
  """One answer with what rewards and groups need of it."""

  row: ServedRow
  text: str | None    # as the client was shown it; None: it calls tools, and its ids say which
  is_cut: bool        # whether it ended for its length
  answer: str | None  # the right one, where the session knows it


def answers(trace: Trace, refused: Counter, without_ids: list[str]) -> Iterator[ServedAnswer]:
  """Yields the answers of a session that have their server's ids.

  Args:
    trace: of any session.
    refused: counts, added to: what gave none, by one of `REASONS`.
    without_ids: gets the place of each exchange that has none.
  """
  for step in trace.steps:
    exchange = step.data.get("exchange")
    if not isinstance(exchange, Mapping):
      continue
    where = f"session {trace.identity}, step {step.step_id}"
    if exchange.get("token_source") != SERVER:
      refused["no_server_tokens"] += 1
      without_ids.append(where)
      continue
    for row, one in zip(_rows(where, exchange), exchange["response"]["choices"], strict=True):
      message = one.get("message") or {}
      text = one.get("text", message.get("content"))
      is_text = isinstance(text, str) and not message.get("tool_calls")
      yield ServedAnswer(row, text if is_text else None, one.get("finish_reason") == "length",
                         trace.ground_truth)
  if not any(isinstance(step.data.get("exchange"), Mapping) for step in trace.steps):
    refused["not_proxied"] += 1


def served_rows(trace: Trace) -> list[ServedRow]:
  """Returns the answers of a session that `atlas proxy` recorded, for a policy gradient.

  Raises:
    NoServerTokens: if any of them has no ids of its server, or not a log-probability for each.
  """
  found = []
  for step in trace.steps:
    exchange = step.data.get("exchange")
    where = f"session {trace.identity}, step {step.step_id}"
    if not isinstance(exchange, Mapping) or exchange.get("token_source") != SERVER:
      raise NoServerTokens(f"{where} has no token ids of the server that wrote it, and encoding its "
                           "text again may give others; record it by `atlas proxy` before a server that "
                           "tells ids, or train on its questions")
    found += _rows(where, exchange)
  return found


def _rows(where: str, exchange: Mapping[str, Any]) -> list[ServedRow]:
  reply = exchange["response"]
  return [_row(f"{where}, choice {number}", reply, one) for number, one in enumerate(reply["choices"])]


def token_source(reply: Any) -> str | None:
  """Returns SERVER if every choice of a reply has its ids, log-probabilities and prompt; else None."""
  try:
    made = [_row("", reply, one) for one in reply["choices"]]
  except (NoServerTokens, KeyError, TypeError):
    return None
  return SERVER if made else None


def _row(where: str, reply: Mapping[str, Any], choice: Mapping[str, Any]) -> ServedRow:
  prompt: Any = choice.get("prompt_token_ids", reply.get("prompt_token_ids"))
  ids: Any = choice.get("token_ids")
  logprobs: list[Any] = [choice.get(name) for name in ("sampler_logprobs", "full_logprobs")]
  if not _are(prompt, int) or not _are(ids, int) or not ids or not all(
      _are(one, int | float) and len(one) == len(ids) for one in logprobs):
    raise NoServerTokens(f"{where} lacks token_ids, prompt_token_ids, or a log-probability for each id")
  version = choice.get("weights_version")
  return ServedRow(where, tuple(prompt), tuple(ids), tuple(logprobs[0]), tuple(logprobs[1]),
                   version if isinstance(version, int) else None)


def _are(values: Any, kind: Any) -> bool:
  return isinstance(values, list) and all(isinstance(one, kind) and not isinstance(one, bool)
                                          for one in values)
