"""Completions: what a policy wrote, what it earned, and which of it can be learnt from."""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.monitor.dashboard import charts
from atlas_jax.monitor.dashboard.charts import BarChart, Grid, Missing, Part, Tile, Tiles, Words
from atlas_jax.monitor.dashboard.views import View
from atlas_jax.monitor.run_folder import RunFolder
from atlas_jax.workdir import COMPLETIONS

TITLE, ORDER = "Completions", 6
SHOWN = 50  # Completions on a page,
CHARS = 2_000  # and characters of each text in the table.
ORDERS = ("newest first", "highest reward first", "lowest reward first", "longest first")
BINS = 20


class Filter(NamedTuple):
  """A choice of completions."""

  steps: tuple[int, int] | None = None  # from and to, both inside; None: all
  rewards: tuple[float, float] | None = None
  reasons: tuple[str, ...] = ()  # why they ended; none: all
  words: str = ""  # in prompt or completion, whatever its case
  only_learnt: bool = False  # only those with an advantage that is not zero
  order: str = ORDERS[0]


def parts(view: View) -> list[Part]:
  """Returns the page of a run with its newest file of completions, unfiltered."""
  if view.run is None or not view.run.completion_files():
    return [_none()]
  return page(view.run, rows_of(view.run), Filter(), view.axis)


def show(view: View, draw) -> None:
  """Asks which completions are shown."""
  import streamlit as st
  if view.run is None or not view.run.completion_files():
    draw([_none()])
    return
  files = [file.name for file in reversed(view.run.completion_files())]
  name = files[0]
  if len(files) > 1:
    name = st.selectbox("File, a thousand steps each", files, key="completion_file")
  rows = rows_of(view.run, name if name in files else files[0])
  with st.expander("Filter and order", expanded=False):
    words = st.text_input("Words in prompt or completion", key="completion_words")
    known = sorted({str(row.get("reason")) for row in rows})
    reasons = st.multiselect("Why it ended", known, key="completion_reasons")
    order = st.selectbox("Order", ORDERS, key="completion_order")
    learnt = st.checkbox("Only with an advantage other than zero", key="completion_learnt")
    steps = _range(st, "Steps", [row["step"] for row in rows], "completion_steps")
    rewards = _range(st, "Reward", [row["reward"] for row in rows if _is_number(row.get("reward"))],
                     "completion_rewards")
  draw(page(view.run, rows, Filter(steps, rewards, tuple(reasons), words, learnt, order), view.axis))


def _range(st, label: str, values: Sequence[float], key: str):
  """Asks for a range of numbers; None while there is only one, or all are wanted."""
  if not values or min(values) == max(values):
    return None
  whole = min(values), max(values)
  # Boxes and not a slider: its ends would move with every completion that comes, and forget the choice.
  left, right = st.columns(2)
  low = left.number_input(f"{label}, from", value=None, placeholder=f"{whole[0]:g}", key=f"{key}_low")
  high = right.number_input(f"{label}, to", value=None, placeholder=f"{whole[1]:g}", key=f"{key}_high")
  if low is None and high is None:
    return None
  return whole[0] if low is None else low, whole[1] if high is None else high


def _none() -> Missing:
  return Missing("This run wrote no completions.", f"Policies (config.recipe=grpo, gkd) write a few of every "
                 f"rollout to {COMPLETIONS}/.")


def rows_of(run: RunFolder, name: str | None = None) -> list[dict[str, Any]]:
  """Returns the completions in a file, the newest by default; rows without a step are left out."""
  files = run.completion_files()
  chosen = [file for file in files if file.name == name] or files[-1:]
  return [row for file in chosen for row in run.completions(file) if _is_number(row.get("step"))]


def page(run: RunFolder, rows: Sequence[Mapping[str, Any]], filter_: Filter, axis: str) -> list[Part]:
  """Returns the page with the completions that pass a filter."""
  found = chosen(rows, filter_)
  rewards = np.array([row["reward"] for row in found if _is_number(row.get("reward"))], float)
  advantages = [row["advantage"] for row in found if _is_number(row.get("advantage"))]
  tiles = [Tile("Completions", f"{len(found):,}", "", f"of {len(rows):,} in this file")]
  if len(rewards):
    tiles.append(Tile("Mean reward", f"{rewards.mean():.3g}"))
  if advantages:
    tiles.append(Tile("With an advantage", f"{np.mean(np.array(advantages) != 0):.0%}", "",
                      "the others teach nothing: all of their group earned the same"))
  return charts.present(
      Tiles(tiles), histogram(rewards), table(found),
      Words(f"The first {SHOWN} of {len(found):,}.") if len(found) > SHOWN else None,
      charts.lines(run, "Reward over time", {"rollout/reward_mean": "mean of a rollout",
                                             "val/reward": ("held out", "points")}, axis),
      charts.lines(run, "Length over time", {"rollout/length_mean_tokens": "mean",
                                             "rollout/length_max_tokens": ("longest", "dot"),
                                             "val/length_tokens": ("held out", "points")}, axis,
                                             y_label="tokens"),
      charts.lines(run, "Fractions of rollouts", {
          "rollout/truncated_frac": "cut off, without an end",
          "rollout/flat_groups_frac": "groups of equal rewards",
          "rollout/learnable_frac": "that can be learnt from"}, axis))


def chosen(rows: Sequence[Mapping[str, Any]], filter_: Filter) -> list[Mapping[str, Any]]:
  """Returns the completions that pass a filter, in its order."""
  words = filter_.words.lower()

  def passes(row: Mapping[str, Any]) -> bool:
    return (_within(row.get("step"), filter_.steps) and _within(row.get("reward"), filter_.rewards)
            and (not filter_.reasons or str(row.get("reason")) in filter_.reasons)
            and (not filter_.only_learnt or bool(row.get("advantage")))
            and (not words or words in f"{row.get('prompt')}\n{row.get('completion')}".lower()))

  found = [row for row in rows if passes(row)][::-1]
  match filter_.order:
    case "highest reward first":
      found.sort(key=lambda row: -_number(row.get("reward"), -np.inf))
    case "lowest reward first":
      found.sort(key=lambda row: _number(row.get("reward"), np.inf))
    case "longest first":
      found.sort(key=lambda row: -_number(row.get("length_tokens"), 0))
  return found


def histogram(rewards: np.ndarray) -> BarChart | None:
  """Returns how often rewards were earned; None of fewer than two different ones."""
  values = np.unique(rewards)
  if len(values) < 2:
    return None
  if len(values) <= BINS:
    counts = np.array([np.count_nonzero(rewards == value) for value in values], float)
    return BarChart("Rewards", [f"{value:.3g}" for value in values], counts, y_label="completions")
  counts, edges = np.histogram(rewards, BINS)
  labels = [f"{low:.3g} to {high:.3g}" for low, high in zip(edges, edges[1:])]
  return BarChart("Rewards", labels, counts.astype(float), y_label="completions")


def table(rows: Sequence[Mapping[str, Any]]) -> Grid:
  """Returns the first completions as a table, each reward by its name."""
  shown = rows[:SHOWN]
  names = list(dict.fromkeys(name for row in shown if isinstance(row.get("rewards"), dict)
                             for name in row["rewards"]))
  columns = {name: [row.get(name) for row in shown] for name in ("step", "reward", "advantage")}
  columns |= {name: [str(row.get(name) if row.get(name) is not None else "")[:CHARS] for row in shown]
              for name in ("prompt", "completion", "answer", "reason")}
  columns["tokens"] = [row.get("length_tokens") for row in shown]
  if len(names) > 1:
    columns |= {f"reward of {name}": [(row.get("rewards") or {}).get(name) for row in shown]
                for name in names}
  return Grid("What was written", columns, "Choose a cell to read all of it.")


def _within(value, bounds: tuple[float, float] | None) -> bool:
  return bounds is None or (_is_number(value) and bounds[0] <= value <= bounds[1])


def _is_number(value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _number(value, default: float) -> float:
  return float(value) if _is_number(value) else default
