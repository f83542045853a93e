"""Batches of unusually high loss, and where their rows came from: `workdir/high_loss.jsonl`.

A loss is high if it lies more than config.monitor.high_loss_deviations standard deviations above its running
mean, or is not finite. Mean and deviation are exponential averages over about KEEP_STEPS updates, which are
saved with the checkpoints: a run that goes on finds the same batches as one that never stopped. Lines are of
the rows of process 0.
"""
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from atlas_jax.files import json_file, json_lines, write

KEEP_STEPS = 50  # Updates over which loss is averaged.
WARM_STEPS = 20  # Updates of a run before a loss can be high: mean and deviation are not known yet.
LEAST_DEVIATION = 0.01  # Of the mean: where losses hardly differ, smaller differences say nothing.


class HighLoss:
  """Follows the loss of a run and notes the batches where it is high.

  Args:
    path: of the file; None: only the averages are kept, as in processes other than 0.
    deviations: config.monitor.high_loss_deviations; None: nothing is noted.
    saved: what `saved` gave with the checkpoint that the run goes on from.
  """

  def __init__(self, path: Path | None, deviations: float | None, saved: Mapping[str, Any] | None = None):
    self._path = path
    self._deviations = deviations
    before = saved or {}
    self._count = int(before.get("count", 0))
    self._mean = float(before.get("mean", 0.0))
    self._variance = float(before.get("variance", 0.0))

  def saved(self) -> dict[str, float]:
    """Returns what JSON can hold and another start goes on from."""
    return {"count": self._count, "mean": self._mean, "variance": self._variance}

  def start(self, step: int) -> None:
    """Drops lines of steps after the one that the run goes on from, since these steps are made again."""
    if self._path is None or not self._path.exists():
      return
    rows = list(json_lines.read(self._path, torn="drop"))
    for row in rows:
      json_file.field(self._path, row, "step", json_file.is_int, "whole in every row", remedy=json_lines.MEND)
    write.whole(self._path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))

  def observe(self, step: int, loss: float, source) -> bool:
    """Counts the loss of an update; returns whether it is high, and has noted where its batch came from then.

    Args:
      step: of the update, from 1.
      loss: of its batch.
      source: that the batch came from, see `data.source.Source`.
    """
    high = self._is_high(loss)
    if high and self._path is not None:
      self._write(step, loss, source)
    if math.isfinite(loss):
      self._add(loss)
    return high

  @property
  def deviation(self) -> float:
    """Returns the running standard deviation, at least a fraction of the mean."""
    return max(math.sqrt(self._variance), LEAST_DEVIATION * abs(self._mean))

  def _is_high(self, loss: float) -> bool:
    if self._deviations is None:
      return False
    if not math.isfinite(loss):
      return True
    return self._count >= WARM_STEPS and loss > self._mean + self._deviations * self.deviation

  def _add(self, loss: float) -> None:
    self._count += 1
    # At first a plain mean: an average that starts from nothing would be ruled by the first loss for long.
    weight = max(1 / self._count, 1 / KEEP_STEPS)
    away = loss - self._mean
    self._mean += weight * away
    self._variance = (1 - weight) * (self._variance + weight * away * away)

  def _write(self, step: int, loss: float, source) -> None:
    row = {"step": step, "loss_nats": loss if math.isfinite(loss) else None, "mean_nats": self._mean,
           "deviation_nats": self.deviation, "rows": rows_of(source, step - 1)}
    assert self._path is not None
    with write.naming(self._path), self._path.open("a", encoding="utf-8") as out:
      out.write(json.dumps(row, allow_nan=False) + "\n")
    logging.warning("step %d: loss %.4g nats, %.4g on average; %s says where its rows came from", step, loss,
                    self._mean, self._path.name)


def rows_of(source, step: int) -> list[dict]:
  """Returns where the rows of a batch came from: "origin" of each, and "documents" where the source knows.

  Args:
    source: of the batch.
    step: of the batch, from 0.
  """
  # A source that knows documents also knows the origins, and looks both up at once.
  if hasattr(source, "passages"):
    return source.passages(step)
  return [{"origin": origin} for origin in source.provenance(step)]
