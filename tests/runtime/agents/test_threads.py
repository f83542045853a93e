"""Threads of agents: their number, calls that come late, and that none is waited for."""
import asyncio
import contextvars
import threading

import pytest

from atlas_jax.runtime.agents.threads import AgentThreads, shared


def settled(condition) -> None:
  """Waits until something is true that a thread does."""
  for _ in range(500):
    if condition():
      return
    threading.Event().wait(0.01)
  raise AssertionError("it never came about")


def test_there_are_no_more_threads_than_said():
  threads = AgentThreads(3)
  running, most = [0], [0]
  lock = threading.Lock()
  gate = threading.Barrier(3)

  def work(number):
    with lock:
      running[0] += 1
      most[0] = max(most[0], running[0])
    gate.wait(5)
    with lock:
      running[0] -= 1
    return number

  async def all_of_them():
    return await asyncio.gather(*(threads.run(work, number) for number in range(9)))

  assert asyncio.run(all_of_them()) == list(range(9))
  assert most[0] == 3 and threads.late_total == 0


def test_a_late_call_is_counted_and_its_result_discarded():
  threads = AgentThreads(1)
  go, begun, calls = threading.Event(), threading.Event(), []

  def hang():
    begun.set()
    go.wait(5)
    return "late"

  async def given_up():
    first = asyncio.create_task(threads.run(hang))
    while not begun.is_set():
      await asyncio.sleep(0.001)
    with pytest.raises(TimeoutError):  # It waits for the only thread, and is never called.
      async with asyncio.timeout(0.01):
        await threads.run(calls.append, 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
      await first

  asyncio.run(given_up())
  assert (threads.late, threads.late_total, threads.discarded) == (1, 1, 0)
  go.set()
  settled(lambda: threads.discarded == 1)
  assert (threads.late, threads.late_total) == (0, 1)
  assert asyncio.run(threads.run(lambda: "next")) == "next" and not calls


def test_late_errors_are_discarded_too():
  threads = AgentThreads(1)
  go = threading.Event()

  def fail():
    go.wait(5)
    raise ValueError("late")

  async def given_up():
    async with asyncio.timeout(0.05):
      await threads.run(fail)

  with pytest.raises(TimeoutError):
    asyncio.run(given_up())
  go.set()
  settled(lambda: threads.discarded == 1)


def test_context_variables_are_those_of_the_caller():
  name = contextvars.ContextVar("name")
  name.set("outside")

  def change():
    found = name.get()
    name.set("inside")
    return found

  assert asyncio.run(AgentThreads(1).run(change)) == "outside" and name.get() == "outside"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), StopIteration()],
                         ids=lambda error: type(error).__name__)
def test_errors_that_would_end_a_loop_are_errors_of_the_call(error):
  def fail():
    raise error
  with pytest.raises(RuntimeError, match=type(error).__name__):
    asyncio.run(AgentThreads(1).run(fail))


def test_the_number_must_be_positive_and_the_shared_threads_are_one():
  with pytest.raises(ValueError, match="most=0"):
    AgentThreads(0)
  assert shared() is shared() and shared().most == 32
