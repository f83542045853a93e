"""Supervised fine-tuning as a source of batches: whole examples side by side in a row, answers counted.

Which examples share a row is decided once, from their lengths; the order of the rows is drawn anew in every
epoch. So any step can be read without those before it.
"""
import bisect
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data import chats, packing, problems, prompts
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.columns import Needs
from atlas_jax.data.problems import Problem

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
  each = [row for problem in found for row in chats.rows(problem, tokenizer, template, turns=turns, **values)]
  kept = []
  cut = []
  skipped = []
  most = 0
  for where, coded in each:
    example = Example(where, *coded)
    if len(example.ids_T) > segment_len + 1:
      most = max(most, len(example.ids_T) - 1)
      example = Example(where, coded.ids_T[:segment_len + 1], coded.learn_T[:segment_len + 1])
      lost = overlong == "skip" or not example.learn_T[1:].any()
      (skipped if lost else cut).append(where)
      if lost:
        continue
    kept.append(example)
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
    bisect.insort(left, (room - places[item], row))
  return [sorted(row) for row in rows]


class SftSource:
  """Batches of examples; see `data.source.Source`. Its place is the step.

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
      batch_rows: rows of the batch over all processes; this one takes a block of batch_rows / process_count.
      doc_id: what stands at padding.
      seed: draws the order of the rows in every epoch, without end; None reads them once, in order.
      packed: whether examples share rows; else each has its own.
      align_tokens: examples start at multiples of it, as a memory's chunks need.
      process_index: which process this is.
      process_count: how many there are.

    Raises:
      ValueError: if there is no example, or if sizes do not divide.
    """
    if not examples:
      raise ValueError("there is no example to learn from; give data with at least one row in this split")
    if batch_rows < 1 or batch_rows % process_count:
      raise ValueError(f"config.data.batch_rows={batch_rows} does not divide by the "
                       f"{process_count} processes")
    if segment_len % align_tokens:
      raise ValueError(f"config.data.segment_len={segment_len} is not a multiple of "
                       f"config.data.align_tokens={align_tokens}")
    self._examples = examples
    self._align = align_tokens
    self._doc_id = doc_id
    self._seed = seed
    sizes = [-(-(len(one.ids_T) - 1) // align_tokens) * align_tokens for one in examples]
    if max(sizes) > segment_len:
      raise ValueError(f"an example has {max(sizes)} tokens, config.data.segment_len={segment_len}; encode "
                       f"them with this segment_len")
    self._layout = pack(sizes, segment_len) if packed else [[item] for item in range(len(examples))]
    self.rows = len(self._layout)
    self.step = 0
    self._length = segment_len
    self._batch_rows = batch_rows
    self.steps_per_epoch = -(-self.rows // batch_rows)
    share = batch_rows // process_count
    self._mine = range(process_index * share, (process_index + 1) * share)
    self._settings = {"fingerprint": _fingerprint(examples), "seed": seed, "segment_len": segment_len,
                      "batch_rows": batch_rows, "packed": packed, "align_tokens": align_tokens}
    self._orders = None if seed is None else packing.Orders(self.rows, seed)

  def next(self, trained=None) -> dict:
    """Returns the batch of `step` (this process's rows) and goes on to the next step.

    Returns:
      tokens_BT, targets_BT (the next id), weight_BT (1 where the target is learnt, float32), doc_BT (example
      of each place, -1 at padding) and pos_BT (place within the example); int32 but for the weights.

    Raises:
      StopIteration: at the end of a source without a seed.
    """
    del trained
    if self._seed is None and self.step >= self.steps_per_epoch:
      raise StopIteration
    batch = self.batch(self.step)
    self.step += 1
    return batch

  def batch(self, step: int) -> dict:
    """Returns this process's rows of any step, as `next` did or will; the place stays."""
    return _stacked([self._read(self._items(step, row)) for row in self._mine])

  def steps_of(self, epochs: int) -> int:
    """Counts the steps until every row was seen so many times, rounded up."""
    return -(-epochs * self.rows // self._batch_rows)

  def state(self) -> dict:
    """Returns the place and what it is valid for; independent of the number of processes."""
    return {"step": self.step, **self._settings}

  def restore(self, state: dict) -> None:
    """Goes to the saved place.

    Raises:
      ValueError: if it was saved with other examples or settings; says which.
    """
    prompts.check_state(state, self.state())
    self.step = int(state["step"])

  def provenance(self, step: int) -> list[str]:
    """Names where the examples of each of this process's rows come from, with spaces between them."""
    return [" ".join(self._examples[item].where for item in self._items(step, row)) or "past the end@0"
            for row in self._mine]

  def _items(self, step: int, row: int) -> list[int]:
    """Returns the examples in a row of the whole batch; none past the end of a source without a seed."""
    place = step * self._batch_rows + row
    if self._orders is not None:
      return self._layout[self._orders.item(place)]
    return self._layout[place] if place < self.rows else []

  def _read(self, items: Sequence[int]) -> dict:
    """Returns the arrays of one row."""
    row = {
        "tokens_T": np.full(self._length, self._doc_id, np.int32),
        "targets_T": np.full(self._length, self._doc_id, np.int32),
        "weight_T": np.zeros(self._length, np.float32), "doc_T": np.full(self._length, -1, np.int32),
        "pos_T": np.zeros(self._length, np.int32)}
    start = 0
    for item in items:
      _, ids_T, learn_T = self._examples[item]
      size = len(ids_T) - 1
      here = slice(start, start + size)
      row["tokens_T"][here], row["targets_T"][here] = ids_T[:-1], ids_T[1:]
      row["weight_T"][here], row["doc_T"][here] = learn_T[1:], item
      row["pos_T"][here] = np.arange(size)
      start += -(-size // self._align) * self._align
    return row


def _stacked(rows: Sequence[dict]) -> dict:
  """Turns the arrays of rows into those of a batch."""
  return {f"{name[:-1]}BT": np.stack([row[name] for row in rows]) for name in rows[0]}


def _fingerprint(examples: Sequence[Example]) -> str:
  digest = hashlib.sha256()
  for one in examples:
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
  count = found.count if max_problems is None else min(max_problems, found.count or max_problems)
  if count is None:
    raise ValueError(f"config.data.name={name!r} has no end; set config.data.max_problems")
  coder = tokenizers.load(tokenizer)
  examples = encode([found.problem(index) for index in range(count)], coder, segment_len=segment_len,
                    template=template, turns=turns, overlong=overlong)
  source = SftSource(
      examples, segment_len=segment_len, batch_rows=batch_rows, doc_id=coder.doc_id, packed=packed,
      seed=seed if split == "train" else None, align_tokens=align_tokens or 1, process_index=process_index,
      process_count=process_count)
  logging.info("%s of %s: %d examples in %d rows, %d steps per epoch", split, name, len(examples),
               source.rows, source.steps_per_epoch)
  return source
