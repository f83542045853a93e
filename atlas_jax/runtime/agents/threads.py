"""Threads for agents and tools that are no coroutines: few, and none that a caller waits for for ever.

Python cannot end a thread. One whose caller has given up goes on, holds its place, and its result is
discarded; it is counted, so that a program that hangs is seen.
"""
import asyncio
import concurrent.futures
import contextvars
import functools
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

MOST = 32
LOG = logging.getLogger(__name__)


class AgentThreads:
  """A bounded number of threads, started at need; they end with the program.

  Attributes:
    most: threads at the same time.
    late: calls now running whose caller has given up.
    late_total: of them, since the start.
    discarded: results and errors that came late, since the start.
  """

  def __init__(self, most: int = MOST):
    """Starts no thread yet."""
    if most < 1:
      raise ValueError(f"most={most} threads must be at least 1")
    self.most = most
    self.late = 0
    self.late_total = 0
    self.discarded = 0
    self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
    self._lock = threading.Lock()
    self._started = 0
    self._busy = 0  # calls that run or wait

  async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns what a function returns, called in a thread; waits for one where all are in use.

    A caller that is cancelled, as by its deadline, goes on at once: a call that waits is never made, one that
    runs is late.
    """
    call = _Call(functools.partial(contextvars.copy_context().run, function, *args, **kwargs))
    with self._lock:
      self._busy += 1
      needs_thread = self._busy > self._started and self._started < self.most
      self._started += needs_thread
    self._calls.put(call)
    if needs_thread:
      # A daemon: the interpreter must be able to end while a call hangs.
      threading.Thread(target=self._work, name=f"agent-{self._started}", daemon=True).start()
    try:
      return await asyncio.wrap_future(call.future)
    except asyncio.CancelledError:
      self._give_up(call)
      raise

  def _give_up(self, call: "_Call") -> None:
    with self._lock:
      if call.is_running and not call.is_done:
        call.is_late = True
        self.late += 1
        self.late_total += 1
      else:
        call.is_given_up = True

  def _work(self) -> None:
    while True:
      call = self._calls.get()
      with self._lock:
        call.is_running = not (call.is_given_up or call.future.cancelled())
      if call.is_running:
        self._make(call)
      with self._lock:
        self._busy -= 1

  def _make(self, call: "_Call") -> None:
    value, error = None, None
    try:
      value = call.function()
    except BaseException as raised:  # Its caller is told, and the thread goes on.
      error = _of_a_call(raised)
    with self._lock:
      call.is_done = True
      is_late = call.is_late
      if is_late:
        self.late -= 1
        self.discarded += 1
    if is_late:
      LOG.info("a late %s of an agent or tool is discarded", "result" if error is None else "error")
      return
    try:
      if error is None:
        call.future.set_result(value)
      else:
        call.future.set_exception(error)
    except concurrent.futures.InvalidStateError:  # Given up between the lock and here.
      with self._lock:
        self.discarded += 1
      LOG.info("a late result of an agent or tool is discarded")


def _of_a_call(raised: BaseException) -> Exception:
  """Returns an error that a coroutine can be given: others would end its loop, or leave it waiting."""
  if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
    return raised
  error = RuntimeError(f"{type(raised).__name__}: {raised}")
  error.__cause__ = raised
  return error


class _Call:
  """A call on its way through the threads."""

  def __init__(self, function: Callable[[], Any]):
    self.function = function
    self.future: concurrent.futures.Future = concurrent.futures.Future()
    self.is_running = False
    self.is_done = False
    self.is_late = False
    self.is_given_up = False


@functools.cache
def shared() -> AgentThreads:
  """Returns the threads of the process, which all agents fraction that are given none."""
  return AgentThreads()
