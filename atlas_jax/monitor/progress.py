"""A progress bar on the terminal: step, loss, tokens per second, time left."""
import sys

import rich.console
import rich.progress

from atlas_jax.monitor.clock import rate_text
from atlas_jax.parallel import hosts


class Progress:
  """Draws one line that moves; prints nothing at all when stderr is no terminal or `enabled` is False.

  Args:
    total_steps: updates of the whole run.
    start_step: updates made before this start, of a resumed run.
    enabled: config.monitor.progress.
    console: where to draw, for tests; a terminal on stderr if None, so that stdout stays clean.
  """

  def __init__(self, total_steps: int, start_step: int = 0, *, enabled: bool = True,
               console: rich.console.Console | None = None):
    self._bar: rich.progress.Progress | None = None
    # In a file or a pipe a moving line would be thousands of lines.
    shown = console is not None or sys.stderr.isatty()
    if not (enabled and shown and hosts.is_main()):
      return
    self._bar = rich.progress.Progress(
        rich.progress.TextColumn("step"), rich.progress.MofNCompleteColumn(), rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[numbers]}"),
        rich.progress.TimeRemainingColumn(), rich.progress.TextColumn("left"),
        # The speed is that of the last minute, since evaluations make single steps slow.
        console=console or rich.console.Console(stderr=True), refresh_per_second=4, speed_estimate_period=60)
    self._bar.start()
    self._line = self._bar.add_task("", total=total_steps, completed=start_step, numbers="")

  def update(self, step: int, loss: float | None = None, per_s: float | None = None,
             unit: str = "tokens") -> None:
    """Moves the bar to `step`; numbers not given keep what was shown."""
    if self._bar is None:
      return
    parts = [f"loss {loss:.4f}"] if loss is not None else []
    parts += [f"{rate_text(per_s)} {unit.replace('_', ' ')}/s"] if per_s is not None else []
    # The bar is drawn by a thread of its own, four times a second: an update here costs the loop little.
    self._bar.update(self._line, completed=step)
    if parts:
      self._bar.update(self._line, numbers="  ".join(parts))

  def close(self) -> None:
    """Leaves the last state of the bar on the screen; calling it twice does nothing more."""
    if self._bar is not None:
      self._bar.stop()
      self._bar = None

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()
