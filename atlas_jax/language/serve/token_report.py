"""Ids and log-probabilities in answers: as the API has them, and whole for those who train on them."""
import math
from collections.abc import Sequence
from typing import Any

from atlas_jax.language.decoding.requests import TokenEvent
from atlas_jax.language.serve.generation import ServedCompletion
from atlas_jax.language.serve.served_text import ServedText

LEAST_LOGPROB = -9999.0  # Stands for minus infinity, which JSON has not.


def chat_logprobs(text: ServedText, events: Sequence[TokenEvent], top: int) -> list[dict[str, Any]]:
  """Returns the log-probabilities of ids as chats and responses have them, with the likeliest in their place.

  Args:
    text: of the model.
    events: of the ids.
    top: how many of the likeliest are told.
  """

  def one(token: int, logprob: float) -> dict[str, Any]:
    return {"token": text.token_text(token), "logprob": number(logprob),
            "bytes": list(text.token_bytes(token))}

  return [{**one(event.token, event.logprob), "top_logprobs": [one(*pair) for pair in event.top[:top]]}
          for event in events]


def text_logprobs(text: ServedText, events: Sequence[TokenEvent], top: int, offset: int) -> dict[str, Any]:
  """Returns the log-probabilities of ids as completions have them.

  Args:
    text, events, top: as of `chat_logprobs`.
    offset: where the text of the first of these ids begins, in characters.
  """
  tokens = [text.token_text(event.token) for event in events]
  offsets = []
  for token in tokens:
    offsets.append(offset)
    offset += len(token)
  # Two ids may show the same text, such as parts of characters: the likelier one is told.
  likeliest = [{text.token_text(token): number(logprob) for token, logprob in reversed(event.top[:top])}
               for event in events]
  return {"tokens": tokens, "token_logprobs": [number(event.logprob) for event in events],
          "top_logprobs": likeliest if top else None, "text_offset": offsets}


def trainer_fields(events: Sequence[TokenEvent]) -> dict[str, Any]:
  """Returns ids and their log-probabilities in the distributions of `sampler.Rollout`."""
  return {"token_ids": [event.token for event in events],
          "sampler_logprobs": [number(event.sampler_logprob) for event in events],
          "full_logprobs": [number(event.full_logprob) for event in events]}


def weights_version(completion: ServedCompletion) -> dict[str, Any]:
  """Returns the version of the weights that wrote a completion."""
  return {} if completion.end is None else {"weights_version": completion.end.version}


def number(value: float) -> float:
  """Returns a log-probability that JSON can hold."""
  return float(value) if math.isfinite(value) else LEAST_LOGPROB
