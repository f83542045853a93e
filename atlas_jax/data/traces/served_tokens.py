"""Tokens of recorded answers as the server that wrote them told them.

A policy gradient needs the ids that were sampled, and their log-probabilities under the weights that sampled
them. Encoding an answer's text again gives other ids where a text can be cut in several ways, so that nobody
does it here: an answer without its server's ids is refused. The recipes grpo and teacher take from traces the
questions alone, and sample answers anew.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

from atlas_jax.data.traces.record import Trace

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
    reply = exchange["response"]
    found += [_row(f"{where}, choice {number}", reply, one) for number, one in enumerate(reply["choices"])]
  return found


def token_source(reply: Any) -> str | None:
  """Returns SERVER if every choice of a reply has its ids, log-probabilities and prompt; else None."""
  try:
    made = [_row("", reply, one) for one in reply["choices"]]
  except (NoServerTokens, KeyError, TypeError):
    return None
  return SERVER if made else None


def _row(where: str, reply: Mapping[str, Any], choice: Mapping[str, Any]) -> ServedRow:
  prompt = choice.get("prompt_token_ids", reply.get("prompt_token_ids"))
  ids = choice.get("token_ids")
  logprobs = [choice.get(name) for name in ("sampler_logprobs", "full_logprobs")]
  if not _are(prompt, int) or not _are(ids, int) or not ids or not all(
      _are(one, int | float) and len(one) == len(ids) for one in logprobs):
    raise NoServerTokens(f"{where} lacks token_ids, prompt_token_ids, or a log-probability for each id")
  version = choice.get("weights_version")
  return ServedRow(where, tuple(prompt), tuple(ids), tuple(logprobs[0]), tuple(logprobs[1]),
                   version if isinstance(version, int) else None)


def _are(values: Any, kind: Any) -> bool:
  return isinstance(values, list) and all(isinstance(one, kind) and not isinstance(one, bool)
                                          for one in values)
