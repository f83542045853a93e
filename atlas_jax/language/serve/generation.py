"""Completions of one request while they are written, from the scheduler's thread into asyncio."""
import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

from absl import logging

from atlas_jax.language.decoding.requests import (
  CompletionRequest,
  Draining,
  EndEvent,
  QueueFull,
  Stream,
  TokenEvent,
)
from atlas_jax.language.serve.api_error import ApiError, busy, invalid


@dataclasses.dataclass
class ServedCompletion:
  """One completion as far as it is written.

  Attributes:
    number: among all of the request: those of a prompt stand together.
    tokens: its ids, with what is told of each.
    text: of them, without what stopped it.
    end: how it ended; None before.
  """

  number: int
  tokens: list[TokenEvent] = dataclasses.field(default_factory=list)
  text: str = ""
  end: EndEvent | None = None

  @property
  def finish_reason(self) -> str:
    """Returns why it ended, in the API's words."""
    assert self.end is not None
    return "length" if self.end.reason == "length" else "stop"

  @property
  def stop_reason(self) -> str | int | None:
    """Returns the string or id that stopped it."""
    return None if self.end is None else self.end.stop


class ServedGeneration:
  """The streams of one request; every event is given out once, in the order in which it came."""

  def __init__(self, scheduler: Any, requests: Sequence[CompletionRequest]):
    """Takes what is to be asked; nothing is asked before `submit`.

    Args:
      scheduler: see `Scheduler`.
      requests: one per prompt, each for the same number of completions.
    """
    self._scheduler = scheduler
    self._requests = requests
    self._per_prompt = requests[0].sampling.n
    self._loop = asyncio.get_running_loop()
    self._events: asyncio.Queue = asyncio.Queue()
    self._streams: list[Stream] = []
    self._lock = threading.Lock()
    self._cancelled = False
    self.completions = [ServedCompletion(number) for number in range(len(requests) * self._per_prompt)]

  async def submit(self) -> None:
    """Queues all prompts, or none.

    Raises:
      ApiError: 400 for what the model cannot answer, 429 if the queue is full, 503 when the server ends.
    """
    # In a thread: the scheduler may be loading weights, and the loop has others to serve.
    try:
      await asyncio.to_thread(self._submit_all)
    except QueueFull as error:
      raise busy(str(error), error.retry_after_s, status=429) from error
    except Draining as error:
      raise busy("the server is about to end and takes no more requests") from error
    except ValueError as error:
      raise invalid(str(error)) from error

  def _submit_all(self) -> None:
    try:
      for place, request in enumerate(self._requests):
        if self._cancelled:
          return
        # Not under the lock: the scheduler may be loading weights, and who cancels must not wait for that.
        stream = self._scheduler.submit(request, self._sink(place))
        with self._lock:
          self._streams.append(stream)
        if self._cancelled:
          self.cancel()
    except BaseException:
      self.cancel()
      raise

  def _sink(self, place: int):
    first = place * self._per_prompt

    def take(event: TokenEvent | EndEvent) -> None:
      self._loop.call_soon_threadsafe(self._events.put_nowait, (first + event.index, event))

    return take

  def cancel(self) -> None:
    """Ends what is not written to its end, so that its slots are free; safe at any time."""
    with self._lock:
      self._cancelled = True
      streams = list(self._streams)
    for stream in streams:
      self._scheduler.cancel(stream)

  @property
  def is_open(self) -> bool:
    """Returns whether something was asked that has not come to its end."""
    return bool(self._streams) and not self.has_ended

  @property
  def has_ended(self) -> bool:
    """Returns whether all completions have come to their end."""
    return all(one.end is not None for one in self.completions)

  async def events(self) -> AsyncIterator[tuple[ServedCompletion, TokenEvent | EndEvent]]:
    """Yields the events of all completions, each noted in its completion before.

    Raises:
      ApiError: if a completion does not come to its own end.
    """
    left = len(self.completions)
    while left:
      number, event = await self._events.get()
      completion = self.completions[number]
      completion.text += event.text
      if isinstance(event, EndEvent):
        completion.end = event
        left -= 1
        _check(event)
      else:
        completion.tokens.append(event)
      yield completion, event

  @property
  def usage(self) -> dict[str, Any]:
    """Returns how many tokens were read and written, in the API's words; of a prompt once for all its n."""
    ends = [completion.end for completion in self.completions]
    firsts = [end for end in ends[::self._per_prompt] if end is not None]
    prompt = sum(end.prompt_tokens for end in firsts)
    written = sum(end.completion_tokens for end in ends if end is not None)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in firsts)}}


def _check(end: EndEvent) -> None:
  if end.reason == "timeout":
    raise ApiError(504, "the completion did not end within config.serve.time_limit_s; ask for fewer tokens")
  if end.reason == "abort":
    raise busy("the completion was ended before its own end, because the server is about to end")
  if end.reason == "error":
    # The caller's own part in it, such as a schema that became too large, is said; a fault's words are not.
    if isinstance(end.error, ValueError):
      raise invalid(str(end.error)) from end.error
    logging.error("a completion failed: %s: %s", type(end.error).__name__, end.error)
    raise ApiError(500, "the completion failed; the server's log says why")
