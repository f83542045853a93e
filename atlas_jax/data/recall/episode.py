"""Episodes: things stored in real text, other real text behind them, then a question for each of them.

  filler, (filler, item), (filler, item) ... gap, (question, answer), (question, answer) ...

Items are asked for in another order than they are stored in. The gap is as long as the cell says; the filler
at the front, shorter than a chunk, makes the context a multiple of one. An answer stands once in the context
and once behind its question, and what stands right before it where it is stored stands there alone: what does
not keep to that is drawn again. So only what was stored can answer, and it answers without doubt.

Parts of a text are encoded each by itself, for at the border of two parts a tokenizer may merge characters in
one place and not in the other; the ids of a cue and of an answer are the same where they are stored and where
they are asked for.
"""
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from atlas_jax import modules
from atlas_jax.data.recall import sample

TRIES = 100  # Draws of one item.
ROUNDS = 10  # Draws of the text around the items.


class StoredItem(NamedTuple):
  """A thing that is stored in a text and asked for behind the gap, as ids."""

  before_T: np.ndarray  # filler
  cue_T: np.ndarray  # right before the answer
  answer_T: np.ndarray
  after_T: np.ndarray  # the rest of what is stored
  asked_T: np.ndarray  # the question; it ends with the cue


class ItemBytes(NamedTuple):
  """The text of an item; the white space around cue and answer is no part of them."""

  cue: bytes
  answer: bytes
  stored: bytes
  asked: bytes


def cells(setting) -> list[dict]:
  """Returns each number of items at each distance."""
  found = setting.options
  return [{"items": items, "distance": distance} for items in found["episode_items"]
          for distance in found["episode_distances"]]


def text(cell: Mapping, draw: np.random.Generator, setting: sample.TaskSetting, make: Callable, *,
         kind: str) -> sample.RecallSample:
  """Draws a text.

  Args:
    cell: "items", at least 1, and "distance", tokens of the gap, at least 0.
    draw: random generator.
    setting: of the task.
    make: number of an item, from 0 -> a StoredItem, another one each time that it is called; or None where a
      stretch of text has none.
    kind: of items, for errors.

  Raises:
    ValueError: if there can be no such cell, or none of many draws keeps answers apart.
  """
  count, distance = cell["items"], cell["distance"]
  if count < 1 or distance < 0:
    raise ValueError(f"a text of {count} items at {distance} tokens cannot be; config.eval.episode_items "
                     "must be at least 1, config.eval.episode_distances at least 0")
  for _ in range(ROUNDS):
    around = setting.haystack().take(draw, setting.align_tokens - 1 + distance)
    items = _items(make, count, _bytes_of(setting, around), setting)
    if len(items) == count:
      found = _joined(draw, setting, items, around, distance)
      if _are_apart(setting, found, items):
        return found
  raise ValueError(f"config.eval.episode_items={count}, config.eval.episode_distances={distance}: {ROUNDS} "
                   f"texts have been drawn, and in none could {TRIES} draws find {kind} that occurs nowhere "
                   "else in it; take fewer items or shorter distances, or text that is more various "
                   "(config.data.name, config.data.path, config.data.limit_bytes)")


def room(name: str, items: int, distance: int, align_tokens: int = 64) -> int:
  """Returns the most tokens that a text can have, context and question, with the tokenizer of bytes.

  Args:
    name: of the task.
    items, distance: of the cell.
    align_tokens: of the setting, or more; by default as many as the largest chunk of the configs here.

  Raises:
    ValueError: if the task has no episodes.
  """
  found = _most()
  if name not in found:
    raise ValueError(f"the task {name!r} has no episodes; those with episodes are {', '.join(found)}")
  context = sample.round_up(1 + items * found[name]["stored"] + distance, align_tokens)
  return context + items * found[name]["asked"] - 1  # The last token of all is never read.


def line_of(setting: sample.TaskSetting, cue: str, answer: str, after: str, before_T) -> StoredItem:
  """Makes an item of which the question is the cue itself."""
  cue_T, answer_T, after_T = map(setting.tokenizer.encode, (cue, answer, after))
  return StoredItem(before_T, cue_T, answer_T, after_T, cue_T)


def filler(draw: np.random.Generator, setting: sample.TaskSetting, most: int) -> np.ndarray:
  """Draws a stretch of real text of 0 to `most` tokens."""
  return setting.haystack().stretch(draw, int(draw.integers(most + 1)))


@functools.cache
def _most() -> dict[str, dict]:
  """Returns the most bytes of an item, "stored" and "asked" with the answer, as the files have them."""
  return modules.constants("data/recall", "MOST")


def _items(make: Callable, count: int, around: bytes, setting) -> list[StoredItem]:
  """Draws items that keep apart from each other and from a text; fewer where one cannot be found."""
  found: list[StoredItem] = []
  known: list[ItemBytes] = []
  while len(found) < count:
    for _ in range(TRIES):
      item = make(len(found))
      if item is not None and _fits(mine := _item_bytes(setting, item), known, around):
        break
    else:
      return found
    found.append(item)
    known.append(mine)
  return found


def _fits(item: ItemBytes, others: Sequence[ItemBytes], around: bytes) -> bool:
  """Returns whether an item, those before it and a text leave each answer and cue at one place."""
  texts = [around, *(part for other in others for part in (other.stored, other.asked))]
  if not (_is_once(item.answer, item.stored) and _is_once(item.cue, item.stored)):
    return False
  if item.answer in item.asked or any(item.answer in one or item.cue in one for one in texts):
    return False
  return not any(other.answer in part or other.cue in part for other in others
                 for part in (item.stored, item.asked))


def _joined(draw, setting, items: Sequence[StoredItem], around, distance: int) -> sample.RecallSample:
  """Puts a text together."""
  align = setting.align_tokens
  stored = [part_T for item in items for part_T in item[:4]]
  length = 1 + sample.length_of(stored) + distance
  front = sample.round_up(length, align) - length
  at = 1 + front
  end_N = []  # Where the answer of each item has been stored.
  for item in items:
    at += sample.length_of(item[:3])
    end_N.append(at)
    at += len(item.after_T)
  at = length + front
  parts, marks, distance_N = [], [], []
  for number, which in enumerate(draw.permutation(len(items))):
    item = items[which]
    at += len(item.asked_T)
    distance_N.append(at - end_N[which])
    at += len(item.answer_T)
    parts += [item.asked_T, item.answer_T]
    marks += [sample.NO_ANSWER] * len(item.asked_T) + [number] * len(item.answer_T)
  question_T = np.concatenate(parts).astype(np.int32)
  mark_T = np.array([setting.tokenizer.doc_id], np.int32)
  context = (mark_T, *sample.cut(around, align - 1 - front, align - 1),
             np.concatenate(stored).astype(np.int32), *sample.cut(around, align - 1, align - 1 + distance))
  return sample.RecallSample(context, question_T[:-1], question_T[1:], np.array(marks)[1:],
                             np.array(distance_N, np.int32))


def _are_apart(setting, found: sample.RecallSample, items: Sequence[StoredItem]) -> bool:
  """Returns whether it holds of the whole text, for where two parts meet there may be something new."""
  context = _bytes_of(setting, found.context)
  question = _bytes_of(setting, (found.input_T, found.target_T[-1:]))
  known = [_item_bytes(setting, item) for item in items]
  return all(_is_once(item.answer, context) and _is_once(item.answer, question)
             and _is_once(item.cue, context) for item in known)


def _item_bytes(setting, item: StoredItem) -> ItemBytes:
  cue, answer = (_bytes_of(setting, [ids_T]).strip() for ids_T in (item.cue_T, item.answer_T))
  return ItemBytes(cue, answer, _bytes_of(setting, item[:4]), _bytes_of(setting, [item.asked_T]))


def _bytes_of(setting, parts: Sequence[np.ndarray]) -> bytes:
  return setting.tokenizer.decode_bytes(sample.joined(parts, 0, sample.length_of(parts)))


def _is_once(part: bytes, whole: bytes) -> bool:
  """Returns whether a part that is not empty occurs at exactly one place."""
  return bool(part) and -1 != whole.find(part) == whole.rfind(part)
