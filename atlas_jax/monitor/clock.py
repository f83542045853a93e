"""Times the steps between two rows of metrics, and says how fast they are."""
import contextlib
import time

from atlas_jax.monitor import profile


class Clock:
  """Counts steps, tokens (or what else `unit` names) and seconds since the last `restart`.

  Attributes:
    flops_per_step: FLOPs of the model in one update, None while unknown.
    peak_flops: FLOP/s of all devices of the run at best, None where unknown.
  """

  def __init__(self, peak_flops: float | None, unit: str = "tokens"):
    self.unit = unit
    self.flops_per_step: float | None = None
    self.peak_flops = peak_flops
    self.restart()

  def restart(self) -> None:
    """Starts to count anew."""
    self.steps, self.counted, self._inside = 0, 0, 0.0
    self._start = time.perf_counter()

  @contextlib.contextmanager
  def compiled(self):
    """Marks the time in which the host sends a compiled step or waits for one."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._inside += time.perf_counter() - start

  def add(self, counted: int) -> None:
    """Counts one step and what it counted."""
    self.steps, self.counted = self.steps + 1, self.counted + counted

  @property
  def seconds(self) -> float:
    """Seconds since the last restart."""
    return time.perf_counter() - self._start

  @property
  def per_s(self) -> float:
    """Counted tokens, or what else, per second."""
    return self.counted / self.seconds

  def row(self) -> dict[str, float]:
    """Gives the metrics perf/*; in_step_frac is the least share of time inside compiled steps.

    What the host does while the device works does not count as inside, so the true share is higher.
    """
    seconds = self.seconds
    found = {"perf/step_s": seconds / self.steps, f"perf/{self.unit}_per_s": self.counted / seconds,
             "perf/in_step_frac": self._inside / seconds, **profile.device_memory()}
    if self.flops_per_step is not None:
      found["perf/model_flops_per_s"] = self.flops_per_step * self.steps / seconds
      if self.peak_flops is not None:
        found["perf/flops_fraction_of_peak"] = found["perf/model_flops_per_s"] / self.peak_flops
    return found
