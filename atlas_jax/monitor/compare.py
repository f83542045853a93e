"""Several runs in one picture and one table.

  python -m atlas_jax.monitor.report --compare RUN RUN ... [--out=compare.png] [--axis=tokens] [--metrics=A,B]
                                                           [--json]

The picture has a panel for each metric, in which every run that wrote it has a line; the table has a row for
each run. Without --metrics the panels are those of FIRST that a run wrote, eight at most. With --json the
table is one JSON object per run instead.
"""
import argparse
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas_jax.files import closed_pipe, write
from atlas_jax.monitor import model_line, report, thinning
from atlas_jax.monitor.curves import SMOOTHED_FROM_POINTS, ended, finish, short_number, smooth
from atlas_jax.monitor.run_folder import AXES, RunFolder
from atlas_jax.workdir import METRICS

# Colours of Okabe and Ito, which colour-blind readers tell apart; dashes differ where they are used up.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c")
STYLES = ("-", "--", ":", "-.")
# Metric -> title and unit of its panel, in the order of interest.
FIRST = {
    "train/loss_nats": ("Loss in training", "nats"),
    "val/loss_nats": ("Held-out loss", "nats per token"),
    "val/bits_per_byte": ("Held-out bits per byte", "bits per byte of text"),
    "eval/memory_gain_swapped_nats": ("Gain of the memory, over that of another row", "nats per token"),
    "eval/recall_accuracy_past_window": ("Recall beyond the window", "fraction right"),
    "eval/held_out_accuracy": ("Held-out accuracy", "fraction right"),
    "rollout/reward_mean": ("Reward", "mean of a rollout"),
    "val/accuracy": ("Held-out problems right", "fraction of problems"),
    "eval/all/exact_accuracy": ("Held-out puzzles solved", "fraction of puzzles"),
    "ARC/pass@2": ("ARC tasks solved in two attempts", "fraction of tasks"),
    "grad/norm": ("Norm of the gradient", ""),
    "train/lr": ("Learning rate", ""),
}
PANELS = 7  # With the speed there are eight at most.
FINAL = ("val/loss_nats", "val/bits_per_byte", "eval/memory_gain_swapped_nats",
         "eval/recall_accuracy_past_window",
         "eval/held_out_accuracy", "val/accuracy", "eval/all/exact_accuracy", "ARC/pass@2")


def parse(arguments) -> argparse.Namespace:
  """Reads the flags of `python -m atlas_jax.monitor.report`."""
  parser = argparse.ArgumentParser(prog="python -m atlas_jax.monitor.report", allow_abbrev=False,
                                   description="Draws the report of a run, or several runs in one picture.")
  parser.add_argument("run", nargs="*", help="run directories whose report.png is drawn anew")
  parser.add_argument("--compare", nargs="+", metavar="RUN", default=[], help="run directories to compare")
  parser.add_argument("--out", default="compare.png", help="the picture of --compare")
  parser.add_argument("--axis", choices=AXES, default="tokens", help="the common axis of --compare")
  parser.add_argument("--metrics", default="", help="metrics of --compare, with commas between them")
  parser.add_argument("--json", action="store_true", help="prints the table of --compare as JSON lines")
  args = parser.parse_args(arguments)
  if bool(args.run) == bool(args.compare):
    parser.error("name run directories: either RUN ..., or --compare RUN RUN ...")
  for run in (*args.run, *args.compare):
    if not (pathlib.Path(run) / METRICS).is_file():
      parser.error(f"{pathlib.Path(run) / METRICS} does not exist; name a run directory that has metrics")
  return args


@closed_pipe.quiet
def main(arguments=None) -> int:
  """Draws what the flags ask for, prints the table, and returns the exit status."""
  args = parse(sys.argv[1:] if arguments is None else arguments)
  for run in args.run:
    print(report.write_report(run))
  if not args.compare:
    return 0
  runs = read(args.compare)
  wanted = [name for name in args.metrics.split(",") if name]
  unknown = [name for name in wanted if not any(name in run.metrics.names for run in runs)]
  if unknown:
    print(f"--metrics={','.join(unknown)}: no run has that; runs have {', '.join(all_names(runs))}",
          file=sys.stderr)
    return 2
  draw(runs, args.out, axis=args.axis, metrics=wanted)
  rows = [row_of(run) for run in runs]
  print("\n".join(json.dumps(row) for row in rows) if args.json else text_of(rows))
  print(args.out, file=sys.stderr)
  return 0


def read(paths: Sequence) -> list[RunFolder]:
  """Reads runs as a whole; those of one name are told apart by their folders."""
  paths = [pathlib.Path(path).resolve() for path in paths]
  names = [path.name for path in paths]
  runs = [RunFolder(path, path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}")
          for path in paths]
  for run in runs:
    run.read_all()
  return runs


def all_names(runs: Sequence[RunFolder]) -> list[str]:
  """Returns the metrics of any run, sorted."""
  return sorted({name for run in runs for name in run.metrics.names})


def draw(runs: Sequence[RunFolder], out, *, axis: str = "tokens",
         metrics: Sequence[str] = ()) -> pathlib.Path:
  """Draws runs over one another.

  Args:
    runs: that were read.
    out: the picture's file.
    axis: of `run_folder.AXES`; a run that lacks it is left out of the panels.
    metrics: a panel each; none: the first of FIRST that a run wrote, and the speed.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg  # Heavy: only calls that draw pay for it.
  from matplotlib.figure import Figure
  from matplotlib.layout_engine import ConstrainedLayoutEngine
  names = list(metrics) or _first(runs)
  columns = min(4, max(2, math.ceil(len(names) / 2)))
  lines = max(1, math.ceil(len(names) / columns))
  figure = Figure(figsize=(6 * columns, 4.6 * lines + 0.5 + 0.3 * len(runs)), dpi=100,
                  layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
  FigureCanvasAgg(figure)
  places = list(figure.subplots(lines, columns, squeeze=False).flat)
  for name, axes in zip(names, places):
    _draw_panel(axes, runs, name, axis)
  for axes in places[len(names):]:
    axes.remove()
  figure.suptitle(f"{len(runs)} runs against {axis}", fontsize=15)
  _legend(figure, runs)
  out = pathlib.Path(out)
  with write.placed(out) as part:
    figure.savefig(part, format=out.suffix.removeprefix(".") or "png")
  return out


def _first(runs: Sequence[RunFolder]) -> list[str]:
  known = all_names(runs)
  return [name for name in FIRST if name in known][:PANELS] + ["speed"] * any(_speed(run) for run in runs)


def _speed(run: RunFolder) -> str | None:
  return next((name for name in run.metrics.names if name.startswith("perf/") and name.endswith("_per_s")
               and "flops" not in name), None)


def _draw_panel(axes, runs: Sequence[RunFolder], name: str, axis: str) -> None:
  title, unit = ("Speed", "per second") if name == "speed" else FIRST.get(name, (name, ""))
  drawn = []
  for number, run in enumerate(runs):
    metric = _speed(run) if name == "speed" else name
    x, y = thinning.finite(*run.metrics.series(metric)) if metric else (np.empty(0), np.empty(0))
    places = run.x(x, axis)
    if not len(y) or not np.isfinite(places).all():
      continue
    color, style = COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]
    pointed = name.startswith(("val/", "eval/", "ARC/")) or len(y) == 1
    if len(y) >= SMOOTHED_FROM_POINTS and not pointed and name != "train/lr":
      axes.plot(*thinning.thin(places, y), color=color, alpha=0.2, linewidth=0.8)
      y = smooth(y)
    axes.plot(*thinning.thin(places, y), style, color=color, linewidth=1.8, marker="o" if pointed else "",
              markersize=4)
    ends = [run.metrics.series(f"{metric}_{end}")[1] for end in ("low", "high")]
    if pointed and all(len(end) == len(places) for end in ends):
      axes.fill_between(places, *ends, color=color, alpha=0.18, linewidth=0)
      drawn += [end[np.isfinite(end)] for end in ends]
    drawn.append(y)
  units = dict.fromkeys({"step": "step", "tokens": f"{run.unit} seen", "hours": "hours"}[axis]
                        for run in runs)
  finish(axes, title, "", unit, bool(drawn), f"no {name} against {axis}")
  if drawn:
    axes.set_xlabel(" / ".join(units), fontsize=11)
    axes.set_xlim(left=0)
    if unit.startswith("fraction") and min(y.min() for y in drawn) >= 0:
      axes.set_ylim(0, min(1.03, 1.15 * max(y.max() for y in drawn)) or 1)
    axes.xaxis.set_major_formatter(short_number)
    axes.yaxis.set_major_formatter(short_number)
    _cut(axes, drawn)


def _cut(axes, drawn: Sequence[np.ndarray]) -> None:
  """Cuts the few highest values off where they take more than half of the panel."""
  low, top = min(y.min() for y in drawn), max(y.max() for y in drawn)
  high = max(np.quantile(y, 0.98) for y in drawn)
  if top - low > 2 * (high - low) > 0:
    axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))


def _legend(figure, runs: Sequence[RunFolder]) -> None:
  """Writes below the panels which line is which run, and what each trains."""
  from matplotlib.lines import Line2D
  # Any: matplotlib lists the styles as literals.
  styles: Sequence[Any] = STYLES
  handles = [Line2D([], [], color=COLORS[number % len(COLORS)], linewidth=2.5,
                    linestyle=styles[number // len(COLORS) % len(STYLES)],
                    label="  ·  ".join(filter(None, (run.name, model_line.of_run(run.path)))))
             for number, run in enumerate(runs)]
  figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=12, ncols=1)


def row_of(run: RunFolder) -> dict[str, Any]:
  """Returns the row of a run in the table; None where it has no such number."""
  at, seen = run.seen()
  hours = run.hours()[1]
  speed = thinning.finite(*run.metrics.series(_speed(run) or ""))[1]
  loss = thinning.finite(*run.metrics.series("train/loss_nats"))[1]
  step = run.metrics.last("step")
  return {
      "run": run.name, "state": run.state().kind, "recipe": run.setting("recipe"),
      "rule": model_line.rule_of(run.config) or None, "params": run.summary.get("params"),
      "seed": run.setting("seed"), "commit": run.summary.get("commit"),
      "steps": None if step is None else int(step),
      "seen": float(seen[-1]) if len(at) else None, "unit": run.unit if len(at) else None,
      "train/loss_nats": ended(loss) if len(loss) else None,
      **{name: run.metrics.last(name) for name in FINAL},
      "gain_low": run.metrics.last("eval/memory_gain_swapped_nats_low"),
      "gain_high": run.metrics.last("eval/memory_gain_swapped_nats_high"),
      "per_s": float(np.median(speed)) if len(speed) else None,
      "hours": round(float(hours[-1]), 4) if len(hours) else None}


def text_of(rows: Sequence[dict[str, Any]]) -> str:
  """Returns rows as a table for the eye; columns that no run has are left out."""
  names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
  cells = [[name.rpartition("/")[2] if name.count("/") == 1 and name.startswith(("eval/", "ARC/")) else name
            for name in names], *([_cell(row[name]) for name in names] for row in rows)]
  widths = [max(len(line[at]) for line in cells) for at in range(len(names))]
  numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
  return "\n".join("  ".join(cell.rjust(width) if right else cell.ljust(width)
                             for cell, width, right in zip(line, widths, numeric)).rstrip() for line in cells)


def _cell(value) -> str:
  if value is None:
    return "-"
  if isinstance(value, float):
    return short_number(value) if abs(value) >= 1_000 else f"{value:.4g}"
  return f"{value:,}" if isinstance(value, int) else str(value)
