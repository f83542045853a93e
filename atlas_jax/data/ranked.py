"""Ranked responses as a source of batches: prompts, each with a group of responses in rows of their own.

Groups may be ragged: a batch has room for the largest group, and says which responses are there.
"""
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data import chats, columns, problems, ranked_tasks, records, responses
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.responses import AnswerGroup
from atlas_jax.data.stepped import ListedSource, rows_of
from atlas_jax.files.damage import clipped

OVERLONG = ("error", "skip", "truncate")
MADE_PROMPTS = 400  # Of a task that is ranked in memory, where no files are given: some seconds of work.


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
    # Of all responses: the score of one must not depend on which others fit into a row.
    score_G = responses.score_of(group.responses)
    rows = []
    scores = []
    for number in chosen(score_G, max_responses):
      where = f"{group.where}: responses[{number}]"
      problem = problems.Problem(where, group.prompt, None, group.responses[number].text,
                                 values=group.values)
      # The last turn alone: a score is of the response, and not of what the prompt's assistant has said.
      row = chats.encode(problem, tokenizer, template, learn="last", **values)
      if len(row.ids_T) > segment_len + 1:  # The last id is a target alone, and takes no place.
        long.append(where)
        most = max(most, len(row.ids_T) - 1)
        row = chats.Encoded(row.ids_T[:segment_len + 1], row.learn_T[:segment_len + 1])
        if overlong == "skip" or not row.learn_T[1:].any():
          continue
      rows.append(row)
      scores.append(score_G[number])
    if rows:
      kept.append(EncodedGroup(group.where, tuple(rows), np.array(scores, np.float32)))
  _report_overlong(long, most, overlong, segment_len, lost=len(found) - len(kept))
  return kept


def _report_overlong(long: Sequence[str], most: int, overlong: str, segment_len: int, *, lost: int) -> None:
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
  # Stable, so that ties are resolved alike under every NumPy and in every process.
  by_worth = np.argsort(-score_G, kind="stable")
  places = np.round(np.linspace(0, len(score_G) - 1, count)).astype(int)
  return sorted(int(number) for number in by_worth[places])


class RankedSource(ListedSource):
  """Batches of prompts with their responses, whose items are groups.

  A batch has tokens_BGT, targets_BGT (the next id), mask_BGT (True where the target is one of the response),
  doc_BGT (0, -1 at padding), score_BG (0 where there is no response) and valid_BG (whether there is one).

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
      batch_rows: prompts of a batch over all processes.
      doc_id: what stands at padding.
      seed: draws the order of the groups in every epoch, without end; None reads them once, in order.
      align_tokens: T is its multiple, as a memory's chunks need.
      process_index, process_count: whose prompts these are, see `stepped.rows_of`.

    Raises:
      ValueError: if there is no group, or if rows do not divide by processes.
    """
    if not found:
      raise ValueError("there is no group of responses to learn from; give data with at least one in this "
                       "split, or a larger config.data.segment_len")
    self._found = list(found)
    self._doc_id = doc_id
    # One shape for all batches, with room for the largest group and the longest row: the step compiles once.
    longest = max(len(row.ids_T) - 1 for one in found for row in one.rows)
    self.count = len(found)
    self.group_size = max(len(one.rows) for one in found)
    self.segment_len = -(-longest // align_tokens) * align_tokens
    self.fingerprint = _fingerprint(found)
    super().__init__({"fingerprint": self.fingerprint}, rows_of(batch_rows, process_index, process_count),
                     count=self.count, batch_rows=batch_rows, seed=seed)

  def origin(self, step: int, row: int) -> str:
    """Names where the group of a row comes from."""
    index = self.item(step, row)
    return "past the end@0" if index is None else self._found[index].where

  def read_row(self, step: int, row: int) -> dict[str, np.ndarray]:
    """Returns the arrays of the group of a row of the whole batch, without the axis B."""
    index = self.item(step, row)
    shape = (self.group_size, self.segment_len)
    arrays = {"tokens_GT": np.full(shape, self._doc_id, np.int32),
              "targets_GT": np.full(shape, self._doc_id, np.int32),
              "mask_GT": np.zeros(shape, bool), "doc_GT": np.full(shape, -1, np.int32),
              "score_G": np.zeros(self.group_size, np.float32), "valid_G": np.zeros(self.group_size, bool)}
    if index is None:  # A row that only fills up: no response of it is valid, so it counts for nothing.
      return arrays
    one = self._found[index]
    arrays["score_G"][:len(one.rows)], arrays["valid_G"][:len(one.rows)] = one.score_G, True
    for number, (ids_T, learn_T) in enumerate(one.rows):
      here = (number, slice(len(ids_T) - 1))
      arrays["tokens_GT"][here], arrays["targets_GT"][here] = ids_T[:-1], ids_T[1:]
      arrays["mask_GT"][here], arrays["doc_GT"][here] = learn_T[1:], 0
    return arrays


def _fingerprint(found: Sequence[EncodedGroup]) -> str:
  digest = hashlib.sha256()
  for one in found:  # Without its place: rows of a file that was moved, or split in two, are the same.
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
    eval_files: of the held-out ones; None takes a fraction of the prompts of `files`.
    name: a task, where no files are given; see `ranked_tasks.make`.
    held_out_frac: fraction of the prompts that is held out, where there are no eval_files; 0: none.
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
  # Only warned of: that both files ask the same may be meant, as where a run is to overfit.
  both = {responses.key(group) for group in found} & {responses.key(group) for group in held_out}
  if both:
    logging.warning("%d prompts of config.ranked.eval_files=%s are among those trained on, so that what is "
                    "measured on them is not held out: %r", len(both), eval_files, clipped(min(both), 80))
  return found, held_out


def _read(field: str, files: str, fields: Mapping[str, str] | None,
          template: chats.Template | None) -> list[AnswerGroup]:
  try:
    records.files(files)  # Apart from reading, whose errors are of rows: files that are missing can be made.
  except ValueError as error:
    raise ValueError(f"config.{field}={files!r} cannot be read ({error}); for data made here, first run "
                     "python scripts/prepare_grpo_data.py --out=data") from error
  found = responses.read(files, fields=fields)
  # A column that is not read may be one that was meant to be, under another name.
  columns.log(files, [unused(group, template) for group in found])
  return found


def unused(group: AnswerGroup, template: chats.Template | None) -> list[str]:
  """Names the columns of a group's row that nothing reads, and what a template does not show of its chat."""
  asked = problems.Problem(group.where, group.prompt, values=group.values, read=group.read)
  needs = columns.Needs(solution=False, answer=False, template=template)
  return [*group.unused, *columns.unused(asked, needs)]
