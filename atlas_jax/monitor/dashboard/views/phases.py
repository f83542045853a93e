"""Phases: what held-out accuracy and loss tell of how a run learns; see `monitor.phases`."""
import numpy as np

from atlas_jax.monitor import phases, thinning
from atlas_jax.monitor.dashboard import charts
from atlas_jax.monitor.dashboard.charts import Grid, Missing, Part, Tile, Tiles
from atlas_jax.monitor.dashboard.views import View
from atlas_jax.monitor.run_folder import RunFolder

TITLE, ORDER = "Phases", 5
WORDS = {
    "insufficient_data": "fewer evaluations than a verdict needs", "no_change": "neither number has moved",
    "learning": "the loss falls, accuracy stands", "memorising": "training rows by heart, nothing for others",
    "generalising": "held-out accuracy rises", "converged": "both stand",
    "grokked": "accuracy is high, after memorising", "overfitting": "accuracy falls, or the loss rises"}


def parts(view: View) -> list[Part]:
  """Returns the page of a run."""
  run, axis = view.run, view.axis
  if run is None or phases.ACCURACY not in run.metrics.names:
    return [Missing("This run does not measure held-out accuracy, from which phases are told.",
                    "config.eval.accuracy=True does, at each evaluation.")]
  timed = timed_phases(run)
  changed = phases.changes(timed)
  marks = [(float(run.x(np.array([one.step], float), axis)[0]), one.phase) for one in changed[1:]]
  grokked = run.metrics.last(phases.GROKKED_AT)
  tiles = [Tile("Phase", timed[-1].phase.replace("_", " ") if timed else "unknown", "",
                WORDS[timed[-1].phase] if timed else ""),
           *([] if grokked is None else [Tile("Grokked at step", f"{grokked:,.0f}")])]
  table = Grid("Changes",
               {"from step": [one.step for one in changed], "phase": [one.phase for one in changed],
                           "means": [WORDS[one.phase] for one in changed]},
               "Told from held-out rows alone; nothing of it stops a run.")
  gap = _gap(run, axis)
  return charts.present(
      Tiles(tiles),
      charts.lines(run, "Accuracy of the likeliest token", {
          "eval/train_accuracy": ("trained on", "points"), phases.ACCURACY: ("held out", "points")}, axis,
          y_label="fraction right", marks=marks),
      charts.lines(run, "Loss", {"eval/train_loss_nats": ("trained on", "points"),
                                 phases.LOSS: ("held out", "points")}, axis, y_label="nats", marks=marks),
      gap, table)


def timed_phases(run: RunFolder) -> list[phases.TimedPhase]:
  """Returns the phase at each evaluation as the run has told it; judged anew where it has not."""
  step, known = thinning.finite(*run.metrics.series(phases.PHASE))
  if len(known):
    return [phases.TimedPhase(int(at), phases.PHASES[int(one)]) for at, one in zip(step, known)
            if 0 <= int(one) < len(phases.PHASES)]
  accuracy = dict(zip(*run.metrics.series(phases.ACCURACY)))
  loss = dict(zip(*run.metrics.series(phases.LOSS)))
  rows = [{"step": at, phases.ACCURACY: value, phases.LOSS: loss.get(at)} for at, value in accuracy.items()]
  fields = run.setting("monitor.phases", {})
  return phases.phases_of(rows, phases.Thresholds(**fields)) if fields else []


def _gap(run: RunFolder, axis: str):
  step, trained = thinning.finite(*run.metrics.series("eval/train_accuracy"))
  at, held_out = thinning.finite(*run.metrics.series(phases.ACCURACY))
  if len(step) < 2 or len(at) < 2:
    return None
  gap = charts.PlotLine("gap", run.x(step, axis), trained - np.interp(step, at, held_out), style="points")
  if not np.isfinite(gap.x).all():
    return None
  return charts.LineChart("Accuracy on trained rows over that on held-out rows", [gap],
                          charts.x_label(run, axis),
                          "difference", levels=[charts.Level("none", 0.0)])
