"""Times the steps between two rows of metrics, and says how fast they are."""
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from atlas_jax.monitor import profile


@dataclasses.dataclass
class Sent:
  """A step that was sent to the devices."""

  metrics: dict  # [] arrays by name
  inside_s: float  # the host was busy with sending it
  finished_s: float | None = None  # when it was, if known before its metrics are read

  @property
  def ready(self) -> bool:
    """Returns whether the step is finished, without waiting."""
    return all(leaf.is_ready() for leaf in jax.tree.leaves(self.metrics))


class Clock:
  """Counts steps, tokens (or what else `unit` names) and seconds from the end of one step to that of another.

  The first step of a start, which is compiled meanwhile, does not count.

  Attributes:
    flops_per_step: FLOPs of the model in one update, None while unknown.
    peak_flops: FLOP/s of all devices of the run at best, None where unknown; it rises if the run was faster.
  """

  def __init__(self, peak_flops: float | None, unit: str = "tokens"):
    """Takes what `profile.run_peak_flops` gives, and what is counted."""
    self.unit = unit
    self.flops_per_step: float | None = None
    self.peak_flops = peak_flops
    self.steps = 0
    self.counted = 0
    self._inside = 0.0
    self._begun = False
    self._warned = False
    self._sent: Sent | None = None  # The last one.
    self.restart()

  def restart(self) -> None:
    """Starts to count anew, after what is no part of a step, such as an evaluation."""
    self._count_from(time.perf_counter())

  def next_row(self) -> None:
    """Starts to count anew with the step behind the one read last."""
    # From the end of the step read last and not from now: rows then add up to the time of all steps, without
    # gaps.
    self._count_from(self._finished)

  def send(self, step: Callable, *args) -> tuple[Any, Sent]:
    """Calls a compiled step, (state, metrics) = step(*args); returns the state, and what `read` takes."""
    before = self._sent
    began = time.perf_counter()
    # The devices report no times. A step that is ready before the next is sent was finished by now at the
    # latest: without this its reading, which comes later, would pass for its end.
    if before is not None and before.finished_s is None and before.ready:
      before.finished_s = began
    state, metrics = step(*args)
    ended = time.perf_counter()
    self._sent = sent = Sent(metrics, ended - began)
    if sent.ready:  # A CPU may work on a small step while it is sent, or wait for the one before it.
      sent.finished_s = ended
      # Both were finished while this one was sent, and nothing tells when the first was: half the time is
      # given to each, since a step that took no time would have no bound on its speed.
      if before is not None and before.finished_s is None:
        before.finished_s = (began + ended) / 2
    return state, sent

  def read(self, sent: Sent, *, counted: str) -> dict[str, float]:
    """Waits for the metrics of a step, counts the step, and returns them.

    Args:
      sent: what `send` gave.
      counted: which metric says how much the step counted.
    """
    began = time.perf_counter()
    row = {name: value.item() for name, value in jax.device_get(sent.metrics).items()}
    ended = time.perf_counter()
    # Waiting for the numbers is waiting for the step, unless its end was noted when the next one was sent.
    self._finished = ended if sent.finished_s is None else sent.finished_s
    # The first step of a start was compiled meanwhile: counting begins at its end.
    if not self._begun:
      self._begun = True
      self.next_row()
      return row
    self.steps = self.steps + 1
    self.counted = self.counted + int(row[counted])
    self._inside += sent.inside_s + ended - began
    return row

  def _count_from(self, start: float) -> None:
    self.steps = 0
    self.counted = 0
    self._inside = 0.0
    self._start = self._finished = start

  @property
  def seconds(self) -> float:
    """Seconds that the counted steps took."""
    return max(self._finished - self._start, 1e-9)

  @property
  def per_s(self) -> float | None:
    """Counted tokens, or what else, per second; None before any step was counted."""
    return self.counted / self.seconds if self.steps else None

  def row(self) -> dict[str, float]:
    """Returns the metrics perf/*, of speed only if a step was counted.

    perf/in_step_frac is the least fraction of time inside compiled steps: what the host does while the device
    works does not count as inside. perf/flops_fraction_of_peak is at most 1.
    """
    found = profile.device_memory()
    if not self.steps:
      return found
    seconds = self.seconds
    found |= {"perf/step_s": seconds / self.steps, f"perf/{self.unit}_per_s": self.counted / seconds,
              "perf/in_step_frac": min(1.0, self._inside / seconds)}
    if self.flops_per_step is not None:
      reached = found["perf/model_flops_per_s"] = self.flops_per_step * self.steps / seconds
      if self.peak_flops is not None:
        self._raise_peak(reached)
        found["perf/peak_flops_per_s"] = self.peak_flops
        found["perf/flops_fraction_of_peak"] = reached / self.peak_flops
    return found

  def _raise_peak(self, reached: float) -> None:
    """Takes what was reached as the peak where it is more, and says so once."""
    assert self.peak_flops is not None
    if reached <= self.peak_flops:
      return
    if not self._warned:
      logging.warning(
          "the model ran at %.3g FLOP/s, more than the %.3g that were taken for the peak of the devices (the "
          "peak of a CPU is measured when a run starts, and too low while other programs use it); the peak "
          "that perf/flops_fraction_of_peak refers to rises with what was reached, see perf/peak_flops_per_s",
          reached, self.peak_flops)
    self._warned = True
    self.peak_flops = reached


def rate_text(per_s: float) -> str:
  """Writes a number per second with at least three digits: 12,345, 12.3 or 0.0123."""
  # From 99.95 on three digits have no decimals; from 1,000 on .3g would write 1e+03.
  return f"{per_s:,.0f}" if per_s >= 99.95 else f"{per_s:.3g}"
