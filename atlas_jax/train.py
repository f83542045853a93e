"""The one training loop: it knows a recipe's fields and nothing else of the kind of training."""
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from atlas_jax import evals, tree
from atlas_jax import state as states
from atlas_jax.checkpoint import CheckpointError, Checkpoints
from atlas_jax.evals import EvalOut
from atlas_jax.files import json_file, write
from atlas_jax.monitor import profile, report, skipped
from atlas_jax.monitor.clock import Clock, Sent
from atlas_jax.monitor.idle import Idle, IdleError
from atlas_jax.monitor.progress import Progress
from atlas_jax.monitor.writer import METRICS, MetricsWriter
from atlas_jax.optim import build as optim
from atlas_jax.optim import freeze
from atlas_jax.parallel import hosts, place
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import Given, Recipe
from atlas_jax.state import TrainState
from atlas_jax.step import jit_step, model_flops

SUMMARY = "summary.json"  # Written last: where it is, the run is finished.


class LostPeerError(RuntimeError):
  """Another process of the run died."""


# ------------------------------------------------------------------------------------ where a run stands


@dataclasses.dataclass
class Run:
  """A run at work: its parts, and what the host counts beside the train state."""

  config: Any
  recipe: Recipe
  mesh: Any
  workdir: pathlib.Path
  saver: Checkpoints
  step: int = 0
  seen: int = 0  # tokens, or what else the recipe counts
  earlier_s: float = 0.0  # taken by the starts before this one
  resumed_from_step: int | None = None
  started_s: float = dataclasses.field(default_factory=time.perf_counter)
  writer: Any = None  # opened when it is known from which step the run goes on
  idle: Idle = dataclasses.field(init=False)

  def __post_init__(self):
    self.idle = Idle(self.config)

  @property
  def seconds(self) -> float:
    """What the run took so far, compilation and evaluations included."""
    return self.earlier_s + time.perf_counter() - self.started_s

  def meta(self) -> dict:
    """Gives what is saved beside the train state."""
    return {"step": self.step, "source": self.recipe.source.state(), f"{self.recipe.unit}_seen": self.seen,
            "seconds": self.seconds, "idle_in_row": self.idle.in_row}

  def seen_row(self) -> dict[str, int]:
    """Gives the metric that counts what was seen, such as train/tokens_seen."""
    return {f"train/{self.recipe.unit}_seen": self.seen}

  def newest_good(self):
    """Gives the path of the newest whole checkpoint, None if there is none; waits for one under way."""
    self.saver.wait()
    return self.saver.newest_good()

  def close(self) -> None:
    """Closes all files and ends all threads."""
    if self.writer is not None:
      self.writer.close()
    self.saver.close()
    if hasattr(self.recipe.source, "close"):
      self.recipe.source.close()


def abstract_state(config, recipe: Recipe, mesh) -> tuple[TrainState, Any]:
  """Gives shapes and shardings of the train state, and of the frozen parameters, without computing them."""
  first = jax.eval_shape(lambda: states.first(recipe.init, config.seed))
  freeze.check_trained(first.params, config.optim.freeze, has_tables=recipe.tables is not None)
  state = states.abstract(mesh, *_state_args(config, recipe))
  return state, place.abstract(first.frozen, place.shardings(mesh, first.frozen))


def _state_args(config, recipe: Recipe):
  optimizer_of = lambda params: optim.build(params, **config.optim)
  return recipe.init, optimizer_of, config.optim.ema_decay, config.seed, recipe.anchor is not None


def frozen_of(config, recipe: Recipe, mesh, given: Given):
  """Puts on the mesh what the loss is handed besides parameters: what was read, and the rest drawn.

  Args:
    config, recipe, mesh: of the run.
    given: what `recipe.read` gave.
  """
  init = lambda: states.first(recipe.init, config.seed).frozen
  wanted = jax.eval_shape(init)
  if not given.frozen:
    return jax.jit(init, out_shardings=place.shardings(mesh, wanted))()
  states.check_same(dict(given.frozen), {name: wanted[name] for name in given.frozen})
  rest = {name: part for name, part in wanted.items() if name not in given.frozen}
  drawn = jax.jit(lambda: {name: init()[name] for name in rest}, out_shardings=place.shardings(mesh, rest))()
  return {**drawn, **given.frozen}


def _start(run_: Run) -> tuple[TrainState, Any]:
  """Restores state and source from the newest checkpoint or makes the first state; also what is frozen."""
  config, recipe, saver = run_.config, run_.recipe, run_.saver
  abstract, _ = abstract_state(config, recipe, run_.mesh)
  fresh = saver.latest_step() is None
  given = Given() if recipe.read is None else recipe.read(run_.mesh, fresh)
  frozen = frozen_of(config, recipe, run_.mesh, given)
  recipe.bind(frozen, run_.workdir)
  if config.optim.freeze is not None:
    _say(logging.INFO, "config.optim.freeze=%s: of %d parameters, %d do not change", config.optim.freeze,
         tree.count(abstract.params), freeze.count(abstract.params, config.optim.freeze))
  if fresh:
    _warn_of_rows(run_)
    return states.build(abstract, *_state_args(config, recipe), params=given.params,
                        tables=given.tables), frozen
  state, meta = saver.restore(abstract)
  recipe.source.restore(meta["source"])
  run_.step = run_.resumed_from_step = int(meta["step"])
  run_.seen = next(int(value) for name, value in meta.items() if name.endswith("_seen"))
  run_.earlier_s, run_.idle = float(meta["seconds"]), Idle(config, in_row=int(meta.get("idle_in_row", 0)))
  _say(logging.INFO, "resumed from step %d in %s", run_.step, saver.path)
  return state, frozen


def save_start(config, recipe: Recipe, mesh, workdir) -> None:
  """Saves what a run starts from as its checkpoint of step 0, so that it can be used without training."""
  run_ = Run(config, recipe, mesh, pathlib.Path(workdir), Checkpoints(workdir, **config.checkpoint))
  state, _ = _start(run_)
  run_.saver.save(0, state, run_.meta())
  run_.close()


def _warn_of_rows(run_: Run) -> None:
  if (run_.workdir / METRICS).exists() and (rows := report.read_metrics(run_.workdir)):
    _say(logging.WARNING, "%s has rows up to step %d of a start that left no checkpoint: this one drops them "
         "and starts from step 0", run_.workdir / METRICS, rows[-1]["step"])


def _finished(config, workdir: pathlib.Path, saver: Checkpoints) -> dict | None:
  """Gives the summary of a run that has nothing left to do, None if there is something.

  Raises:
    CheckpointError: if a finished run has lost its checkpoints: starting anew would overwrite what is left.
  """
  if not (workdir / SUMMARY).exists():
    return None
  if saver.latest_step() is None:
    raise CheckpointError(f"{workdir / SUMMARY} is of a finished run, and {saver.path} holds no checkpoint; "
                          "bring the checkpoints back, or use another --workdir")
  summary = json_file.read(workdir / SUMMARY, remedy="delete it: the run is then finished again")
  return summary if summary.get("steps") == saver.latest_step() >= config.optim.steps else None


def _say(level: int, line: str, *values) -> None:
  if hosts.is_main():
    logging.log(level, line, *values)


# ---------------------------------------------------------------------------------------------------- a run


def run(config, recipe: Recipe, mesh, workdir) -> dict:
  """Trains until config.optim.steps, from the newest checkpoint of the workdir if there is one.

  Args:
    config: resolved.
    recipe: what kind of training; see `recipes.load`.
    mesh: all devices; see `parallel.mesh.make`.
    workdir: gets metrics.jsonl, TensorBoard events, checkpoints, report.png and at last summary.json.

  Returns:
    The summary, or {} if the run was asked to stop; the same call then goes on with it. A finished run is
    left as it is, and its summary given again.

  Raises:
    NonFiniteError: after config.train.skip_limit batches in a row without a finite update.
    IdleError: after config.train.idle_limit updates in a row that learnt nothing; the run is saved.
    CheckpointError: if the newest checkpoint is damaged or of another model.
    LostPeerError: if another process of the run died.
  """
  workdir = pathlib.Path(workdir)
  saver = Checkpoints(workdir, **config.checkpoint)
  if summary := _finished(config, workdir, saver):
    _say(logging.INFO, "the run in %s is finished, at step %d, and left as it is; a higher "
         "config.optim.steps goes on with it", workdir, summary["steps"])
    return summary
  run_ = Run(config, recipe, mesh, workdir, saver)
  try:
    state, frozen = _start(run_)
    run_.writer = MetricsWriter(workdir, tensorboard=config.monitor.tensorboard, resume_step=run_.step)
    with hosts.StopFlag(mesh) as stop:
      state, stopped = _updates(run_, state, frozen, stop)
      summary = {} if stopped else _finish(run_, state, stop)
  except Exception as error:
    if hosts.lost_peer(error):  # Closing would wait for the process that is gone.
      raise LostPeerError(
          f"another process of this run died after step {run_.step}; newest good checkpoint: "
          f"{saver.newest_good() or 'none'}; the same command goes on from there") from error
    run_.close()
    raise
  run_.close()
  return summary


def _updates(run_: Run, state: TrainState, frozen, stop) -> tuple[TrainState, bool]:
  """Makes updates until the end or until the run is asked to stop; says which."""
  config, recipe = run_.config, run_.recipe
  step = jit_step(config, recipe, run_.mesh, state)
  clock = Clock(profile.run_peak_flops(run_.mesh.devices.flatten()), unit=recipe.unit)
  pending: tuple[int, Sent, EvalOut | None] | None = None  # The step that is not read yet.
  stopped = False
  with Progress(config.optim.steps, run_.step, enabled=config.monitor.progress) as bar:
    while run_.step < config.optim.steps and not stopped:
      batch = hosts.global_batch(run_.mesh, recipe.source.next(state.params))
      told = recipe.source.tell() if hasattr(recipe.source, "tell") else None
      if clock.flops_per_step is None:
        clock.flops_per_step = model_flops(recipe, state, frozen, batch)
      state, sent = clock.send(step, state, batch, frozen, stop.array())
      run_.step += 1
      # The host reads the step before this one while the device works on this one.
      stopped = pending is not None and _observe(run_, *pending, clock, bar)
      pending = (run_.step, sent, told)
      if not stopped and _due(run_.step, config):
        stopped, pending = _observe(run_, *pending, clock, bar), None
        _evaluate_and_save(run_, state)
        clock.restart()
    if pending is not None:
      _observe(run_, *pending, clock, bar)
  run_.idle.close()
  stopped = stopped and run_.step < config.optim.steps
  run_.saver.wait()  # A save under way may be of this very step.
  if run_.saver.latest_step() != run_.step:
    run_.saver.save(run_.step, state, run_.meta())
    run_.saver.wait()
  if run_.idle.ending is not None:
    raise IdleError(f"{run_.idle.ending}. Step {run_.step} is saved in {run_.saver.path}; the same command "
                    "goes on from there, other settings of a model or its data need another --workdir")
  if stopped:
    _say_stopped(run_)
  return state, stopped


def _say_stopped(run_: Run) -> None:
  _say(logging.WARNING, "stopped at step %d, saved in %s; the same command goes on from there", run_.step,
       run_.saver.path)


def _due(step: int, config) -> bool:
  return step < config.optim.steps and (step % config.checkpoint.every_steps == 0 or _eval_due(step, config))


def _eval_due(step: int, config) -> bool:
  every, first = config.train.eval_every_steps, config.train.eval_from_step or 0
  return every is not None and step % every == 0 and step >= first


def _observe(run_: Run, step: int, sent: Sent, told: EvalOut | None, clock: Clock, bar) -> bool:
  """Reads a step's metrics, counts, logs with what the source told; says whether to stop."""
  counts = f"train/step_{run_.recipe.unit}"
  row = clock.read(sent, counted=counts)
  for name in run_.recipe.may_be_absent:
    if math.isnan(row[name]):
      del row[name]
  stop = hosts.StopFlag.agreed(row.pop("stop"))
  run_.seen += int(row.pop(counts))
  bar.update(step, loss=row["train/loss_nats"], per_s=clock.per_s, unit=run_.recipe.unit)
  if row["train/skipped_in_row"]:
    skipped.check(step, row, run_.recipe.source, limit=run_.config.train.skip_limit,
                  newest_good=run_.newest_good)
  row |= told.scalars if told else {}
  run_.idle.observe(step, row)
  if step % run_.config.train.log_every_steps == 0 or step == run_.config.optim.steps:
    run_.writer.write(step, {**row, **run_.seen_row(), **clock.row()})
    if told and told.text:
      run_.writer.write_text(step, "rollout/completions", told.text)
    clock.next_row()
  return stop or run_.idle.ending is not None


# ------------------------------------------------------------------------------------ evaluations and the end


def evaluate(recipe: Recipe, params, *, step: int, when: tuple[str, ...] = ("every", "end"), tables=(),
             workdir=None) -> EvalOut:
  """Runs a recipe's evaluations.

  Args:
    recipe: whose evaluations.
    params: on the mesh the evaluations were made for; the moving average where a run keeps one.
    step: updates the parameters have seen.
    when: which evaluations: "every" (those made as the run goes), "end".
    tables: of the train state.
    workdir: of the run, where evaluations leave files; None: nowhere.

  Returns:
    Numbers by metric name, texts one after another, and images by name.
  """
  return evals.join(found.run(params, step=step, tables=tables, workdir=workdir)
                 for found in recipe.evals.values() if found.when in when)


def _write_eval(run_: Run, out: EvalOut) -> None:
  run_.writer.write(run_.step, {**out.scalars, **run_.seen_row()})
  for name, image in out.images.items():
    run_.writer.write_image(run_.step, name, image)


def _eval_params(state: TrainState):
  return state.params if isinstance(state.ema, tuple) else state.ema


def _evaluate_and_save(run_: Run, state: TrainState) -> None:
  scalars: dict = {}
  if _eval_due(run_.step, run_.config):
    out = evaluate(run_.recipe, _eval_params(state), step=run_.step, when=("every",), tables=state.tables,
                   workdir=run_.workdir)
    _write_eval(run_, out)
    scalars = out.scalars
  if scalars or run_.step % run_.config.checkpoint.every_steps == 0:
    named = {evals.summary_name(name): value for name, value in scalars.items()}
    best = run_.config.checkpoint.best_metric
    if named and run_.config.checkpoint.keep_best and best not in named:
      _say(logging.WARNING, "config.checkpoint.best_metric=%s is none of what was evaluated (%s): no "
           "checkpoint is kept as the best", best, ", ".join(named))
    run_.saver.save(run_.step, state, run_.meta(), named or None)


def _finish(run_: Run, state: TrainState, stop) -> dict:
  """Evaluates the last parameters and writes what a run leaves behind; {} if asked to stop meanwhile."""
  asked, outs = _asker(run_.mesh, stop), []
  for found in run_.recipe.evals.values():
    if asked():
      _say_stopped(run_)
      return {}
    outs.append(found.run(_eval_params(state), step=run_.step, tables=state.tables, workdir=run_.workdir))
  out = evals.join(outs)
  _write_eval(run_, out)
  summary = _summary(run_, tree.count(state.params), out) if hosts.is_main() else {}
  run_.recipe.leave(run_.workdir, _eval_params(state), summary)
  if not hosts.is_main():
    return {}
  if out.text:
    run_.writer.write_text(run_.step, "eval/sample", out.text)
    print(out.text, flush=True)
  report.write_report(run_.workdir)
  write.json(run_.workdir / SUMMARY, summary)
  return summary


def _asker(mesh, stop) -> Callable[[], bool]:
  """Makes the question, put by all processes together, whether one was asked to stop; it waits."""
  total = jax.jit(jnp.sum, out_shardings=meshes.replicated(mesh))
  return lambda: stop.agreed(total(stop.array()))


def _summary(run_: Run, params: int, out: EvalOut) -> dict:
  rows, unit = report.read_metrics(run_.workdir), run_.recipe.unit
  return {
      "params": params, "steps": run_.step, f"{unit}_seen": run_.seen,
      "train_loss_nats": report.last_mean(rows, "train/loss_nats"),
      **{evals.summary_name(name): value for name, value in out.scalars.items()}, **out.notes,
      **report.speeds(rows, unit),
      "resumed_from_step": run_.resumed_from_step, "seconds": round(run_.seconds, 1),
      **({} if out.scalars else {"evaluation": "none"}),
  }
