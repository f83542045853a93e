"""Slots of one model that are written together: the device's state, and the completion in each slot."""
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from atlas_jax.language.decoding.completion_writer import CompletionWriter
from atlas_jax.language.decoding.programs import SlotPrograms
from atlas_jax.language.decoding.requests import TokenEvent
from atlas_jax.language.decoding.served_model import ServedModel


class SlotGroup:
  """Some slots; the ones without a writer are free.

  Attributes:
    model: the weights that write all of them.
    writers: the completion of each slot, or None.
  """

  def __init__(self, model: ServedModel, programs: SlotPrograms):
    """Makes a group of free slots."""
    self.model = model
    self.programs = programs
    self.writers: list[CompletionWriter | None] = [None] * programs.shapes.group_rows
    self._state, self._draws = programs.group()

  @property
  def busy(self) -> int:
    """Returns how many slots are written."""
    return sum(writer is not None for writer in self.writers)

  def insert(self, writer: CompletionWriter, row: Any, draws: Any) -> None:
    """Puts a completion into a free slot: the state behind all its ids but the last, and of its draws."""
    slot = self.writers.index(None)
    self._state, self._draws = self.programs.insert(self._state, self._draws, np.int32(slot), row, draws)
    self.writers[slot] = writer

  def take(self, writer: CompletionWriter) -> tuple[Any, Any]:
    """Returns the states of a completion, as `insert` takes them; its slot goes on."""
    slot = self.writers.index(writer)
    return self.programs.take(self._state, self._draws, np.int32(slot))

  def release(self, writer: CompletionWriter) -> None:
    """Frees the slot of a completion. Its state is overwritten by the next one, and read by nobody."""
    self.writers[self.writers.index(writer)] = None

  def step(self, deliver: Callable[[CompletionWriter, TokenEvent], None],
           fail: Callable[[CompletionWriter, Exception], None]) -> int:
    """Draws the next id of each completion.

    Args:
      deliver: takes an event of a completion, and releases it if it has ended.
      fail: takes the error of a completion, and releases it.

    Returns:
      How many ids were drawn.
    """
    for slot, writer in enumerate(self.writers):
      if writer is None:
        continue
      try:
        bias_V = writer.bias(self.model.language.vocab_size)
      except Exception as error:
        fail(writer, error)  # Of this request's own function: the others go on.
        continue
      if bias_V is not None:
        self._draws = self.programs.set_bias(self._draws, np.int32(slot), bias_V)
    if not self.busy:
      return 0
    self._state, self._draws, drawn = self.programs.step(self.model.params, self._state, self._draws)
    drawn = jax.device_get(drawn)
    count = 0
    for slot, writer in enumerate(self.writers):
      if writer is None:
        continue
      try:
        event = writer.push(drawn, slot)
      except Exception as error:
        fail(writer, error)
        continue
      count += 1
      deliver(writer, event)
    return count
