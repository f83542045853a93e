"""Prompts with checkable answers: rows of files as problems, and problems as a source of batches.

A batch of B completions needs B / group_size prompts, for every prompt is answered group_size times.
"""
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from atlas_jax.data import arithmetic, countdown, packing, problems, records
from atlas_jax.data.problems import Problem, Problems

TASKS = {"arithmetic": arithmetic.Arithmetic, "countdown": countdown.Countdown}
# Fields that mean the same in public datasets; of those that a row has, the first that is not empty counts.
FIELDS: Mapping[str, tuple[str, ...]] = {
  "messages": ("messages",),
  "prompt": ("prompt", "problem_text", "question", "input"),
  "answer": ("ground_truth", "answer", "solution"),
  "solution": ("completion", "response"),
}
# A row of a teaching dataset: the student's approach, what is wrong with it, and what to teach.
TEACHING = {"student_approach": "Student's approach", "teacher_diagnosis": "Diagnosis",
            "teacher_teaching": "Teaching"}
TEACHER = ("You are a teacher. You read a problem, work out how a student would go about it, say what that "
           "approach gets right and wrong, and then teach what the student needs to solve the problem alone.")
ROLES = ("system", "developer", "user", "assistant", "tool")


def of_row(where: str, row: Mapping[str, Any], fields: Mapping[str, str] | None = None) -> Problem:
  """Reads one row as a problem.

  Args:
    where: place of the row, for errors.
    row: either "messages" (the last one, if the assistant's, is the solution, and whole in extra), or a
      prompt (a text, or messages) with an answer, a solution, or the three fields of `TEACHING`. Other
      fields become extra.
    fields: names this dataset gives to "messages", "prompt", "answer" or "solution".

  Raises:
    ValueError: naming the place and the field that is missing or not what it should be.
  """
  names = {**FIELDS, **{field: (name,) for field, name in (fields or {}).items()}}
  strange = set(names) - set(FIELDS)
  if strange:
    raise ValueError(f"config.data.fields has {sorted(strange)}; its keys are {', '.join(FIELDS)}")
  found = {field: _first(row, names[field]) for field in names}
  used = {name for field in names for name in names[field]}
  extra = {name: value for name, value in row.items() if name not in used}
  prompt, solution = found["messages"] or found["prompt"], found["solution"]
  if prompt is None:
    wanted = ", ".join(repr(name) for name in (*names["messages"], *names["prompt"]))
    raise ValueError(f"{where}: has no prompt: one of {wanted} must be there and not empty; it has "
                     f"{', '.join(map(repr, row)) or 'nothing'}. Name the field with config.data.fields")
  if isinstance(prompt, str):
    if all(isinstance(row.get(name), str) for name in TEACHING) and not solution:
      prompt, solution = _lesson(prompt, row)
  else:
    prompt = check_messages(where, prompt)
    if prompt[-1]["role"] == "assistant" and solution is None:
      prompt, last = prompt[:-1], prompt[-1]
      solution, extra = last["content"], {**extra, "message": last}
    if not prompt:
      raise ValueError(f"{where}: its messages have nothing before the assistant's; put the prompt there")
  answer = _text(where, "answer", found["answer"])
  return Problem(where, prompt, answer, _text(where, "solution", solution), extra)


def check_messages(where: str, messages: Any) -> list[dict]:
  """Gives messages as dicts with "role" and "content", a text; parts of text are joined by line ends.

  Raises:
    ValueError: naming the place, the message and its field.
  """
  if not isinstance(messages, Sequence) or isinstance(messages, str) or not len(messages):
    raise ValueError(f"{where}: messages are {type(messages).__name__}, not a list of at least one")
  return [_message(f"{where}: messages[{number}]", message) for number, message in enumerate(messages)]


def _message(where: str, message: Any) -> dict:
  if not isinstance(message, Mapping):
    raise ValueError(f"{where} is {type(message).__name__}, not an object with 'role' and 'content'")
  kept = {name: value for name, value in message.items() if value is not None}
  if kept.get("role") not in ROLES:
    raise ValueError(f"{where} has role {kept.get('role')!r}; it must be one of {', '.join(ROLES)}")
  content = kept.get("content", "" if kept.get("tool_calls") else None)
  if isinstance(content, Sequence) and not isinstance(content, str):
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    known = [text for text in texts if isinstance(text, str)]
    content = "\n".join(known) if texts and len(known) == len(texts) else None
  if not isinstance(content, str):
    raise ValueError(f"{where} has no field 'content' that is a text, or parts with a 'text' each")
  return {**kept, "content": content}


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
  """Gives the first of the fields that is there and not empty, or None."""
  for name in names:
    value = row.get(name)
    empty = value is None or (hasattr(value, "__len__") and not len(value))
    if not empty and not (isinstance(value, str) and not value.strip()):
      return value
  return None


def _text(where: str, field: str, value: Any) -> str | None:
  if value is None or isinstance(value, str):
    return value
  if field == "solution" and isinstance(value, Sequence) and len(value) == 1:
    return check_messages(where, value)[0]["content"]
  if isinstance(value, int | float):
    return str(value)
  raise ValueError(f"{where}: its {field} is {type(value).__name__}, not a text or a number")


def _lesson(prompt: str, row: Mapping[str, Any]) -> tuple[list[dict], str]:
  sections = [f"{title}:\n{row[name].strip()}" for name, title in TEACHING.items()]
  messages = [{"role": "system", "content": TEACHER}, {"role": "user", "content": prompt}]
  return messages, "\n\n".join(sections)


class Listed:
  """Problems of files or a hub dataset, in memory; see `problems.Problems`."""

  def __init__(self, found: Sequence[Problem]):
    """Takes problems in their order.

    Raises:
      ValueError: if there is none.
    """
    if not found:
      raise ValueError("there is no problem to ask; give data with at least one row in this split")
    self._problems, self.count = list(found), len(found)
    digest = hashlib.sha256()
    for one in found:
      parts = [one.prompt, one.answer, one.solution, dict(one.extra)]
      digest.update(json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "replace"))
    self.fingerprint = digest.hexdigest()

  def problem(self, index: int) -> Problem:
    """Gives one problem."""
    return self._problems[index]

  def first(self, count: int) -> list[Problem]:
    """Gives the first problems, all of them if there are fewer."""
    return self._problems[:count]


def load(name: str, *, files: str | None = None, split: str = "train", held_out_frac: float = 0.1,
         seed: int = 0, options: Mapping[str, Any] = problems.NOTHING,
         fields: Mapping[str, str] | None = None, download: bool = False,
         hub_split: str = "train") -> Problems:
  """Loads problems: a task made here, or rows of files or a hub dataset.

  Args:
    name: "arithmetic", "countdown", "files", or "hf:NAME" for a hub dataset.
    files: for "files": paths, folders or globs with commas between them, see `records.read`.
    split: "train" or "held_out"; a hash of each problem decides on which side it falls.
    held_out_frac: share that "train" never shows; with 0 all rows are in "train", else each split has some,
      see `problems.threshold`.
    seed: draws the problems of a task.
    options: of a task, see `Arithmetic` and `Countdown`.
    fields, download, hub_split: of rows, see `of_row` and `records.read`.

  Raises:
    ValueError: for settings that cannot be, and for a row that is no problem.
  """
  if name not in TASKS and name != "files" and not name.startswith("hf:"):
    raise ValueError(f"config.data.name={name!r} is unknown; it must be one of {', '.join(TASKS)}, 'files' "
                     f"or 'hf:NAME'")
  problems.check_split(split, held_out_frac)
  if name in TASKS:
    return _task(name, options, split=split, held_out_frac=held_out_frac, seed=seed)
  if options:
    raise ValueError(f"config.data.options={dict(options)} are of a task "
                     f"({', '.join(TASKS)}); {name!r} has none")
  if (name == "files") != bool(files):
    raise ValueError(f"config.data.name={name!r} with config.data.files={files!r}: 'files' needs them, and "
                     f"they need it")
  place = files or name
  found = [of_row(*record, fields) for record in records.read(place, split=hub_split, download=download)]
  if not found:
    raise ValueError(f"{place} has no row; give problems, one per line or row")
  shares = [problems.share(json.dumps(one.prompt, sort_keys=True)) for one in found]
  below = problems.threshold(shares, held_out_frac, f"prompt of {place!r}")
  kept = [one for one, share in zip(found, shares, strict=True) if (share < below) == (split == "held_out")]
  logging.info("%s of %s: %d problems", split, place, len(kept))
  return Listed(kept)


def _task(name: str, options: Mapping[str, Any], **how) -> Problems:
  """Makes a task; its options are named as the config has them where they do not fit."""
  known = [one for one in inspect.signature(TASKS[name]).parameters if one not in how]
  if strange := sorted(set(options) - set(known)):
    raise ValueError(f"config.data.options has {', '.join(strange)}, which config.data.name={name!r} does "
                     f"not know; its options are {', '.join(known)}")
  try:
    return TASKS[name](**options, **how)
  except (TypeError, ValueError) as error:
    raise ValueError(f"config.data.options={dict(options)}: {error}") from error


class PromptSource:
  """Batches of problems in an order drawn from the seed; see `data.source.Source`. Its place is the step.

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
      process_index: which process this is; its prompts are a contiguous block.
      process_count: how many there are.

    Raises:
      ValueError: if the sizes do not divide.
    """
    if group_size < 1 or batch_rows < 1 or batch_rows % (group_size * process_count):
      raise ValueError(f"config.data.batch_rows={batch_rows} must be a positive multiple of group_size="
                       f"{group_size} times the {process_count} processes")
    self.group_size, self.step = group_size, 0
    self._found, self._prompts = found, batch_rows // group_size
    share = self._prompts // process_count
    self._mine = range(process_index * share, (process_index + 1) * share)
    self._settings = {"fingerprint": found.fingerprint, "seed": seed, "batch_rows": batch_rows,
                      "group_size": group_size}
    self._orders = None if found.count is None else packing.Orders(found.count, seed)

  @property
  def steps_per_epoch(self) -> int | None:
    """Steps until every problem was asked once, rounded up; None for problems without end."""
    return None if self._found.count is None else -(-self._found.count // self._prompts)

  def next(self, params=None) -> dict:
    """Gives the problems of `step` (this process's) and goes on to the next step.

    Returns:
      "problems", one per group, and "index", int64: each one's place in the order of all steps, from which
      a sampler may draw seeds.
    """
    del params
    batch = self.batch(self.step)
    self.step += 1
    return batch

  def batch(self, step: int) -> dict:
    """Gives the problems of any step, as `next` did or will; the place stays."""
    places = [step * self._prompts + prompt for prompt in self._mine]
    return {"problems": [self._found.problem(self._index(place)) for place in places],
            "index": np.array(places, np.int64)}

  def _index(self, place: int) -> int:
    """Gives which problem stands at a place of the order."""
    return place if self._orders is None else self._orders.item(place)

  def state(self) -> dict:
    """Gives the place and what it is valid for; independent of the number of processes."""
    return {"step": self.step, **self._settings}

  def restore(self, state: dict) -> None:
    """Goes to the saved place.

    Raises:
      ValueError: if it was saved with other problems or settings; says which.
    """
    check_state(state, self.state())
    self.step = int(state["step"])

  def provenance(self, step: int) -> list[str]:
    """Names where the problem of each of this process's rows comes from; a group has the same."""
    return [one.where for one in self.batch(step)["problems"] for _ in range(self.group_size)]


def check_state(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  """Raises ValueError if a saved place is of other data or settings than these; says which differ."""
  differ = [f"{name}={saved.get(name)!r} then, {now[name]!r} now" for name in now
            if name != "step" and saved.get(name) != now[name]]
  if differ:
    raise ValueError(f"the saved place in the data belongs to other data or settings: {'; '.join(differ)}; "
                     "resume with what it was saved with, or start in another workdir")


def make(*, seed: int, name: str, batch_rows: int, held_out_frac: float, files: str | None = None,
         group_size: int = 1, options: Mapping[str, Any] = problems.NOTHING,
         fields: Mapping[str, str] | None = None, download: bool = False,
         process_index: int = 0, process_count: int = 1) -> PromptSource:
  """Builds the source of the training prompts of a task or dataset; see `load` and `PromptSource`."""
  found = load(name, files=files, held_out_frac=held_out_frac, seed=seed, options=options, fields=fields,
               download=download)
  return PromptSource(found, batch_rows=batch_rows, group_size=group_size, seed=seed,
                      process_index=process_index, process_count=process_count)
