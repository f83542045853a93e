"""The one training loop: it knows a recipe's fields and nothing else of the kind of training."""
import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from absl import logging

from atlas_jax import closing, tree
from atlas_jax import state as states
from atlas_jax.checkpoint import CheckpointError, Checkpoints
from atlas_jax.closing import say
from atlas_jax.evals import EvalOut
from atlas_jax.files import json_file
from atlas_jax.lock import Lock
from atlas_jax.monitor import ledger, profile, report, skipped, trackers
from atlas_jax.monitor.alerts.live import NO_ALERTS
from atlas_jax.monitor.clock import Clock, Sent
from atlas_jax.monitor.idle import Idle, IdleError
from atlas_jax.monitor.ledger import Ledger
from atlas_jax.monitor.progress import Progress
from atlas_jax.monitor.repeats import Repeats
from atlas_jax.monitor.watch import Watch, open_writer
from atlas_jax.opening import abstract_state, frozen_of, state_args
from atlas_jax.optim import freeze
from atlas_jax.parallel import hosts
from atlas_jax.recipes import Recipe
from atlas_jax.state import LoadedParams, Trained, TrainState
from atlas_jax.step import jit_step, model_flops
from atlas_jax.workdir import LEDGER, METRICS, SUMMARY


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
  owner: Lock | None = None  # of the workdir, in the process that has it
  ledger: Ledger = dataclasses.field(default_factory=Ledger)
  frozen: Any = ()  # parameters that are not trained, on the mesh
  evaluation_due: bool = False  # an evaluation of the step the run stands at has not been made
  alerts: Any = NO_ALERTS  # Opened with the writer.
  repeats: Repeats = dataclasses.field(default_factory=Repeats)
  idle: Idle = dataclasses.field(init=False)
  watch: Watch = dataclasses.field(init=False)

  def __post_init__(self):
    self.follow({})

  def follow(self, meta: Mapping[str, Any]) -> None:
    """Follows updates from the beginning, or from what `meta` says of a checkpoint."""
    self.idle = Idle(self.config, in_row=int(meta.get("idle_in_row", 0)))
    self.watch = Watch(self.config.monitor, self.workdir, is_main=hosts.is_main(),
                       high_loss=meta.get("high_loss"))

  @property
  def seconds(self) -> float:
    """Returns the time the run took so far, compilation and evaluations included."""
    return self.earlier_s + time.perf_counter() - self.started_s

  def meta(self) -> dict:
    """Returns what is saved beside the train state."""
    return {"step": self.step, "source": self.recipe.source.state(),
            f"{self.recipe.accounting.unit}_seen": self.seen, "seconds": self.seconds,
            "idle_in_row": self.idle.in_row, "evaluation_due": self.evaluation_due,
            "repeats": self.repeats.saved(), "times": self.ledger.saved(),
            "high_loss": self.watch.saved()}

  def save(self, state, metrics: dict | None = None) -> None:
    """Starts to save the state of the step the run stands at."""
    # A process that was stopped for long may have lost the workdir, and must not write into another's run.
    self.check_owner()
    with self.ledger.at("checkpoint"):
      self.saver.save(self.step, state, self.meta(), metrics)
    self.alerts.tell("checkpoint", self.step)

  def write(self, step: int, scalars) -> None:
    """Writes a row of metrics."""
    self.check_owner()
    self.writer.write(step, scalars)
    self.alerts.observe(step, scalars)

  def check_owner(self) -> None:
    """Raises LockError if the workdir belongs to another process by now."""
    if self.owner is not None:
      self.owner.check()

  def seen_row(self) -> dict[str, int]:
    """Returns the metric that counts what was seen, such as train/tokens_seen."""
    return {f"train/{self.recipe.accounting.unit}_seen": self.seen}

  def advice(self) -> str:
    """Returns what to do when another process is gone; reads no checkpoint, which may take long."""
    newest = self.saver.latest_step()
    path = "none" if newest is None else self.saver.path / str(newest)
    return f"at step {self.step}, newest checkpoint: {path}; the same command goes on from there"

  def newest_good(self):
    """Returns the path of the newest whole checkpoint, None if there is none; waits for one under way."""
    self.saver.wait()
    return self.saver.newest_good()

  def close(self) -> None:
    """Closes all files and ends all threads."""
    self.watch.close(self.step)
    self.alerts.close()
    if self.writer is not None:
      self.writer.close()
    self.saver.close()
    if hasattr(self.recipe.source, "close"):
      self.recipe.source.close()


def _start(run_: Run) -> TrainState:
  """Restores state and source from the newest checkpoint or makes the first state; sets what is frozen."""
  config = run_.config
  recipe = run_.recipe
  saver = run_.saver
  abstract, _ = abstract_state(config, recipe, run_.mesh)
  # Only whether there is a checkpoint decides, not whether it is good: a damaged one is refused by `restore`,
  # and never replaced by an older one or a new start.
  fresh = saver.latest_step() is None
  loaded = LoadedParams() if recipe.load is None else recipe.load(run_.mesh, fresh)
  # Frozen parameters are in no checkpoint: they are read again, or drawn again from the seed, and so are the
  # same at every start.
  run_.frozen = frozen_of(config, recipe, run_.mesh, loaded)
  if config.optim.freeze is not None:
    say(logging.INFO, "config.optim.freeze=%s: of %d parameters, %d do not change", config.optim.freeze,
         tree.count(abstract.params), freeze.count(abstract.params, config.optim.freeze))
  if fresh:
    _warn_of_rows(run_)
    run_.ledger.resume(None)
    return states.build(abstract, *state_args(config, recipe), params=loaded.params, tables=loaded.tables)
  # The source goes to the place that was saved with this very state: state, place in the data, count and
  # times are of one moment, which is what makes going on equal to never having stopped.
  state, meta = saver.restore(abstract)
  recipe.source.restore(meta["source"])
  run_.step = run_.resumed_from_step = int(meta["step"])
  run_.seen = next(int(value) for name, value in meta.items() if name.endswith("_seen"))
  run_.earlier_s = float(meta["seconds"])
  run_.follow(meta)
  run_.repeats = Repeats(meta.get("repeats"))
  # Two starts may have gone on from this checkpoint. The first has made the evaluation and ranked the
  # checkpoint, and was killed before it saved another one.
  run_.evaluation_due = bool(meta.get("evaluation_due", False)) and not saver.is_ranked(run_.step)
  run_.ledger.resume(meta.get("times"))
  say(logging.INFO, "resumed from step %d in %s", run_.step, saver.path)
  return state


def save_start(config, recipe: Recipe, mesh, workdir) -> None:
  """Saves what a run starts from as its checkpoint of step 0, so that it can be used without training."""
  run_ = Run(config, recipe, mesh, pathlib.Path(workdir), Checkpoints(workdir, **config.checkpoint))
  state = _start(run_)
  run_.saver.save(0, state, run_.meta())
  run_.close()


def _warn_of_rows(run_: Run) -> None:
  if (run_.workdir / METRICS).exists() and (rows := report.read_metrics(run_.workdir)):
    say(logging.WARNING, "%s has rows up to step %d of a start that left no checkpoint: this one drops them "
         "and starts from step 0", run_.workdir / METRICS, rows[-1]["step"])


def _finished(config, workdir: pathlib.Path, saver: Checkpoints) -> dict | None:
  """Returns the summary of a run that has nothing left to do, None if there is something.

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


# ---------------------------------------------------------------------------------------------------- a run


def run(config, recipe: Recipe, mesh, workdir, *, began_s: float | None = None) -> dict:
  """Trains until config.optim.steps, from the newest checkpoint of the workdir if there is one.

  Args:
    config: resolved.
    recipe: what kind of training; see `recipes.load`.
    mesh: all devices; see `parallel.mesh.make`.
    workdir: gets metrics.jsonl, checkpoints, TensorBoard events and report.png unless config.monitor says
      otherwise, and at last summary.json.
    began_s: when the start began, as `time.time`, for the account of time; None: now.

  Returns:
    The summary (of other processes than 0 its steps alone), or {} if the run was asked to stop; the same
    call then goes on with it. A finished run is left as it is, and its summary given again.

  Raises:
    NonFiniteError: after config.train.skip_limit batches in a row without a finite update.
    IdleError: after config.train.idle_limit updates in a row that learnt nothing; the run is saved.
    CheckpointError: if the newest checkpoint is damaged or of another model.
    LostPeerError: if another process of the run died.
    LockError: if another process trains in the workdir, or took it over.
  """
  trackers.check(config.monitor)
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  # Owned before anything is looked at: another start may be writing what would be read here.
  with hosts.owned(workdir) as owner:
    saver = Checkpoints(workdir, **config.checkpoint)
    if summary := _finished(config, workdir, saver):
      say(logging.INFO, "the run in %s is finished, at step %d, and left as it is; a higher "
          "config.optim.steps goes on with it", workdir, summary["steps"])
      return summary
    times = Ledger(workdir / LEDGER if hosts.is_main() else None, began_s=began_s)
    with ledger.counting_compilation(times):
      return _run(Run(config, recipe, mesh, workdir, saver, owner=owner, ledger=times))


def _run(run_: Run) -> dict:
  hosts.on_loss(run_.advice)
  try:
    state = _start(run_)
    # With every heartbeat: a kill loses the account of one beat, not of all since the last checkpoint.
    if run_.owner is not None:
      run_.owner.on_beat = run_.ledger.write
    # Behind `_start`, which tells the step: rows of later steps are dropped, since these steps are made
    # again.
    run_.writer = open_writer(run_.config, run_.workdir, resume_step=run_.step)
    run_.watch.start(run_.step)
    run_.alerts = closing.alerts_of(run_)
    with hosts.StopFlag(run_.mesh) as stop:
      asked = closing.asker(run_.mesh, stop)
      state, stopped = _updates(run_, state, stop, asked)
      summary = {} if stopped else closing.finish(run_, state, asked)
  except Exception as error:
    run_.alerts.tell("failed", run_.step, f"{type(error).__name__}: {error}")
    if hosts.lost_peer(error):  # Closing would wait for the process that is gone.
      raise LostPeerError(
          f"{hosts.why_lost(error)}; newest good checkpoint after step {run_.step}: "
          f"{run_.saver.newest_good() or 'none'}; the same command goes on from there") from error
    run_.close()
    raise
  closing.tell_end(run_, summary)
  run_.close()
  # Last, when closing has waited for the checkpoint under way: it says that no work was lost. An end by an
  # error does not get here.
  run_.ledger.write(clean=True)
  return summary


# A turn of the loop takes a batch while the device still works on the step before, sends the new step, and
# only then reads the metrics of the step before. So the host works one step ahead, and reading metrics costs
# the device no time. The price: a stop, or too many skipped updates, is seen one step late, by all processes
# at the same step.
def _updates(run_: Run, state: TrainState, stop, asked) -> tuple[TrainState, bool]:
  """Makes updates until the end or until the run is asked to stop; says which."""
  config = run_.config
  recipe = run_.recipe
  times = run_.ledger
  step = jit_step(config, recipe, run_.mesh, state)
  clock = Clock(profile.run_peak_flops(run_.mesh.devices.flatten()), unit=recipe.accounting.unit)
  pending: tuple[int, Sent, EvalOut | None] | None = None  # The step that is not read yet.
  stopped = asked() or run_.evaluation_due and closing.make_up_evaluation(run_, state, asked)
  kind = "compile"  # Of the first update.
  with Progress(config.optim.steps, run_.step, enabled=config.monitor.progress) as bar:
    while run_.step < config.optim.steps and not stopped:
      times.switch("input")
      batch, source_metrics = _next_batch(run_, state)
      times.switch(kind)
      if clock.flops_per_step is None:
        clock.flops_per_step = model_flops(recipe, state, run_.frozen, batch)
      run_.watch.trace.before(run_.step + 1)
      state, sent = clock.send(step, state, batch, run_.frozen, stop.array())
      times.switch(kind := "step")
      run_.step += 1
      # The host reads the step before this one while the device works on this one.
      stopped = pending is not None and _observe(run_, *pending, clock, bar)
      pending = (run_.step, sent, source_metrics)
      # What is due at this step needs its state, so its metrics are read at once, and the device waits
      # meanwhile. A stop leaves the evaluation to the next start, and saves.
      due = _due(run_.step, config)
      if not stopped and (due or run_.watch.trace.ends(run_.step)):
        stopped = _observe(run_, *pending, clock, bar)
        pending = None
        run_.watch.trace.end(run_.step)
        if due:
          stopped = closing.evaluate_and_save(run_, state, (lambda: True) if stopped else asked) or stopped
        clock.restart()
    if pending is not None:
      _observe(run_, *pending, clock, bar)
  run_.idle.close()
  # Asked to stop at the last step, a run has nothing left to go on with: it is finished instead.
  stopped = stopped and run_.step < config.optim.steps
  _save_end(run_, state)
  if run_.idle.ending is not None:
    raise IdleError(f"{run_.idle.ending}. Step {run_.step} is saved in {run_.saver.path}; the same command "
                    "goes on from there, other settings of a model or its data need another --workdir")
  if stopped:
    closing.say_stopped(run_)
  return state, stopped


def _next_batch(run_: Run, state: TrainState) -> tuple[Any, EvalOut | None]:
  """Takes a batch from the source; returns it on the mesh, and what the source says of it."""
  source = run_.recipe.source
  # The state is donated to the next step, after which these arrays are gone: a source reads them inside
  # `next` only.
  rows = source.next(Trained(state.params, run_.frozen, state.tables))
  run_.repeats.take(rows)
  return hosts.global_batch(run_.mesh, rows), source.metrics() if hasattr(source, "metrics") else None


def _save_end(run_: Run, state: TrainState) -> None:
  """Saves the step that the loop ends at, unless that was done."""
  with run_.ledger.at("checkpoint"):
    run_.saver.wait()  # A save under way may be of this very step.
    if run_.saver.latest_step() != run_.step:
      at_end = run_.step == run_.config.optim.steps
      # Before `save`, which writes it. A stop may fall on a step whose evaluation is due, and `_updates`
      # leaves it out then.
      run_.evaluation_due = not at_end and closing.evaluation_due(run_.step, run_.config)
      run_.save(state)
      run_.saver.wait()


def _due(step: int, config) -> bool:
  return step < config.optim.steps and (step % config.checkpoint.every_steps == 0
                                        or closing.evaluation_due(step, config))


def _observe(run_: Run, step: int, sent: Sent, source_metrics: EvalOut | None, clock: Clock, bar) -> bool:
  """Reads a step's metrics, counts, logs them with those of the source; returns whether to stop."""
  accounting = run_.recipe.accounting
  counts = f"train/step_{accounting.unit}"
  row = clock.read(sent, counted=counts)
  for name in accounting.optional:
    if math.isnan(row[name]):
      del row[name]
  stop = hosts.StopFlag.agreed(row.pop("stop"))
  run_.seen += int(row.pop(counts))
  bar.update(step, loss=row["train/loss_nats"], per_s=clock.per_s, unit=accounting.unit)
  run_.repeats.observe()
  run_.alerts.beat(step)
  # Too many end the run here. The first has a row of its own: it is told at once, and afterwards, too.
  if row["train/skipped_in_row"]:
    if row["train/skipped_in_row"] == 1:
      run_.write(step, {**row, **run_.seen_row(), **run_.ledger.row()})
    skipped.check(step, row, run_.recipe.source, limit=run_.config.train.skip_limit,
                  newest_good=run_.newest_good)
  row |= source_metrics.scalars if source_metrics else {}
  run_.idle.observe(step, row)
  run_.watch.observe(step, row, run_.recipe.source)
  if step % run_.config.train.log_every_steps == 0 or step == run_.config.optim.steps:
    run_.write(step, {**row, **run_.repeats.row(), **run_.seen_row(), **clock.row(), **run_.ledger.row(),
                      **run_.watch.row()})
    if source_metrics and source_metrics.text:
      run_.writer.write_text(step, "rollout/completions", source_metrics.text)
    clock.next_row()
  return stop or run_.idle.ending is not None
