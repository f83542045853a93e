"""Answers ARC tasks with a run: tunes it to a task's demonstrations, then lets augmentations vote.

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from atlas_jax import config as configs
from atlas_jax.files import write as write_file
from atlas_jax.language import runs
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.puzzles import arc, grids, initial_model, solver
from atlas_jax.puzzles import sets as puzzle_sets
from atlas_jax.puzzles.arc import build, voting
from atlas_jax.puzzles.arc import evaluation as arc_votes
from atlas_jax.puzzles.solve import known, test_time_training
from atlas_jax.puzzles.source import EvalBatches
from atlas_jax.recipes import trm
from atlas_jax.state import Trained

WARMUP_STEPS = 10  # Adam's averages are empty at first.
EMA_DECAY = 0.9  # At most: the run's own average would hardly leave its start in a minute.


class SolveOptions(NamedTuple):
  """A task to solve and its settings; None takes the value of the run.

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


class SolveResult(NamedTuple):
  """Answers and report; both JSON."""

  report: dict  # see `run`
  submission: dict  # see `voting.submission`


# What can be refused without a device.


def read_task(config, workdir, file: str) -> arc.Task:
  """Reads the task to solve with a run.

  Raises:
    ValueError: if the run is not of ARC, or the file is not a task, or one with grids too large for the run.
  """
  check_run(config, workdir)
  task = arc.read_task(file)
  check_task(config, workdir, task, file)
  return task


def check_run(config, workdir) -> None:
  """Refuses a run that is not of ARC."""
  # From the record of the run, not from its data, which need not be on this machine.
  if config.recipe != "trm" or puzzle_sets.record_of(workdir)["kind"] != "arc":
    name = "recipe" if config.recipe != "trm" else "puzzles.name"
    raise ValueError(f"--mode=solve answers ARC tasks, and {workdir} holds a run of config.{name}="
                     f"{configs.at(config, name)!r}; give the workdir of a run of configs/trm_arc1.py")


def check_task(config, workdir, task: arc.Task, file: str) -> None:
  """Refuses a task of a file whose grids are too large for the run."""
  canvas = _canvas(config)
  if arc.side_of(task) > canvas:
    raise ValueError(f"{file}: task {task.id!r} has a grid with a side of {arc.side_of(task)} cells, and the "
                     f"run in {workdir} reads grids of up to {canvas} x {canvas}; take a run with a larger "
                     "config.puzzles.canvas")


def settings(config, ask: SolveOptions):
  """Returns the settings to tune with: those of the run, but for rates, their course, and what is asked for.

  Raises:
    ValueError: for what does not fit the run.
  """
  changed = configs.unfrozen(config)
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
  # A cosine whose end is its start: a warm-up, then a constant rate, however many updates the time allows.
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
    # Tried now: an answer that took an hour must not be lost for a folder that cannot be written to.
    tempfile.TemporaryFile(dir=path.parent).close()
  except OSError as error:
    raise ValueError(f"--out={file} cannot be written: {error.strerror}; choose another") from error


def write(answers: SolveResult, file: str) -> None:
  """Writes the attempts as ARC's graders read them, whole or not at all."""
  write_file.whole(file, json.dumps(answers.submission))


def _canvas(config) -> int:
  return math.isqrt(puzzle_sets.shape_of(config.puzzles).seq_len)


# Tuning and answering.


def run(config, workdir, ask: SolveOptions, mesh) -> SolveResult:
  """Solves a task with the newest checkpoint of a run; see `Solver`."""
  return Solver(config, workdir, ask, mesh).solve(ask.task)


class Solver:
  """A run that is opened to solve tasks: its weights are read once, and what is compiled serves them all."""

  def __init__(self, config, workdir, ask: SolveOptions, mesh):
    """Reads the weights.

    Args:
      config: of the run; resolved.
      workdir: of the run; it is left as it is.
      ask: how to solve.
      mesh: all devices.

    Raises:
      ValueError: if what is asked for does not fit the run or the mesh.
      CheckpointError: if the checkpoint is damaged or of another model.
    """
    self._changed = settings(config, ask)
    shards = meshes.n_row_shards(mesh)
    if self._changed.data.batch_rows % shards:
      rows = self._changed.data.batch_rows
      raise ValueError(f"--batch_rows={rows} does not divide over the {shards} devices that hold rows here; "
                       f"nearest are {configs.near(rows, shards)}")
    self._config = config
    self._workdir = workdir
    self._ask = ask
    self._mesh = mesh
    self._canvas = _canvas(config)
    self._known = known.KnownTasks(config, workdir)
    model = trm.model_of(config)
    init = trm.init_of(config, model, puzzle_sets.record_of(workdir)["n_ids"])
    # Without rows of the run its table, gigabytes of it, is not even read.
    wanted = init if ask.rows != "zero" else lambda rng: init(rng)._replace(tables=())
    self._params, tables, self.step = runs.restore(config, workdir, wanted, mesh)
    self._table_NE = tables["puzzles"] if tables else None
    if ask.rows == "mean" and tables:  # The table may be large; of it one row is needed.
      self._table_NE = jax.jit(lambda table_NE: initial_model.mean_row(table_NE)[None],
                               out_shardings=meshes.replicated(mesh))(tables["puzzles"])
    reset = initial_model.reset_of(config, model, workdir)
    self._tuner = test_time_training.Tuner(self._changed, mesh, reset)
    self._test: Any = None  # The set that is being answered.
    options = trm.solve_options_of(self._changed)._replace(max_examples=None)
    self._reset = {"reset": reset}
    # Compiled once: the batches are read through `self._test`, so tasks change without another `make`.
    self._answer = solver.make(trm.model_of(self._changed),
                               lambda: EvalBatches(self._test, config.eval.batch_rows), mesh, options)

  def solve(self, task: arc.Task) -> SolveResult:
    """Tunes to a task and answers it.

    Returns:
      The report: "task"; "checkpoint_step"; "augmentations", the task itself among them; "steps", updates
      made, and "seconds" they took; "compile_seconds"; "answer_seconds", compilation included; "loss_nats"
      of the last update and "train_exact_accuracy" of the demonstrations last finished, None if there is
      none; and "tests", for each test input its "attempts", best first and maybe fewer than asked for, each
      with its "grid", "votes", fraction of votes "vote_share" and mean "confidence", and, where the output is
      known, whether it is among them, "solved", and its "place" among all predictions.

    Raises:
      ValueError: if the task does not fit the run, or no update was finite.
    """
    ask = self._ask
    self._known.say(task)
    built, ids = self._build(task)
    rows_NE = self._start_rows(built, ids)
    if hosts.is_main():
      logging.info("tuning to %s for %s: %d demonstrations, %d augmentations", task.id,
                   f"{ask.seconds:g} s" if ask.steps is None else f"{ask.steps} updates", len(task.train),
                   built.train.n_puzzles)
    tuned = self._tuner.tune(built.train, self._params, rows_NE, seconds=ask.seconds, steps=ask.steps)
    started = time.perf_counter()
    votes = self._votes(built, tuned)
    rule = self._changed.puzzle_eval.vote
    report = {"task": task.id, "checkpoint_step": self.step, "augmentations": built.train.n_puzzles,
              **tuned.report, "answer_seconds": round(time.perf_counter() - started, 3),
              "tests": [_test(votes, task.id, ask.attempts, rule, *pair) for pair in task.test]}
    inputs = {task.id: [left for left, _ in task.test]}
    return SolveResult(report, voting.submission(votes, inputs, rule=rule, attempts=ask.attempts))

  def _build(self, task: arc.Task) -> tuple[build.Built, list[int]]:
    """Builds the task's puzzles; also which rows of the run's table theirs start from, if they do."""
    fields = self._config.puzzles
    ask = self._ask
    # Equal with and without known outputs: not even which augmentations differ may depend on them.
    hidden = task._replace(test=tuple((left, None) for left, _ in task.test))
    if ask.rows == "run":
      # The augmentations of the run, so that each row meets the puzzle it was
      # trained with; 0 is the blank row.
      ids = self._known.rows_of(task, ask.augmentations)
      return build.build_named(hidden, list(ids), fields.seed, self._canvas), [0, *ids.values()]
    return build.build_task(hidden, self._count(), fields.seed, self._canvas), []

  def _count(self) -> int:
    asked = self._ask.augmentations
    return self._config.puzzles.n_augmentations if asked is None else asked

  def _start_rows(self, built: build.Built, ids: list[int]):
    """Makes the rows that the task starts from: as many for every task, so that one compilation serves."""
    # Two more than augmentations: the task itself, and the blank row.
    n_rows = trm.n_table_rows(max(self._count() + 2, built.train.n_ids))

    def start(table_NE):
      if table_NE is None:
        return jnp.zeros((n_rows, self._config.trm.row_width), jnp.float32)
      if ids:
        # Rows of padding are copies of the blank row; no id points at them.
        return table_NE[np.pad(np.array(ids), (0, n_rows - len(ids)))]
      return jnp.broadcast_to(table_NE[0], (n_rows, table_NE.shape[1]))

    return jax.jit(start, out_shardings=meshes.replicated(self._mesh))(self._table_NE)

  def _votes(self, built, tuned: test_time_training.TuningResult) -> voting.Votes:
    """Answers every augmentation of every test input, and counts the answers as votes."""
    self._test = built.test
    votes = voting.Votes()
    reading = arc_votes.Grids(grids.parse_name, grids.crop, grids.undo)
    for result in self._answer(Trained(tuned.params, self._reset, tuned.tables)):
      # As an error, since voting takes a probability of 0 for it, and the answers would look like answers.
      if math.isnan(result.halt_logit):
        raise ValueError("the tuned network gives no numbers; lower --lr or --table_lr, or take another "
                         "checkpoint")
      arc_votes.vote(votes, built.names[result.id], result, reading)
    return votes


def _test(votes: voting.Votes, task_id: str, n_attempts: int, rule: str, input_grid, output) -> dict:
  """Reports the answers to one test input."""
  total = sum(ranked.n_votes for ranked in votes.ranking(task_id, input_grid, rule))
  best = voting.attempts_of(votes, task_id, input_grid, rule, n_attempts)
  attempts = [{"grid": ranked.grid.tolist(), "votes": ranked.n_votes, "vote_share": ranked.n_votes / total,
               "confidence": ranked.mean_q} for ranked in best]
  if output is None:
    return {"attempts": attempts}
  place, = voting.solved_at(votes, task_id, [(input_grid, output)], rule)
  solved = any(np.array_equal(ranked.grid, output) for ranked in best)
  return {"attempts": attempts, "solved": solved, "place": place}
