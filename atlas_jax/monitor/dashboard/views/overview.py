"""Runs: all run directories with their state, and chosen ones over one another on one axis."""
from collections.abc import Sequence

from atlas_jax.monitor.dashboard import charts
from atlas_jax.monitor.dashboard.charts import Grid, LineChart, Missing, Part, Words
from atlas_jax.monitor.dashboard.views import View
from atlas_jax.monitor.dashboard.views.alerts_health import rule_states
from atlas_jax.monitor.dashboard.views.live_training import recent, short
from atlas_jax.monitor.run_folder import RunFolder

TITLE, ORDER = "Runs", 0
FIRST = ("train/loss_nats", "val/loss_nats", "val/bits_per_byte", "rollout/reward_mean", "val/accuracy",
         "eval/all/exact_accuracy", "eval/held_out_accuracy", "eval/recall_accuracy_past_window",
         "eval/memory_gain_swapped_nats")
SHOWN = 4  # Metrics that are compared at first,
COMPARED = 6  # and runs.


def parts(view: View) -> list[Part]:
  """Returns the page with all runs, compared by what is first of interest."""
  found = present_metrics(view.runs)
  return compared(view.runs, view.runs[:COMPARED], [name for name in FIRST if name in found][:SHOWN],
                  view.axis)


def show(view: View, draw) -> None:
  """Asks which runs and metrics are compared."""
  import streamlit as st
  by_name = {run.name: run for run in view.runs}
  known = present_metrics(view.runs)
  if not by_name or not known:
    draw(parts(view))
    return
  # Chosen before: what is kept of a choice must still be there.
  for key, options in (("compared_runs", by_name), ("compared_metrics", known)):
    if key in st.session_state:
      st.session_state[key] = [one for one in st.session_state[key] if one in options]
  names = st.multiselect("Runs to compare", list(by_name), list(by_name)[:COMPARED], key="compared_runs")
  metrics = st.multiselect("Metrics", known, [name for name in FIRST if name in known][:SHOWN],
                           key="compared_metrics")
  draw(compared(view.runs, [by_name[name] for name in names], metrics, view.axis))


def present_metrics(runs: Sequence[RunFolder]) -> list[str]:
  """Returns the metrics of any run, those of most interest first."""
  found = {name for run in runs for name in run.metrics.names}
  return [name for name in FIRST if name in found] + sorted(found - {*FIRST})


def compared(runs: Sequence[RunFolder], chosen: Sequence[RunFolder], metrics: Sequence[str],
             axis: str) -> list[Part]:
  """Returns the table of runs, and a chart for each metric with a curve per run that has it."""
  if not runs:
    return [Missing("There is no run in this folder yet.", "Start one with --workdir=FOLDER/NAME; the page "
                    "follows. A run directory is a folder with config.json or metrics.jsonl.")]
  found: list[Part] = [table(runs)]
  for metric in metrics:
    style = "points" if metric.startswith(("val/", "eval/", "ARC/")) else "line"
    lines = [charts.curve(run, metric, run.name, axis, style=style, color=number)
             for number, run in enumerate(chosen)]
    curves = [line for line in lines if line is not None]
    if curves:
      found.append(LineChart(metric, curves, _x_label(chosen, axis)))
    lacking = [run.name for run, line in zip(chosen, lines) if line is None]
    if lacking and curves:
      found.append(Words(f"{metric}: without {', '.join(lacking)}."))
    elif lacking:
      found.append(Missing(f"{metric} against {axis}: no chosen run has it.", "Choose another axis or run."))
  return found


def _x_label(runs: Sequence[RunFolder], axis: str) -> str:
  units = dict.fromkeys(charts.x_label(run, axis) for run in runs)
  return " / ".join(units)


def table(runs: Sequence[RunFolder]) -> Grid:
  """Returns all runs: state, how far, and what they reached."""
  columns: dict[str, list] = {name: [] for name in ("run", "state", "recipe", "step", "of", "seen", "loss",
                                                    "held out", "speed", "alerts")}
  for run in runs:
    loss = recent(run, "train/loss_nats")
    rate = next((recent(run, name) for name in run.metrics.names
                 if name.startswith("perf/") and name.endswith("_per_s")
                 and not name.endswith("flops_per_s")), None)
    at, seen = run.seen()
    step, held_out = run.metrics.last("step"), run.metrics.last("val/loss_nats")
    values = (run.name, run.state().words, run.setting("recipe", ""), None if step is None else int(step),
              run.total_steps, f"{short(float(seen[-1]))} {run.unit}" if len(at) else "",
              None if loss is None else round(loss[0], 4), None if held_out is None else round(held_out, 4),
              "" if rate is None else f"{short(rate[0])} {run.unit}/s",
              sum(rule.is_open for rule in rule_states(run.alerts.rows, run.acknowledged.rows)))
    for name, value in zip(columns, values):
      columns[name].append(value)
  return Grid(f"{len(runs)} run{'s' * (len(runs) != 1)}", columns)
