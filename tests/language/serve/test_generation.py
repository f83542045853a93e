"""Events of several prompts in one order, and cancelling that forgets no stream."""
import asyncio
import threading
import time

import pytest

from atlas_jax.language.decoding.requests import CompletionRequest, EndEvent
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.serve.api_error import ApiError
from atlas_jax.language.serve.generation import ServedGeneration
from tests.language.serve.scripted import LoadingScheduler, ScriptedScheduler


def asked(*texts, n=2):
  options = SamplingOptions(max_tokens=9, n=n, stop_tokens=(260,))
  return [CompletionRequest(tuple(text.encode()), options) for text in texts]


def test_completions_are_numbered_by_prompt():
  async def write():
    made = ServedGeneration(ScriptedScheduler(lambda text: text * 2), asked("a", "b"))
    await made.submit()
    assert made.is_open
    async for completion, event in made.events():
      assert event.index == completion.number % 2
    return made

  made = asyncio.run(write())
  assert [one.text for one in made.completions] == ["aa", "aa", "bb", "bb"]
  assert not made.is_open
  assert made.usage["prompt_tokens"] == 2
  assert made.usage["completion_tokens"] == 12


def test_what_is_cancelled_while_it_is_queued_is_cancelled():
  class Slow(ScriptedScheduler):
    def submit(self, request, sink=None):
      queued.set()
      time.sleep(0.2)
      return super().submit(request, sink)

  queued = threading.Event()
  scheduler = Slow()
  scheduler.may_write.clear()

  async def write():
    made = ServedGeneration(scheduler, asked("a", "b"))
    submitting = asyncio.ensure_future(made.submit())
    await asyncio.to_thread(queued.wait)
    await asyncio.to_thread(made.cancel)  # As if the client had gone while the first prompt was queued.
    await submitting

  asyncio.run(write())
  assert not scheduler.streams


def test_who_cancels_does_not_wait_for_a_scheduler_that_loads_weights():
  scheduler = LoadingScheduler()

  async def write():
    made = ServedGeneration(scheduler, asked("a"))
    submitting = asyncio.ensure_future(made.submit())
    await asyncio.to_thread(scheduler.queued.wait)
    made.cancel()
    assert not scheduler.loaded.is_set()
    scheduler.loaded.set()
    await submitting

  asyncio.run(write())
  assert len(scheduler.cancelled) == 1
  assert not scheduler.streams


def test_a_time_limit_is_told():
  async def write():
    scheduler = ScriptedScheduler(lambda text: "abc")
    end = EndEvent(0, "timeout", "", None, None, 3, 1, 0, 0)
    scheduler._completion = lambda stream, index: end
    made = ServedGeneration(scheduler, asked("a", n=1))
    await made.submit()
    async for _ in made.events():
      pass

  with pytest.raises(ApiError) as caught:
    asyncio.run(write())
  assert caught.value.status == 504
