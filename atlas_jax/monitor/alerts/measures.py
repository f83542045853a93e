"""Numbers that rules judge and that no row has by itself; pure functions of a row and the run's settings.

Each takes a row of metrics, null read as NaN, its step, and the config, and returns several numbers, which
the rule makes one of; [] where the row lacks what it is computed from.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any

from atlas_jax.monitor import idle, repeats

AFTER = "memory/recall_loss_after/"
ZERO = "memory/recall_loss_zero/"
IDLE_READS = ("train/skipped_in_row", "grad/norm", "train/lr", idle.CHANGED)


def recall_ratio(row: Mapping[str, float], step: int, config) -> list[float]:
  """Returns of each block the loss of recalling what was just written over that of answering zero."""
  del step, config
  found = []
  for name, after in row.items():
    if name.startswith(AFTER):
      zero = row.get(ZERO + name.removeprefix(AFTER), math.nan)
      found.append(after / zero if zero else math.nan)
  return found


def idle_update(row: Mapping[str, float], step: int, config) -> list[float]:
  """Returns 1 where an update taught nothing, 0 where it did, see `idle.kind_of`."""
  if config is None or any(name not in row for name in IDLE_READS):
    return []
  kind = idle.kind_of(step, row, config)
  if kind in (idle.SKIPPED, idle.WARMING):  # They have rules and warnings of their own.
    return []
  at_end = kind == idle.IDLE and row["train/lr"] == 0 and step >= config.optim.steps
  return [float(kind in (idle.IDLE, idle.UNTAUGHT) and not at_end)]


def repeated(row: Mapping[str, float], step: int, config) -> list[float]:
  """Returns the fraction of updates whose batch was seen before, of those that are meant to be new."""
  del step
  if repeats.METRIC not in row:
    return []
  is_policy = config is not None and config.recipe in ("grpo", "teacher")
  planned = 1 - 1 / config.rollout.updates_per_batch if is_policy else 0.0
  return [max(0.0, (row[repeats.METRIC] - planned) / (1 - planned))]


MEASURES: dict[str, Callable[[Mapping[str, float], int, Any], list[float]]] = {
    "recall_ratio": recall_ratio, "idle": idle_update, "repeated": repeated}
NEEDS = {"recall_ratio": f"{AFTER}*", "idle": idle.CHANGED, "repeated": repeats.METRIC}
