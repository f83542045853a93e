"""The one event loop of a process that awaits rewards and endpoints; it has a thread of its own.

Connections that are kept from call to call are bound to the loop they were made in, and a notebook's thread
runs another one.
"""
import asyncio
import functools
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
  """Runs a coroutine to its end in the loop, and returns its result.

  Raises:
    RuntimeError: if it is called in the loop itself, which would wait for itself for ever; await instead.
  """
  loop = _loop()
  try:
    here = asyncio.get_running_loop()
  except RuntimeError:  # No loop runs in this thread, as nearly always.
    here = None
  if here is loop:
    coroutine.close()
    raise RuntimeError("called from a coroutine of the loop of rewards, which would wait for itself; await "
                       "the asynchronous form")
  future = asyncio.run_coroutine_threadsafe(coroutine, loop)
  try:
    return future.result()
  finally:
    future.cancel()  # Of what an interruption left undone.


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
  loop = asyncio.new_event_loop()
  threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
  return loop
