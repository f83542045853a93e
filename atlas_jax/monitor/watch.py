"""The parts of a run that watch it as it goes, in one: system metrics, high losses, the profiler's trace."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from atlas_jax.monitor import schema, trackers
from atlas_jax.monitor.high_loss import HighLoss
from atlas_jax.monitor.system import SystemMeter
from atlas_jax.monitor.trace import StepTrace
from atlas_jax.monitor.writer import MetricsWriter
from atlas_jax.workdir import HIGH_LOSS


class Watch:
  """Watches a run.

  Args:
    settings: config.monitor.
    workdir: of the run.
    is_main: whether this is the process that writes.
    high_loss: what `saved` gave with the checkpoint that the run goes on from.
  """

  def __init__(self, settings, workdir, *, is_main: bool, high_loss: Mapping[str, Any] | None = None):
    workdir = Path(workdir)
    self._high_loss = HighLoss(workdir / HIGH_LOSS if is_main else None, settings.high_loss_deviations,
                               high_loss)
    self.trace = StepTrace(workdir, settings.profile_steps, records=is_main)
    every_s = settings.system_every_s
    self._meter = SystemMeter(workdir, every_s=every_s) if is_main and every_s is not None else None

  def start(self, step: int) -> None:
    """Begins; the run goes on from `step`."""
    self._high_loss.start(step)
    if self._meter is not None:
      self._meter.start()

  def observe(self, step: int, row: Mapping[str, float], source) -> None:
    """Looks at the metrics of an update whose batch came from a source."""
    self._high_loss.observe(step, row["train/loss_nats"], source)

  def row(self) -> dict[str, float]:
    """Returns system metrics for a logged row."""
    return {} if self._meter is None else self._meter.row()

  def saved(self) -> dict:
    """Returns what is saved with a checkpoint."""
    return self._high_loss.saved()

  def close(self, step: int) -> None:
    """Ends threads, and a trace that is under way."""
    self.trace.close(step)
    if self._meter is not None:
      self._meter.close()


def open_writer(config, workdir, *, resume_step: int) -> MetricsWriter:
  """Opens the metrics of a run that goes on from a step, with all that its config asks for."""
  # Processes that write nothing have no trackers either.
  found = trackers.opened(config, workdir) if jax.process_index() == 0 else []
  return MetricsWriter(workdir, tensorboard=config.monitor.tensorboard, resume_step=resume_step,
                       version=schema.VERSION, trackers=found)
