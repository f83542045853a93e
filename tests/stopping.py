"""A text source that sends its own process a signal before a certain batch: runs stop at the same step.

The variable ATLAS_TEST_STOP holds BATCH:SIGNAL:PROCESS, such as 3:SIGTERM:0; without it this is the text
source. With :parent behind it the signal goes to who has started the process, which is to hand it on.
"""

import os
import signal
import time

from atlas_jax.data import source as sources
from atlas_jax.parallel import signals


class Stopping:
  """Passes everything on to a text source; `next` of the batch in question sends the signal first."""

  def __init__(self, source, batch, number, *, to_parent=False):
    self._source, self._batch, self._number, self._to_parent = source, batch, number, to_parent

  def next(self, trained):
    if self._source.step + 1 == self._batch:
      os.kill(os.getppid() if self._to_parent else os.getpid(), self._number)
      while self._to_parent and signals.active().name is None:
        time.sleep(0.01)
    return self._source.next(trained)

  def __getattr__(self, name):
    return getattr(self._source, name)


def make(**fields):
  """Makes the source, see `atlas_jax.data.text.make`."""
  source = sources.load("text", **fields)
  return stopping(source, fields["process_index"]) if fields.get("split") == "train" else source


def stopping(source, process_index):
  """Returns a source that sends the signal, where it is for this process."""
  stop = os.environ.get("ATLAS_TEST_STOP")
  if stop is None:
    return source
  batch, name, process, *whom = stop.split(":")
  if process_index != int(process):
    return source
  return Stopping(source, int(batch), signal.Signals[name], to_parent=whom == ["parent"])
