"""Answers one ARC task with a run: tunes it to the task's demonstrations, then lets augmentations vote.

The task gets a table of its own, a row for each of its augmentations, and the network of the run goes on
training on them: the same loss, slots and optimizer, with constant rates after a short warm-up. Outputs of
test pairs are not looked at but to say whether the answers are right.

Source: Jolicoeur-Martineau 2025, arXiv:2510.04871, where the tasks to be solved are trained on with all
others; tuning to one task after training is after its program's way to continue with other puzzles.
"""
import json
import math
import pathlib
import tempfile
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from atlas_jax import config as configs
from atlas_jax.data.puzzles import arc, arc_build, files, grids
from atlas_jax.data.puzzles import sets as puzzle_sets
from atlas_jax.data.puzzles.source import EvalBatches
from atlas_jax.evals import arc as arc_votes
from atlas_jax.evals import solver, voting
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import trm
from atlas_jax.serve import runs, tuning

WARMUP_STEPS = 10  # Adam's averages are empty at first.
EMA_DECAY = 0.9  # At most: the run's own average would hardly leave its start in a minute.


class Ask(NamedTuple):
  """What to solve, and how; None takes the value of the run.

  Attributes:
    task: see `read_task`.
    seconds: how long to tune, compilation and answering apart; None where `steps` says.
    steps: how many updates to tune; the answers then follow from it, the run and the task alone.
    attempts: answers per test input.
    augmentations: how many the task gets besides itself.
    rows: where its rows start: "mean" of the rows that the run has trained, of all places the closest, in the
      mean square, to what the network has learnt to read; "zero", where the run's own rows started; "run",
      the rows that the run has trained for this very task, with their augmentations.
    lr, table_lr: highest learning rates of the network and of the rows.
    batch_rows: pairs tuned on side by side.
  """

  task: arc.Task
  seconds: float | None = 60.0
  steps: int | None = None
  attempts: int = voting.ATTEMPTS
  augmentations: int | None = None
  rows: str = "mean"
  lr: float | None = None
  table_lr: float | None = None
  batch_rows: int | None = None


class Answers(NamedTuple):
  """What is found; JSON both."""

  report: dict  # see `run`
  submission: dict  # see `voting.submission`


# What can be refused without a device.


def read_task(config, workdir, file: str) -> arc.Task:
  """Reads the task to solve with a run.

  Raises:
    ValueError: if the run is not of ARC, or the file is not a task, or one with grids too large for the run.
  """
  if config.recipe != "trm" or puzzle_sets.record_of(workdir)["kind"] != "arc":
    name = "recipe" if config.recipe != "trm" else "puzzles.name"
    raise ValueError(f"--mode=solve answers ARC tasks, and {workdir} holds a run of config.{name}="
                     f"{configs.at(config, name)!r}; give the workdir of a run of configs/trm_arc1.py")
  task, canvas = arc.read_task(file), _canvas(config)
  if arc.side_of(task) > canvas:
    raise ValueError(f"{file}: task {task.id!r} has a grid with a side of {arc.side_of(task)} cells, and the "
                     f"run in {workdir} reads grids of up to {canvas} x {canvas}; take a run with a larger "
                     "config.puzzles.canvas")
  return task


def settings(config, ask: Ask):
  """Gives the settings to tune with: those of the run, but for rates, their course, and what is asked for.

  Raises:
    ValueError: for what does not fit the run.
  """
  changed = config.as_configdict()
  if ask.rows == "run" and not config.trm.row_width:
    raise ValueError("--rows=run asks for rows of the run, which has none (config.trm.row_width=0); leave it "
                     "out")
  for flag, value in (("lr", ask.lr), ("table_lr", ask.table_lr)):
    if value is not None and not (0 < value < math.inf):
      raise ValueError(f"--{flag}={value:g} must be above 0, such as 1e-4")
  rows = config.data.batch_rows if ask.batch_rows is None else ask.batch_rows
  parts = config.train.accumulate_steps
  if rows % parts:
    raise ValueError(f"--batch_rows={rows} is not a multiple of config.train.accumulate_steps={parts}; "
                     f"nearest are {configs.near(rows, parts)}")
  keep = config.optim.ema_decay
  changed.optim.update(lr=config.optim.lr if ask.lr is None else ask.lr, warmup_steps=WARMUP_STEPS,
                       steps=WARMUP_STEPS, schedule="cosine", final_lr_frac=1.0,  # Constant after it.
                       ema_decay=None if keep is None else min(keep, EMA_DECAY))
  changed.table.lr = config.table.lr if ask.table_lr is None else ask.table_lr
  changed.data.batch_rows = rows
  return configs.resolve(changed)


def check_out(file: str) -> None:
  """Refuses a file that could not be written in the end."""
  path = pathlib.Path(file)
  if path.is_dir() or not path.parent.is_dir():
    what = "is a folder" if path.is_dir() else f"is in {path.parent}, which is no folder"
    raise ValueError(f"--out={file} {what}; give a file in a folder that exists")
  try:
    tempfile.TemporaryFile(dir=path.parent).close()
  except OSError as error:
    raise ValueError(f"--out={file} cannot be written: {error.strerror}; choose another") from error


def write(answers: Answers, file: str) -> None:
  """Writes the attempts as ARC's graders read them, whole or not at all."""
  voting.write_whole(pathlib.Path(file), json.dumps(answers.submission).encode())


def _canvas(config) -> int:
  return math.isqrt(puzzle_sets.shape_of(config.puzzles).seq_len)


# What a run knows of a task.


def _known(config, task: arc.Task) -> str | None:
  """Says which part of the run's tasks has this one, by id and demonstrations; None if it is not among them.

  Raises:
    ImportError, ValueError: if the data of the run are not here.
  """
  fields = config.puzzles
  if fields.name == "built":
    found = files.load(fields.path)
    parts = {"held out": [arc.task_of(name, raw, fields.path) for name, raw in found.test_puzzles.items()]}
    if task.id in found.train.names and task.id not in found.test_puzzles:
      return "trained on whole"  # The folder does not hold its pairs apart: the id must do.
  else:
    subsets = arc.select(arc.read(fields.name, fields.path, fields.concept_path), canvas=fields.canvas,
                         max_tasks=fields.max_tasks)
    held_out = arc_build.held_out(subsets)
    parts = {"held out" if name == held_out else "trained on whole": tasks for name, tasks in subsets.items()}
  same = lambda other: (other.id == task.id and
                        grids.puzzle_digest(other.train) == grids.puzzle_digest(task.train))
  return next((part for part, tasks in parts.items() if any(map(same, tasks))), None)


def _say_known(config, task: arc.Task) -> None:
  if not hosts.is_main():
    return
  try:
    part = _known(config, task)
  except (ImportError, ValueError) as error:
    logging.info("whether the run was trained on %s is not known here: %s", task.id, error)
    return
  if part is None:
    logging.info("%s is new to the run", task.id)
  else:
    logging.info("%s is known to the run, %s, where its demonstrations are trained on%s; it is tuned to anew",
                 task.id, part, "" if part == "held out" else " and its test pairs too: being right means "
                 "nothing")


def _ids_of(config, workdir, ask: Ask) -> dict[str, int]:
  """Gives the rows of the run's table that belong to a task, by the names of its augmentations.

  Raises:
    ValueError: if the run has other puzzles than its data here, or does not know the task.
  """
  sets = puzzle_sets.load(config)
  sets.check_run(workdir)
  task = ask.task.id
  ids = {name: row for row, name in enumerate(sets.train.names) if name.split(grids.SEPARATOR)[0] == task}
  if task not in ids:
    raise ValueError(f"--rows=run: the task {task!r} is not in the table of the run in {workdir}, of "
                     f"{sets.train.n_groups} tasks; leave out --rows=run to give it rows of its own")
  if _known(config, ask.task) is None:
    raise ValueError(f"--rows=run: the run in {workdir} knows {task!r} with other demonstrations, its rows "
                     "stand for those; leave out --rows=run, or give the task as the run has it")
  first = sorted(ids, key=lambda name: name != task)  # The task as it stands, as `arc_build` wants it.
  return {name: ids[name] for name in first[:None if ask.augmentations is None else ask.augmentations + 1]}


def _build(config, workdir, ask: Ask) -> tuple[arc_build.Built, list[int]]:
  """Builds the task's puzzles; also which rows of the run's table theirs start from, if they do."""
  fields, canvas = config.puzzles, _canvas(config)
  # Equal with and without known outputs: not even which augmentations differ may depend on them.
  hidden = ask.task._replace(test=tuple((left, None) for left, _ in ask.task.test))
  if ask.rows == "run":
    ids = _ids_of(config, workdir, ask)
    return arc_build.build_named(hidden, list(ids), fields.seed, canvas), [0, *ids.values()]
  count = fields.n_augmentations if ask.augmentations is None else ask.augmentations
  return arc_build.build_task(hidden, count, fields.seed, canvas), []


# Tuning and answering.


def run(config, workdir, ask: Ask, mesh) -> Answers:
  """Solves a task with the newest checkpoint of a run.

  Args:
    config: of the run; resolved.
    workdir: of the run; it is left as it is.
    ask: what, and how.
    mesh: all devices.

  Returns:
    The report: "task"; "checkpoint_step"; "augmentations", the task itself among them; "steps", updates made,
    and "seconds" they took; "compile_seconds"; "answer_seconds", compilation included; "loss_nats" of the
    last update and "train_exact_accuracy" of the demonstrations last finished, None if there is none; and
    "tests", for each test input its "attempts", best first and maybe fewer than asked for, each with its
    "grid", "votes", share of votes "vote_share" and mean "confidence", and, where the output is known,
    whether it is among them, "solved", and its "place" among all predictions.

  Raises:
    ValueError: if what is asked for does not fit the run or the mesh, or no update was finite.
    CheckpointError: if the checkpoint is damaged or of another model.
  """
  changed, shards = settings(config, ask), meshes.n_row_shards(mesh)
  if changed.data.batch_rows % shards:
    raise ValueError(f"--batch_rows={changed.data.batch_rows} does not divide over the {shards} devices that "
                     f"hold rows here; nearest are {configs.near(changed.data.batch_rows, shards)}")
  _say_known(config, ask.task)
  built, ids = _build(config, workdir, ask)
  params, rows_NE, step = _restored(config, workdir, ask, built, ids, mesh)
  if hosts.is_main():
    logging.info("tuning to %s for %s: %d demonstrations, %d augmentations", ask.task.id,
                 f"{ask.seconds:g} s" if ask.steps is None else f"{ask.steps} updates", len(ask.task.train),
                 built.train.n_puzzles)
  tuned = tuning.tune(changed, built.train, params, rows_NE, mesh, seconds=ask.seconds, steps=ask.steps)
  started = time.perf_counter()
  votes = _votes(changed, built, tuned, mesh)
  rule = changed.puzzle_eval.vote
  report = {"task": ask.task.id, "checkpoint_step": step, "augmentations": built.train.n_puzzles,
            **tuned.report, "answer_seconds": round(time.perf_counter() - started, 3),
            "tests": [_test(votes, ask, rule, *pair) for pair in ask.task.test]}
  inputs = {ask.task.id: [left for left, _ in ask.task.test]}
  return Answers(report, voting.submission(votes, inputs, rule=rule, attempts=ask.attempts))


def _restored(config, workdir, ask: Ask, built, ids: list[int], mesh):
  """Reads the run's weights, and makes the rows that the task starts from; also gives the run's step."""
  init = trm.init_of(config, trm.model_of(config), puzzle_sets.record_of(workdir)["n_ids"])
  wanted = init if ask.rows != "zero" else lambda rng: init(rng)._replace(tables=())
  params, tables, step = runs.restore(config, workdir, wanted, mesh)
  n_rows = trm.n_table_rows(built.train.n_ids)

  def start(tables):
    if not tables:
      return jnp.zeros((n_rows, config.trm.row_width), jnp.float32)
    table_NE = tables["puzzles"]
    if ids:
      return table_NE[np.pad(np.array(ids), (0, n_rows - len(ids)))]
    used = jnp.sum(jnp.any(table_NE != 0, axis=1))  # A row that no batch had is zero.
    mean_E = jnp.sum(table_NE, axis=0) / jnp.maximum(used, 1)
    return jnp.broadcast_to(mean_E, (n_rows, mean_E.shape[0]))

  return params, jax.jit(start, out_shardings=meshes.replicated(mesh))(tables), step


def _votes(config, built, tuned: tuning.Tuned, mesh) -> voting.Votes:
  """Answers every augmentation of every test input, and counts the answers as votes."""
  options = trm.solve_options_of(config)._replace(max_examples=None)
  solve = solver.make(trm.model_of(config), lambda: tuning.frozen_of(config, mesh)["reset"],
                      lambda: EvalBatches(built.test, config.eval.batch_rows), mesh, options)
  votes, reading = voting.Votes(), arc_votes.Grids(grids.parse_name, grids.crop, grids.undo)
  for result in solve(tuned.params, tuned.tables):
    if math.isnan(result.halt_logit):
      raise ValueError("the tuned network gives no numbers; lower --lr or --table_lr, or take another "
                       "checkpoint")
    arc_votes.vote(votes, built.names[result.id], result, reading)
  return votes


def _test(votes: voting.Votes, ask: Ask, rule: str, input_grid, output) -> dict:
  """Reports the answers to one test input."""
  ranking = votes.ranking(ask.task.id, input_grid, rule)
  total = sum(ranked.n_votes for ranked in ranking)
  attempts = [{"grid": ranked.grid.tolist(), "votes": ranked.n_votes, "vote_share": ranked.n_votes / total,
               "confidence": ranked.mean_q} for ranked in ranking[:ask.attempts]]
  if output is None:
    return {"attempts": attempts}
  place, = voting.solved_at(votes, ask.task.id, [(input_grid, output)], rule)
  return {"attempts": attempts, "solved": place is not None and place <= ask.attempts, "place": place}
