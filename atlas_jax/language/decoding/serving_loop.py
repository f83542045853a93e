"""One turn of a scheduler after another: reads a piece, draws an id in each slot. No threads, no locks.

    waiting --admit--> reading --last piece--> ready --first id--> slots --last id--> background

In the background the texts of completions are read again by pieces, as a prompt that holds them would be: so
the next request of the conversation finds their state, to the bit that it would have computed.
"""
import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from atlas_jax.language.decoding import drawing
from atlas_jax.language.decoding.completion_writer import CompletionWriter
from atlas_jax.language.decoding.programs import SlotPrograms, place
from atlas_jax.language.decoding.prompt_reading import PromptReading, StatePlace
from atlas_jax.language.decoding.requests import EndEvent, Stream, TokenEvent
from atlas_jax.language.decoding.served_model import ServedModel
from atlas_jax.language.decoding.slot_group import SlotGroup

SPARE_GROUPS = 2  # Groups beyond those of all slots, for requests of other weights than those in flight.
MOST_BACKGROUND = 256


@dataclasses.dataclass(eq=False)
class ServedRequest:
  """A request in the loop."""

  stream: Stream
  tokens: np.ndarray  # int32, of its prompt
  model: ServedModel
  programs: SlotPrograms
  place: StatePlace | None
  submitted_s: float
  deadline_s: float | None
  pending: list[CompletionWriter]  # completions that have no slot yet
  saved: tuple[Any, Any] | None = None  # state and draws of a stream that goes on from a file
  reading: PromptReading | None = None
  held_by: tuple["ServedRequest", int] | None = None  # who reads the same start, and how much of it
  writing: dict[CompletionWriter, SlotGroup] = dataclasses.field(default_factory=dict)
  cancelled: bool = False
  cached: int = 0  # tokens of the prompt whose state came from the store

  @property
  def ended(self) -> bool:
    """Returns whether nothing of it is left to be written."""
    return not self.pending and not self.writing


class ServingLoop:
  """Requests in all their stages.

  Attributes:
    waiting, reading, ready: requests by stage; those in slots are in `groups`.
    counts: what happened so far, see `scheduler.STATS`.
  """

  def __init__(self, *, slots: int, group_rows: int, reading_rows: int, tokenizer,
               clock: Callable[[], float] = time.monotonic):
    """Makes a loop without requests; arguments as of `scheduler.Settings`."""
    self._slots = slots
    self._most_groups = -(-slots // group_rows) + SPARE_GROUPS
    self._reading_rows = reading_rows
    self._tokenizer = tokenizer
    self._clock = clock
    self._of_writer: dict[CompletionWriter, ServedRequest] = {}
    self.waiting: collections.deque[ServedRequest] = collections.deque()
    self.reading: collections.deque[ServedRequest] = collections.deque()
    self.ready: collections.deque[ServedRequest] = collections.deque()
    self.background: collections.deque[PromptReading] = collections.deque()
    self.groups: list[SlotGroup] = []
    self.counts: collections.Counter[str] = collections.Counter()
    self.request_s = 1.0  # From submission to the end, the mean of late requests.

  @property
  def busy(self) -> int:
    """Returns how many slots are written."""
    return sum(group.busy for group in self.groups)

  @property
  def has_requests(self) -> bool:
    """Returns whether any request has not ended."""
    return bool(self._of_writer)

  @property
  def has_work(self) -> bool:
    """Returns whether a turn would do anything."""
    return self.has_requests or bool(self.background)

  def requests(self) -> list[ServedRequest]:
    """Returns all requests that have not ended."""
    return list(dict.fromkeys(self._of_writer.values()))

  def add(self, served: ServedRequest) -> None:
    """Takes a request, which waits from now on."""
    self._of_writer.update(dict.fromkeys(served.pending, served))
    self.waiting.append(served)

  def turn(self) -> None:
    """Does one piece of every kind of work there is."""
    self._expire()
    self._admit()
    self._place_ready()
    self._read_piece()
    self._place_ready()
    for group in list(self.groups):
      self._step(group)

  def end(self, served: ServedRequest, reason: str, error: Exception | None = None) -> None:
    """Ends all completions of a request that are not written to their end; its slots are free."""
    for writer in [*served.writing, *served.pending]:
      self._end(writer, reason, error)

  def take(self, served: ServedRequest) -> tuple[CompletionWriter, Any, Any]:
    """Returns a request's only completion and its states; it goes on until it is ended.

    Raises:
      ValueError: if it is not in a slot.
    """
    if len(served.writing) != 1 or served.pending:
      raise ValueError("only a stream of one completion can be saved, from its first id to its last")
    (writer, group), = served.writing.items()
    return writer, *group.take(writer)

  def _expire(self) -> None:
    now = self._clock()
    for served in self.requests():
      if served.cancelled:
        self.end(served, "abort")
      elif served.deadline_s is not None and now >= served.deadline_s:
        self.end(served, "timeout")

  def _admit(self) -> None:
    """Lets waiting requests read, in their order, but for those that wait for another to read their start."""
    for served in list(self.waiting):
      if len(self.reading) + len(self.ready) >= self._reading_rows:
        return
      if served.saved is not None:
        self._move(served, self.waiting, self.ready)
        continue
      if self._is_held(served):
        continue
      served.reading = PromptReading(served.model, served.programs, served.tokens, served.place)
      self._take_over(served.reading)
      self._move(served, self.waiting, self.reading)

  def _is_held(self, served: ServedRequest) -> bool:
    """Returns whether another request reads the same start, whose state is then read once for both."""
    if served.place is None:
      return False
    if served.held_by is None:
      for other in self.reading:
        assert other.reading is not None
        same = served.place.root == other.reading.root and other.place is not None and other.place.remember
        common = other.reading.common(served.tokens) if same else 0
        if common > other.reading.position:
          other.reading.want(common)
          served.held_by = (other, common)
          break
    if served.held_by is None:
      return False
    other, common = served.held_by
    held = other in self.reading and other.reading is not None and other.reading.position < common
    served.held_by = served.held_by if held else None
    return held

  def _take_over(self, reading: PromptReading) -> None:
    """Leaves the states of texts that are read in the background where the new text goes on from them."""
    for other in list(self.background):
      common = other.common(reading.tokens) if other.root == reading.root else 0
      if common and other.begun:
        other.leave()
      if common >= other.end:  # All of it will be read now.
        self.background.remove(other)

  def _move(self, served: ServedRequest, old, new) -> None:
    old.remove(served)
    new.append(served)

  def _read_piece(self) -> None:
    """Reads a piece of the next prompt in turn, or where there is none of a text in the background."""
    if not self.reading:
      self._read_background()
      return
    served = self.reading.popleft()
    self.reading.append(served)
    reading = served.reading
    assert reading is not None
    try:
      if not reading.begun:
        reading.begin()
        self.counts["prompt_tokens"] += len(reading.tokens)
        self.counts["shared_tokens"] += reading.shared
        self.counts["cached_tokens"] += reading.cached
        served.cached = reading.cached
      if not reading.done:
        self.counts["read_tokens"] += reading.turn()
    except Exception as error:
      self.end(served, "error", error)
      return
    if reading.done:
      self._move(served, self.reading, self.ready)

  def _read_background(self) -> None:
    if not self.background:
      return
    reading = self.background[0]
    try:
      if not reading.begun:
        reading.begin()
      if not reading.done:
        self.counts["background_tokens"] += reading.turn()
    except Exception as error:
      logging.warning("a text is not kept in the store: %s", error)
      self.background.popleft()
      return
    if reading.done:
      self.background.popleft()

  def _place_ready(self) -> None:
    """Puts completions whose prompt is read into free slots, in their order; none overtakes another."""
    while self.ready and self.busy < self._slots:
      served = self.ready[0]
      group = self._group_for(served)
      if group is None:
        return
      writer = served.pending[0]
      try:
        self._start(served, writer, group)
      except Exception as error:
        self.end(served, "error", error)
        continue
      if not served.pending:
        served.reading = None
        served.saved = None
        if served in self.ready:  # It may have ended with its first id.
          self.ready.remove(served)

  def _group_for(self, served: ServedRequest) -> SlotGroup | None:
    """Returns a group with a free slot for a request's weights: the fullest one, or an empty one."""
    model = served.model
    for group in sorted(self.groups, key=lambda group: -group.busy):
      if group.model is model and None in group.writers:
        return group
    for at, group in enumerate(self.groups):
      if not group.busy:
        if group.programs is not served.programs:
          self.groups[at] = SlotGroup(model, served.programs)
        self.groups[at].model = model
        return self.groups[at]
    if len(self.groups) >= self._most_groups:
      return None
    self.groups.append(SlotGroup(model, served.programs))
    return self.groups[-1]

  def _start(self, served: ServedRequest, writer: CompletionWriter, group: SlotGroup) -> None:
    """Draws the first id of a completion, or goes on with a saved one, and gives it a slot if it goes on."""
    if served.saved is not None:
      row, draws = served.saved
    else:
      assert served.reading is not None
      row = served.reading.row
      request = served.stream.request
      vocab_size = served.model.language.vocab_size
      draws = drawing.start(request, request.first + writer.index, vocab_size)
      bias_V = writer.bias(vocab_size)
      if bias_V is not None:
        draws = draws._replace(bias_BV=bias_V[None])
      draws, drawn = served.programs.first(served.model.params, served.reading.hidden_BD, place(draws))
      event = writer.push(jax.device_get(drawn), 0)
      self.counts["drawn_tokens"] += 1
    # Before its event is sent: a sink that fails ends the request, in whatever stage it is.
    served.pending.remove(writer)
    served.writing[writer] = group
    group.insert(writer, row, draws)
    if served.saved is None:
      self._deliver(writer, event)

  def _step(self, group: SlotGroup) -> None:
    """Draws an id in each slot of a group; an error of the device ends its requests and no others."""
    if not group.busy:
      return
    try:
      drawn = group.step(self._deliver, lambda writer, error: self._end(writer, "error", error))
      self.counts["drawn_tokens"] += drawn
      self.counts["steps"] += bool(drawn)
    except Exception as error:
      logging.error("a decoding step failed: %s", error)
      for writer in list(group.writers):
        if writer is not None:
          self._end(writer, "error", error)
      self.groups.remove(group)  # Its state was used up.

  def _deliver(self, writer: CompletionWriter, event: TokenEvent) -> None:
    served = self._of_writer[writer]
    if not self._send(served, event) and writer.reason is None:
      served.cancelled = True
    if writer.reason is not None:
      self._end(writer, writer.reason)

  def _send(self, served: ServedRequest, event: TokenEvent | EndEvent) -> bool:
    """Hands an event over; a sink that fails ends its own request."""
    try:
      served.stream.send(event)
    except Exception as error:
      logging.warning("the receiver of stream %d failed: %s", served.stream.number, error)
      return False
    return True

  def _end(self, writer: CompletionWriter, reason: str, error: Exception | None = None) -> None:
    """Ends a completion in any stage."""
    served = self._of_writer.pop(writer)
    group = served.writing.pop(writer, None)
    if group is not None:
      group.release(writer)
      if reason in ("stop_token", "stop_string", "length"):
        self._keep_text(served, writer)
    else:
      served.pending.remove(writer)
    if not served.pending:
      for stage in (self.waiting, self.reading, self.ready):
        if served in stage:
          stage.remove(served)
    self._send(served, EndEvent(writer.index, reason, writer.flush(), writer.stop, error,
                                served.model.version, len(served.tokens), served.cached,
                                len(writer.tokens)))
    self.counts[f"ended_{reason}"] += 1
    if served.ended:
      self.counts["requests"] += 1
      self.request_s += 0.1 * (self._clock() - served.submitted_s - self.request_s)

  def _keep_text(self, served: ServedRequest, writer: CompletionWriter) -> None:
    """Lets the text of a completion be read in the background, where the store is to keep it."""
    if served.place is None or not served.place.remember:
      return
    text = np.concatenate([served.tokens, np.asarray(writer.tokens, np.int32)])
    reading = PromptReading(served.model, served.programs, text, served.place, whole_pieces=True)
    size = served.programs.shapes.piece_tokens
    if reading.end > len(served.tokens) // size * size:
      if len(self.background) >= MOST_BACKGROUND:
        self.background.popleft()
        self.counts["background_dropped"] += 1
      self.background.append(reading)
