"""Evaluations of a run as it goes and at its end, and what it leaves behind."""
import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from atlas_jax import evals, tree
from atlas_jax import state as states
from atlas_jax.evals import EvalOut, stopping
from atlas_jax.evals.stopping import EvalStopped
from atlas_jax.files import write
from atlas_jax.monitor import model_line, phases, report, schema
from atlas_jax.monitor.alerts.live import NO_ALERTS, Live
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import Recipe
from atlas_jax.state import Trained, TrainState
from atlas_jax.workdir import SUMMARY

Run = Any  # A `train.Run`, which this module cannot import.


def say(level: int, line: str, *values) -> None:
  """Logs a line once for all processes."""
  if hosts.is_main():
    logging.log(level, line, *values)


def say_stopped(run_: Run) -> None:
  """Logs where a run stands that was asked to stop."""
  say(logging.WARNING, "stopped at step %d, saved in %s; the same command goes on from there", run_.step,
      run_.saver.path)


def alerts_of(run_: Run):
  """Opens the alerts of a run, in process 0 alone, which writes the rows."""
  if not (run_.config.alerts.on and hosts.is_main()):
    return NO_ALERTS
  return Live(run_.config, run_.workdir, resume_step=run_.step,
              is_training=lambda: run_.ledger.kind in ("input", "step"))


def tell_end(run_: Run, summary: dict) -> None:
  """Tells by the alerts that a run is finished, or was stopped where there is no summary."""
  if not summary:
    run_.alerts.tell("stopped", run_.step)
    return
  loss = summary.get("train_loss_nats")
  run_.alerts.tell("finished", run_.step, f"{summary['steps']} updates in {run_.seconds:.0f} s" + (
      "" if loss is None else f", training loss {loss:.4g} nats"))


def asker(mesh, stop) -> Callable[[], bool]:
  """Returns a function that says whether any process was asked to stop; all call it together and wait."""
  if jax.process_count() == 1:
    return lambda: stop.requested
  # Signals reach processes at different times. All read the same sum over the mesh, so all leave before the
  # same evaluation; a process that left alone would keep the others waiting in a collective.
  total = jax.jit(jnp.sum, out_shardings=meshes.replicated(mesh))
  return lambda: stop.agreed(total(stop.array()))


def evaluate(recipe: Recipe, trained: Trained, *, step: int, when: tuple[str, ...] = ("every", "end"),
             workdir=None) -> EvalOut:
  """Runs a recipe's evaluations.

  Args:
    recipe: whose evaluations.
    trained: on the mesh the evaluations were made for.
    step: updates the parameters have seen.
    when: which evaluations: "every" (those made as the run goes), "end".
    workdir: of the run, where evaluations leave files; None: nowhere.

  Returns:
    Numbers by metric name, texts one after another, and images by name.
  """
  return evals.join(found.run(trained, step=step, workdir=workdir)
                    for found in recipe.evals.values() if found.when in when)


def evaluation_due(step: int, config) -> bool:
  """Returns whether a run is evaluated at a step that is not its last."""
  every = config.train.eval_every_steps
  first = config.train.eval_from_step or 0
  return every is not None and step % every == 0 and step >= first


def evaluate_and_save(run_: Run, state: TrainState, asked: Callable[[], bool]) -> bool:
  """Evaluates and saves as is due at a step; returns whether a request to stop cut the evaluation short.

  That evaluation is then made by the start that goes on with the run.
  """
  scalars: dict = {}
  if evaluation_due(run_.step, run_.config):
    out = _evaluated(run_, state, ("every",), asked)
    # Before `save`, which writes it into the checkpoint: from there the next start knows that it owes this
    # evaluation.
    run_.evaluation_due = out is None
    if out is None:
      run_.save(state)
      return True
    _write_eval(run_, out)
    scalars = out.scalars
  # Saved after the evaluation, since a checkpoint is ranked by the metrics it is saved with. A step that was
  # evaluated is saved even where no checkpoint is due: it may be the best.
  if scalars or run_.step % run_.config.checkpoint.every_steps == 0:
    run_.save(state, _named(run_, scalars) or None)
  return False


def make_up_evaluation(run_: Run, state: TrainState, asked: Callable[[], bool]) -> bool:
  """Makes the evaluation that the start before left out where it stopped; returns whether to stop."""
  out = _evaluated(run_, state, ("every",), asked)
  if out is None:
    return True
  _write_eval(run_, out)
  with run_.ledger.at("checkpoint"):
    # The checkpoint of this step is there already, without metrics, and no step is saved twice. Once it is
    # ranked, a kill does not make the evaluation due again, see `train._start`.
    if named := _named(run_, out.scalars):
      run_.saver.rank(run_.step, named)
  run_.evaluation_due = False
  return False


def finish(run_: Run, state: TrainState, asked: Callable[[], bool]) -> dict:
  """Evaluates the last parameters and writes what a run leaves behind; {} if asked to stop meanwhile."""
  out = _evaluated(run_, state, ("every", "end"), asked)
  if out is None:
    say_stopped(run_)
    return {}
  out = _write_eval(run_, out)
  summary = _summary(run_, tree.count(state.params), out) if hosts.is_main() else {"steps": run_.step}
  # Every process takes part: an export may gather parameters that are split over processes.
  run_.recipe.assets.export(run_.workdir, _trained(run_, state), summary)
  if not hosts.is_main():
    return summary
  if out.text:
    run_.writer.write_text(run_.step, "eval/sample", out.text)
    print(out.text, flush=True)
  # The summary comes last: where it is, the run counts as finished. After a kill before that line the same
  # command evaluates and finishes again.
  if run_.config.monitor.report:
    report.write_report(run_.workdir, summary)
  write.json(run_.workdir / SUMMARY, summary)
  return summary


def _evaluated(run_: Run, state: TrainState, when: tuple[str, ...], asked) -> EvalOut | None:
  """Runs evaluations one after another; None if the run was asked to stop before the last was done."""
  outs = []
  with run_.ledger.at("evaluation"):
    for found in run_.recipe.evals.values():
      if found.when in when:
        if asked():
          return None
        try:
          with _stoppable(asked):
            outs.append(found.run(_trained(run_, state), step=run_.step, workdir=run_.workdir))
        except EvalStopped:  # What it has measured so far stands for a part of the data, and is dropped.
          return None
  return evals.join(outs)


def _stoppable(asked: Callable[[], bool]):
  # Several processes ask together, and evaluations do not take all of them to the same places.
  return stopping.stoppable(asked) if jax.process_count() == 1 else contextlib.nullcontext()


def _named(run_: Run, scalars: dict) -> dict:
  """Returns metrics under the names that rank checkpoints; warns if none of them decides the best."""
  named = {evals.summary_name(name): value for name, value in scalars.items()}
  best = run_.config.checkpoint.best_metric
  if named and run_.config.checkpoint.keep_best and best not in named:
    say(logging.WARNING, "config.checkpoint.best_metric=%s is none of what was evaluated (%s): no "
        "checkpoint is kept as the best", best, ", ".join(named))
  return named


def _write_eval(run_: Run, out: EvalOut) -> EvalOut:
  """Writes an evaluation; returns it with the phase that it shows the run in, where accuracy is measured."""
  run_.write(run_.step, {**out.scalars, **run_.seen_row()})
  for name, image in out.images.items():
    run_.writer.write_image(run_.step, name, image)
  if phases.ACCURACY not in out.scalars or not hosts.is_main():
    return out
  # From the file, which holds all evaluations of the run, also those before it was resumed, and this one.
  timed = phases.phases_of(report.read_metrics(run_.workdir), phases.Thresholds(**run_.config.monitor.phases))
  found = phases.scalars(timed)
  run_.write(run_.step, found)
  if len(timed) > 1 and timed[-1].phase != timed[-2].phase:
    say(logging.INFO, "held-out accuracy %.4f, loss %.4g nats: %s from step %d on, %s before",
        out.scalars[phases.ACCURACY], out.scalars[phases.LOSS], timed[-1].phase, run_.step, timed[-2].phase)
  # Noted, logged and drawn: whether a run goes on is not for them to say.
  notes = {"phase": timed[-1].phase, "phases": phases.in_words(timed)}
  return out._replace(scalars={**out.scalars, **found}, notes={**out.notes, **notes})


def _trained(run_: Run, state: TrainState) -> Trained:
  """Returns what evaluations get: the moving average in place of the parameters where the run keeps one."""
  return Trained(states.params_used(state), run_.frozen, state.tables)


def _summary(run_: Run, params: int, out: EvalOut) -> dict:
  # Speeds are those of all starts of the run: the file has their rows, and this process knows its own alone.
  rows = report.read_metrics(run_.workdir)
  unit = run_.recipe.accounting.unit
  times = {name.removeprefix("perf/"): round(value, 3) for name, value in run_.ledger.row().items()
           if math.isfinite(value)}
  return {
      "params": params, "steps": run_.step, "metrics_version": schema.VERSION, f"{unit}_seen": run_.seen,
      "train_loss_nats": report.last_mean(rows, "train/loss_nats"),
      # JSON has no NaN, and a summary that cannot be read would keep the run from counting as finished.
      **{evals.summary_name(name): value if math.isfinite(value) else None
         for name, value in out.scalars.items()}, **out.notes,
      **report.speeds(rows, unit),
      "resumed_from_step": run_.resumed_from_step, "seconds": round(run_.seconds, 1), **times,
      **({} if out.scalars else {"evaluation": "none"}),
      **({} if (commit := model_line.commit()) is None else {"commit": commit}),
      **({"rows": list(out.rows)} if out.rows else {}),
  }
