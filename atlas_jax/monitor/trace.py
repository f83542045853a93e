"""A trace of some updates by JAX's profiler, in workdir/tensorboard, for TensorBoard's profile page.

  pip install tensorboard-plugin-profile
  tensorboard --logdir=runs/NAME/tensorboard
"""
from pathlib import Path

import jax
from absl import logging

from atlas_jax.workdir import EVENTS


class StepTrace:
  """Traces updates from one to another, both included, once per start.

  Args:
    workdir: of the run.
    steps: config.monitor.profile_steps, "20:25"; None: none are traced.
    records: whether this process traces. The others only count along: where a trace ends, all processes read
      the metrics of an update early, and with them whether to stop.
  """

  def __init__(self, workdir, steps: str | None, *, records: bool = True):
    self._records = records
    self._folder = Path(workdir) / EVENTS
    self._first, self._last = (0, -1) if steps is None else map(int, steps.split(":"))
    self._begun = self._ended = False

  def before(self, step: int) -> None:
    """Begins the trace if this update, which is not sent yet, is in its range."""
    # Also in the middle of the range: a run may go on from there.
    if not self._begun and self._first <= step <= self._last:
      if self._records:
        jax.profiler.start_trace(str(self._folder))
      self._begun = True

  def ends(self, step: int) -> bool:
    """Returns whether the trace is under way and this update is its last."""
    return self._begun and not self._ended and step >= self._last

  def end(self, step: int) -> None:
    """Writes the trace if it ends at this update, which is finished."""
    if self.ends(step):
      self.close(step)

  def close(self, step: int) -> None:
    """Writes the trace, if one is under way; `step` is the last update in it, and finished."""
    if self._begun and not self._ended:
      self._ended = True
      if self._records:
        jax.profiler.stop_trace()
        logging.info("trace of the updates up to %d is in %s", step, self._folder / "plugins" / "profile")
