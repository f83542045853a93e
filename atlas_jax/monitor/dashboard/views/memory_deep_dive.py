"""Memory Deep Dive: what each layer's memory holds, how it is read, and what that is worth."""
import re

import numpy as np

from atlas_jax.monitor.dashboard import charts
from atlas_jax.monitor.dashboard.charts import (
  BarChart,
  LineChart,
  Missing,
  Part,
  Picture,
  PlotLine,
  Tile,
  Tiles,
  Words,
)
from atlas_jax.monitor.dashboard.views import View
from atlas_jax.monitor.run_folder import RunFolder

TITLE, ORDER = "Memory Deep Dive", 2
GATES = (("eval/raw_gate_mean", "Raw gate, held out (before its floor)"),
         ("eval/gate_mean", "Applied gate, held out"),
         ("memory/mix_gate_raw_mean", "Raw gate, in training"),
         ("memory/mix_gate_mean", "Applied gate, in training"),
         ("memory/write_rate_mean", "Write rate, in training"))
# Metric by layer -> title, unit, bounds that mean something.
BY_LAYER = {
    "eval/effective_rank": ("Effective rank of the fast weights", "directions", ()),
    "eval/key_diversity": ("Diversity of keys", "", ()),
    "eval/half_life_tokens": ("Half-life, held out", "tokens", ()),
    "memory/retention_half_life_tokens": ("Half-life, in training", "tokens", ()),
    "eval/surprise_norm_mean": ("Surprise, held out", "norm of the error", ()),
    "memory/surprise_norm_mean": ("Surprise, in training", "norm of the error", ()),
    "eval/inner_loss_ratio": ("Recall of what was just written", "loss over that of answering zero",
                              (("no better than answering zero", 0.99),)),
    "memory/inner_loss_before": ("Inner loss before a write", "", ()),
    "memory/inner_loss_after": ("Inner loss after a write", "", ()),
    "eval/memory_norm_ratio": ("Norm of the weights over that of their start", "", (("faded", 0.01),)),
    "eval/memory_norm_in_values": ("Norm of the weights, in values", "", (("faded", 0.01),)),
    "memory/fast_norm_mean": ("Norm of the fast weights, in training", "", ()),
}
GAINS = {"emptied": "memory<br>emptied", "swapped": "of another<br>row",
         "writes_off": "learned start,<br>no writes", "gate_zero": "gate at zero<br>(no evidence)"}
SPECTRUM = re.compile(r"eval/singular_value_(\d+)/layer_(\d+)$")
RECALLED = {"eval/recall_accuracy_past_window": ("as it is", "points"),
            "eval/recall_accuracy_emptied": ("memory emptied", "points"),
            "eval/recall_accuracy_swapped": ("memory of another row", "points"),
            "eval/recall_accuracy_writes_off": ("no writes", "points"),
            "eval/recall_chance": ("chance", "dot")}
WHOLE = (0.0, 1.0)


def parts(view: View) -> list[Part]:
  """Returns the page of a run."""
  run, axis = view.run, view.axis
  if run is None or not _has_memory(run):
    return [Missing("This run wrote nothing of a memory.",
                    "Language models with config.model.memory_mix other "
                    "than none do; evaluations are made every config.train.eval_every_steps updates.")]
  gates = charts.present(*(charts.layer_map(run, title, name, axis, bounds=WHOLE) for name, title in GATES))
  life = [found for name, (title, unit, bounds) in BY_LAYER.items()
          if (found := _of_layers(run, name, title, unit, bounds, axis)) is not None]
  return [*charts.present(_tiles(run)), *_headed("Gates", gates), *_headed("Worth", _worth(run, axis)),
          *_headed("Recall", _recall(run, axis)), *_headed("Health by layer", [*life, *_spectra(run)]),
          *_missing(run)]


def _has_memory(run: RunFolder) -> bool:
  return any(name.startswith(("memory/", "eval/raw_gate", "eval/memory_")) for name in run.metrics.names)


def _headed(words: str, found: list) -> list:
  return [Words(words, "heading"), *found] if found else []


def _tiles(run: RunFolder) -> Tiles | None:
  tiles = []
  for name, label, hint in (("eval/raw_gate_mean_min_layer", "Least raw gate",
                             "of all layers; below 0.1 is shut"),
                            ("eval/memory_gain_swapped_nats", "Gain, swapped", "nats per token"),
                            ("eval/recall_accuracy_past_window", "Recall past the window", "right answers"),
                            ("eval/collapse_signs", "Signs of collapse",
                             "that stand at the newest evaluation")):
    value = run.metrics.last(name)
    if value is not None:
      tiles.append(Tile(label, f"{value:.3g}", "", hint))
  return Tiles(tiles) if tiles else None


def _worth(run: RunFolder, axis: str) -> list[Part]:
  found = _gains(run)
  over_time = charts.lines(run, "Gains over time", {
      f"eval/memory_gain_{name}_nats": (words.replace("<br>", " "), "points") for name,
      words in GAINS.items()},
      axis, y_label="nats per token", levels=[charts.Level("worth nothing", 0.0)])
  return charts.present(found, over_time)


def _gains(run: RunFolder) -> BarChart | None:
  names = {f"eval/memory_gain_{name}_nats": words for name, words in GAINS.items()}
  values = {name: run.metrics.last(name) for name in names}
  known = [name for name, value in values.items() if value is not None]
  if not known:
    return None
  value = np.array([values[name] for name in known], float)
  low, high = (np.array([_or(run.metrics.last(f"{name}_{end}"), values[name]) for name in known], float)
               for end in ("low", "high"))
  counts = [f"{int(count):,} {what}" for what in ("tokens", "documents")
            if (count := run.metrics.last(f"eval/memory_gain_{what}")) is not None]
  return BarChart("What the memory is worth", [names[name] for name in known], value, low, high,
                  y_label="nats per token",
                  note=f"Loss without it minus loss as it is, on {' of '.join(counts) or 'held-out text'}; "
                       "95% intervals over documents. A gain whose interval holds zero is none.")


def _or(value, other):
  return other if value is None else value


def _recall(run: RunFolder, axis: str) -> list[Part]:
  over_time = charts.lines(run, "Right answers beyond the window", RECALLED, axis, y_label="fraction",
                           note="Held-out episodes, mean over tasks; controls answer the same questions.")
  bars = [_by(run, "distance", "tokens between storing and asking"), _by(run, "items", "items in a text")]
  pictures = run.pictures()
  newest = [file for file in pictures[max(pictures)]
            if f"eval/recall/{file.stem}/accuracy" in run.metrics.names
            ] if pictures else []
  return charts.present(over_time, *bars, _by_task(run), *(
      Picture(f"{file.stem}, at step {max(pictures):,}", file) for file in newest))


def _by(run: RunFolder, kind: str, words: str) -> BarChart | None:
  start = f"eval/recall_accuracy_by_{kind}/"
  found = {name.removeprefix(start): run.metrics.last(name) for name in run.metrics.names
           if name.startswith(start)}
  known = {int(key): value for key, value in found.items() if value is not None and key.isdigit()}
  if not known:
    return None
  keys = sorted(known)
  return BarChart(f"Recall by {kind}", [f"{key:,}" for key in keys], np.array([known[key] for key in keys]),
                  y_label="fraction right", note=f"Newest evaluation, by {words}.")


def _by_task(run: RunFolder) -> BarChart | None:
  names = [found[1] for name in run.metrics.names
           if (found := re.fullmatch(r"eval/recall/(\w+)/accuracy", name))]
  if not names:
    return None
  columns = [[_or(run.metrics.last(f"eval/recall/{task}/accuracy{end}"), np.nan) for task in names]
             for end in ("", "_low", "_high")]
  value, low, high = (np.nan_to_num(np.array(column, float)) for column in columns)
  answers = [_or(run.metrics.last(f"eval/recall/{task}/answers"), 0) for task in names]
  return BarChart("Recall by task", [f"{task}, n={count:.0f}" for task, count in zip(names, answers)], value,
                  low,
                  high, y_label="fraction right", across=True,
                  note="Newest evaluation, 95% intervals over texts.")


def _of_layers(run: RunFolder, prefix: str, title: str, unit: str, bounds, axis: str) -> LineChart | None:
  style = "points" if prefix.startswith("eval/") else "line"
  names = {name: (f"layer {layer}", style) for layer, name in charts.layers_of(run, prefix).items()}
  return charts.lines(run, title, names, axis, y_label=unit, note=prefix,
                      levels=[charts.Level(words, value) for words, value in bounds])


def _spectra(run: RunFolder) -> list[Part]:
  """Returns the newest singular values by rank, a curve for each layer."""
  by_layer: dict[int, dict[int, str]] = {}
  for name in run.metrics.names:
    if found := SPECTRUM.match(name):
      by_layer.setdefault(int(found[2]), {})[int(found[1])] = name
  curves = []
  for layer, names in sorted(by_layer.items()):
    values = {rank: run.metrics.last(name) for rank, name in sorted(names.items())}
    known = {rank: value for rank, value in values.items() if value is not None}
    if known:
      curves.append(PlotLine(f"layer {layer}", np.array([*known], float) + 1,
                             np.array([*known.values()], float),
                          style="points"))
  if not curves:
    return []
  positive = all((one.y > 0).all() for one in curves)
  return [LineChart("Singular values of the fast weights", curves, "rank, largest first", "singular value",
                    note="Newest evaluation, mean over rows and heads.", log=positive)]


def _missing(run: RunFolder) -> list[Part]:
  names = run.metrics.names
  found: list[Part] = []
  if not any(name.startswith("eval/memory_gain_") and name.endswith("_nats") for name in names):
    # With the tokens of a gain and no gain, it was tried on too little text.
    tried = run.metrics.last("eval/memory_gain_tokens") is not None
    found.append(Missing("No gain of the memory yet.",
                         "No held-out document was longer than what attention sees; "
                         "raise config.eval.gain_max_tokens or config.data.segment_len." if tried else
                         "It is measured with the other evaluations, config.train.eval_every_steps."))
  if not any(name.startswith("eval/recall") for name in names):
    found.append(Missing("No recall by distance and items.", "config.recipe=episodic measures it, or "
                         "config.eval.tasks names what to ask."))
  if not any(name.startswith("eval/effective_rank/") for name in names):
    found.append(Missing("No effective rank and no spectrum.",
                         "This run was made before evaluations of the "
                         "memory's health wrote eval/effective_rank and eval/singular_value."))
  return found

