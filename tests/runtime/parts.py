"""Agents, teachers and judges of tests, and sessions run with them."""
import asyncio
import json
from typing import Any

from atlas_jax.rollout import rewards
from atlas_jax.runtime import session as sessions
from atlas_jax.runtime.agents.python import PythonAgent
from atlas_jax.runtime.chat_models import FunctionModel
from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.scoring import GraderAndJudges
from atlas_jax.runtime.session import FixedLane, SessionParts, SessionSettings, SessionSpec
from atlas_jax.runtime.supervision import Supervisor


class Script:
  """Replies in their order, the last one for ever; keeps what it was asked."""

  def __init__(self, *replies: Any):
    self.replies = replies
    self.asked: list[list[dict]] = []

  async def __call__(self, messages):
    self.asked.append([dict(one) for one in messages])
    found = self.replies[min(len(self.asked), len(self.replies)) - 1]
    if callable(found):
      found = found(messages)
      if asyncio.iscoroutine(found):
        found = await found
    if isinstance(found, BaseException):
      raise found
    return found


def verdict(valid, guidance=None, **more) -> str:
  return json.dumps({"valid": valid, "guidance": guidance, **more})


def review(plan=None, concerns=()) -> str:
  return json.dumps({"plan": plan, "concerns": list(concerns)})


def plan(*steps) -> str:
  return json.dumps({"steps": [{"id": number, "description": text, "depends_on": list(after)}
                               for number, text, *after in steps]})


def agent_of(script) -> PythonAgent:
  async def answer(messages):
    return await script(messages)

  return PythonAgent(answer, name="scripted")


def parts(student, teacher=None, *, lane="paired", grader="correct", judges=None, **more) -> SessionParts:
  """Parts of a session; `settings` are those of the session by name."""
  settings = SessionSettings(**more.pop("settings", {}))
  supervisor = None if teacher is None else Supervisor(FunctionModel(teacher))
  scorer = GraderAndJudges(None if grader is None else rewards.load(grader), judges)
  router = more.pop("router", FixedLane(lane))
  return SessionParts(agent_of(student), supervisor, router, scorer, settings=settings, **more)


def run(given: SessionParts, task="2+2", *, truth="4", state=None, events=None, **spec):
  """Runs a session; returns its result and its events."""
  events = [] if events is None else events
  log = EventLog("key", events.append, first_seq=state.next_seq if state else 0,
                 first_span=state.next_span if state else 0)
  made = SessionSpec("key", task, ground_truth=truth, **spec)
  return asyncio.run(sessions.run_session(made, given, log, state=state)), events
