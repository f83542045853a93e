"""The panels of a report on a language model that is tuned: by SFT, GRPO, distillation or ranked responses.

A run has those of its kind that it wrote something for.
"""
import copy
import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from atlas_jax.monitor.clock import rate_text
from atlas_jax.monitor.curves import (
  MORE,
  QUIET,
  TRAIN,
  VAL,
  Series,
  cut_top,
  draw_lines,
  finish,
  legend_below,
  short_number,
)

REWARD = re.compile(r"rollout/reward/(.+)_mean$")
SEEN = re.compile(r"train/(\w+)_seen$")
GREEN, PURPLE, *_ = MORE
ENDINGS = {"fraction": "{:.1%}", "part": "{:.2%}"}  # How fractions write their last value.
Lines = Mapping[str, tuple[str, str, str]]  # name -> (label, colour, style), see `draw_lines`


class Panel(NamedTuple):
  """The content of a panel."""

  title: str
  y_label: str
  lines: Lines
  scale: str = "free"  # "fraction" is from none to all, "part" from none, "count" from zero.
  other: Lines = {}  # Lines that stand against an axis of their own, on the right.
  other_label: str = ""
  levels: Lines = {}  # Metrics whose last value is drawn across.


def names_of(series: Series) -> tuple[str, ...]:
  """Returns which panels a run's report has; none of a run that tunes nothing."""
  # In the order of KINDS: the first metric that is there tells the kind, and a run has one kind.
  for seen, names in KINDS.items():
    if seen in series:
      return tuple(name for name in names if _wrote(series, SHOWN[name]))
  return ()


def headline(series: Series) -> str:
  """Returns how long a run was, how fast, and what it reached."""
  parts = [f"{series['step'][1][-1]:,.0f} updates"]
  for unit in (found[1] for name in series if (found := SEEN.match(name))):
    words = unit.replace("_", " ")
    parts.append(f"{short_number(series[f'train/{unit}_seen'][1][-1])} {words}")
    if (speed := series.get(f"perf/{unit}_per_s")) is not None:
      parts.append(f"{rate_text(np.median(speed[1]))} {words}/s (median)")
  for name, words in (("val/accuracy", "of held-out problems right"),
                      ("val/pairs_right_frac", "of held-out pairs in order")):
    if name in series:
      parts.append(f"{series[name][1][-1]:.1%} {words}")
  return "  ·  ".join(parts)


def _rewards(series: Series) -> Panel:
  """Shows each reward by name, unless there is only the one."""
  panel = SHOWN["reward"]
  found = {name: match[1] for name in sorted(series) if (match := REWARD.match(name))}
  # The only reward, with weight 1, is the reward: a second line would lie on the first.
  if len(found) == 1 and _same(series, next(iter(found)), "rollout/reward_mean"):
    return panel
  each = {name: (label, MORE[at % len(MORE)], "-") for at, (name, label) in enumerate(found.items())}
  return panel._replace(lines={**panel.lines, **each})


def _recorded_loss(series: Series) -> Panel:
  """Shows what is minimised besides, where that is not the loss of recorded tokens as it is."""
  panel = SHOWN["recorded_loss"]
  # Weights of tokens or another loss make them differ; else one line would hide the other.
  if _same(series, "train/loss_nats", "sft/nll_nats"):
    return panel
  return panel._replace(lines={**panel.lines, "train/loss_nats": ("what is minimised", QUIET, "-")})


def _same(series: Series, name: str, other: str) -> bool:
  pair = series.get(name), series.get(other)
  if pair[0] is None or pair[1] is None:
    return False
  # Means that are the same by definition were taken in another order, in float32: they differ a little.
  return np.shape(pair[0]) == np.shape(pair[1]) and np.allclose(pair[0], pair[1], rtol=1e-4, atol=1e-7)


def _distance(series: Series) -> Panel:
  unit = "span of text" if "train/spans_seen" in series else "token"
  return SHOWN["distance"]._replace(y_label=f"nats per {unit}")


def _draw_writers(axes, series: Series) -> None:
  """Shows the fraction of texts so far that the student wrote; those of one update are all by one writer."""
  # A copy: other panels are drawn from the same series.
  so_far = copy.copy(series)
  name = "distill/on_policy_frac"
  if name in series:
    x, y = series[name]
    so_far[name] = x, np.cumsum(y) / np.arange(1, len(y) + 1)
  _draw(axes, so_far, "writers")


def _draw(axes, series: Series, name: str) -> None:
  """Draws a panel, and what stands against its right axis."""
  panel = MADE[name](series) if name in MADE else SHOWN[name]
  # What belongs on the right is drawn on the left if it is all there is: an empty left axis has no legend.
  if panel.other and not any(line in series for line in panel.lines):
    panel = panel._replace(lines=panel.other, y_label=panel.other_label, scale="count", other={})
  ending = ENDINGS.get(panel.scale, "{:.3g}")
  drawn = draw_lines(axes, series, panel.lines, ending=ending) + _draw_levels(axes, series, panel, ending)
  x_label = "updates" if series.x_label == "step" else series.x_label
  finish(axes, panel.title, x_label, panel.y_label, bool(drawn), f"no {next(iter(panel.lines))}")
  if drawn:
    if "step" in series:  # Panels of few evaluations reach as far as the others.
      axes.set_xlim(0, 1.04 * series["step"][0].max() or 1)
    _scale(axes, drawn, panel.scale)
    legend_below(axes, *_draw_other(axes, series, panel))


def _draw_levels(axes, series: Series, panel: Panel, ending: str) -> list[np.ndarray]:
  drawn = []
  for name, (label, color, style) in panel.levels.items():
    if name in series:
      value = series[name][1][-1]
      axes.axhline(value, color=color, linestyle=style, linewidth=1.5,
                   label=f"{label}: {ending.format(value)}")
      drawn.append(np.array([value]))
  return drawn


def _draw_other(axes, series: Series, panel: Panel) -> list:
  """Draws what stands against an axis on the right, and returns that axis, if there is anything."""
  if not any(name in series for name in panel.other):
    return []
  right = axes.twinx()
  lines = {name: (f"{label}, right axis", color, style)
           for name, (label, color, style) in panel.other.items()}
  drawn = draw_lines(right, series, lines)
  right.set_ylabel(panel.other_label, fontsize=11, color=QUIET)
  right.spines["top"].set_visible(False)
  _scale(right, drawn, "count")
  return [right]


def _scale(axes, drawn: list[np.ndarray], scale: str) -> None:
  """Sets the range of the upright axis, without the few highest values of long lines."""
  from matplotlib.ticker import PercentFormatter
  low = min(values.min() for values in drawn)
  # 0.98: the few first steps, or a single outlier, must not flatten the rest.
  high = max(np.quantile(values, 0.98) for values in drawn)
  if scale == "fraction":
    axes.set_ylim(-0.03, 1.03)
  elif scale in ("part", "count"):
    top = 1.15 * high if high > 0 else 0.01 if scale == "part" else 1
    axes.set_ylim(min(0, 1.15 * low) - 0.03 * top, top)  # What lies at zero is seen beside the axis.
  else:
    cut_top(axes, *drawn)
  if scale in ENDINGS:
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _wrote(series: Series, panel: Panel) -> bool:
  return any(name in series for name in (*panel.lines, *panel.other, *panel.levels))


SHOWN = {
    "reward": Panel("Reward of completions", "mean of a rollout", {
        "rollout/reward_mean": ("reward", TRAIN, "-"), "val/reward": ("held out", VAL, "-o")}),
    "answers": Panel("Held-out problems", "fraction of problems", {
        "val/accuracy": ("right", VAL, "-o"), "val/ended_frac": ("answers with an end", QUIET, ":o"),
    }, "fraction", levels={"teacher/accuracy": ("teacher right", PURPLE, "--")}),
    "lengths": Panel("Length of completions", "tokens", {
        "rollout/length_mean_tokens": ("mean", TRAIN, "-"),
        "rollout/length_tokens": ("mean", TRAIN, "-"),
        "rollout/length_max_tokens": ("longest", QUIET, ":"),
        "rollout/terminated_length_mean_tokens": ("mean, with an end", GREEN, "-"),
        "val/length_tokens": ("held out", VAL, "-o")}, "count"),
    "rollout_fractions": Panel("Completions cut off, groups that teach nothing", "fraction", {
        "rollout/truncated_frac": ("completions without an end", TRAIN, "-"),
        "rollout/flat_groups_frac": ("groups of equal rewards", VAL, "-"),
        "policy/stale_frac": ("left out as too old", PURPLE, "-")}, "fraction"),
    "entropy": Panel("Entropy, and KL to the reference", "entropy, nats per token", {
        "policy/entropy_nats": ("entropy", TRAIN, "-")}, "count",
        {"policy/kl_nats": ("KL", PURPLE, "-")}, "KL, nats per token"),
    "drift": Panel("Ratios clipped, and the sampler's gap", "fraction clipped", {
        "policy/clip_high_frac": ("clipped above", TRAIN, "-"),
        "policy/clip_low_frac": ("below", GREEN, "-")}, "part",
        {"policy/sampler_gap_nats": ("gap", VAL, "-")}, "gap to the sampler, nats per token"),
    "objective": Panel("What is minimised", "objective, without a unit", {
        "train/loss_nats": ("in training", TRAIN, "-")}),
    "recorded_loss": Panel("Loss of recorded answers", "nats per counted token", {
        "sft/nll_nats": ("in training", TRAIN, "-"), "val/loss_nats": ("held out", VAL, "-o")}, "count"),
    "places": Panel("What rows hold, and how likely it is", "fraction", {
        "sft/probability_mean": ("probability of a counted token", TRAIN, "-"),
        "sft/filled_frac": ("places filled", QUIET, "-"),
        "sft/counted_frac": ("places that count", GREEN, "-")}, "fraction"),
    "distance": Panel("Divergence from the teacher", "nats", {
        "train/loss_nats": ("in training", TRAIN, "-"),
        "val/divergence_nats": ("held out, recorded texts", VAL, "-o")}, "count"),
    "writers": Panel("Texts that are learnt from", "fraction of texts", {
        "distill/on_policy_frac": ("written by the student, so far", TRAIN, "-"),
        "rollout/ended_frac": ("with an end", QUIET, "-")}, "fraction"),
    "ranked_loss": Panel("Loss of ranked responses", "nats, mean over prompts", {
        "train/loss_nats": ("in training", TRAIN, "-"), "val/loss_nats": ("held out", VAL, "-o")}),
    "ranked_parts": Panel("What the loss is made of", "nats, mean over prompts", {
        "ranked/preference_nats": ("preference, in training", TRAIN, "-"),
        "val/preference_nats": ("preference, held out", VAL, "-o"),
        "ranked/pair_nats": ("pairs, in training", QUIET, "-"),
        "val/pair_nats": ("pairs, held out", VAL, ":o"),
        "ranked/kl_nats": ("KL, in training", PURPLE, "-"), "val/kl_nats": ("KL, held out", PURPLE, ":o")}),
    "pairs": Panel("Pairs in the right order", "fraction of pairs", {
        "ranked/pairs_right_frac": ("in training", TRAIN, "-"),
        "val/pairs_right_frac": ("held out", VAL, "-o")}, "fraction"),
    "top1": Panel("Held-out prompts whose likeliest response is a best one", "fraction of prompts", {
        "val/top1_frac": ("held out", VAL, "-o")}, "fraction"),
    "best": Panel("Loss of the best responses", "nats per token", {
        "ranked/best_nats": ("in training", TRAIN, "-"), "val/best_nats": ("held out", VAL, "-o")}, "count"),
    "pace": Panel("Learning rate, and norm of the gradient", "learning rate", {
        "train/lr": ("learning rate", TRAIN, "-")}, "count",
        {"grad/norm": ("norm", QUIET, "-")}, "norm of the gradient"),
}
MADE = {"reward": _rewards, "recorded_loss": _recorded_loss, "distance": _distance}
KINDS = {  # A metric that only runs of a kind write -> their panels
    "rollout/reward_mean": ("reward", "answers", "lengths", "rollout_fractions", "entropy", "drift",
                            "objective", "pace"),
    "sft/nll_nats": ("recorded_loss", "answers", "places", "pace"),
    "distill/on_policy_frac": ("distance", "answers", "lengths", "writers", "pace"),
    "ranked/pairs": ("ranked_loss", "ranked_parts", "pairs", "top1", "best", "pace"),
}
PANELS: dict[str, Callable] = {
    **{name: functools.partial(_draw, name=name) for name in SHOWN}, "writers": _draw_writers}
