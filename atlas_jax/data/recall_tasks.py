"""Tasks of recall as a source of batches, so that a model can be trained for what `evals.recall` asks.

  --config.data.source=recall_tasks --config.data.options.tasks=mqar:2,niah,text

Tasks are files of data/recall, drawn as often as the weight behind the colon says (1 where there is none); of
a task all its kinds of texts are drawn equally often. A text that does not fit behind the others of its row
ends the row and is dropped, so that long ones are trained on a little less often. "text" is a stretch of the
corpus itself, of which every token counts; of the others the answers alone do. Options of the tasks stand
beside, under the names they have in config.eval: --config.data.options.niah_lengths=256,512.

Every row is a stream of texts, each a document of its own. Texts that are longer than a segment go on in the
next one: the memory passes on, and gradients do not, so that storing is learnt from segments that hold both.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from atlas_jax.data import recall
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.packing import LAST_INT32
from atlas_jax.data.recall import documents
from atlas_jax.data.recall import haystack as haystacks
from atlas_jax.data.recall import options as task_options
from atlas_jax.data.recall import sample as samples
from atlas_jax.data.stepped import IndexedSource, rows_of

BATCH = ("tokens_BT", "targets_BT", "weight_BT", "doc_BT", "pos_BT", "bytes_BT")
TEXT = "text"
NOT_TRAINED = ("published",)  # Sets to test on.
HELD_OUT_STEPS = 16  # Of a held-out split without a limit of tokens.
SLACK_TOKENS = 64  # By which the question of a text may be longer than that of the one that was measured.
TRIES = 100


class RecallTasks(IndexedSource):
  """Fresh texts for every step, drawn from seed, split, row and step alone.

  Attributes:
    tokenizer: of the texts.
    parts: segments that follow each other before texts are drawn anew.
  """

  NESTED = {"tasks": "tasks.", "options": "options."}

  def __init__(self, weights: Mapping[str, float], setting: samples.TaskSetting, *, place: Mapping,
               rows: range, steps: int | None, threads: int):
    """Makes the source.

    Args:
      weights: task, or `TEXT` -> how often it is drawn, relative to the others.
      setting: of the tasks.
      place: seed, split, batch_rows, segment_len and what else the batches follow from, as JSON holds it.
      rows: this process's rows of the whole batch.
      steps: after which it ends; None: never.
      threads: that prepare batches.

    Raises:
      ValueError: if a task cannot be drawn with these options.
    """
    self.tokenizer = setting.tokenizer
    self._setting = setting
    self._weights = np.array(list(weights.values())) / sum(weights.values())
    self._tasks = [None if name == TEXT else recall.load(name) for name in weights]
    self._cells = [[] if task is None else task.cells(setting) for task in self._tasks]
    digests = {setting.haystack().sha256} if TEXT in weights else set()

    def noted():
      digests.add(setting.haystack().sha256)
      return setting.haystack()

    noting = setting._replace(haystack=noted)
    measured = [task.sample(cell, noting, seed=0, split=place["split"], number=0)
                for task, found in zip(self._tasks, self._cells) if task is not None for cell in found]
    # Of a corpus that no task reads there is none: it need not be there.
    self._place = {**place, "sha256": max(digests, default=None)}
    super().__init__(self._place, rows, steps=steps, threads=threads)
    longest = max(map(self._length, measured), default=0)
    size = place["segment_len"]
    self.parts = 1 if longest <= size else samples.round_up(longest + SLACK_TOKENS, size) // size
    self._slots: dict[int, tuple[int, dict]] = {}  # Row -> the slot that was made last.

  def read_row(self, step: int, row: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a row, see `packing.read_row`; of other tokens than answers the weight is 0."""
    slot, part = divmod(step, self.parts)
    size = self._place["segment_len"]
    return {name: array_T[part * size:(part + 1) * size] for name, array_T in self._slot(row, slot).items()}

  def origin(self, step: int, row: int) -> str:
    """Names the texts of a row."""
    return f"recall_tasks: slot {step // self.parts}, row {row}@0"

  def _length(self, found: samples.RecallSample) -> int:
    return samples.round_up(found.context_len + len(found.input_T), self._setting.align_tokens)

  def _slot(self, row: int, slot: int) -> dict:
    """Returns the arrays of all parts of a slot of one row; the last one is kept."""
    # Threads ask for different slots of a row at once: what is given is never read again from the shared one.
    found = self._slots.get(row)
    if found is None or found[0] != slot:
      found = self._slots[row] = slot, self._drawn(row, slot)
    return found[1]

  def _drawn(self, row: int, slot: int) -> dict:
    """Fills a slot with texts until one does not fit any more."""
    size = self.parts * self._place["segment_len"]
    arrays = documents.blank(size, self.tokenizer.doc_id)
    del arrays["answer_T"]  # Answers are all that counts of a task, and say so by their weight.
    split = self._place["split"]
    draw = np.random.default_rng([self._place["seed"], recall.SPLITS.index(split), row, slot])
    most = size // self._setting.align_tokens  # Documents of a slot.
    at = document = refused = 0
    while at < size and refused < (1 if at else TRIES):
      found = self._text(draw, int(draw.integers(2**62)), size - at)
      if found is None:
        refused += 1
        continue
      documents.put(arrays, at, found, (slot * most + document) % LAST_INT32, self.tokenizer.byte_lengths())
      at += samples.round_up(len(found.tokens_T), self._setting.align_tokens)
      document += 1
    if not at:
      raise ValueError(f"none of {TRIES} texts of the tasks fits into {size} tokens; raise "
                       "config.data.segment_len")
    return arrays

  def _text(self, draw, number: int, room: int):
    """Draws a text of at most so many tokens; None if it is longer."""
    which = int(draw.choice(len(self._tasks), p=self._weights))
    task = self._tasks[which]
    if task is None:
      parts = self._setting.haystack().take(draw, min(room, self._place["segment_len"]) - 1)
      return documents.of_text(samples.joined(parts, 0, room), self.tokenizer.doc_id)
    cells = self._cells[which]
    cell = cells[int(draw.integers(len(cells)))]
    found = task.sample(cell, self._setting, seed=self._place["seed"], split=self._place["split"],
                        number=number)
    return None if self._length(found) > room else documents.of_sample(found, context=0.0)


def weights_of(text: Any) -> dict[str, float]:
  """Reads config.data.options.tasks, such as "mqar:2,niah"; see `options.weights`."""
  known = [*(task for task in recall.names() if task not in NOT_TRAINED), TEXT]
  return task_options.weights(text, known, field="config.data.options.tasks")


def make(*, seed: int, options: Mapping, segment_len: int, batch_rows: int, tokenizer: str = "byte",
         align_tokens: int | None = None, carry: bool = True, name: str = "python_stdlib", path=None,
         text_field: str = "text", limit_bytes: int | None = None, download: bool = False,
         cache_dir: str | None = None, bad_input_frac: float = 0.01, held_out_frac: float = 0.05,
         threads: int = 2, split: str = "train", max_tokens: int | None = None, process_index: int = 0,
         process_count: int = 1) -> RecallTasks:
  """Builds the source; see `data.source.load`.

  Args:
    seed: of everything drawn.
    options: "tasks", and options of these, see the module.
    segment_len, batch_rows: of a batch, over all processes.
    tokenizer: see `tokenizer.load`.
    align_tokens: documents start at multiples of it; None is 1.
    carry: whether memory passes from segment to segment.
    name, path, text_field, limit_bytes, download, cache_dir, bad_input_frac, held_out_frac: of the corpus in
      which things are hidden, see `data.text.make`; texts of "train" hide nothing in documents held out.
    threads: that prepare batches; 0 prepares each when asked.
    split: "train", without end, or "held_out".
    max_tokens: of a held-out split; None: `HELD_OUT_STEPS` batches.
    process_index, process_count: whose rows these are, see `stepped.rows_of`.

  Raises:
    ValueError: for an option that cannot be.
  """
  rows = rows_of(batch_rows, process_index, process_count,
                 field="config.data.batch_rows" if split == "train" else "config.eval.batch_rows")
  given = dict(options)
  weights = weights_of(given.pop("tasks", None))
  task_options.parse(given, where="config.data.options.")
  _check_read(given, weights)
  coder = tokenizers.load(tokenizer)
  corpus = dict(name=name, path=path, text_field=text_field, limit_bytes=limit_bytes, download=download,
                cache_dir=cache_dir, bad_input_frac=bad_input_frac, held_out_frac=held_out_frac)
  setting = recall.setting_of(given, tokenizer=coder, align_tokens=align_tokens or 1, download=download,
                              haystack=haystacks.of_corpus(**corpus, tokenizer=coder, split=split))
  place = {"seed": seed, "split": split, "batch_rows": batch_rows, "segment_len": segment_len,
           "align_tokens": align_tokens or 1, "tasks": weights, "tokenizer": coder.fingerprint,
           "corpus": name, "limit_bytes": limit_bytes,
           "held_out_frac": held_out_frac, "options": {key: str(value) for key, value in given.items()}}
  steps = None
  if split != "train":
    steps = HELD_OUT_STEPS if max_tokens is None else max(1, max_tokens // (batch_rows * segment_len))
  source = RecallTasks(weights, setting, place=place, rows=rows, steps=steps, threads=threads)
  _check_carry(source, segment_len, carry)
  return source


def _check_read(given: Mapping, weights: Mapping[str, float]) -> None:
  """Refuses options that none of the tasks reads."""
  read = {name for task in weights if task != TEXT for name in recall.load(task).reads}
  if unread := [name for name in given if name not in read]:
    raise ValueError(f"config.data.options.{unread[0]}={given[unread[0]]} is not read by config.data.options."
                     f"tasks={','.join(weights)}; leave it out, or name a task that reads it")


def _check_carry(source: RecallTasks, segment_len: int, carry: bool) -> None:
  if source.parts == 1:
    return
  if not carry:
    raise ValueError(f"config.data.segment_len={segment_len} is shorter than the longest text of the tasks, "
                     f"{source.parts} segments, and config.data.carry=False forgets in between; raise it, "
                     "take shorter texts, or set carry=True")
  logging.info("the longest texts of the tasks take %d segments of config.data.segment_len=%d: gradients do "
               "not pass from a question back to what was stored segments before", source.parts, segment_len)
