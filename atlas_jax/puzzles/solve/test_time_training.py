"""Tunes a run's network, and a small table of rows, to a few puzzles: for a time, or for a number of updates.

The recipe's loss on its slots, and the step of training, from fresh moments and free slots.
"""
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from atlas_jax import state as states
from atlas_jax.data import stepped
from atlas_jax.models import placement
from atlas_jax.optim import build as optim
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.puzzles.puzzle_set import PuzzleSet
from atlas_jax.puzzles.source import PuzzleSource
from atlas_jax.recipes import Recipe, trm
from atlas_jax.state import TrainState
from atlas_jax.step import jit_step


class TuningResult(NamedTuple):
  """The outcome of training at test time."""

  params: Any  # the moving average, where the settings keep one
  tables: Any
  report: dict  # steps, seconds, compile_seconds, loss_nats and train_exact_accuracy of the last update


class Tuner:
  """Trains on one small set of puzzles after another; what is compiled for one serves all of its shapes."""

  def __init__(self, config, mesh, reset: tuple):
    """Prepares.

    Args:
      config: settings of a run of recipe trm; what an update is follows from them.
      mesh: all devices.
      reset: the vectors that latents start from.
    """
    model = trm.model_of(config)
    self._config = config
    self._mesh = mesh
    self._built = {}
    # Copied onto the mesh once, replicated, as the step takes what is frozen.
    self._frozen = {"reset": jax.jit(lambda reset: reset, out_shardings=meshes.replicated(mesh))(reset)}
    self._recipe = Recipe(
        trm.init_of(config, model, 1), trm.loss_of(config, model), None, {},
        update=trm.update_of(config), accounting=trm.accounting_of(config, "puzzles"))

  def tune(self, train: PuzzleSet, params, rows_NE, *, seconds: float | None = None,
           steps: int | None = None) -> TuningResult:
    """Trains on a set of puzzles, from fresh moments and free slots.

    Args:
      train: the puzzles.
      params: what to start from, on the mesh; they stay as they are.
      rows_NE: where the table starts, with at least `trm.n_table_rows` rows.
      seconds: how long, compilation apart; the update that reaches it is the last. 0 leaves all as it is.
      steps: how many updates, in place of a time; 0 leaves all as it is.

    Raises:
      ValueError: if no update gave finite numbers.
    """
    # 0 answers with the run as it is, a baseline for what tuning brings.
    if not (seconds if steps is None else steps):
      tables = {"puzzles": rows_NE} if self._recipe.update.tables else ()
      return TuningResult(params, tables, _report(0, 0.0, 0.0, {}))
    config = self._config
    source = PuzzleSource(
        train, batch_rows=config.data.batch_rows, seed=config.seed, threads=config.data.threads,
        **stepped.this_process(), fresh_shift=config.puzzles.shift == "fresh")
    try:
      state, report = self._updates(source, params, rows_NE, seconds=seconds, steps=steps)
    finally:
      source.close()
    # A single update may be skipped, as in training. If all were, nothing was tuned, and the answers would be
    # those of the run under another name.
    if (bad := int(state.skipped)) == report["steps"]:
      raise ValueError(f"none of the {bad} updates gave finite numbers; lower --lr={config.optim.lr:g}, or "
                       "take another checkpoint")
    if hosts.is_main():
      logging.info("made %d updates in %.1f s, after %.1f s of compilation; %d were not finite and left out",
                   report["steps"], report["seconds"], report["compile_seconds"], bad)
    return TuningResult(states.params_used(state), state.tables, report)

  def _compiled(self, params, rows_NE, batch):
    """Returns functions that make the first state and the next one, from the shapes of their arguments."""
    if rows_NE.shape in self._built:
      return self._built[rows_NE.shape]
    config = self._config
    recipe = self._recipe

    def optimizer_of(params):
      return optim.build(params, **config.optim)

    def begin(params, rows_NE):
      tables = {"puzzles": rows_NE} if recipe.update.tables else ()

      def init(rng):
        # Moments, slots and average begin anew, by the recipe's own `init`;
        # parameters and rows are those given.
        return recipe.init(rng)._replace(params=params, tables=tables)

      return states.create(init, optimizer_of, config.optim.ema_decay, config.seed)

    shardings = placement.shardings(self._mesh, jax.eval_shape(begin, params, rows_NE))
    begin = jax.jit(begin, out_shardings=shardings)
    state = begin(params, rows_NE)
    step = jit_step(config, recipe, self._mesh, state)
    # Compiled ahead, so that compilation is not part of the time to tune.
    step = step.lower(state, batch, self._frozen, self._mark(False)).compile()
    self._built[rows_NE.shape] = begin, step
    return begin, step

  def _mark(self, last: bool):
    rows_here = self._config.data.batch_rows // jax.process_count()
    # Clocks of processes differ. Each puts its view of whether this update is the last into the step as rows,
    # and the step adds them up: all read the same sum, and stop together.
    return hosts.global_batch(self._mesh, np.full(rows_here, last, np.int32))

  def _updates(self, source: PuzzleSource, params, rows_NE, *, seconds: float | None,
               steps: int | None) -> tuple[TrainState, dict]:
    """Makes updates until all processes agree, by the number in the step itself, that it was the last."""

    def following():
      return hosts.global_batch(self._mesh, source.next())

    began = time.perf_counter()
    batch = following()
    begin, step = self._compiled(params, rows_NE, batch)
    state = begin(params, rows_NE)
    started = time.perf_counter()
    made = 0
    step_s = 0.0
    stop = 0
    limit_s = seconds or 0.0
    metrics = {}
    while not stop:
      sent = time.perf_counter()
      # Judged before it is sent, by the time of the update before: the last one reaches the
      # limit, none begins behind it.
      last = sent - started + step_s >= limit_s if steps is None else made + 1 == steps
      state, metrics = step(state, batch, self._frozen, self._mark(last))
      # The next batch is read while the devices work; the one of the last update is lost, as it is of no use.
      batch = following()
      made = made + 1
      stop = int(metrics["stop"])  # Waits for the step.
      step_s = time.perf_counter() - sent
    return state, _report(made, time.perf_counter() - started, started - began, jax.device_get(metrics))


def _report(steps: int, seconds: float, compile_seconds: float, metrics: dict) -> dict:
  # Averages over finished slots are NaN until one has finished; JSON has no NaN.
  known = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
  named = (("loss_nats", "train/loss_nats"), ("train_exact_accuracy", "recent/exact_accuracy"))
  return {"steps": steps, "seconds": round(seconds, 3), "compile_seconds": round(compile_seconds, 3),
          **{name: known.get(metric) for name, metric in named}}
