"""Answers a file of ARC tasks with a run, one task after another, into one submission.

The submission is whole from the beginning: a task without an answer yet, or that cannot be answered, has its
test inputs as attempts. Every answer is kept at once in a file beside it, so that the same command, when it
was interrupted, goes on with the tasks that are left; a faulty task costs no other task its answer.
"""
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from atlas_jax import config as configs
from atlas_jax.checkpoint import digest_of
from atlas_jax.files import json_lines, write
from atlas_jax.parallel import hosts
from atlas_jax.puzzles import arc, solve
from atlas_jax.puzzles.arc import tasks

ANSWERED_BY = ("puzzle_eval.mode", "puzzle_eval.halt_threshold", "puzzle_eval.n_trajectories",
               "puzzle_eval.noise_std", "puzzle_eval.vote", "train.accumulate_steps")  # May change in a run.
FINISHED = ".finished.jsonl"  # Ending of the file beside the submission: a line per answered task.
BLANK = np.zeros((1, 1), np.uint8)  # In place of a test input that is no grid.


class Item(NamedTuple):
  """One task of a file.

  Attributes:
    id: its name.
    task: None where it cannot be solved.
    why: it cannot; "" where it can.
    inputs: of its test pairs.
  """

  id: str
  task: arc.Task | None
  why: str
  inputs: list


def read(config, workdir, file: str) -> list[Item] | arc.Task:
  """Reads a file of one task, or of {id: task}, of which those that cannot be solved say why.

  Outputs beside it, in ..._solutions.json for ..._challenges.json, say whether answers are right.

  Raises:
    ValueError: if the run solves no tasks, the file is no JSON, or none of its tasks can be solved.
  """
  solve.check_run(config, workdir)
  path = pathlib.Path(file).expanduser()
  raw = tasks.load_json(path)
  if not isinstance(raw, dict) or not raw or {"train", "test"} & raw.keys():
    return solve.read_task(config, workdir, file)
  outputs = _solutions(path)
  items = [_item(config, workdir, path, task_id, content, outputs.get(task_id))
           for task_id, content in raw.items()]
  if not any(item.task for item in items):
    raise ValueError(f"{path}: none of {len(items)} tasks can be solved; {items[0].why}")
  return items


def _item(config, workdir, path: pathlib.Path, task_id: str, content, outputs) -> Item:
  try:
    task = arc.task_of(task_id, content, str(path))
    solve.check_task(config, workdir, task, str(path))
  except ValueError as error:
    # No error: one faulty task of a file must not cost the others their answers.
    return Item(task_id, None, str(error), _inputs(content))
  return Item(task_id, _with_outputs(task, outputs, path), "", [left for left, _ in task.test])


def _with_outputs(task: arc.Task, outputs, path: pathlib.Path) -> arc.Task:
  """Returns a task with the outputs beside its file, which only tell whether answers are right."""
  where = f"{path}: task {task.id!r}, solution"
  try:
    if outputs is not None and (not isinstance(outputs, list) or len(outputs) != len(task.test)):
      raise ValueError(f"{where} must be a list of {len(task.test)} outputs, got {str(outputs)[:60]}")
    grids = [None if rows is None else tasks.grid_of(rows, where) for rows in outputs or ()]
  except ValueError as error:
    _warn("%s; it is not used", error)
    return task
  return task._replace(test=tuple((left, right) for (left, _), right in zip(task.test, grids))
                       ) if grids else task


def _inputs(content) -> list[np.ndarray]:
  """Returns as many grids as a malformed task has test pairs, or one if that cannot be seen."""
  test = content.get("test") if isinstance(content, dict) else None
  found = []
  for pair in test if isinstance(test, list) and test else [{}]:
    try:
      found.append(tasks.grid_of(pair["input"], "a test input"))
    except (ValueError, TypeError, KeyError):  # What is wrong with the task has been said.
      found.append(BLANK)
  return found


def _solutions(path: pathlib.Path) -> dict:
  beside = path.with_name(path.name.replace("_challenges.json", "_solutions.json"))
  return tasks.load_tasks(beside) if beside != path and beside.exists() else {}


def run(config, workdir, ask: solve.SolveOptions, items: list[Item], out: str, mesh, show: Callable) -> dict:
  """Solves the tasks that are not finished, and writes the submission after each.

  Args:
    config, workdir: of the run.
    ask: how to solve each of them.
    items: see `read`.
    out: file of the submission.
    mesh: all devices.
    show: is called in process 0 with the report of each task when it is answered, see `solve.Solver.solve`.

  Returns:
    "tasks", how many there are; "answered", also by earlier calls; "not_answered", {id: why}; and of the test
    outputs that are known, "known_outputs", how many are among the attempts, "solved_outputs".

  Raises:
    ValueError: if no task could be answered; the submission is written nevertheless.
    CheckpointError: if the checkpoint is damaged or of another model.
  """
  solver = solve.Solver(config, workdir, ask, mesh)
  settings = [str(pathlib.Path(workdir).resolve()), solver.step, *ask[1:], digest_of(workdir, solver.step),
              *(configs.at(config, name) for name in ANSWERED_BY)]
  finished = _Finished(pathlib.Path(f"{out}{FINISHED}"), settings)
  attempts = {item.id: _unanswered(item.inputs, ask.attempts) for item in items}
  failed = {item.id: item.why for item in items if item.task is None}
  for task_id, why in failed.items():
    _warn("task %s cannot be solved: %s", task_id, why)
  reports = finished.take(items, attempts)
  _write(attempts, out)
  for item in items:
    if item.id in reports or item.task is None:
      continue
    try:
      answers = solver.solve(item.task)
    # Raised by all processes alike, since it follows from values that all of them
    # have; so all go on together.
    except ValueError as error:
      failed[item.id] = str(error)
      _warn("task %s is not answered: %s", item.id, error)
      continue
    # First the answer, then the submission: after a kill between the two, the answer is taken from the file.
    finished.add(item.task, answers)
    attempts[item.id], reports[item.id] = answers.submission[item.id], answers.report
    _write(attempts, out)
    if hosts.is_main():
      show(answers.report)
  if not reports:
    raise ValueError(f"none of {len(items)} tasks was answered: {next(iter(failed.values()))}; {out} has "
                     "their test inputs as attempts")
  return {"tasks": len(items), "answered": len(reports), "not_answered": failed, **_score(items, reports)}


def _score(items: list[Item], reports: dict[str, dict]) -> dict[str, int]:
  """Counts the outputs that are known now, maybe not yet when a task was answered, and those found."""
  pairs = [(right.tolist(), test["attempts"]) for item in items if item.task and item.id in reports
           for (_, right), test in zip(item.task.test, reports[item.id]["tests"]) if right is not None]
  solved = [right in [attempt["grid"] for attempt in attempts] for right, attempts in pairs]
  return {"known_outputs": len(pairs), "solved_outputs": sum(solved)}


def _warn(line: str, *values) -> None:
  if hosts.is_main():
    logging.warning(line, *values)


def _unanswered(inputs: list, n_attempts: int) -> list[dict]:
  return [{f"attempt_{i + 1}": np.asarray(grid).tolist() for i in range(n_attempts)} for grid in inputs]


def _write(attempts: dict, out: str) -> None:
  if hosts.is_main():
    write.whole(out, json.dumps(attempts))


class _Finished:
  """The answers that are kept: a line for each, under a digest of all that it follows from."""

  def __init__(self, file: pathlib.Path, settings: list):
    self._file = file
    self._settings = settings

  def _key(self, task: arc.Task) -> str:
    # Without outputs, which an answer must not follow from: they may be known today and were not yesterday.
    hidden = task._replace(test=tuple((left, None) for left, _ in task.test))
    content = json.dumps([task.id, arc.to_json(hidden), *self._settings])
    return hashlib.sha256(content.encode()).hexdigest()

  def take(self, items: list[Item], attempts: dict) -> dict[str, dict]:
    """Puts finished answers into the attempts, and returns their reports by id; process 0 says which."""
    kept = self._lines() if hosts.is_main() else {}
    keys = {item.id: self._key(item.task) for item in items if item.task}
    mine = np.array([keys.get(item.id) in kept for item in items], np.int32)
    # Only process 0 needs to see the file. All must skip the same tasks, or they would wait for
    # each other in different ones.
    agreed = multihost_utils.broadcast_one_to_all(mine) if jax.process_count() > 1 else mine
    reports: dict[str, dict] = {}
    for item in (item for item, is_finished in zip(items, agreed) if is_finished):
      # Other processes get a stand-in: of theirs nothing is written, they must
      # only know that the task is done.
      found = kept.get(keys[item.id], {"attempts": attempts[item.id], "report": {"tests": []}})
      attempts[item.id], reports[item.id] = found["attempts"], found["report"]
    if reports and hosts.is_main():
      logging.info("%d of %d tasks are finished in %s and not solved again", len(reports), len(items),
                   self._file)
    return reports

  def _lines(self) -> dict[str, dict]:
    found: dict[str, dict] = {}
    lines = json_lines.lines(self._file) if self._file.is_file() else ()
    for number, line in enumerate(lines, start=1):
      try:
        entry = json_lines.parse(self._file, number, line)
        found[entry["key"]] = {name: entry[name] for name in ("attempts", "report")}
      # A kill in the middle of a write leaves such a line; what it had is found again by solving.
      except (ValueError, KeyError, TypeError):
        logging.warning("%s:%d is not whole, and its task is solved again", self._file, number)
    return found

  def add(self, task: arc.Task, answers: solve.SolveResult) -> None:
    """Keeps an answer, on the disk when this returns."""
    if hosts.is_main():
      entry = {"key": self._key(task), "attempts": answers.submission[task.id], "report": answers.report}
      with write.naming(self._file), self._file.open("a+", encoding="utf-8") as opened:
        if opened.tell() and not self._file.read_bytes().endswith(b"\n"):
          opened.write("\n")  # What an interrupted call left begins no line of ours.
        opened.write(json.dumps(entry) + "\n")
        opened.flush()
        os.fsync(opened.fileno())
