"""Supervised fine-tuning as a source of batches: whole examples side by side in a row, answers counted.

The examples of a row are decided once, from their lengths; the order of the rows is drawn anew in every
epoch. So any step can be read without those before it.
"""
import bisect
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data import chats, problems, prompts
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.columns import Needs
from atlas_jax.data.problems import Problem
from atlas_jax.data.stepped import ListedSource, rows_of

BATCH = ("tokens_BT", "targets_BT", "weight_BT", "doc_BT", "pos_BT")
OVERLONG = ("error", "skip", "truncate")
TURNS = ("all", "last", "split")
SHOWN = 5  # Examples named in a message that is about many.


class Example(NamedTuple):
  """One example as ids."""

  where: str
  ids_T: np.ndarray    # int32
  learn_T: np.ndarray  # bool: which ids are learnt


def encode(found: Sequence[Problem], tokenizer: tokenizers.Tokenizer, *, segment_len: int,
           template: chats.Template | None = None, turns: str = "all", overlong: str = "error",
           **values) -> list[Example]:
  """Returns the examples of problems with solutions.

  Args:
    found: the problems.
    tokenizer: of the ids.
    segment_len: T; an example of n ids takes n - 1 places of it.
    template: chat template, or None for plain text, see `chats.encode`.
    turns: of a chat: "all" of the assistant's are learnt, in one row where the template allows that, only
      the "last", or "split" gives each one a row of its own.
    overlong: what to do with an example that is longer than a row: "error", "skip" or "truncate" (one whose
      answer lies behind the cut is skipped). How many were, is logged.
    **values: what the template may use besides.

  Raises:
    ValueError: naming the place of an example that cannot be used.
  """
  if turns not in TURNS or overlong not in OVERLONG:
    raise ValueError(f"config.data.turns={turns!r} must be one of {', '.join(TURNS)}, and "
                     f"config.data.overlong={overlong!r} one of {', '.join(OVERLONG)}")
  # A chat of several turns gives several rows where its template cannot mark all of its answers in one.
  each = [row for problem in found for row in chats.rows(problem, tokenizer, template, turns=turns, **values)]
  kept = []
  cut = []
  skipped = []
  most = 0
  for where, encoded in each:
    example = Example(where, *encoded)
    if len(example.ids_T) > segment_len + 1:  # The last id is a target alone, and takes no place.
      most = max(most, len(example.ids_T) - 1)
      example = Example(where, encoded.ids_T[:segment_len + 1], encoded.learn_T[:segment_len + 1])
      # Without a token to learn it would take places and teach nothing, in silence.
      lost = overlong == "skip" or not example.learn_T[1:].any()
      (skipped if lost else cut).append(where)
      if lost:
        continue
    kept.append(example)
  # All are counted before the error, so that one correction of the config is enough.
  if overlong == "error" and (cut or skipped):
    long = cut + skipped
    raise ValueError(f"{len(long)} of {len(each)} examples are longer than config.data.segment_len="
                     f"{segment_len}, the longest {most}: {', '.join(long[:SHOWN])}; set it to {most}, or "
                     f"config.data.overlong to 'truncate' or 'skip'")
  for what, long in (("cut short", cut), ("left out", skipped)):
    if long:
      logging.warning("%d of %d examples %s, longer than %d tokens: %s", len(long), len(each), what,
                      segment_len, ", ".join(long[:SHOWN]))
  return kept


def pack(places: Sequence[int], segment_len: int) -> list[list[int]]:
  """Puts items of some sizes into as few rows as best fit finds: largest first, each where least is left.

  Args:
    places: size of each item, at most segment_len.
    segment_len: size of a row.

  Returns:
    Items of each row, in rising order; every item is in one row.
  """
  rows: list[list[int]] = []
  left: list[tuple[int, int]] = []  # (places left, row), sorted.
  for item in sorted(range(len(places)), key=lambda one: (-places[one], one)):
    at = bisect.bisect_left(left, (places[item], -1))
    room, row = left.pop(at) if at < len(left) else (segment_len, len(rows))
    if row == len(rows):
      rows.append([])
    rows[row].append(item)
    # Sorted at all times: looking through all rows for each example takes minutes for a million of them.
    bisect.insort(left, (room - places[item], row))
  return [sorted(row) for row in rows]


class SftSource(ListedSource):
  """Batches of examples, whose items are rows that hold one or several.

  A batch has tokens_BT, targets_BT (the next id), weight_BT (1 where the target is learnt, float32), doc_BT
  (example of each place, -1 at padding) and pos_BT (place within the example); int32 but for the weights.

  Attributes:
    rows: how many rows an epoch has.
    steps_per_epoch: steps until every example was seen once, rounded up.
    step: the step that `next` gives.
  """

  def __init__(self, examples: Sequence[Example], *, segment_len: int, batch_rows: int, doc_id: int,
               seed: int | None = 0, packed: bool = True, align_tokens: int = 1, process_index: int = 0,
               process_count: int = 1):
    """Lays out examples.

    Args:
      examples: none longer than segment_len + 1 ids.
      segment_len: T, a multiple of align_tokens.
      batch_rows: rows of the batch over all processes.
      doc_id: what stands at padding.
      seed: draws the order of the rows in every epoch, without end; None reads them once, in order.
      packed: whether examples share rows; else each has its own.
      align_tokens: examples start at multiples of it, as a memory's chunks need.
      process_index, process_count: whose rows these are, see `stepped.rows_of`.

    Raises:
      ValueError: if there is no example, or if sizes do not divide.
    """
    if not examples:
      raise ValueError("there is no example to learn from; give data with at least one row in this split")
    mine = rows_of(batch_rows, process_index, process_count)
    if segment_len % align_tokens:
      raise ValueError(f"config.data.segment_len={segment_len} is not a multiple of "
                       f"config.data.align_tokens={align_tokens}")
    self._examples = examples
    self._align = align_tokens
    self._doc_id = doc_id
    self._length = segment_len
    # What a memory's chunk would cut takes whole chunks: documents begin where chunks do.
    sizes = [-(-(len(one.ids_T) - 1) // align_tokens) * align_tokens for one in examples]
    if max(sizes) > segment_len:
      raise ValueError(f"an example has {max(sizes)} tokens, config.data.segment_len={segment_len}; encode "
                       f"them with this segment_len")
    # Decided once and not in each epoch, so that the rows of a step follow from its number alone.
    self._layout = pack(sizes, segment_len) if packed else [[item] for item in range(len(examples))]
    self.rows = len(self._layout)
    super().__init__({"fingerprint": _fingerprint(examples), "segment_len": segment_len, "packed": packed,
                      "align_tokens": align_tokens}, mine, count=self.rows, batch_rows=batch_rows, seed=seed)

  def read_row(self, step: int, row: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a row of the whole batch, without the axis B."""
    arrays = {
        "tokens_T": np.full(self._length, self._doc_id, np.int32),
        "targets_T": np.full(self._length, self._doc_id, np.int32),
        "weight_T": np.zeros(self._length, np.float32), "doc_T": np.full(self._length, -1, np.int32),
        "pos_T": np.zeros(self._length, np.int32)}
    start = 0
    for item in self._items(step, row):
      _, ids_T, learn_T = self._examples[item]
      size = len(ids_T) - 1
      here = slice(start, start + size)
      arrays["tokens_T"][here], arrays["targets_T"][here] = ids_T[:-1], ids_T[1:]
      # An example's number in the data is its id as a document: no neighbour has the same.
      arrays["weight_T"][here], arrays["doc_T"][here] = learn_T[1:], item
      arrays["pos_T"][here] = np.arange(size)
      start += -(-size // self._align) * self._align
    return arrays

  def origin(self, step: int, row: int) -> str:
    """Names where the examples of a row come from, with spaces between them."""
    return " ".join(self._examples[item].where for item in self._items(step, row)) or "past the end@0"

  def _items(self, step: int, row: int) -> list[int]:
    """Returns the examples in a row of the whole batch; none past the end of a source without a seed."""
    at = self.item(step, row)
    return [] if at is None else self._layout[at]


def _fingerprint(examples: Sequence[Example]) -> str:
  digest = hashlib.sha256()
  for one in examples:
    # Without its folder: data that were moved are the same. The length keeps neighbours' ids apart.
    digest.update(json.dumps([one.where.rpartition("/")[2], len(one.ids_T)]).encode("utf-8", "replace"))
    digest.update(one.ids_T.tobytes() + one.learn_T.tobytes())
  return digest.hexdigest()


def make(*, seed: int, name: str, segment_len: int, batch_rows: int, held_out_frac: float,
         files: str | None = None, tokenizer: str = "byte", chat_template: str | None = None,
         template_values: Mapping[str, Any] = problems.NOTHING, turns: str = "all",
         overlong: str = "error", packed: bool = True, align_tokens: int | None = None,
         split: str = "train", max_problems: int | None = None,
         options: Mapping[str, Any] = problems.NOTHING, fields: Mapping[str, str] | None = None,
         download: bool = False, process_index: int = 0, process_count: int = 1) -> SftSource:
  """Builds the source of the examples of a task or dataset.

  Args:
    name: a task or dataset, see `prompts.load`; also files, options, fields, download,
      split, held_out_frac.
    tokenizer: see `tokenizer.load`.
    chat_template: folder of the tokenizer whose template chats are put in; None takes texts as they are.
    template_values: what the template may use besides messages.
    max_problems: how many problems are used; a task without end needs it.
    seed: draws the order in "train", and the problems of a task; "held_out" is read once, in order.
    segment_len, batch_rows, turns, overlong, packed, align_tokens: see `encode` and `SftSource`.
    process_index, process_count: see `SftSource`.

  Raises:
    ValueError: for a field that cannot be, and for a row that cannot be used, naming file and line.
  """
  template = None if chat_template is None else chats.load(chat_template, values=template_values)
  found = prompts.load(name, files=files, split=split, held_out_frac=held_out_frac, seed=seed,
                       options=options, fields=fields, download=download,
                       needs=Needs(answer=False, template=template))
  count = prompts.count_of(found, max_problems, name=name, group="data")
  loaded = tokenizers.load(tokenizer)
  examples = encode([found.problem(index) for index in range(count)], loaded, segment_len=segment_len,
                    template=template, turns=turns, overlong=overlong)
  source = SftSource(
      examples, segment_len=segment_len, batch_rows=batch_rows, doc_id=loaded.doc_id, packed=packed,
      seed=seed if split == "train" else None, align_tokens=align_tokens or 1, process_index=process_index,
      process_count=process_count)
  logging.info("%s of %s: %d examples in %d rows, %d steps per epoch", split, name, len(examples),
               source.rows, source.steps_per_epoch)
  return source
