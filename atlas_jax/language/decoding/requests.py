"""Requests to a scheduler: the fields of one, the events that come back, and the errors of what is refused.

Nothing here needs a model. A request of n completions is one stream; its events carry the completion's index.
"""
import dataclasses
import math
import queue
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from atlas_jax.language.decoding import sampling
from atlas_jax.language.decoding.sampler import Completion, SamplingOptions, check_prompt

REASONS = ("stop_token", "stop_string", "length", "abort", "timeout", "error")
MOST_TOP = 20  # Alternatives to an id whose log-probabilities can be asked for.
MOST_PENALTY = 2.0  # Of presence and frequency, as public APIs bound them.
MOST_BIAS = 100.0


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
  """Describes completions of one prompt.

  Completion j of a seed is drawn as `Sampler.generate` draws completion j of the prompt at `place`: the same
  prompt, options and seed give the same ids whatever else is served meanwhile.

  Attributes:
    prompt: ids of the model.
    sampling: length, number and filters of the completions; ids and strings that end them.
    seed: of the draws, below 2**64.
    place: of the prompt among the prompts of the seed.
    first: number of the first completion; n completions are first, first + 1 and so on.
    model: name of the weights; None: those loaded first.
    tenant: requests of different tenants share no stored state, so that none can learn what others asked.
    presence_penalty: taken from the scores of ids that the completion has.
    frequency_penalty: taken from them as often as it has them.
    logit_bias: id -> number added to its score.
    top_logprobs: how many of the likeliest ids each event lists, at most MOST_TOP.
    time_limit_s: from `submit` to the end; None: no limit.
    remember: whether states of prompt and completions enter the store of prefixes. What is there is used
      in any case.
    allowed: the ids of a completion so far -> allowed_V, bool, ids that may come next; it is called in the
      scheduler's thread before each id. None: all. At least one must be allowed.

  Raises:
    ValueError: for a value that cannot be, naming it.
  """

  prompt: tuple[int, ...]
  sampling: SamplingOptions = SamplingOptions()
  seed: int = 0
  place: int = 0
  first: int = 0
  model: str | None = None
  tenant: str = ""
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
  top_logprobs: int = 0
  time_limit_s: float | None = None
  remember: bool = True
  allowed: Callable[[tuple[int, ...]], np.ndarray] | None = None

  def __post_init__(self):
    object.__setattr__(self, "prompt", tuple(np.asarray(self.prompt).tolist()))
    object.__setattr__(self, "logit_bias", {int(token): float(bias) for token, bias in
                                            dict(self.logit_bias).items()})
    sampling.root_words(self.seed)

    def within(value, most):
      return math.isfinite(value) and abs(value) <= most

    bounds = {
        "place": (0 <= self.place < 2**31, "0 or more"), "first": (0 <= self.first < 2**31, "0 or more"),
        "presence_penalty": (within(self.presence_penalty, MOST_PENALTY), f"within {MOST_PENALTY} of 0"),
        "frequency_penalty": (within(self.frequency_penalty, MOST_PENALTY), f"within {MOST_PENALTY} of 0"),
        "logit_bias": (all(within(bias, MOST_BIAS) for bias in self.logit_bias.values()),
                       f"numbers within {MOST_BIAS} of 0"),
        "top_logprobs": (0 <= self.top_logprobs <= MOST_TOP, f"in 0..{MOST_TOP}"),
        "time_limit_s": (self.time_limit_s is None or 0 < self.time_limit_s < math.inf, "above 0, or None")}
    for name, (fits, needs) in bounds.items():
      if not fits:
        raise ValueError(f"{name}={getattr(self, name)!r} must be {needs}")

  def check(self, vocab_size: int, *, longest_tokens: int | None) -> None:
    """Refuses a request that a model cannot answer.

    Args:
      vocab_size: of the model.
      longest_tokens: of prompt and completion that it has room for; None: any.

    Raises:
      ValueError: naming the field, its value, and what it must be.
    """
    check_prompt(self.prompt, vocab_size, name="prompt")
    sampling.SamplingParams.of(self.sampling, vocab_size)
    strange = [token for token in (*self.logit_bias, *self.sampling.stop_tokens)
               if not 0 <= token < vocab_size]
    if strange:
      raise ValueError(f"logit_bias or stop_tokens has the id {strange[0]}; the model's vocabulary is "
                       f"0..{vocab_size - 1}")
    size = len(self.prompt) + self.sampling.max_tokens
    if longest_tokens is not None and size > longest_tokens:
      raise ValueError(f"a prompt of {len(self.prompt)} ids and max_tokens={self.sampling.max_tokens} are "
                       f"{size} in all, and there is room for {longest_tokens}; ask for fewer")


@dataclasses.dataclass(frozen=True, slots=True)
class TokenEvent:
  """One id of a completion."""

  index: int  # of the completion, 0..n-1
  token: int
  text: str  # that is certain now; held back while it may be the start of a stop string or half a character
  logprob: float  # of the id under the model's own scores: no temperature, filter, penalty or bias
  sampler_logprob: float  # in the distribution it was drawn from, see `sampler.Rollout`
  full_logprob: float  # in the tempered distribution over all ids, see `sampler.Rollout`
  top: tuple[tuple[int, float], ...]  # the likeliest ids and their `logprob`, as many as were asked for


@dataclasses.dataclass(frozen=True, slots=True)
class EndEvent:
  """The last event of a completion."""

  index: int
  reason: str  # one of REASONS
  text: str  # the rest that was held back, without what stopped it
  stop: str | int | None  # the string or id that stopped it
  error: Exception | None  # of reason "error"
  version: int  # of the weights that wrote it
  prompt_tokens: int
  cached_tokens: int  # of the prompt, whose state came from the store
  completion_tokens: int  # the id that stopped it included


class QueueFull(Exception):
  """Raised by `Scheduler.submit` when as many requests wait as may.

  Attributes:
    retry_after_s: after how many seconds a place is likely, from how long requests took so far.
  """

  def __init__(self, waiting: int, retry_after_s: float):
    super().__init__(f"{waiting} requests wait already; ask again in {retry_after_s:.0f} s")
    self.retry_after_s = retry_after_s


class Draining(Exception):
  """Raised by `Scheduler.submit` when it takes no more requests, because it drains or is closed."""


class Stream:
  """The events of one request, in the order in which they come; iterate over it, or hand over a sink.

  Attributes:
    request: that was submitted; None of a stream that was read from a file.
    number: of the stream, unique in its scheduler.
  """

  def __init__(self, number: int, request: CompletionRequest, sink: Callable[[Any], None] | None):
    """Makes the stream of a request; with a sink its events go there, in the scheduler's thread."""
    self.number = number
    self.request = request
    self._left = request.sampling.n
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    self._sink = sink or self._queue.put

  def send(self, event: TokenEvent | EndEvent) -> None:
    """Takes an event; called by the scheduler alone."""
    self._sink(event)

  def __iter__(self) -> Iterator[TokenEvent | EndEvent]:
    """Yields events until all completions have ended."""
    while self._left:
      event = self._queue.get()
      self._left -= isinstance(event, EndEvent)
      yield event

  def completions(self) -> list[Completion]:
    """Waits for the end and returns the completions in their order.

    Raises:
      Exception: that of a completion whose reason is "error".
    """
    size = self.request.sampling.n
    tokens: list[list[TokenEvent]] = [[] for _ in range(size)]
    ends: list[EndEvent | None] = [None] * size
    for event in self:
      if isinstance(event, TokenEvent):
        tokens[event.index].append(event)
      else:
        ends[event.index] = event
        if event.error is not None:
          raise event.error
    return [_completion(*pair) for pair in zip(tokens, ends, strict=True)]


def _completion(tokens: list[TokenEvent], end: EndEvent | None) -> Completion:
  assert end is not None
  text = "".join(event.text for event in tokens) + end.text
  return Completion([event.token for event in tokens], [event.sampler_logprob for event in tokens],
                    [event.full_logprob for event in tokens], end.reason, text, end.version)
