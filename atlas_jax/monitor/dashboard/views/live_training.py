"""Live Training: how far the run is, how well it learns, how fast, and where the time goes."""
import math

import numpy as np

from atlas_jax.monitor import thinning
from atlas_jax.monitor.dashboard import charts
from atlas_jax.monitor.dashboard.charts import BarChart, Missing, Part, ProgressBar, Tile, Tiles, Words
from atlas_jax.monitor.dashboard.views import View
from atlas_jax.monitor.run_folder import RunFolder, duration

TITLE, ORDER = "Live Training", 1
LOSSES = {"train/loss_nats": "training", "train/text_loss_nats": "text", "train/recall_loss_nats": "recall",
          "val/loss_nats": ("held out", "points")}
SPEEDS = ("tokens", "supervision_steps", "completion_tokens", "rows", "spans")
RECENT = 10  # Rows that the newest numbers are means of.
MACHINE = {"system/cpu_percent": "CPU, %", "system/gpu_percent": "GPU, %",
           "system/memory_gib": "memory, GiB", "perf/host_memory_gib": "memory of the process, GiB",
           "system/gpu_memory_gib": "GPU memory, GiB", "perf/device_memory_gib": "device memory, GiB",
           "system/disk_free_gib": "disk free, GiB"}


def parts(view: View) -> list[Part]:
  """Returns the page of a run."""
  run, axis = view.run, view.axis
  if run is None or not run.metrics.names:
    return [Missing("This run has no metrics yet.", "They appear at the first multiple of "
                    "config.train.log_every_steps; the page follows.")]
  speed = _speed_name(run)
  return charts.present(
      _progress(run), _tiles(run, speed),
      charts.lines(run, "Loss", LOSSES, axis, y_label="nats"),
      _perplexity(run, axis),
      charts.lines(run, "Bits per byte", {
          "train/bits_per_byte": "training", "val/bits_per_byte": ("held out", "points")}, axis,
          levels=_references(run), y_label="bits per byte of text"),
      charts.lines(run, "Reward", {"rollout/reward_mean": "training", "val/reward": ("held out", "points"),
                                   "val/accuracy": ("held-out problems right", "points")}, axis),
      charts.lines(run, "Puzzles solved", {
          "recent/exact_accuracy": "training", "eval/all/exact_accuracy": ("held out", "points")}, axis,
          y_label="fraction"),
      None if speed is None else charts.lines(run, "Throughput", {speed: "speed"}, axis,
                                              y_label=f"{run.unit} per second"),
      charts.lines(run, "Fraction of the peak", {"perf/flops_fraction_of_peak": "FLOPs, of the peak",
                                                 "perf/goodput_frac": "time in steps, of all time"}, axis),
      charts.lines(run, "Learning rate", {"train/lr": "learning rate"}, axis),
      _ledger(run), *_machine(run, axis), *_missing(run))


def _speed_name(run: RunFolder) -> str | None:
  return next((f"perf/{unit}_per_s" for unit in SPEEDS if f"perf/{unit}_per_s" in run.metrics.names), None)


def _progress(run: RunFolder) -> ProgressBar | Words | None:
  step = run.metrics.last("step") or 0.0
  total = run.total_steps
  if total is None:
    return Words(f"Step {step:,.0f}; config.json does not say of how many (config.optim.steps).")
  state, left = run.state(), run.left_s()
  words = f"Step {step:,.0f} of {total:,}"
  if state.kind == "running" and left is not None:
    words += f", about {duration(left)} left"
  elif state.kind != "running":
    words += f", {state.words}"
  return ProgressBar(min(1.0, step / total), words)


def _tiles(run: RunFolder, speed: str | None) -> Tiles:
  tiles = []
  loss = recent(run, "train/loss_nats")
  if loss is not None:
    tiles.append(Tile("Loss", f"{loss[0]:.4g}", _change(loss), "training, nats"))
  held_out = run.metrics.last("val/loss_nats")
  if held_out is not None:
    tiles.append(Tile("Held-out loss", f"{held_out:.4g}", "", "nats"))
    tiles.append(Tile("Perplexity", f"{math.exp(min(held_out, 700.0)):,.1f}", "", "exp of the held-out loss"))
  bits = run.metrics.last("val/bits_per_byte")
  if bits is not None:
    tiles.append(Tile("Bits per byte", f"{bits:.3f}", "", "held out"))
  if speed is not None and (rate := recent(run, speed)) is not None:
    tiles.append(Tile(f"{run.unit.capitalize()}/s", short(rate[0]), "", "the newest rows"))
  at, seen = run.seen()
  if len(at):
    tiles.append(Tile(f"{run.unit.capitalize()} seen", short(float(seen[-1]))))
  hours = run.hours()[1]
  if len(hours):
    tiles.append(Tile("Elapsed", duration(3_600 * float(hours[-1])), "", "since the first start"))
  return Tiles(tiles)


def recent(run: RunFolder, name: str) -> tuple[float, float | None] | None:
  """Returns the mean of a metric's newest rows, and of as many a hundred before; None without a number."""
  value = thinning.finite(*run.metrics.series(name))[1]
  if not len(value):
    return None
  count = min(RECENT, max(1, len(value) // 10))
  before = value[-100 - count:-100] if len(value) >= 100 + count else None
  return float(value[-count:].mean()), None if before is None else float(before.mean())


def _change(pair: tuple[float, float | None]) -> str:
  return "" if pair[1] is None else f"{pair[0] - pair[1]:+.3g} in 100 rows"


def short(number: float) -> str:
  """Writes 1.5k for 1500."""
  for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if abs(number) >= size:
      return f"{number / size:.3g}{letter}"
  return f"{number:.3g}"


def _perplexity(run: RunFolder, axis: str):
  found = charts.lines(run, "Perplexity",
                       {"train/loss_nats": "training", "val/loss_nats": ("held out", "points")},
                       axis, log=True, note="exp of the loss in nats per token")
  # Of rewards and puzzles the loss is no mean over tokens, and its exponential says nothing.
  if found is None or not any(name in run.metrics.names
                              for name in ("val/perplexity", "train/bits_per_byte")):
    return None

  def exp(values):
    return None if values is None else np.exp(np.minimum(values, 700.0))

  return found._replace(curves=[one._replace(y=exp(one.y), low=exp(one.low), high=exp(one.high))
                                for one in found.curves])


def _references(run: RunFolder) -> list[charts.Level]:
  names = {"eval/trigram_bits_per_byte": "trigram", "eval/gzip_bits_per_byte": "gzip -9"}
  found = {label: run.metrics.last(name) for name, label in names.items()}
  return [charts.Level(f"{label}, {value:.2f}", value) for label, value in found.items() if value is not None]


def _ledger(run: RunFolder) -> BarChart | None:
  spent = run.ledger()
  if not spent:
    return None
  whole = max(sum(spent.values()), 1e-9)
  labels = [f"{kind}, {seconds / whole:.0%}" for kind, seconds in spent.items()]
  return BarChart(f"Where {duration(whole)} went", labels, np.array(list(spent.values())), y_label="seconds",
                  across=True, note="Since the first start, with what was lost and waited for between starts")


def _machine(run: RunFolder, axis: str) -> list:
  found = [charts.lines(run, label.partition(",")[0].capitalize(), {name: label}, axis,
                        y_label=label.partition(", ")[2]) for name, label in MACHINE.items()]
  shown = charts.present(*found)
  return [Words("Machine", "heading"), *shown] if shown else []


def _missing(run: RunFolder) -> list[Part]:
  found: list[Part] = []
  if not any(name.startswith(("val/", "eval/")) for name in run.metrics.names):
    found.append(Missing("No evaluation yet.", "config.train.eval_every_steps sets how often one is made."))
  if not any(name.startswith("system/") for name in run.metrics.names):
    found.append(Missing("No numbers of the machine (system/...).", "Measured every monitor.system_every_s "
                         "seconds; older runs have perf/host_memory_gib alone."))
  return found
