"""Signals of a program that trains: when each is obeyed, also while the main thread is busy.

Before the training loop a signal ends the program where it is: nothing is lost, files are written whole. In
the loop the first one is noted, and the loop stops at the next point from which it can go on. A second one
ends the program at once, or, where the main thread is in code that does not look at signals, such as a
compilation, within PATIENCE_S. SIGUSR1 is the notice of a scheduler that its time is nearly over: it stops
the run as SIGTERM does, and never counts as a second signal.
"""
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

URGENT = (signal.SIGTERM, signal.SIGINT)  # Of which a second one ends the program at once.
NUMBERS = (*URGENT, signal.SIGUSR1)
PATIENCE_S = 3.0  # Between a second signal and the end, if the main thread does not see it.
STOPPED = 75  # Exit code of a run that can go on: EX_TEMPFAIL of sysexits.h.


class Stopped(KeyboardInterrupt):
  """A signal asked the program to end."""


class StopSignals:
  """Obeys the signals while the block runs; see the module. Only in the main thread.

  Args:
    leave: ends the program with an exit code, at once; called in another thread.

  Attributes:
    name: of the first signal, None before.
  """

  def __init__(self, leave: Callable[[int], object]):
    self.name: str | None = None
    self._leave = leave
    self._deferred = False
    self._urgent = 0
    self._before: dict[int, Any] = {}
    self._reader = self._writer = self._fd_before = -1

  def __enter__(self):
    global _active
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    # The interpreter's C handler writes a byte per signal as it arrives; Python's own handler runs only when
    # the main thread is back in Python. The pipe must not block: a full one would hold the C handler.
    self._fd_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
    for number in NUMBERS:
      self._before[number] = signal.signal(number, self._obey)
    self._outer = _active
    _active = self
    threading.Thread(target=self._watch, args=(self._reader,), name="signals", daemon=True).start()
    return self

  def __exit__(self, *error):
    global _active
    _active = self._outer
    # Handlers first, then the pipe: no signal may find the pipe closed.
    for number, before in self._before.items():
      signal.signal(number, before)
    signal.set_wakeup_fd(self._fd_before)
    os.close(self._writer)  # Which ends the watching thread.

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Only notes the first signal while the block runs."""
    for number in NUMBERS:  # Libraries that were loaded meanwhile may have put handlers of their own there.
      signal.signal(number, self._obey)
    self._deferred = True
    try:
      yield
    finally:
      self._deferred = False

  def _obey(self, number, frame):
    del frame
    # A handler runs in the main thread, between two of its instructions: raising here ends what it does.
    noticed = self.name is not None
    self.name = self.name or signal.Signals(number).name
    if number in URGENT:
      self._urgent += 1
    elif noticed:
      return  # Schedulers repeat their notice, to every process of a task and step by step.
    if self._deferred and self._urgent < 2:
      if not noticed:
        logging.warning("%s: the run stops at the next point from which it can go on; a second signal ends "
                        "it at once", self.name)
      return
    raise Stopped(self.name)

  def _watch(self, reader: int) -> None:
    """Counts urgent signals by the bytes that the interpreter writes as they arrive; two start a clock."""
    count = 0
    while data := os.read(reader, 64):
      # Other signals with a handler in Python write their bytes here, too.
      count += sum(byte in URGENT for byte in data)
      if count >= 2:
        break
    ended = threading.Event()
    # The end of the pipe tells that the block was left, which is what the second signal should bring about:
    # then there is nothing to end.
    threading.Thread(target=self._await_end, args=(reader, ended), daemon=True).start()
    if count >= 2 and not ended.wait(PATIENCE_S):
      print("atlas_jax: ended by a second signal; the same command goes on from the newest checkpoint",
            file=sys.stderr, flush=True)
      # The main thread may hang in compiled code for minutes, so this thread ends the process.
      self._leave(STOPPED)

  @staticmethod
  def _await_end(reader: int, ended: threading.Event) -> None:
    while os.read(reader, 64):
      pass
    os.close(reader)
    ended.set()


_active: StopSignals | None = None


def active() -> StopSignals | None:
  """Returns the signals that a block around the caller obeys."""
  return _active
