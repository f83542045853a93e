"""Episodes: rows of real text in which things are stored and, out of attention's sight, asked for.

A part of the rows of every batch are episodes, and the others read the corpus as plain text does, on from
segment to segment. An episode begins with an empty memory: stretches of real text with things to remember
between them, real text that nothing is asked of, then the questions; see the tasks of `data.recall` that have
"items" and "distance". It is read in one segment, so that the gradient of an answer reaches what was written.
What a row has left holds another episode, or text.

Distance and number of items grow over the first updates. Every row follows from seed, step and row alone.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.data import recall
from atlas_jax.data.packing import LAST_INT32
from atlas_jax.data.recall import documents, episode
from atlas_jax.data.recall import options as task_options
from atlas_jax.data.recall import sample as samples
from atlas_jax.data.stepped import IndexedSource

AXES = ("items", "distance")  # Of the tasks that episodes are made of.


class EpisodeFields(NamedTuple):
  """Settings of episodes, see config.episode."""

  tasks: Mapping[str, float]  # task -> how often it is drawn, relative to the others
  most_items: int
  least_distance: int
  most_distance: int | None
  curriculum_steps: int
  text_frac: float


def tasks() -> list[str]:
  """Returns the names of the tasks of which episodes are made."""
  return [name for name in recall.names() if recall.load(name).axes == AXES]


def fields_of(config) -> EpisodeFields:
  """Reads config.episode.

  Raises:
    ValueError: for tasks that there are not.
  """
  given = config.episode
  least = config.model.window_tokens if given.least_distance is None else given.least_distance
  weights = task_options.weights(given.tasks, tasks(), field="config.episode.tasks")
  return EpisodeFields(weights, given.most_items, least, given.most_distance, given.curriculum_steps,
                       given.text_frac)


class Episodes(IndexedSource):
  """Batches of text and episodes; the arrays of `packing.read_row`, and answer_BT, 1 at answers.

  Attributes:
    tokenizer: of the ids.
    manifest: of the corpus, see `data.text.TextSource`.
    fields: of episodes.
  """

  NESTED = {"text": "", "manifest": "", "episode": "config.episode."}

  def __init__(self, text, setting: samples.TaskSetting, fields: EpisodeFields, *, seed: int, rows: range,
               batch_rows: int, segment_len: int, threads: int):
    """Lays out the rows.

    Args:
      text: source of all rows of plain text, an `IndexedSource`.
      setting: of the tasks.
      fields: of episodes.
      seed: of everything drawn.
      rows: this process's rows of the whole batch.
      batch_rows, segment_len: of the whole batch.
      threads: that prepare batches.

    Raises:
      ValueError: if a segment cannot hold an episode.
    """
    self.tokenizer = setting.tokenizer
    self.manifest = text.manifest
    self._text = text
    self._setting = setting
    self.fields = fields
    self._seed = seed
    self._segment_len = segment_len
    self._text_rows = rows_of_text(batch_rows, fields.text_frac)
    self._tasks = [recall.load(name) for name in fields.tasks]
    self._weights = np.array(list(fields.tasks.values())) / sum(fields.tasks.values())
    for name in fields.tasks:
      self._check_room(name)
    of_text = {name: value for name, value in text.state().items()
               if name not in ("step", "batch_rows", "seed", "manifest")}
    place = {"text": of_text, "batch_rows": batch_rows, "episode": fields._asdict(), "seed": seed,
             "manifest": text.manifest}
    super().__init__(place, rows, threads=threads)

  def read_row(self, step: int, row: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a row."""
    at = self._text_rows.get(row)
    if at is None:
      return self._episodes(step, row)
    found = self._text.read_row(step, at)
    return {**found, "answer_T": np.zeros(self._segment_len, np.float32)}

  def origin(self, step: int, row: int) -> str:
    """Names where a row comes from."""
    at = self._text_rows.get(row)
    return f"episode: step {step}, row {row}@0" if at is None else self._text.origin(step, at)

  def passages(self, step: int) -> list[dict]:
    """Returns where this process's rows come from: of rows of text their documents, as of `data.text`."""
    of_text = [at for row in self._mine if (at := self._text_rows.get(row)) is not None]
    if hasattr(self._text, "passages"):
      found = iter(self._text.passages(step, of_text))
    else:
      found = iter([{"origin": self._text.origin(step, at)} for at in of_text])
    return [next(found) if row in self._text_rows else {"origin": self.origin(step, row)}
            for row in self._mine]

  def most_items(self, step: int) -> int:
    """Returns the largest number of items of an episode of a step."""
    return max(1, round(self._grown(step) * self.fields.most_items))

  def most_distance(self, step: int) -> int:
    """Returns the longest distance of an episode of a step, if a segment holds it."""
    least = self.fields.least_distance
    most = self._segment_len if self.fields.most_distance is None else self.fields.most_distance
    return least + round(self._grown(step) * (most - least))

  def _grown(self, step: int) -> float:
    return min(1.0, (step + 1) / max(1, self.fields.curriculum_steps))

  def _check_room(self, name: str) -> None:
    least = self.fields.least_distance
    if (need := self._room(name, 1, least)) > self._segment_len:
      raise ValueError(f"config.data.segment_len={self._segment_len} is too short for an episode of "
                       f"config.episode.tasks={name!r} with config.episode.least_distance={least}, which "
                       f"takes up to {need} tokens; take longer segments, or lower least_distance (None: "
                       "config.model.window_tokens)")

  def _room(self, name: str, items: int, distance: int) -> int:
    """Returns how many tokens an episode takes at most."""
    align = self._setting.align_tokens
    return samples.round_up(episode.room(name, items, distance, align), align)

  def _episodes(self, step: int, row: int) -> dict[str, np.ndarray]:
    """Fills a row with episodes, as far as they fit, then with text."""
    size = self._segment_len
    arrays = documents.blank(size, self.tokenizer.doc_id)
    draw = np.random.default_rng([self._seed, recall.SPLITS.index("train"), row, step])
    most = size // self._setting.align_tokens  # Documents of a row.
    at = count = 0
    while at < size:
      found = self._drawn(draw, step, size - at)
      # Numbers of a row's documents differ from those of its last and next segment: memory starts anew.
      documents.put(arrays, at, found, (step * most + count) % LAST_INT32, self.tokenizer.byte_lengths())
      at += samples.round_up(len(found.tokens_T), self._setting.align_tokens)
      count += 1
    return arrays

  def _drawn(self, draw: np.random.Generator, step: int, room: int) -> documents.TaskDocument:
    """Draws an episode that takes at most so many tokens; a stretch of text where none fits."""
    name = list(self.fields.tasks)[int(draw.choice(len(self._tasks), p=self._weights))]
    items = int(draw.integers(1, self.most_items(step) + 1))
    least = self.fields.least_distance
    while items > 1 and self._room(name, items, least) > room:
      items -= 1
    longest = min(self.most_distance(step), least + room - self._room(name, items, least))
    if longest < least:
      return self._stretch(draw, room)
    cell = {"items": items, "distance": int(draw.integers(least, longest + 1))}
    found = recall.load(name).sample(cell, self._setting, seed=self._seed, split="train",
                                     number=int(draw.integers(2**62)))
    document = documents.of_sample(found, context=1.0)
    # `episode.room` counts bytes, and some tokenizers put a token of their own before each part of a text.
    if (size := len(document.tokens_T)) > room:
      raise ValueError(f"an episode of config.episode.tasks={name!r} with {cell} takes {size} "
                       f"tokens where {room} are left: config.data.tokenizer writes more tokens than bytes; "
                       "lower config.episode.most_distance and most_items, or take another tokenizer")
    return document

  def _stretch(self, draw: np.random.Generator, room: int) -> documents.TaskDocument:
    parts = self._setting.haystack().take(draw, room - 1)
    return documents.of_text(samples.joined(parts, 0, room - 1), self.tokenizer.doc_id)


def rows_of_text(batch_rows: int, text_frac: float) -> dict[int, int]:
  """Returns the rows of a batch that read plain text, evenly among all -> their number in the text source."""
  edges = np.floor(np.arange(batch_rows + 1) * text_frac + 1e-9)
  return {int(row): at for at, row in enumerate(np.flatnonzero(np.diff(edges)))}


def text_row_count(batch_rows: int, text_frac: float) -> int:
  """Returns how many rows of a batch read plain text.

  Raises:
    ValueError: if there are none though the fraction asks for some, or all do.
  """
  count = len(rows_of_text(batch_rows, text_frac))
  if count == batch_rows or text_frac and not count:
    raise ValueError(f"config.episode.text_frac={text_frac} of config.data.batch_rows={batch_rows} leaves "
                     f"{count} rows of text and {batch_rows - count} of episodes; each needs one at least")
  return count


def make(config: Any, *, text, setting: samples.TaskSetting, rows: range) -> Episodes:
  """Makes the source of a config; see `Episodes`."""
  return Episodes(text, setting, fields_of(config), seed=config.seed, rows=rows,
                  batch_rows=config.data.batch_rows, segment_len=config.data.segment_len,
                  threads=config.data.threads)
