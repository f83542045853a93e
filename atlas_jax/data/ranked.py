"""Ranked responses as a source of batches: prompts, each with a group of responses in rows of their own.

Groups may be ragged: a batch has room for the largest group, and says which responses are there.
"""
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data import chats, columns, packing, problems, prompts, ranked_tasks, records, responses
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.responses import AnswerGroup

OVERLONG = ("error", "skip", "truncate")
MADE_PROMPTS = 400  # Prompts of a task that is ranked in memory, where no files are given.


class EncodedGroup(NamedTuple):
  """A group as ids."""

  where: str
  rows: tuple[chats.Encoded, ...]  # prompt and response; what is learnt is the response
  score_G: np.ndarray  # float32, more is better


def encode(found: Sequence[AnswerGroup], tokenizer: tokenizers.Tokenizer, *, segment_len: int,
           template: chats.Template | None = None, overlong: str = "error",
           max_responses: int | None = None, **values) -> list[EncodedGroup]:
  """Returns groups as ids; what a response is worth is decided before any is left out.

  Args:
    found: the groups.
    tokenizer: of the ids.
    segment_len: a prompt with its response of n ids takes n - 1 places of it.
    template: chat template, or None for plain text, see `chats.encode`.
    overlong: what to do with a response that does not fit: "error", "skip" it or "truncate" it (one that lies
      behind the cut is skipped); a group without responses is left out. How many were, is logged.
    max_responses: responses of a group at most, evenly from the best to the worst; None: all.
    **values: what the template may use besides.

  Raises:
    ValueError: naming the place of a group that cannot be used.
  """
  if overlong not in OVERLONG:
    raise ValueError(f"config.data.overlong={overlong!r} is unknown; it must be one of {', '.join(OVERLONG)}")
  kept = []
  long = []
  most = 0
  for group in found:
    score_G = responses.score_of(group.responses)
    rows = []
    scores = []
    for number in chosen(score_G, max_responses):
      where = f"{group.where}: responses[{number}]"
      problem = problems.Problem(where, group.prompt, None, group.responses[number].text,
                                 values=group.values)
      row = chats.encode(problem, tokenizer, template, learn="last", **values)
      if len(row.ids_T) > segment_len + 1:
        long.append(where)
        most = max(most, len(row.ids_T) - 1)
        row = chats.Encoded(row.ids_T[:segment_len + 1], row.learn_T[:segment_len + 1])
        if overlong == "skip" or not row.learn_T[1:].any():
          continue
      rows.append(row)
      scores.append(score_G[number])
    if rows:
      kept.append(EncodedGroup(group.where, tuple(rows), np.array(scores, np.float32)))
  _mind_long(long, most, overlong, segment_len, lost=len(found) - len(kept))
  return kept


def _mind_long(long: Sequence[str], most: int, overlong: str, segment_len: int, *, lost: int) -> None:
  shown = ", ".join(long[:responses.SHOWN])
  if long and overlong == "error":
    raise ValueError(f"{len(long)} responses are longer with their prompts than config.data.segment_len="
                     f"{segment_len}, the longest {most}: {shown}; set it to {most}, or config.data.overlong "
                     "to 'truncate' or 'skip'")
  if long:
    logging.warning("%d responses are longer with their prompts than %d tokens and were %s, %d groups with "
                    "all of theirs: %s", len(long), segment_len,
                    "left out" if overlong == "skip" else "cut short", lost, shown)


def chosen(score_G: np.ndarray, count: int | None) -> list[int]:
  """Returns which responses are used, in rising order: all, or so many evenly from the best to the worst."""
  if count is None or len(score_G) <= count:
    return list(range(len(score_G)))
  by_worth = np.argsort(-score_G, kind="stable")
  places = np.round(np.linspace(0, len(score_G) - 1, count)).astype(int)
  return sorted(int(number) for number in by_worth[places])


class RankedSource:
  """Batches of prompts with their responses; see `data.source.Source`. Its place is the step.

  Attributes:
    count: how many groups there are.
    group_size: G, responses of the largest group.
    segment_len: T, places of the longest row, rounded up to a multiple of align_tokens.
    fingerprint: equal for the same ids and scores in the same order.
    step: the step that `next` gives.
  """

  def __init__(self, found: Sequence[EncodedGroup], *, batch_rows: int, doc_id: int, seed: int | None = 0,
               align_tokens: int = 1, process_index: int = 0, process_count: int = 1):
    """Lays out groups.

    Args:
      found: the groups.
      batch_rows: prompts of a batch over all processes; this one has a block of batch_rows / process_count.
      doc_id: what stands at padding.
      seed: draws the order of the groups in every epoch, without end; None reads them once, in order.
      align_tokens: T is its multiple, as a memory's chunks need.
      process_index: which process this is.
      process_count: how many there are.

    Raises:
      ValueError: if there is no group, or if rows do not divide by processes.
    """
    if not found:
      raise ValueError("there is no group of responses to learn from; give data with at least one in this "
                       "split, or a larger config.data.segment_len")
    if batch_rows < 1 or batch_rows % process_count:
      raise ValueError(f"config.data.batch_rows={batch_rows} does not divide by the "
                       f"{process_count} processes")
    self._found = list(found)
    self._batch_rows = batch_rows
    self._doc_id = doc_id
    self._seed = seed
    longest = max(len(row.ids_T) - 1 for one in found for row in one.rows)
    self.count = len(found)
    self.group_size = max(len(one.rows) for one in found)
    self.segment_len = -(-longest // align_tokens) * align_tokens
    self.step = 0
    share = batch_rows // process_count
    self._mine = range(process_index * share, (process_index + 1) * share)
    self.fingerprint = _fingerprint(found)
    self._settings = {"fingerprint": self.fingerprint, "seed": seed, "batch_rows": batch_rows}
    self._orders = None if seed is None else packing.Orders(self.count, seed)

  def steps_of(self, epochs: int) -> int:
    """Returns the steps until every group was seen so many times, rounded up."""
    return -(-epochs * self.count // self._batch_rows)

  def next(self, trained=None) -> dict:
    """Returns the batch of `step` (this process's rows) and goes on to the next step.

    Returns:
      tokens_BGT, targets_BGT (the next id), mask_BGT (True where the target is one of the response), doc_BGT
      (0, -1 at padding), score_BG (0 where there is no response) and valid_BG (whether there is one).

    Raises:
      StopIteration: at the end of a source without a seed.
    """
    del trained
    if self._seed is None and self.step >= self.steps_of(1):
      raise StopIteration
    batch = self.batch(self.step)
    self.step += 1
    return batch

  def batch(self, step: int) -> dict:
    """Returns this process's rows of any step, as `next` did or will; the place stays."""
    return _stacked([self._read(self._index(step, row)) for row in self._mine])

  def state(self) -> dict:
    """Returns the place and what it is valid for; independent of the number of processes."""
    return {"step": self.step, **self._settings}

  def restore(self, state: dict) -> None:
    """Goes to the saved place.

    Raises:
      ValueError: if it was saved with other data or settings; says which.
    """
    prompts.check_state(state, self.state())
    self.step = int(state["step"])

  def provenance(self, step: int) -> list[str]:
    """Names where the group of each of this process's rows comes from."""
    at = [self._index(step, row) for row in self._mine]
    return ["past the end@0" if index is None else self._found[index].where for index in at]

  def _index(self, step: int, row: int) -> int | None:
    """Returns the group of a row of the whole batch; None past the end of a source without a seed."""
    place = step * self._batch_rows + row
    if self._orders is not None:
      return self._orders.item(place)
    return place if place < self.count else None

  def _read(self, index: int | None) -> dict:
    """Returns the arrays of one group, without the axis B."""
    shape = (self.group_size, self.segment_len)
    row = {"tokens_GT": np.full(shape, self._doc_id, np.int32),
           "targets_GT": np.full(shape, self._doc_id, np.int32),
           "mask_GT": np.zeros(shape, bool), "doc_GT": np.full(shape, -1, np.int32),
           "score_G": np.zeros(self.group_size, np.float32), "valid_G": np.zeros(self.group_size, bool)}
    if index is None:
      return row
    one = self._found[index]
    row["score_G"][:len(one.rows)], row["valid_G"][:len(one.rows)] = one.score_G, True
    for number, (ids_T, learn_T) in enumerate(one.rows):
      here = (number, slice(len(ids_T) - 1))
      row["tokens_GT"][here], row["targets_GT"][here] = ids_T[:-1], ids_T[1:]
      row["mask_GT"][here], row["doc_GT"][here] = learn_T[1:], 0
    return row


def _stacked(rows: Sequence[dict]) -> dict:
  """Turns the arrays of groups into those of a batch."""
  named = {name: name.replace("_G", "_BG") for name in rows[0]}
  return {batched: np.stack([row[name] for row in rows]) for name, batched in named.items()}


def _fingerprint(found: Sequence[EncodedGroup]) -> str:
  digest = hashlib.sha256()
  for one in found:
    digest.update(json.dumps([one.score_G.tolist(), [len(row.ids_T) for row in one.rows]]).encode())
    for row in one.rows:
      digest.update(row.ids_T.tobytes() + row.learn_T.tobytes())
  return digest.hexdigest()


def load(*, files: str | None, eval_files: str | None, name: str, held_out_frac: float, seed: int,
         options: Mapping[str, Any] = problems.NOTHING, fields: Mapping[str, str] | None = None,
         template: chats.Template | None = None) -> tuple[list[AnswerGroup], list[AnswerGroup]]:
  """Returns (training, held-out) groups.

  Args:
    files: of the groups to train on, see `records.read`; None ranks responses to the task that `name` names.
    eval_files: of the held-out ones; None takes a share of the prompts of `files`.
    name: a task, where no files are given; see `ranked_tasks.make`.
    held_out_frac: share of the prompts that is held out, where there are no eval_files; 0: none.
    seed: draws the task.
    options: of the task.
    fields: what files call their "prompt" or "messages".
    template: that prompts are put in, or None; columns that it does not show are logged with the others
      that nothing reads, once for each set of files.

  Raises:
    ValueError: for settings that cannot be, and for the first row that cannot be used.
  """
  if files is None:
    if eval_files is not None:
      raise ValueError(f"config.ranked.eval_files={eval_files!r} needs config.data.files, the groups to "
                       "train on; scripts/prepare_grpo_data.py --out=data makes both")

    def made(split, count):
      return ranked_tasks.make(name, split=split, count=count, seed=seed,
                               held_out_frac=held_out_frac, options=options)

    return made("train", MADE_PROMPTS), made("held_out", MADE_PROMPTS // 10) if held_out_frac else []
  found = _read("data.files", files, fields, template)
  if eval_files is None:
    return responses.split(found, held_out_frac)
  held_out = _read("ranked.eval_files", eval_files, fields, template)
  both = {responses.key(group) for group in found} & {responses.key(group) for group in held_out}
  if both:
    logging.warning("%d prompts of config.ranked.eval_files=%s are among those trained on, so that what is "
                    "measured on them is not held out: %r", len(both), eval_files, min(both)[:80])
  return found, held_out


def _read(field: str, files: str, fields: Mapping[str, str] | None,
          template: chats.Template | None) -> list[AnswerGroup]:
  try:
    records.files(files)
  except ValueError as error:
    raise ValueError(f"config.{field}={files!r} cannot be read ({error}); for data made here, first run "
                     "python scripts/prepare_grpo_data.py --out=data") from error
  found = responses.read(files, fields=fields)
  columns.log(files, [unused(group, template) for group in found])
  return found


def unused(group: AnswerGroup, template: chats.Template | None) -> list[str]:
  """Names the columns of a group's row that nothing reads, and what a template does not show of its chat."""
  asked = problems.Problem(group.where, group.prompt, values=group.values, read=group.read)
  needs = columns.Needs(solution=False, answer=False, template=template)
  return [*group.unused, *columns.unused(asked, needs)]
