"""States: whatever parts do, events balance, a replay of them is the state, and an answer stays."""
import asyncio

import hypothesis
import pytest
from hypothesis import strategies as st

from atlas_jax.runtime import session as sessions
from atlas_jax.runtime import states
from atlas_jax.runtime.events import EventLog, SessionEvent
from atlas_jax.runtime.result import ATTEMPTS
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.states import WrongTransition
from atlas_jax.runtime.work import Work
from tests.runtime.parts import Script, parts, plan, review, verdict

ANSWERS = ["4", "5", "\x00", "\ud800", plan((1, "a"), (2, "b", 1)), plan((1, "a", 2), (2, "b", 1)),
           RuntimeError("boom"), 7]
WORDS = [verdict(True), verdict(False, "Carry."), verdict(False), review(), "no json", '{"valid": "true"}',
         "[1]", RuntimeError("down"), 7]


async def ran(student, teacher, lane, cut_after):
  """Runs a session that is cancelled at an event; returns its events, its result and its records."""
  events, works = [], []

  def sink(event):
    events.append(event)
    if len(events) == cut_after:
      running.cancel()

  class Kept:
    async def flush(self, key):
      await asyncio.sleep(0)

    async def finish(self, key, trace):
      works.append(trace)
      return 1, "stored"

  async def slow(messages):  # Somewhere to be cancelled at.
    await asyncio.sleep(0)
    return student(messages)

  given = parts(Script(slow), Script(teacher), lane=lane, store=Kept())
  log = EventLog("key", sink)
  running = asyncio.create_task(sessions.run_session(SessionSpec("key", "2+2", ground_truth="4"), given, log))
  (result,) = await asyncio.gather(running, return_exceptions=True)
  return events, result, works


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=6),
                  st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
                  st.sampled_from(["auto", "paired", "coach", "escalate"]), st.integers(2, 40))
def test_events_balance_and_their_fold_is_the_state_whatever_parts_do(answers, words, lane, cut_after):
  said = iter([*answers, *answers[-1:] * 60])
  told = iter([*words, *words[-1:] * 60])

  def next_of(replies):
    found = next(replies)
    if isinstance(found, BaseException):
      raise found
    return found

  events, result, traces = asyncio.run(
      ran(lambda _: next_of(said), lambda _: next_of(told), lane, cut_after))
  opened: list[int] = []
  for event in events:  # An END is of a span that is open, and all are closed.
    if event.kind == "START":
      assert event.span not in opened
      opened.append(event.span)
    elif event.kind == "END":
      opened.remove(event.span)
  assert not opened and [one.seq for one in events] == list(range(len(events)))
  state = states.replay(events)
  assert state.has_ended and len(traces) == 1 and (traces[0].final_answer or None) == (state.answer or None)
  assert all(one.status in ATTEMPTS for one in state.attempts)
  if isinstance(result, BaseException):
    assert isinstance(result, asyncio.CancelledError) and (state.is_answered or state.status == "cancelled")
  else:
    assert (result.answer, result.attempts, result.verified) == (state.answer, state.attempts, state.verified)
    spent = {role: counts for role, counts in result.tokens.items() if counts["calls"]}
    assert spent == state.tokens  # A student that calls no model spends nothing.
  checked = {(one.step, one.attempt) for one in events if one.name == "validate" and one.kind == "END"}
  if lane != "auto" and state.is_answered:  # Each attempt was checked, or says why not.
    for one in state.attempts:
      assert one.status == "errored" or (one.step, one.attempt) in checked
      assert one.status != "unverified" or one.problem


def event(seq, name, kind, span=0, **more):
  return SessionEvent("key", seq, 0.0, name, kind, "runtime", span, None, **more)


BEGUN = [event(0, "session", "START"), event(1, "route", "POINT", 1, data={"lane": "auto"})]
ANSWERED = [*BEGUN, event(2, "answered", "POINT", 2, data={"answer": "4", "status": "succeeded"})]


@pytest.mark.parametrize("events, said", [
    ([event(1, "session", "START")], "event 1 of key follows on -1"),
    ([event(0, "route", "POINT", data={"lane": "auto"})], "has not begun"),
    ([*BEGUN, event(2, "session", "START", 2)], "has begun"),
    ([*ANSWERED, event(3, "answered", "POINT", 3, data={"answer": "5", "status": "succeeded"})], "leads to"),
    ([*ANSWERED, event(3, "agent_call", "END", 3, step=1, attempt=1)], "leads to"),
    ([*ANSWERED, event(3, "session", "END", data={"status": "failed"})], "cannot end as 'failed'"),
    ([*BEGUN, event(2, "session", "END", data={"status": "gone"})], "not 'gone'"),
    ([*BEGUN, event(2, "session", "END", data={"status": "failed"}), event(3, "store", "POINT", 3)],
     "behind the end"),
    ([*BEGUN, event(2, "grade", "END", 2)], "before the answer"),
    ([*BEGUN, event(2, "validate", "END", 2, step=1, attempt=1)], "which was not made")])
def test_what_cannot_follow_is_refused(events, said):
  with pytest.raises(WrongTransition, match=said):
    states.replay(events)


def test_a_step_that_begins_again_has_no_attempt_twice():
  tried = [*BEGUN, event(2, "step", "START", 2, step=1), event(3, "agent_call", "END", 3, step=1, attempt=1,
                                                               data={"answer": "3"})]
  state = states.replay([*tried, event(4, "step", "START", 4, step=1),
                         event(5, "agent_call", "END", 5, step=1, attempt=1, data={"answer": "4"})])
  assert [(one.attempt, one.answer) for one in state.attempts] == [(1, "4")]


def test_spent_tokens_of_a_session_that_goes_on_are_counted():
  async def main():
    state = states.replay(BEGUN)._replace(tokens={"student": {"prompt": 5, "completion": 1, "calls": 1}})
    return Work(SessionSpec("key", "2+2"), parts(Script("4")), EventLog("key", print), state=state).budget

  assert asyncio.run(main()).tokens["student"]["prompt"] == 5
