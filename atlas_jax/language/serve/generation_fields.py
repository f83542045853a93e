"""Fields that all routes share: how a completion is drawn, where it ends, and what is told of it."""
import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from atlas_jax.language.decoding.requests import MOST_BIAS, MOST_PENALTY, CompletionRequest
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.serve.api_error import invalid
from atlas_jax.language.serve.json_fields import JsonFields, whole_numbers

MOST_STOPS = 16  # Stop strings of a request.
MOST_STOP_CHARS = 1_000  # Of each: the text that may still become one is held back.
MOST_ID = 2**31 - 1
MOST_PROMPTS = 2**20  # Of a request, and more than its body has room for.
TOO_LONG = "context_length_exceeded"
NOT_STORED = "this server keeps conversations, by their id in the field 'conversation', and no single answers"


@dataclasses.dataclass(frozen=True)
class CompletionLimits:
  """Bounds of one request.

  Attributes:
    max_tokens: of a completion.
    max_completions: of a request: prompts times n.
    longest_tokens: of prompt and completion together; None: any.
  """

  max_tokens: int
  max_completions: int
  longest_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class GenerationFields:
  """Settings of the completions of a request; those without a comment are as of `SamplingOptions`."""

  n: int
  max_tokens: int | None  # None: as many as there is room for
  temperature: float
  top_p: float | None
  top_k: int | None
  min_p: float | None
  repetition_penalty: float
  presence_penalty: float
  frequency_penalty: float
  logit_bias: Mapping[int, float]
  seed: int
  place: int  # of the first prompt among those of the seed, see `CompletionRequest.place`
  stop: tuple[str, ...]
  stop_token_ids: tuple[int, ...]
  ignore_eos: bool  # whether the model's own ends do not end it
  top_logprobs: int
  returns_ids: bool  # whether ids and their log-probabilities are in the reply, for trainers
  stream: bool
  includes_usage: bool  # whether a stream tells at its end how many tokens it was
  user: str  # requests of different users of one token share no state

  @classmethod
  def read(cls, fields: JsonFields, *, max_tokens: int | None, top_logprobs: int) -> "GenerationFields":
    """Takes the shared fields of a request; the route has taken its own.

    Args:
      fields: of the request.
      max_tokens, top_logprobs: which routes call differently.

    Raises:
      ApiError: for values that cannot be, and fields that are not supported.
    """
    stops = fields.texts("stop", most=MOST_STOPS)
    if any(len(one) > MOST_STOP_CHARS for one in stops):
      raise invalid(f"stop has a text of more than {MOST_STOP_CHARS} characters", "stop")
    made = cls(
        n=fields.take("n", int, 1, least=1),
        max_tokens=max_tokens,
        temperature=fields.take("temperature", float, 1.0, least=0, most=1e6),
        top_p=_above_zero(fields, "top_p", most=1),
        top_k=_top_k(fields),
        min_p=fields.take("min_p", float, least=0, most=1 - 1e-6),
        repetition_penalty=_above_zero(fields, "repetition_penalty", most=1e6) or 1.0,
        presence_penalty=_penalty(fields, "presence_penalty"),
        frequency_penalty=_penalty(fields, "frequency_penalty"),
        logit_bias=_bias(fields.take("logit_bias", dict, {})),
        seed=_seed(fields),
        place=fields.take("place", int, 0, least=0, most=MOST_ID - MOST_PROMPTS),
        stop=stops,
        stop_token_ids=whole_numbers(fields.take("stop_token_ids", list, []), "stop_token_ids", _is_id),
        ignore_eos=fields.take("ignore_eos", bool, False),
        top_logprobs=top_logprobs,
        returns_ids=fields.take("return_token_ids", bool, False),
        stream=fields.take("stream", bool, False),
        includes_usage=_stream_options(fields),
        user=fields.take("user", str, ""))
    _refuse_others(fields)
    return made

  def options(self, *, end_tokens: Sequence[int], max_tokens: int,
              stop_strings: Sequence[str] = ()) -> SamplingOptions:
    """Returns the options of a completion.

    Args:
      end_tokens: that end a completion of the model.
      max_tokens: of it.
      stop_strings: that end it besides those of the request.
    """
    ends = () if self.ignore_eos else tuple(end_tokens)
    return SamplingOptions(
        max_tokens=max_tokens, n=self.n, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p,
        min_p=self.min_p, repetition_penalty=self.repetition_penalty,
        stop_tokens=tuple(dict.fromkeys((*ends, *self.stop_token_ids))),
        stop_strings=(*self.stop, *stop_strings))

  def requests(self, prompts: Sequence[tuple[int, ...]], *, model: str, tenant: str,
               end_tokens: Sequence[int], limits: CompletionLimits, stop_strings: Sequence[str] = (),
               allowed: Callable[[tuple[int, ...]], np.ndarray] | None = None) -> list[CompletionRequest]:
    """Returns what the scheduler is asked, one request per prompt.

    Args:
      prompts: ids of each; the place of a prompt among them is part of its draws.
      model: its name.
      tenant: whose request it is.
      end_tokens, stop_strings: see `options`.
      limits: of this server.
      allowed: see `CompletionRequest`.

    Raises:
      ApiError: if this is more than the limits allow, or a value does not fit the model.
    """
    if len(prompts) * self.n > limits.max_completions:
      raise invalid(f"{len(prompts)} prompts with n={self.n} are {len(prompts) * self.n} completions; a "
                    f"request may have {limits.max_completions} (config.serve.max_completions)", "n")
    if allowed is not None and self.ignore_eos:
      raise invalid("ignore_eos=true lets nothing end a completion that must follow a schema; leave it out",
                    "ignore_eos")
    made = []
    for place, prompt in enumerate(prompts, self.place):
      options = self.options(end_tokens=end_tokens, stop_strings=stop_strings,
                             max_tokens=self._room(len(prompt), limits))
      try:
        made.append(CompletionRequest(
            prompt=prompt, sampling=options, seed=self.seed, place=place, model=model,
            tenant=f"{tenant}/{self.user}", presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty, logit_bias=self.logit_bias,
            top_logprobs=self.top_logprobs, allowed=allowed))
      except ValueError as error:
        raise invalid(str(error)) from error
    return made

  def _room(self, prompt_tokens: int, limits: CompletionLimits) -> int:
    """Returns how long a completion may become."""
    left = None if limits.longest_tokens is None else limits.longest_tokens - prompt_tokens
    if left is not None and left < 1:
      raise invalid(f"the prompt has {prompt_tokens} tokens, and the model has room for "
                    f"{limits.longest_tokens} with its completion; shorten it", None, TOO_LONG)
    if self.max_tokens is None:
      return limits.max_tokens if left is None else min(left, limits.max_tokens)
    if self.max_tokens > limits.max_tokens:
      raise invalid(f"max_tokens={self.max_tokens} must be at most {limits.max_tokens} (config.serve."
                    "max_tokens)", "max_tokens")
    if left is not None and self.max_tokens > left:
      raise invalid(f"the prompt of {prompt_tokens} tokens and max_tokens={self.max_tokens} are more than "
                    f"the {limits.longest_tokens} that the model has room for; ask for {left} at most",
                    "max_tokens", TOO_LONG)
    return self.max_tokens


def _top_k(fields: JsonFields) -> int | None:
  found = fields.take("top_k", int, least=-1, most=MOST_ID)
  # To some clients -1 and 0 stand for no bound.
  return None if found in (None, -1, 0) else found


def _above_zero(fields: JsonFields, name: str, *, most: float) -> float | None:
  value = fields.take(name, float, least=0, most=most)
  if value == 0:
    raise invalid(f"{fields.name(name)}=0 must be above 0", fields.name(name))
  return value


def _penalty(fields: JsonFields, name: str) -> float:
  return fields.take(name, float, 0.0, least=-MOST_PENALTY, most=MOST_PENALTY)


def _is_id(value: int) -> bool:
  return 0 <= value <= MOST_ID


def _seed(fields: JsonFields) -> int:
  """Returns the seed that was given, or a new one."""
  seed = fields.take("seed", int, least=-2**63, most=2**63 - 1)
  # Negative ones are allowed by public APIs; two's complement keeps all seeds apart.
  return secrets.randbits(63) if seed is None else seed % 2**64


def _bias(values: Mapping) -> dict[int, float]:
  found = {}
  for token, bias in values.items():
    fits = token.isascii() and token.isdecimal() and len(token) <= 10 and int(token) <= MOST_ID
    if not fits or isinstance(bias, bool) or not isinstance(bias, int | float) or abs(bias) > MOST_BIAS:
      raise invalid(f"logit_bias must be numbers within {MOST_BIAS:g} of 0 by id, such as {{'50256': -100}}",
                    "logit_bias")
    found[int(token)] = float(bias)
  return found


def _stream_options(fields: JsonFields) -> bool:
  inner = fields.inner("stream_options")
  if inner is None:
    return False
  wanted = inner.take("include_usage", bool, False)
  inner.refuse("include_obfuscation", "leave it out", allowed=(False,))
  inner.done()
  return wanted


def _refuse_others(fields: JsonFields) -> None:
  """Takes fields of public APIs that this server has not."""
  fields.take("service_tier", str, "auto", choices=("auto", "default"))
  fields.refuse("store", NOT_STORED, allowed=(False,))
  for name in ("prompt_cache_key", "prompt_cache_retention", "safety_identifier"):
    fields.refuse(name, "states are found by the prompt itself, and kept apart by the field 'user'")
  fields.refuse("min_tokens", "forbid ends with logit_bias, or set ignore_eos", allowed=(0,))
  fields.refuse("prompt_logprobs", "only what is written has log-probabilities")
  fields.refuse("include_stop_str_in_output", "the field stop_reason says what stopped it", allowed=(False,))
