"""Serves many requests with one model at a time on the device: continuous batching, in a thread of its own.

    scheduler = Scheduler(Settings(slots=8), tokenizer)
    scheduler.load("base", language, params, version=0)
    stream = scheduler.submit(CompletionRequest(prompt=(256, 104, 105)))
    for event in stream: ...

A request waits in a bounded queue; its prompt is read by pieces, in turn with the others, between decoding
steps of those that write; then its state is put into a slot and freed with its last id. What a request
receives depends on its prompt, options, seed and weights alone, to the last bit, and not on what else is
served, on the number of slots, or on states that come from the store: every computation has a fixed shape.
"""
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from atlas_jax.language.decoding.requests import CompletionRequest, Stream


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a scheduler.

  Attributes:
    slots: completions that are written at the same time.
    group_rows: rows that one decoding step computes; slots are groups of so many. It is part of the numbers:
      other values may round otherwise. 1 is for a server of single streams.
    piece_tokens: of a prompt, read at once. Also part of the numbers: pieces begin at its multiples alone, so
      that a state is the same however it came to be; states are stored at its multiples.
    room_tokens: of a decoder: the longest prompt with its completion; a memory model has no limit.
    reading_rows: prompts that are read at the same time.
    queue_requests: requests that may wait.
    time_limit_s: of requests that name none; None: no limit.
    store_bytes: of states of prefixes in the host's memory; 0 keeps none.
    store_every_tokens: distance of the states that are kept of a long text, a multiple of piece_tokens;
      beside them those at ends of prompts and completions and where texts part.
    store_folder: where states are also written, and read after a restart; None: nowhere.
    store_folder_bytes: of these files.
  """

  slots: int = 8
  group_rows: int = 8
  piece_tokens: int = 64
  room_tokens: int | None = None
  reading_rows: int = 4
  queue_requests: int = 128
  time_limit_s: float | None = None
  store_bytes: int = 0
  store_every_tokens: int = 512
  store_folder: pathlib.Path | None = None
  store_folder_bytes: int = 2**33


class Scheduler:
  """Takes requests from any thread and answers them; see the module."""

  def __init__(self, settings: Settings, tokenizer, *, mesh=None):
    """Starts the thread; nothing is compiled before the first request."""
    raise NotImplementedError

  def load(self, name: str, language, params, version: int) -> None:
    """Takes weights under a name; later requests use them, those in flight end with their own.

    Adapters loaded upon an earlier version of the name are from now on beside this one.
    """
    raise NotImplementedError

  def load_adapter(self, name: str, base: str, options: dict, adapters: Any) -> None:
    """Takes low-rank adapters of the decoder `base` under a model name of their own."""
    raise NotImplementedError

  def unload(self, name: str) -> None:
    """Forgets a name; requests in flight end with its weights."""
    raise NotImplementedError

  def models(self) -> dict[str, int]:
    """Returns the version of every name, in the order of loading; the first is the default."""
    raise NotImplementedError

  def submit(self, request: CompletionRequest, sink: Callable[[Any], None] | None = None) -> Stream:
    """Queues a request and returns its stream at once.

    Raises:
      ValueError: for a request that the model cannot answer, or a model that is not loaded.
      QueueFull: when settings.queue_requests wait; says when to ask again.
      Draining: after `drain` or `close`.
    """
    raise NotImplementedError

  def cancel(self, stream: Stream) -> None:
    """Ends a stream with reason "abort"; its slots are free before the next step. Ended ones stay."""
    raise NotImplementedError

  def save(self, stream: Stream, file) -> None:
    """Takes a stream of one completion out of its slot into a file; it ends here with reason "abort"."""
    raise NotImplementedError

  def resume(self, file, sink: Callable[[Any], None] | None = None) -> Stream:
    """Goes on with a saved stream, bit for bit; its events begin behind the last id of before.

    Raises:
      Damaged: if the file is broken.
      ValueError: if it is of another model, or of settings that round otherwise; names both.
    """
    raise NotImplementedError

  def drain(self, timeout_s: float | None = None) -> bool:
    """Refuses new requests, waits until all have ended, and ends those that have not after the timeout.

    Returns:
      Whether all ended on their own.
    """
    raise NotImplementedError

  def close(self) -> None:
    """Ends all streams with reason "abort", and the thread; stored states reach the disk."""
    raise NotImplementedError

  def stats(self) -> dict[str, float]:
    """Returns counts and sizes, for metrics; see the module's STATS for names and meanings."""
    raise NotImplementedError
