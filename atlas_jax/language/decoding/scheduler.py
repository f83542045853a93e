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
import concurrent.futures
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.language.decoding import programs as programs_module
from atlas_jax.language.decoding import saved_stream, state_parts
from atlas_jax.language.decoding.completion_writer import CompletionWriter
from atlas_jax.language.decoding.prefix_store import PrefixStore, Root
from atlas_jax.language.decoding.programs import Shapes, SlotPrograms
from atlas_jax.language.decoding.prompt_reading import StatePlace
from atlas_jax.language.decoding.requests import CompletionRequest, Draining, QueueFull, Stream
from atlas_jax.language.decoding.scheduler_settings import Settings
from atlas_jax.language.decoding.served_model import ModelTable, ServedModel
from atlas_jax.language.decoding.serving_loop import ServedRequest, ServingLoop
from atlas_jax.language.decoding.state_disk import StateDisk
from atlas_jax.models.language import LanguageModel


class _Prepared(NamedTuple):
  """Things that are made once for models of the same form."""

  programs: SlotPrograms
  parts: state_parts.StateParts


class Scheduler:
  """Takes requests from any thread and answers them; see the module."""

  def __init__(self, settings: Settings, tokenizer, *, mesh=None,
               clock: Callable[[], float] = time.monotonic):
    """Starts the thread; nothing is compiled before the first request.

    Args:
      settings: sizes and limits.
      tokenizer: of all models: stop strings are looked for in its texts.
      mesh: where the parameters live, if on several devices; states are then whole on each.
      clock: seconds, for time limits.
    """
    self._settings = settings
    self._tokenizer = tokenizer
    self._mesh = mesh
    self._clock = clock
    self._disk = None
    if settings.store_folder is not None:
      self._disk = StateDisk(settings.store_folder, settings.store_folder_bytes)
    self._store = None
    if settings.store_bytes:
      self._store = PrefixStore(settings.piece_tokens, settings.store_bytes, self._disk)
    self._loop = ServingLoop(slots=settings.slots, group_rows=settings.group_rows,
                             reading_rows=settings.reading_rows, tokenizer=tokenizer, clock=clock)
    self._models = ModelTable()
    self._prepared: dict[str, _Prepared] = {}
    # Of models and what is prepared for them; never taken by the thread, so that loading stalls no stream.
    self._loading = threading.Lock()
    self._lock = threading.Condition()
    self._inbox: list[Callable[[], None]] = []
    self._arrived = 0  # Requests in the inbox.
    self._number = 0
    self._open = True
    self._running = True
    self._failure: BaseException | None = None
    self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
    self._thread.start()

  def load(self, name: str, language: LanguageModel, params, version: int) -> None:
    """Takes weights under a name; later requests use them, those in flight end with their own.

    Adapters loaded upon an earlier version of the name are from now on beside this one.

    Raises:
      ValueError: if the model does not fit the settings, or the version does not grow.
    """
    self._prepare(language)
    with self._loading:
      self._models.load(name, language, params, version)
    self._fingerprint()

  def load_adapter(self, name: str, base: str, options: Mapping, adapters: Any) -> None:
    """Takes low-rank adapters of the decoder `base` under a model name of their own.

    Args:
      name: of the model with them, in requests.
      base: a model that is loaded.
      options: rank, alpha, targets and scaling, as `peft.options` reads them.
      adapters: as `peft.load` reads them.

    Raises:
      ValueError: if the base is not there, takes no adapters, or these do not fit it.
    """
    with self._loading:
      self._models.load_adapter(name, base, options, adapters)
      language = self._models.get(name).language
    self._fingerprint()
    self._prepare(language)

  def unload(self, name: str) -> None:
    """Forgets a name; requests in flight end with its weights.

    Raises:
      ValueError: if it is not there, or adapters stand upon it.
    """
    with self._loading:
      self._models.unload(name)

  def models(self) -> dict[str, int]:
    """Returns the version of every name, in the order of loading; the first is the default."""
    with self._loading:
      return self._models.versions()

  def model(self, name: str | None = None) -> ServedModel:
    """Returns the newest weights of a name, an object of their own; ValueError if there are none."""
    with self._loading:
      return self._models.get(name)

  def replace(self, name: str, params, version: int) -> ServedModel:
    """Takes other weights of a model that is loaded, under any version, and returns them; see `load`.

    For weights whose sequence of versions begins anew, such as those of a run that went back to a checkpoint.

    Raises:
      ValueError: if the model is not loaded, or is one of adapters.
    """
    with self._loading:
      self._models.replace(name, params, version)
      model = self._models.get(name)
    self._fingerprint()
    return model

  def submit(self, request: CompletionRequest, sink: Callable[[Any], None] | None = None) -> Stream:
    """Queues a request and returns its stream at once.

    Args:
      request: what is asked.
      sink: takes the stream's events, in the scheduler's thread, so it must not wait; None: the stream is
        iterated over. A sink that raises ends its request.

    Raises:
      ValueError: for a request that the model cannot answer, or a model that is not loaded.
      QueueFull: when settings.queue_requests wait; says when to ask again.
      Draining: after `drain` or `close`.
    """
    with self._loading:
      model = self._models.get(request.model)
    programs = self._prepare(model.language).programs
    request.check(model.language.vocab_size, longest_tokens=self._longest(model.language))
    writers = [CompletionWriter(request, index, self._tokenizer) for index in range(request.sampling.n)]
    return self._queue(request, model, programs, sink, writers, None)

  def cancel(self, stream: Stream) -> None:
    """Ends a stream with reason "abort"; its slots are free before the next step. Ended ones stay."""
    def mark():
      for served in self._loop.requests():
        if served.stream is stream:
          served.cancelled = True

    self._post(mark)

  def save(self, stream: Stream, file) -> None:
    """Takes a stream of one completion out of its slot into a file; it ends here with reason "abort".

    Raises:
      ValueError: if the stream is in no slot, because it has not begun to write or has ended, or if its
        request has a function.
    """
    def take():
      for served in self._loop.requests():
        if served.stream is stream:
          taken = served.model, served.programs.shapes, *self._loop.take(served)
          saved_stream.save(file, *taken)
          self._loop.end(served, "abort")
          return
      raise ValueError(f"stream {stream.number} has ended, or is of another scheduler")

    self._ask(take)

  def resume(self, file, sink: Callable[[Any], None] | None = None) -> Stream:
    """Goes on with a saved stream, bit for bit; its events begin behind the last id of before.

    Raises:
      Damaged: if the file is broken.
      ValueError: if it is of another model, or of settings that round otherwise; names both.
      QueueFull, Draining: see `submit`.
    """
    with self._loading:
      saved = saved_stream.load(file, self._models, lambda model: self._prepare(model.language).programs)
    writer = CompletionWriter(saved.request, 0, self._tokenizer, saved.tokens)
    programs = self._prepare(saved.model.language).programs
    return self._queue(saved.request, saved.model, programs, sink, [writer], (saved.row, saved.draws))

  def drain(self, timeout_s: float | None = None) -> bool:
    """Refuses new requests, waits until all have ended, and ends those that have not after the timeout.

    Returns:
      Whether all ended on their own.
    """
    with self._lock:
      self._open = False
      self._lock.notify_all()
      ended = self._lock.wait_for(lambda: not self._running or not (self._inbox or self._loop.has_work),
                                  timeout_s)
    if not ended:
      self._ask(self._end_all)
    if self._disk is not None:
      self._disk.flush()
    return ended and self._failure is None

  def close(self) -> None:
    """Ends all streams with reason "abort", and the thread; stored states reach the disk."""
    with self._lock:
      self._open = False
      self._running = False
      self._lock.notify_all()
    self._thread.join()
    if self._disk is not None:
      self._disk.close()
      self._disk = None

  def __enter__(self) -> "Scheduler":
    """Returns itself."""
    return self

  def __exit__(self, *exception) -> None:
    """Closes."""
    self.close()

  def stats(self) -> dict[str, float]:
    """Returns counts and sizes, for metrics, under the names of `scheduler_settings.STATS`."""
    loop = self._loop
    found: dict[str, float] = {**loop.counts}
    found["waiting"] = len(loop.waiting) + self._arrived
    found["reading"] = len(loop.reading)
    found["ready"] = len(loop.ready)
    found["slots"] = self._settings.slots
    found["busy_slots"] = loop.busy
    found["background_waiting"] = len(loop.background)
    if self._store is not None:
      found["store_states"] = self._store.states
      found["store_bytes"] = self._store.bytes
      found["store_evicted"] = self._store.evicted
      found["store_refused"] = self._store.refused
    with self._loading:
      if self._models.versions():
        found["state_bytes"] = self._prepare(self._models.get(None).language).parts.row_bytes
    if self._disk is not None:
      found["disk_bytes"] = self._disk.bytes
      found["disk_skipped"] = self._disk.skipped
      found["disk_damaged"] = self._disk.damaged
    return found

  def _prepare(self, language: LanguageModel) -> _Prepared:
    """Returns the programs of a model's form; adapters of the same options share theirs."""
    form = repr(language.module)
    found = self._prepared.get(form)
    if found is None:
      room = None if language.token_axes is None else self._settings.room_tokens
      shapes = Shapes(self._settings.group_rows, self._settings.piece_tokens, room)
      made = _Prepared(programs_module.make(language, shapes, mesh=self._mesh),
                       state_parts.of(language, room))
      found = self._prepared.setdefault(form, made)
    return found

  def _longest(self, language: LanguageModel) -> int | None:
    room = None if language.token_axes is None else self._settings.room_tokens
    known = [size for size in (room, language.max_positions) if size is not None]
    return min(known, default=None)

  def _fingerprint(self) -> None:
    """Reads all weights once, here and not in the thread, where states are to be found by them."""
    if self._store is None:
      return
    with self._loading:
      models = [self._models.get(name) for name in self._models.versions()]
    # Outside of the lock: `submit` and `models` wait for it, and this takes seconds for large models.
    for model in models:
      _ = model.fingerprint

  def _queue(self, request, model: ServedModel, programs: SlotPrograms, sink, writers, saved) -> Stream:
    """Hands a request to the thread."""
    settings = self._settings
    place = None
    if self._store is not None:
      prepared = self._prepare(model.language)
      root = Root(model.state_key(programs.shapes, request.tenant), prepared.parts.grows)
      place = StatePlace(self._store, root, prepared.parts, settings.store_every_tokens, request.remember)
    now = self._clock()
    limit_s = settings.time_limit_s if request.time_limit_s is None else request.time_limit_s
    with self._lock:
      if self._failure is not None:
        raise Draining(f"the scheduler has failed: {self._failure}") from self._failure
      if not self._open:
        raise Draining("the scheduler takes no more requests, it drains or is closed")
      waiting = self._arrived + len(self._loop.waiting)
      if waiting >= settings.queue_requests:
        raise QueueFull(waiting, max(1.0, math.ceil(waiting * self._loop.request_s / settings.slots)))
      self._number += 1
      stream = Stream(self._number, request, sink)
      served = ServedRequest(stream, np.asarray(request.prompt, np.int32), model, programs, place, now,
                             None if limit_s is None else now + limit_s, writers, saved)
      self._arrived += 1
      self._inbox.append(lambda: self._add(served))
      self._lock.notify_all()
    return stream

  def _add(self, served: ServedRequest) -> None:
    self._loop.add(served)
    self._arrived -= 1

  def _post(self, action: Callable[[], None]) -> None:
    """Lets the thread do something before its next turn; nothing where it has ended."""
    with self._lock:
      if self._running:
        self._inbox.append(action)
        self._lock.notify_all()

  def _ask(self, action: Callable[[], None]) -> None:
    """Lets the thread do something, waits for it, and raises its error."""
    answer: concurrent.futures.Future = concurrent.futures.Future()

    def run():
      try:
        answer.set_result(action())
      except Exception as error:
        answer.set_exception(error)

    with self._lock:
      if not self._running:
        raise Draining("the scheduler is closed")
      self._inbox.append(run)
      self._lock.notify_all()
    answer.result()

  def _end_all(self) -> None:
    for served in self._loop.requests():
      self._loop.end(served, "abort")
    self._loop.background.clear()

  def _work(self) -> None:
    """Runs until `close`; a failure that belongs to no request ends all of them."""
    try:
      while True:
        with self._lock:
          if not self._loop.has_work and not self._inbox:
            self._lock.notify_all()  # `drain` waits for this.
            self._lock.wait_for(lambda: self._inbox or not self._running)
          actions, self._inbox = self._inbox, []
          running = self._running
        for action in actions:
          action()
        if not running:
          self._end_all()
          return
        self._loop.turn()
    except BaseException as error:
      logging.exception("the scheduler has failed")
      self._fail(error)

  def _fail(self, error: BaseException) -> None:
    with self._lock:
      self._failure = error
      self._running = False
      actions, self._inbox = self._inbox, []
      self._lock.notify_all()
    for action in actions:
      action()
    for served in self._loop.requests():
      self._loop.end(served, "error", RuntimeError(f"the scheduler has failed: {error}"))
