"""Prompts with checkable answers: rows of files as problems, and problems as a source of batches.

A batch of B completions needs B / group_size prompts, for every prompt is answered group_size times.

Formats of rows that are read, and what their columns become:

- prompt and answer: `prompt` (also problem_text, problem, question, query, input), a text or messages, and
  `answer` (also ground_truth, solution, expected_answer), a text or number to compare completions with.
- prompt and completion, as TRL has it in texts and in messages: `completion` (also response, output), a text
  or the assistant's messages, is the solution.
- chats: `messages` (also conversations, conversation), with role and content as OpenAI and TRL write them, or
  with from and value (ShareGPT), or JSON text of such a list. The last message, if the assistant's, is the
  solution. Calls of tools are read, and "weight", 0 for a turn that is not learnt.
- Alpaca and Dolly: `instruction`, a blank line, then `input` (or context) are the prompt, `output` (or
  response) the solution, and `history`, [user, assistant] pairs, stands before the prompt.
- lessons: student_approach, teacher_diagnosis and teacher_teaching are the solution.
- ranked responses: see `responses`. Where a solution is needed, `chosen` and `rejected` are refused.

Beside them `system` (or system_prompt) is the first message; `tools` (or functions), parallel_tool_calls and
chat_template_kwargs are given to the chat template. Pictures, films and sounds are refused. Columns that say
the same are read once; two that contradict one another are an error with both names. config.data.fields says
what a dataset calls its messages, prompt, answer or solution. Sessions of agents are read with
config.data.name="traces", see `traces.sources`. Rewards may ask for any column by its name; a
column that nothing asks for is named in a warning, once for each data set.
"""
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from atlas_jax.data import arithmetic, columns, convention, countdown, packing, problems, records, row_formats
from atlas_jax.data.columns import EVERYTHING, Needs
from atlas_jax.data.problems import Problem, Problems
from atlas_jax.data.stepped import IndexedSource, rows_of
from atlas_jax.data.traces import sources as traces

BATCH = ("problems", "index")
TASKS = {"arithmetic": arithmetic.Arithmetic, "convention": convention.Convention,
         "countdown": countdown.Countdown}
FIELDS = row_formats.FIELDS


def parse_row(where: str, row: Mapping[str, Any], fields: Mapping[str, str] | None = None) -> Problem:
  """Reads one row as a problem.

  Args:
    where: place of the row, for errors.
    row: in one of the formats that the module names. Other columns become extra.
    fields: names this dataset gives to "messages", "prompt", "answer" or "solution".

  Raises:
    ValueError: naming the place and the field that is missing or not what it should be.
  """
  return row_formats.as_problem(where, row, row_formats.read(where, row, fields))


class ProblemList:
  """Problems of files or a hub dataset, in memory; see `problems.Problems`."""

  def __init__(self, found: Sequence[Problem]):
    """Takes problems in their order.

    Raises:
      ValueError: if there is none.
    """
    if not found:
      raise ValueError("there is no problem to ask; give data with at least one row in this split")
    self._problems = list(found)
    self.count = len(found)
    # Of what the problems say and not of where they stand, so that a file that was moved is the same.
    digest = hashlib.sha256()
    for one in found:
      parts: list[Any] = [one.prompt, one.answer, one.solution, dict(one.extra)]
      # Only where there are any: fingerprints saved without them hold.
      parts += [one.reply, dict(one.values)] if one.reply or one.values else []
      digest.update(json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "replace"))
    self.fingerprint = digest.hexdigest()

  def problem(self, index: int) -> Problem:
    """Returns one problem."""
    return self._problems[index]

  def first(self, count: int) -> list[Problem]:
    """Returns the first problems, all of them if there are fewer."""
    return self._problems[:count]


def load(name: str, *, files: str | None = None, split: str = "train", held_out_frac: float = 0.1,
         seed: int = 0, options: Mapping[str, Any] = problems.NOTHING,
         fields: Mapping[str, str] | None = None, download: bool = False, hub_split: str = "train",
         needs: Needs = EVERYTHING) -> Problems:
  """Loads problems: a task made here, or rows of files or a hub dataset.

  Args:
    name: "arithmetic", "convention", "countdown", "files", or "hf:NAME" for a hub dataset.
    files: for "files": paths, folders or globs with commas between them, see `records.read`.
    split: "train" or "held_out"; a hash of each problem decides on which side it falls.
    held_out_frac: fraction that "train" never shows; with 0 all rows are in "train", else each split has
      some, see `problems.threshold`.
    seed: draws the problems of a task.
    options: of a task, see `Arithmetic`, `Convention` and `Countdown`.
    fields, download, hub_split: of rows, see `parse_row` and `records.read`.
    needs: what is read of rows; columns that nothing reads are logged once, with "train".

  Raises:
    ValueError: for settings that cannot be, and for a row that is no problem.
  """
  if name not in TASKS and name != "files" and not name.startswith("hf:"):
    raise ValueError(f"config.data.name={name!r} is unknown; it must be one of {', '.join(TASKS)}, 'files' "
                     f"or 'hf:NAME', or {traces.NAME!r} in a config")
  problems.check_split(split, held_out_frac)
  if name in TASKS:
    return _task(name, options, split=split, held_out_frac=held_out_frac, seed=seed)
  if options:  # Else an option that is meant for a task would be ignored in silence.
    raise ValueError(f"config.data.options={dict(options)} are of a task "
                     f"({', '.join(TASKS)}); {name!r} has none")
  if (name == "files") != bool(files):
    raise ValueError(f"config.data.name={name!r} with config.data.files={files!r}: 'files' needs them, and "
                     f"they need it")
  place = files or name
  found = _read(place, fields, split=hub_split, download=download)
  if not found:
    raise ValueError(f"{place} has no row; give problems, one per line or row")
  # By the prompt alone: rows that ask the same, with whatever answers, must not be on both sides.
  hashes = [problems.uniform_hash(json.dumps(one.prompt, sort_keys=True)) for one in found]
  below = problems.threshold(hashes, held_out_frac, f"prompt of {place!r}")
  kept = [one for one, drawn in zip(found, hashes, strict=True) if (drawn < below) == (split == "held_out")]
  if split == "train":  # Once for a run: the held-out split is read from the same rows.
    columns.warn(place, found, needs)
  logging.info("%s of %s: %d problems", split, place, len(kept))
  return ProblemList(kept)


def of_config(config, split: str = "train", *, needs: Needs = EVERYTHING) -> Problems:
  """Loads the problems of a split of a config; see `load`, and `traces.sources.load` for "traces"."""
  data = config.data
  if data.name == traces.NAME:
    return ProblemList(traces.load(data.files, config.traces, target=traces.target_of(config),
                                   split_name=split, held_out_frac=data.held_out_frac))
  return load(data.name, files=data.files, split=split, held_out_frac=data.held_out_frac, seed=config.seed,
              options=data.options.to_dict(), fields=data.fields.to_dict(), download=data.download,
              needs=needs)


def listed(config, split: str, *, needs: Needs = EVERYTHING) -> list[Problem]:
  """Returns the problems of a split: config.data.max_problems to learn, config.eval.max_problems held out.

  Raises:
    ValueError: if a task without end is not bounded; see also `load`.
  """
  found = of_config(config, split, needs=needs)
  group = "data" if split == "train" else "eval"
  count = count_of(found, config[group].max_problems, name=config.data.name, group=group)
  # An endless task repeats problems. To learn that is as it is in a longer run; held out each counts once.
  return found.first(count) if split == "held_out" else [found.problem(index) for index in range(count)]


def count_of(found: Problems, most: int | None, *, name: str, group: str) -> int:
  """Returns how many problems are used.

  Args:
    found: the problems.
    most: config.GROUP.max_problems; None: all.
    name: config.data.name, for the error.
    group: "data" or "eval".

  Raises:
    ValueError: if there is no end and no bound.
  """
  counts = [count for count in (most, found.count) if count is not None]
  if not counts:
    raise ValueError(f"config.data.name={name!r} has no end; set config.{group}.max_problems")
  return min(counts)


def _read(place: str, fields: Mapping[str, str] | None, **how) -> list[Problem]:
  """Reads rows as problems; see `parse_row` and `records.read`."""
  found = list(records.read(place, **how))
  # A name for a column is refused only if no row has it: rows of one file may lack a column each.
  nowhere = row_formats.named_in_no_row(fields, [record.row for record in found])
  if found and nowhere:
    named = {field: (fields or {})[field] for field in nowhere}
    there = dict.fromkeys(name for record in found for name in record.row)
    raise ValueError(f"config.data.fields={named} names what no row of {place!r} has; its columns are "
                     f"{', '.join(map(repr, there))}")
  return [parse_row(*record, fields) for record in found]


def _task(name: str, options: Mapping[str, Any], **how) -> Problems:
  """Makes a task; its options are named as the config has them where they do not fit."""
  # The task's own parameters are the options, so that a new one is named in one place.
  known = [one for one in inspect.signature(TASKS[name]).parameters if one not in how]
  if strange := sorted(set(options) - set(known)):
    raise ValueError(f"config.data.options has {', '.join(strange)}, which config.data.name={name!r} does "
                     f"not know; its options are {', '.join(known)}")
  try:
    return TASKS[name](**options, **how)
  except (TypeError, ValueError) as error:
    raise ValueError(f"config.data.options={dict(options)}: {error}") from error


class PromptSource(IndexedSource):
  """Batches of problems in an order drawn from the seed; a group of rows has one.

  Attributes:
    group_size: completions that each prompt wants; their rows are adjacent.
    step: the step that `next` gives.
  """

  def __init__(self, found: Problems, *, batch_rows: int, group_size: int = 1, seed: int = 0,
               process_index: int = 0, process_count: int = 1):
    """Serves problems.

    Args:
      found: the problems; those that end are shuffled anew in every epoch, none is left out.
      batch_rows: completions per step over all processes.
      group_size: completions per prompt; a group is never split between processes.
      seed: draws the order.
      process_index, process_count: whose prompts these are, see `stepped.rows_of`.

    Raises:
      ValueError: if the sizes do not divide.
    """
    # Completions of a prompt are compared with each other, so that one process has all of them.
    if group_size < 1 or batch_rows < 1 or batch_rows % (group_size * process_count):
      raise ValueError(f"config.data.batch_rows={batch_rows} must be a positive multiple of group_size="
                       f"{group_size} times the {process_count} processes")
    self.group_size = group_size
    self._found = found
    self._prompts = batch_rows // group_size
    # An endless task draws each problem from the seed anyway, so that its own order does.
    self._orders = None if found.count is None else packing.Orders(found.count, seed)
    super().__init__({"fingerprint": found.fingerprint, "seed": seed, "batch_rows": batch_rows,
                      "group_size": group_size}, rows_of(self._prompts, process_index, process_count))

  @property
  def steps_per_epoch(self) -> int | None:
    """Steps until every problem was asked once, rounded up; None for problems without end."""
    return None if self._found.count is None else -(-self._found.count // self._prompts)

  def batch(self, step: int) -> dict:
    """Returns the problems of any step, this process's, as `next` did or will; the place stays.

    Returns:
      "problems", one per group, and "index", int64: each one's place in the order of all steps, from which
      a sampler may draw seeds.
    """
    # Numbered over all steps and processes: no two completions are drawn with the same seed.
    places = [step * self._prompts + prompt for prompt in self._mine]
    items = places if self._orders is None else [self._orders.item(place) for place in places]
    return {"problems": [self._found.problem(item) for item in items], "index": np.array(places, np.int64)}

  def provenance(self, step: int) -> list[str]:
    """Names where the problem of each of this process's rows comes from; a group has the same."""
    return [one.where for one in self.batch(step)["problems"] for _ in range(self.group_size)]


def make(*, seed: int, name: str, batch_rows: int, held_out_frac: float, files: str | None = None,
         group_size: int = 1, options: Mapping[str, Any] = problems.NOTHING,
         fields: Mapping[str, str] | None = None, download: bool = False, needs: Needs = EVERYTHING,
         process_index: int = 0, process_count: int = 1) -> PromptSource:
  """Builds the source of the training prompts of a task or dataset; see `load` and `PromptSource`."""
  found = load(name, files=files, held_out_frac=held_out_frac, seed=seed, options=options, fields=fields,
               download=download, needs=needs)
  return PromptSource(found, batch_rows=batch_rows, group_size=group_size, seed=seed,
                      process_index=process_index, process_count=process_count)
