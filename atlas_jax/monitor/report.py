"""Draws `report.png` from `metrics.jsonl`.

Of a language model it shows loss, bits per byte, gates, memory gain and loss by position, and the gates
before their floor where held-out text told of them; of a recursive model that solves puzzles loss,
accuracies, steps, halting, learning rate and speed; of a model that is tuned the panels of its kind in
`tuning_panels`; and the learning rate, the norm of the gradient, the speed and the account of time where the
run wrote them. Below its headline stands what the run trains, from config.json and summary.json. Panels can
be drawn one by one, and a run can be followed while it writes.

  python -m atlas_jax.monitor.report RUN                       draws RUN/report.png anew
  python -m atlas_jax.monitor.report --compare RUN RUN ...     several runs in one picture and a table, see
                                                               `compare`
"""
import contextlib
import csv
import io
import math
import re
import sys
import textwrap
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from atlas_jax.evals import teaching
from atlas_jax.files import write
from atlas_jax.monitor import (
  accuracy_panel,
  memory_panels,
  model_line,
  puzzle_panels,
  speed_panel,
  time_panel,
  tuning_panels,
  writer,
)
from atlas_jax.monitor.clock import rate_text
from atlas_jax.monitor.curves import (
  QUIET,
  SMOOTHED_FROM_POINTS,
  TRAIN,
  VAL,
  Series,
  cut_top,
  ended,
  finish,
  mark,
  short_number,
  smooth,
)
from atlas_jax.workdir import METRICS, REPORT

TOKENS = "train/tokens_seen"
LINE_CHARS = 8  # Of a heading, per inch.
TEACHING = "eval/teaching_"
GATE = re.compile(r"memory/mix_gate_mean/layer_(\d+)$")
REFERENCES = (("eval/trigram_bits_per_byte", "trigram"), ("eval/gzip_bits_per_byte", "gzip -9"))


def write_report(workdir, summary: Mapping | None = None) -> Path:
  """Draws the report of a run; a series the run did not write is left out.

  Args:
    workdir: a run directory with metrics.jsonl; report.png is written there, as large as its panels need.
    summary: of a run that has not written its own yet; None: the one in the directory, if there is one.

  Raises:
    FileNotFoundError: if there is no metrics.jsonl.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg  # Heavy: only runs that draw pay for it.
  from matplotlib.figure import Figure
  from matplotlib.layout_engine import ConstrainedLayoutEngine

  workdir = Path(workdir)
  if not (workdir / METRICS).exists():
    raise FileNotFoundError(f"{workdir / METRICS} does not exist; the report is drawn from it, train "
                            "first")
  series = read_series(workdir / METRICS)
  panels = panels_of(series)
  # Two rows are wider than high, like a screen; nine panels or more need three.
  lines = 2 if len(panels) <= 8 else 3
  columns = max(2, math.ceil(len(panels) / lines))
  size = (14 if columns == 2 else 6 * columns, 5 * lines)
  figure = Figure(figsize=size, dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
  # Not through pyplot: its figures are global and live until they are closed, and it chooses a backend by the
  # display that is there. A report is also drawn where there is none.
  FigureCanvasAgg(figure)
  places = figure.subplots(lines, columns).flat
  for panel, axes in zip(panels, places):  # In this order: what is left of the places stays empty.
    draw(axes, series, panel)
  for axes in places:
    axes.remove()
  line = model_line.of_run(workdir, summary)
  heading = [_headline(workdir.name, series), *filter(None, [line]),
             *(textwrap.fill(words, size[0] * LINE_CHARS) for words in caveats(series))]
  figure.suptitle("\n".join(heading), fontsize=15)
  # Whole or not at all: a notebook may show the picture while it is drawn anew.
  with write.placed(workdir / REPORT) as part:
    figure.savefig(part, format="png")
  return workdir / REPORT


def caveats(series: Series) -> list[str]:
  """Returns what makes a run's last evaluation doubtful, for its picture."""
  return teaching.caveats({name.removeprefix(TEACHING): float(series[name][1][-1]) for name in series
                           if name.startswith(TEACHING)})


def panels_of(series: Series) -> tuple[str, ...]:
  """Returns which panels the report of a run has."""
  # The kind of a run is told by the metrics it wrote, since nothing but metrics.jsonl is read.
  account = (*speed_panel.names_of(series), *time_panel.names_of(series))
  if puzzle_panels.SEEN in series:  # Which have a panel of learning rate and speed.
    return (*puzzle_panels.names_of(series), *_pace(series), *time_panel.names_of(series))
  if tuned := tuning_panels.names_of(series):
    return (*tuned, *(("gates",) if any(GATE.search(name) for name in series) else ()), *account)
  return (*TEXT_PANELS, *memory_panels.names_of(series), *accuracy_panel.names_of(series), *_pace(series),
          *account)


def _pace(series: Series) -> tuple[str, ...]:
  return ("pace",) if "grad/norm" in series else ()


def draw(axes, series: Series, panel: str) -> None:
  """Draws one panel; says so on it if the run did not write what it shows.

  Args:
    axes: of matplotlib, empty.
    series: what `read_series` gave.
    panel: one of PANELS.

  Raises:
    ValueError: if there is no such panel.
  """
  if panel not in PANELS:
    raise ValueError(f"panel={panel!r} is unknown; known are {', '.join(PANELS)}")
  PANELS[panel](axes, series)


@contextlib.contextmanager
def following(workdir, show, *, every_s: float = 2.0):
  """Calls `show(rows)` from a thread whenever a run has written more rows, and once more when it has ended.

  Args:
    workdir: the run directory; its metrics.jsonl need not exist yet.
    show: takes what `read_metrics` gives, at least one row.
    every_s: seconds between looks at the file.
  """
  ended = threading.Event()
  # A list, so that the function inside can change it.
  shown = [0]

  def look():
    rows = read_metrics(workdir) if (Path(workdir) / METRICS).exists() else []
    if rows and len(rows) != shown[0]:
      shown[0] = len(rows)
      show(rows)

  def keep_looking():
    # `wait` also ends the pause when the block is left, so that nobody waits for it.
    while not ended.wait(every_s):
      look()

  thread = threading.Thread(target=keep_looking, name="following", daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    # First the thread, then the last look from here: `show` is never called by two threads at once.
    thread.join()
    look()


def read_metrics(workdir) -> list[dict]:
  """Reads all rows of a run's metrics.jsonl, oldest first."""
  return list(writer.read_rows(Path(workdir) / METRICS))


def write_csv(rows: list[dict], columns: Mapping[str, str], file) -> None:
  """Writes some metrics of a run as a table.

  Args:
    rows: what `read_metrics` gives.
    columns: name in the table -> name of the metric; empty where a row has none.
    file: to write.
  """
  out = io.StringIO()
  table = csv.writer(out, lineterminator="\n")
  table.writerow(columns)
  for row in rows:
    values = [row.get(name) for name in columns.values()]
    table.writerow([f"{value:.5f}" if isinstance(value, float) else value for value in values])
  write.whole(file, out.getvalue())


def last_mean(rows: list[dict], name: str) -> float | None:
  """Returns what a metric ended with, see `curves.ended`; None if no row has it."""
  values = _values(rows, name)
  return ended(values) if values else None


def speeds(rows: list[dict], unit: str) -> dict[str, float | None]:
  """Returns the numbers of a run's summary on its speed: medians over rows, None where there is none.

  The fraction of the peak refers to the highest one that the run knew, see `clock.Clock`.

  Args:
    rows: what `read_metrics` gives.
    unit: see `recipes.Accounting`.
  """
  names = (f"{unit}_per_s", "step_s", "in_step_frac", "model_flops_per_s")
  # Medians: the first rows, and those with an evaluation, would pull a mean.
  found = {name: median(rows, f"perf/{name}") for name in names}
  peak = max(_values(rows, "perf/peak_flops_per_s"), default=None)
  reached = found["model_flops_per_s"]
  fraction = None if peak is None or reached is None else reached / peak
  return {**found, "flops_fraction_of_peak": fraction, "peak_flops_per_s": peak}


def median(rows: list[dict], name: str) -> float | None:
  """Returns the median of a metric over all rows that have it; None if none has."""
  values = _values(rows, name)
  return float(np.median(values)) if values else None


def _values(rows: list[dict], name: str) -> list[float]:
  return [row[name] for row in rows if row.get(name) is not None]


def read_series(path) -> Series:
  """Reads every metric with the rows where it is a finite number."""
  rows = list(writer.read_rows(path))
  series = Series()
  counted = [(row["step"], row[TOKENS]) for row in rows if row.get(TOKENS) is not None]
  if counted:
    # Against tokens, two runs of other batch sizes can be laid over one another.
    steps, tokens = np.array(counted, float).T
  else:
    series.x_label = "step"
  points: dict[str, list] = {}
  for row in rows:
    # A row of an evaluation may not count tokens itself: its place is between its neighbours.
    x = float(np.interp(row["step"], steps, tokens)) if counted else float(row["step"])
    for name, value in row.items():
      # null stands for what was not finite, and a row need not have every metric.
      if isinstance(value, int | float) and math.isfinite(value):
        points.setdefault(name, []).append((x, float(value)))
  series.update({name: tuple(np.array(pairs).T) for name, pairs in points.items()})
  return series


def _draw_loss(axes, series: Series) -> None:
  _draw_curves(axes, series, "loss_nats", "Loss", "nats per token")


def _draw_bits(axes, series: Series) -> None:
  _draw_curves(axes, series, "bits_per_byte", "Bits per byte", "bits per byte of text")
  _draw_references(axes, series)


def _draw_curves(axes, series: Series, kind: str, title: str, unit: str) -> None:
  drawn = []
  if (train := series.get(f"train/{kind}")) is not None:
    x, y = train
    if len(y) >= SMOOTHED_FROM_POINTS:
      axes.plot(x, y, color=TRAIN, alpha=0.25, linewidth=1)
      y = smooth(y)
    axes.plot(x, y, color=TRAIN, linewidth=2, **mark(y), label=f"train, {ended(train[1]):.3f} at the end")
    # The values as measured, not the smoothed ones: the axis must hold the fainter line behind, too.
    drawn.append(train[1])
  if (held_out := series.get(f"val/{kind}")) is not None:
    axes.plot(*held_out, color=VAL, linewidth=2, marker="o", markersize=5,
              label=f"held out, {held_out[1][-1]:.3f} at the end")
    drawn.append(held_out[1])
  finish(axes, title, series.x_label, unit, bool(drawn), f"no train/{kind} or val/{kind}")
  if drawn:
    cut_top(axes, np.concatenate(drawn))


def _draw_references(axes, series: Series) -> None:
  for (name, label), style in zip(REFERENCES, ("--", ":")):
    if name in series:
      value = series[name][1][-1]
      axes.axhline(value, color=QUIET, linestyle=style, linewidth=1.5, label=f"{label}, {value:.3f}")
      # A reference may lie far from the curves: the axis grows until it is in sight.
      low, high = axes.get_ylim()
      axes.set_ylim(min(low, value - 0.1), max(high, value + 0.1))
  if axes.get_legend() is not None:
    axes.legend(frameon=False, fontsize=11)


def _draw_gates(axes, series: Series) -> None:
  import matplotlib
  # By number: as text layer 10 would come before layer 2.
  layers = sorted((int(found[1]), name) for name in series if (found := GATE.search(name)))
  colors = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, max(1, len(layers))))
  for (layer, name), color in zip(layers, colors):
    axes.plot(*series[name], color=color, linewidth=2, **mark(series[name][1]), label=f"layer {layer}")
  finish(axes, "Gate of the memory, mean per layer", series.x_label, "0 closed, 1 open", bool(layers),
         "no memory/mix_gate_mean/layer_*")
  if layers:
    top = max(series[name][1].max() for _, name in layers)
    axes.set_ylim(0, min(1.0, 1.15 * top) or 1.0)
    axes.legend(frameon=False, fontsize=11, ncols=2 if len(layers) <= 8 else 4)


def _headline(name: str, series: Series) -> str:
  parts = [name]
  if tuning_panels.names_of(series):
    return "  ·  ".join((*parts, tuning_panels.headline(series)))
  if TOKENS in series:
    parts.append(f"{short_number(series[TOKENS][1][-1])} tokens")
  if "perf/tokens_per_s" in series:
    parts.append(f"{rate_text(np.median(series['perf/tokens_per_s'][1]))} tokens/s (median)")
  if puzzle_panels.SEEN in series:
    parts.append(puzzle_panels.headline(series))
  return "  ·  ".join(parts)


_TEXT = {"loss": _draw_loss, "bits_per_byte": _draw_bits, "gates": _draw_gates, **memory_panels.PANELS}
TEXT_PANELS = ("loss", "bits_per_byte", "gates", "memory_gain", "loss_by_position")
PANELS = {**_TEXT, **accuracy_panel.PANELS, **puzzle_panels.PANELS, **tuning_panels.PANELS,
          **speed_panel.PANELS, **time_panel.PANELS}


if __name__ == "__main__":
  from atlas_jax.monitor import compare  # It draws with this module, which is not finished before.
  sys.exit(compare.main())
