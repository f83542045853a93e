"""Panels of the report on what memory is worth: gains, raw gates, and the loss by position in a document."""
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from atlas_jax.evals import collapse_signs
from atlas_jax.monitor.curves import MORE, QUIET, TRAIN, VAL, Series, finish, short_number

GAINS = (("emptied", "memory\nemptied"), ("swapped", "memory of\nanother row"),
         ("writes_off", "learned start,\nno writes"), ("gate_zero", "gate at zero\n(no evidence)"))
# Without gate_zero, which takes the layer's convolutions away, too: it shows that the layer does something.
BY_POSITION = GAINS[:-1]
# Positions from and to, both inside, with leading zeros: as text they sort like numbers.
RAW_GATE = re.compile(rf"{collapse_signs.GATE}/layer_(\d+)$")
BUCKET = re.compile(r"(\d+)-(\d+|up)$")


class Curve(NamedTuple):
  """A loss by position: bucket, such as "000064-000127" -> nats per token."""

  label: str
  loss: dict[str, float]
  color: str
  style: str


def draw_gain(axes, series: Series) -> None:
  """Draws what each ablation of the memory costs, with its interval."""
  known = [(f"eval/memory_gain_{name}_nats", label, name) for name, label in GAINS
           if f"eval/memory_gain_{name}_nats" in series]
  values = [series[metric][1][-1] for metric, _, _ in known]
  if known:
    intervals = [_interval(series, metric, value) for (metric, _, _), value in zip(known, values)]
    reaches = np.array([[value - low, high - value] for (low, high), value in zip(intervals, values)]).T
    # Blue helps and orange harms, grey is no evidence.
    colors = [QUIET if name == "gate_zero" else TRAIN if value >= 0 else VAL
              for (_, _, name), value in zip(known, values)]
    bars = axes.bar([label for _, label, _ in known], values, width=0.55, color=colors,
                    yerr=np.maximum(reaches, 0), capsize=6)
    axes.bar_label(bars, [f"{value:+.4f}\n({low:+.4f}\nto {high:+.4f})" if high > low else f"{value:+.4f}"
                          for value, (low, high) in zip(values, intervals)], padding=4, fontsize=10)
    axes.axhline(0, color="black", linewidth=1)
    axes.margins(x=0.12, y=0.35)
  finish(axes, "Memory gain: loss without it, minus loss as it is", "", "nats per token", bool(known),
         "no eval/memory_gain_*")
  if known:
    axes.set_xlabel(_measured_on(series), fontsize=10.5)


def _interval(series: Series, name: str, value: float) -> tuple[float, float]:
  """Returns the interval of a mean, the mean itself where there is none."""
  ends = [series[f"{name}_{end}"][1][-1] for end in ("low", "high") if f"{name}_{end}" in series]
  return (ends[0], ends[1]) if len(ends) == 2 else (value, value)


def _measured_on(series: Series) -> str:
  """Returns how much text memory gain was measured on."""
  counts = {name: series[f"eval/memory_gain_{name}"][1][-1] for name in ("tokens", "documents")
            if f"eval/memory_gain_{name}" in series}
  parts = [f"{int(count):,} {name}" for name, count in counts.items()]
  words = " of ".join(parts) + ("; 95% intervals over documents" if counts.get("documents", 0) > 1 else "")
  # Rows whose partner has read nothing are left out of this gain, which so is of fewer tokens.
  swapped = series.get("eval/memory_gain_swapped_tokens")
  if swapped is None or swapped[1][-1] == counts.get("tokens"):
    return words
  return f"{words}\nof another row: {int(swapped[1][-1]):,} tokens"


def draw_loss_by_position(axes, series: Series, reaches: Mapping[str, int] | None = None) -> None:
  """Draws the last held-out loss against the position in the document, in buckets of doubling width.

  Solid: where memory gain was measured, on its tokens alone: the loss as it is, and with it what each
  ablation adds; else on all held-out text. Dashed: recorded figures of a model without memory, and beside
  gains also the loss as it is, both on all held-out text.

  Args:
    axes: of matplotlib, empty.
    series: what `report.read_series` gave.
    reaches: label -> tokens, drawn as upright lines; such as how far attention sees.
  """
  curves, counted = curves_of(series)
  buckets = sorted({bucket for curve in curves for bucket in curve.loss})
  # Buckets double in width, and each is drawn equally wide: the axis is logarithmic.
  places = np.arange(len(buckets) + 1)
  for curve in curves:
    losses = [curve.loss.get(bucket, np.nan) for bucket in buckets]
    axes.stairs(losses, places, baseline=None, color=curve.color, linestyle=curve.style, linewidth=2,
                label=curve.label)
  starts = [int(bucket.split("-")[0]) for bucket in buckets]
  if curves:
    _write_counts(axes, buckets, curves[0], counted)
    for (label, reach), style in zip((reaches or {}).items(), ("--", ":", "-.")):
      # Tokens become a place between the edges of the buckets.
      axes.axvline(np.interp(reach, starts, places[:-1]), color=TRAIN, linestyle=style, label=label)
    axes.margins(x=0, y=0.2)
  finish(axes, "Held-out loss by position in the document", "", "nats per token", bool(curves),
         "no val/loss_nats_by_position")
  if curves:
    axes.set_xticks(places[:-1], [f"{start:,}" for start in starts])
    axes.set_xlabel("tokens into the document (small numbers: tokens measured)", fontsize=11)
    if len(curves) > 1:  # Below the panel, where no curve can be.
      axes.legend(frameon=False, fontsize=9.5, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    elif reaches:
      axes.legend(frameon=False, fontsize=11)


def _write_counts(axes, buckets: list[str], curve: Curve, counted: dict[str, float]) -> None:
  """Writes below a curve on how many tokens it was measured."""
  for place, bucket in enumerate(buckets):
    if bucket in curve.loss and bucket in counted:
      axes.annotate(short_number(counted[bucket]), (place + 0.5, curve.loss[bucket]), xytext=(0, -12),
                    textcoords="offset points", ha="center", fontsize=9, color=QUIET)


def curves_of(series: Series) -> tuple[list[Curve], dict[str, float]]:
  """Returns what `draw_loss_by_position` draws, and the tokens of each bucket of the first curve."""
  whole = _by_bucket(series, "val/loss_nats_by_position/")
  baseline = _by_bucket(series, "eval/baseline_loss_nats_by_position/")
  solid = Curve("as it is", whole, VAL, "-")
  counted = _by_bucket(series, "val/tokens_by_position/")
  curves = []
  # Gains are measured on fewer tokens than the loss. A curve with a gain on top must start from the loss of
  # these same tokens, or the difference between two texts would look like memory.
  if gained := _by_bucket(series, "eval/memory_gain_loss_nats_by_position/"):
    solid = solid._replace(loss=gained)
    counted = _by_bucket(series, "eval/memory_gain_tokens_by_position/")
    if baseline:
      curves.append(Curve("as it is, all held-out text", whole, VAL, "--"))
  for (name, label), color, style in zip(BY_POSITION, MORE, ("-", "-", ":")):
    # Rows whose partner has read nothing are left out of this gain, so it has a loss of its own.
    kind = "memory_gain_swapped" if name == "swapped" else "memory_gain"
    loss = _by_bucket(series, f"eval/{kind}_loss_nats_by_position/")
    gain = _by_bucket(series, f"eval/memory_gain_{name}_nats_by_position/")
    curves.append(Curve(label.replace("\n", " "), {at: loss[at] + gain[at] for at in gain if at in loss},
                        color, style))  # Where the start is zero, no writes are an empty memory.
  label = "without memory, recorded" + (", all held-out text" if gained else "")
  curves.append(Curve(label, baseline, QUIET, "--"))
  return [curve for curve in (solid, *curves) if curve.loss], counted


def _by_bucket(series: Series, start: str) -> dict[str, float]:
  """Returns the last values of the metrics that a bucket of positions follows in name."""
  return {name.removeprefix(start): float(values[-1]) for name, (_, values) in series.items()
          if name.startswith(start) and BUCKET.fullmatch(name.removeprefix(start))}


def names_of(series: Series) -> tuple[str, ...]:
  """Returns the panels of held-out memory health that a run wrote something for."""
  return ("raw_gates",) if any(RAW_GATE.match(name) for name in series) else ()


def draw_raw_gates(axes, series: Series) -> None:
  """Draws the gates before their floor on held-out text, and the line below which one counts as shut."""
  import matplotlib
  layers = sorted((int(found[1]), name) for name in series if (found := RAW_GATE.match(name)))
  colors = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, max(1, len(layers))))
  for (layer, name), color in zip(layers, colors):
    axes.plot(*series[name], color=color, linewidth=2, marker="o", markersize=5,
              label=f"layer {layer}: {series[name][1][-1]:.3g}")
  if layers:
    least = collapse_signs.GATE_LEAST
    axes.axhline(least, color=VAL, linestyle="--", linewidth=1.5, label=f"below {least}: shut")
    # The line is always in sight, however open the gates.
    axes.set_ylim(0, min(1.0, 1.15 * max(series[name][1].max() for _, name in layers) + least))
  finish(axes, "Gate before its floor, held out, mean per layer", series.x_label, "0 closed, 1 open",
         bool(layers), f"no {collapse_signs.GATE}/layer_*")


PANELS = {"memory_gain": draw_gain, "loss_by_position": draw_loss_by_position, "raw_gates": draw_raw_gates}
