"""Reads a text by pieces, from the longest start that the store has, and leaves states there for others."""
from typing import Any, NamedTuple

import jax
import numpy as np

from atlas_jax.language.decoding.prefix_store import PrefixStore, Root
from atlas_jax.language.decoding.programs import SlotPrograms
from atlas_jax.language.decoding.served_model import ServedModel
from atlas_jax.language.decoding.state_disk import StoredState
from atlas_jax.language.decoding.state_parts import StateParts


class StatePlace(NamedTuple):
  """The place where states of a text are found and left."""

  store: PrefixStore
  root: Root
  parts: StateParts
  every_tokens: int  # distance of states in a long text
  remember: bool  # whether states are left


class PromptReading:
  """A text that is being read.

  Pieces begin at multiples of their size, also behind a state from the store: so the same numbers come out
  whatever was stored.

  Attributes:
    tokens: int32, of the text.
    position: how many of them are read.
    cached: how many of these came from the store.
    shared: how many at the text's start the store knew.
    row, hidden_BD: the state behind `position` tokens, and the hidden vector of the last one.
    begun: whether anything was looked up or read.
  """

  def __init__(self, model: ServedModel, programs: SlotPrograms, tokens: np.ndarray, place: StatePlace | None,
               *, whole_pieces: bool = False):
    """Looks nothing up yet.

    Args:
      model: the weights.
      programs: of the model.
      tokens: ids of the text.
      place: of states; None: there is no store.
      whole_pieces: leave out the rest that fills no piece, of which no state is kept.
    """
    self._model = model
    self._programs = programs
    self._place = place
    self._size = programs.shapes.piece_tokens
    self._wanted = {len(tokens) // self._size * self._size}  # The end is where a longer text will go on.
    self.end = len(tokens) // self._size * self._size if whole_pieces else len(tokens)
    self.tokens = tokens
    self.position = 0
    self.cached = 0
    self.shared = 0
    self.row: Any = None
    self.hidden_BD: Any = None
    self.begun = False

  @property
  def root(self) -> Root | None:
    """Returns where its states are."""
    return None if self._place is None else self._place.root

  @property
  def done(self) -> bool:
    """Returns whether all is read."""
    return self.begun and self.position >= self.end

  def begin(self) -> None:
    """Looks up the longest start that is stored."""
    self.begun = True
    states = []
    if self._place is not None:
      found = self._place.store.find(self._place.root, self.tokens[:self.end])
      states = found.states
      self.position = self.cached = found.tokens
      self.shared = min(found.shared, len(self.tokens))
      self.want(self.shared)
    if states and self._place is not None:
      self.row = self._programs.put(self._place.parts.restore([state.arrays for state in states]))
      self.hidden_BD = self._programs.put(states[-1].hidden_BD)
    else:
      self.row = self._programs.blank()

  def want(self, tokens: int) -> None:
    """Asks for a state behind the last piece that ends at so many tokens or before: texts part there."""
    self._wanted.add(tokens // self._size * self._size)

  def turn(self) -> int:
    """Reads one piece; returns how many tokens."""
    piece = self.tokens[self.position:min(self.position + self._size, self.end)]
    self.row, self.hidden_BD = self._programs.read(self._model.params, self.row, piece)
    self.position += len(piece)
    if self._place is not None and self.position % self._size == 0 and (
        self._place.parts.grows or self.position in self._wanted
        or self.position % self._place.every_tokens == 0):
      self.leave()
    return len(piece)

  def leave(self) -> None:
    """Puts the state behind the whole pieces read so far into the store, unless it is there."""
    place = self._place
    if place is None or not place.remember or not self.position or self.position % self._size:
      return
    text = self.tokens[:self.position]
    if not place.store.has(place.root, text):
      arrays = place.parts.capture(self.row, self.position - self._size, self.position)
      place.store.put(place.root, text, StoredState(arrays, np.asarray(jax.device_get(self.hidden_BD))))

  def common(self, tokens: np.ndarray) -> int:
    """Returns how many tokens of whole pieces another text has in common with this one from the start."""
    size = min(len(self.tokens), len(tokens))
    differ = np.flatnonzero(self.tokens[:size] != tokens[:size])
    return (int(differ[0]) if len(differ) else size) // self._size * self._size
