"""A run that is served: its weights in a scheduler, its texts, its memory's trace."""
import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from atlas_jax.language import runs
from atlas_jax.language.decoding.requests import CompletionRequest
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.decoding.scheduler import Scheduler, Settings
from atlas_jax.language.serve import loading
from atlas_jax.language.serve.answering import RequestLimits
from atlas_jax.language.serve.conversations import Conversations
from atlas_jax.language.serve.generation_fields import CompletionLimits
from atlas_jax.language.serve.loading import Loader
from atlas_jax.language.serve.memory_trace import MemoryTrace, MemoryTracer, has_memory
from atlas_jax.language.serve.served_text import ServedText

ROOM_TOKENS = 4_096  # Of a decoder, where config.serve.room_tokens is None.
STATES, CONVERSATIONS = "states", "conversations"  # Folders in config.serve.folder.


class ServedRun(NamedTuple):
  """A run's model, ready to write."""

  name: str  # of the model, in requests
  step: int  # updates that its weights have seen
  scheduler: Scheduler
  text: ServedText
  trace: Callable[[Any], MemoryTrace] | None
  loader: Loader | None = None  # of adapters, and of weights that are newer


def settings(config, room_tokens: int | None) -> Settings:
  """Returns the scheduler's settings; room_tokens is that of the model.

  Raises:
    ValueError: if they contradict each other.
  """
  serve = config.serve
  folder = None if serve.folder is None else pathlib.Path(serve.folder).expanduser() / STATES
  try:
    return Settings(
        slots=serve.slots, group_rows=serve.group_rows, piece_tokens=serve.piece_tokens,
        room_tokens=room_tokens, reading_rows=serve.reading_rows, queue_requests=serve.queue_requests,
        time_limit_s=serve.time_limit_s, store_bytes=round(serve.store_gib * 2**30),
        store_every_tokens=serve.store_every_tokens, store_folder=folder if serve.store_gib else None,
        store_folder_bytes=round(serve.folder_gib * 2**30))
  except ValueError as error:
    raise ValueError(f"config.serve: {error}") from error


def request_limits(config, text: ServedText) -> RequestLimits:
  """Returns the bounds of requests."""
  serve = config.serve
  return RequestLimits(
      body_bytes=round(serve.body_mib * 2**20), body_timeout_s=serve.body_timeout_s,
      trace_tokens=serve.trace_tokens, of_one=CompletionLimits(
          max_tokens=serve.max_tokens, max_completions=serve.max_completions,
          longest_tokens=text.longest_tokens))


def open_conversations(config) -> Conversations:
  """Opens the conversations of config.serve.folder, or ones that end with the program."""
  serve = config.serve
  folder = None if serve.folder is None else pathlib.Path(serve.folder).expanduser() / CONVERSATIONS
  return Conversations(folder, serve.conversations)


@contextlib.contextmanager
def opened(config, workdir, *, mode: str) -> Iterator[ServedRun]:
  """Yields a run, its newest weights in a scheduler that has compiled its programs; it is closed at the end.

  Args:
    config: of the run, see `runs.config_of`; resolved.
    workdir: of the run.
    mode: of the program, for errors.

  Raises:
    ValueError: if the run's model writes no text, or config.serve does not fit it.
  """
  runs.check_language(config, workdir, mode)
  # Before weights are read, which takes longer.
  settings(config, config.serve.room_tokens)
  loading.start_adapters(config.serve.adapters)
  mesh = runs.mesh_here(config)
  tuned = runs.open_tuned(config, workdir, mesh)
  language = tuned.language
  room = room_tokens_of(config, language)
  known = [size for size in (room, language.max_positions) if size is not None]
  traced = has_memory(language)
  text = ServedText(tuned.start.tokenizer, tuned.start.template, tuned.start.end_tokens, language.vocab_size,
                    min(known, default=None), traced, int(time.time()))
  tracer = MemoryTracer(language, tuned.params) if traced else None
  name = config.serve.served_as or pathlib.Path(workdir).resolve().name
  with Scheduler(settings(config, room), text.tokenizer, mesh=mesh) as scheduler:
    scheduler.load(name, language, tuned.params, version=tuned.step)
    warm(scheduler, text)
    loader = loading.make(config, workdir, name, scheduler, language, mesh,
                          on_weights=(lambda params: None) if tracer is None else tracer.load,
                          warm=lambda adapter: warm(scheduler, text, adapter))
    yield ServedRun(name, tuned.step, scheduler, text, tracer, loader)


def warm(scheduler: Scheduler, text: ServedText, model: str | None = None) -> None:
  """Writes two ids, so that programs are compiled, and fail if they do, before anybody asks."""
  request = CompletionRequest((text.tokenizer.doc_id,), SamplingOptions(max_tokens=2), model=model,
                              remember=False)
  scheduler.submit(request).completions()


def room_tokens_of(config, language) -> int | None:
  """Returns how many tokens a text of a model may have; None: any number.

  Raises:
    ValueError: if config.serve.room_tokens does not fit the model.
  """
  asked = config.serve.room_tokens
  if language.token_axes is None:
    if asked is not None:
      raise ValueError(f"config.serve.room_tokens={asked} bounds the cache of attention, and the state of "
                       "this run's model has one size; leave it out")
    return None
  most = language.max_positions
  if asked is None:
    return ROOM_TOKENS if most is None else min(ROOM_TOKENS, most)
  if most is not None and asked > most:
    raise ValueError(f"config.serve.room_tokens={asked} is more than the model's {most} learned positions; "
                     "lower it")
  return asked
