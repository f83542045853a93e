"""One session: a lane, the answer, and what comes behind it: rewards, lessons, the record.

Once the answer is given nothing takes it away: trouble of judges, lessons or the store changes only what is
known besides. A session always ends as one of `result.STATUSES`, also where it is cancelled.
"""
import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from absl import logging

from atlas_jax.files.damage import one_line
from atlas_jax.rollout import teaching
from atlas_jax.runtime import lanes, records, scoring
from atlas_jax.runtime.agents.agent import Agent, AgentError, Tool
from atlas_jax.runtime.budget import BudgetSettings
from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.lanes import LaneOutcome
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.scoring import Scorer, Unscored
from atlas_jax.runtime.states import SessionState
from atlas_jax.runtime.supervision import Supervisor
from atlas_jax.runtime.work import CutOff, Work

RECORD_S = 30.0  # Seconds that the record of a session may take, also of one that is cancelled.


@dataclasses.dataclass(frozen=True)
class SessionSpec:
  """A task to be done.

  Attributes:
    key: of the session; the same key is the same session.
    task: for the agent.
    metadata: of the caller; kept in the record, and shown to the agent alone.
    ground_truth: the right answer; shown to graders and judges alone.
    tags: of the family of tasks.
    tenant: whose session it is.
    lane: fixed one; None: routed.
    approach: what the student says of the task before it answers, for teachers that were trained with it.
    learning_key: of the family of tasks, derived by the runtime.
  """

  key: str
  task: str
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ground_truth: str | None = None
  tags: tuple[str, ...] = ()
  tenant: str = "default"
  lane: str | None = None
  approach: str | None = None
  learning_key: str | None = None

  def __post_init__(self):
    if not isinstance(self.task, str):
      raise ValueError(f"task={self.task!r} must be a text")
    if self.lane is not None and self.lane not in lanes.LANES:
      raise ValueError(f"lane={self.lane!r} must be one of {', '.join(lanes.LANES)}")


@dataclasses.dataclass(frozen=True)
class SessionSettings:
  """Bounds and policies of sessions.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  session_s: float = 600.0   # of a session until its answer,
  step_s: float = 300.0      # of a step in it,
  call_s: float = 60.0       # and of one call of agent or teacher
  max_attempts: int = 2      # at a step
  max_steps: int = 12        # of a plan
  tool_rounds: int = 8       # calls of the agent for one answer
  approach: bool = False     # whether it says first how it would begin, for teachers trained to see that
  on_failed: str = "last"    # which answer counts where none passed: "last", "first", or "raise": none
  on_teacher_error: str = "open"  # without a verdict: "open" gives the answer, "closed" asks a person
  budget: BudgetSettings = BudgetSettings()
  # Attempts as the original makes them, for comparisons: the last is not validated, and there is another one
  # without guidance too, and though nothing changed.
  legacy: bool = False

  def __post_init__(self):
    if not 0 < self.call_s <= self.step_s <= self.session_s:
      raise ValueError(f"call_s={self.call_s}, step_s={self.step_s} and session_s={self.session_s} "
                       "must be above 0, each at most the next")
    for name in ("max_attempts", "max_steps", "tool_rounds"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    for name, known in (("on_failed", ("last", "first", "raise")), ("on_teacher_error", ("open", "closed"))):
      if getattr(self, name) not in known:
        raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")


class Router(Protocol):
  """The interface of what chooses a lane."""

  async def decide(self, work: Work) -> Mapping[str, Any]:
    """Returns {lane, rule, inputs, audit} of a session; events are written through `work`."""


@dataclasses.dataclass(frozen=True)
class FixedLane:
  """A router that has one lane for all.

  Attributes:
    lane: the lane.
  """

  lane: str = "paired"

  async def decide(self, work: Work) -> Mapping[str, Any]:
    """Returns the lane."""
    del work
    return {"lane": self.lane, "rule": "fixed", "inputs": {}, "audit": False}


class LessonMemory(Protocol):
  """The interface of the memory of lessons."""

  async def shown(self, work: Work) -> str | None:
    """Returns a text of the lessons that fit a session, and keeps in `work.notes` which they are."""

  async def learn(self, work: Work) -> None:
    """Takes from a session that was scored what can be learnt."""


class SessionStore(Protocol):
  """Needs of a session of a store; see `runtime.store`."""

  async def flush(self, key: str) -> None:
    """Makes the events of a session so far durable."""

  async def finish(self, key: str, trace) -> tuple[int | None, str]:
    """Writes the record; returns the row's id and one of `result.STORAGE`."""


@dataclasses.dataclass(frozen=True)
class SessionParts:
  """Agent, teacher and the others at work.

  Attributes:
    agent: the student.
    supervisor: the teacher; None: nothing is validated.
    router: chooses lanes.
    scorer: of answers.
    lessons: None: there is no memory of lessons.
    store: None: nothing is stored.
    tools: of the agent.
    templates: texts that the student is asked with.
    settings: bounds.
    streams: of memory, see `memory_streams`.
    versions: {runtime, student, teacher, judge, prompt_sha, protocol, playbook}, for the record.
  """

  agent: Agent
  supervisor: Supervisor | None = None
  router: Router = FixedLane()
  scorer: Scorer = Unscored()
  lessons: LessonMemory | None = None
  store: SessionStore | None = None
  tools: Sequence[Tool] = ()
  templates: teaching.TemplateSet = teaching.AGENT
  settings: SessionSettings = SessionSettings()
  versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  streams: Sequence[Any] = ()


async def run_session(spec: SessionSpec, parts: SessionParts, log: EventLog, *,
                      state: SessionState | None = None,
                      answered: Callable[[SessionResult], None] | None = None) -> SessionResult:
  """Runs a session to its end.

  Args:
    spec: the task.
    parts: who works at it.
    log: of its events, numbered behind those of `state`.
    state: of a session that a crash has cut off; None: it begins.
    answered: is called with the result as soon as there is an answer, before rewards are known.

  Raises:
    asyncio.CancelledError: if it is cancelled, after its end is recorded.
  """
  return await _Run(spec, parts, log, state, answered).through()


class _Run:
  """The run of a session."""

  def __init__(self, spec, parts, log, state, answered):
    self.work = Work(spec, parts, log, state=state)
    self.resumed = state is not None and state.stage != "new"
    self._answered = answered
    self._problem: str | None = None
    self._began = time.time()
    self._storage: tuple[int | None, str] = (None, "off")

  async def through(self) -> SessionResult:
    work = self.work
    if not self.resumed:
      work.emit("session", "START", data={"lane": work.spec.lane} if work.spec.lane else None)
    work.root = 0
    try:
      if not work.state.is_answered and not work.state.has_ended:
        await self._lane()
      if work.state.is_answered and not work.state.has_ended:
        await self._behind()
    except asyncio.CancelledError:
      self._ended("cancelled")
      await asyncio.shield(self._recorded())
      raise
    self._ended("failed")
    await self._recorded()
    return self.result()

  async def _lane(self) -> None:
    """Works until there is an answer, or none can be had."""
    work = self.work
    try:
      async with asyncio.timeout_at(work.ends):
        if work.state.lane is None:
          await self._routed()
        await self._shown()
        await self._approached()
        found = await lanes.run(work.state.lane or "paired", work)
    except (TimeoutError, CutOff) as error:
      found = self._kept(error)
    except asyncio.CancelledError:
      raise
    except Exception as error:  # A part of the user's may raise anything: the session ends, and says so.
      logging.exception("session %s: %s", work.spec.key, error)
      found = self._kept(error)
    self._problem = found.problem
    if found.answer is None and found.status != "needs_human":
      return self._ended(found.status)
    said = {"problem": found.problem} if found.problem else {}
    work.emit("answered", "POINT", data={"answer": found.answer, "verified": found.verified,
                                         "status": found.status, **said})
    await self._safely("storing the answer", self._flushed())
    if self._answered is not None:
      self._answered(self.result())

  async def _approached(self) -> None:
    """Asks the student how it would begin, for a teacher that was trained to be shown that."""
    work = self.work
    asked = work.parts.settings.approach and work.state.lane != "auto" and work.parts.supervisor is not None
    if not asked or work.spec.approach is not None:
      return
    messages = teaching.probe_messages(work.spec.task, work.parts.templates)
    try:
      said = await work.student(messages, step="approach", attempt=1, parent=work.root or 0, ends=work.ends,
                                tools=False, keep=False)
    except AgentError as error:  # The teacher is asked without.
      work.notes.setdefault("problems", []).append(f"the student said no approach: {one_line(error)}")
      return
    work.spec = dataclasses.replace(work.spec, approach=said)

  def _kept(self, error: BaseException) -> LaneOutcome:
    """Returns the last answer that was given before something cut the session off, if there is one."""
    late = isinstance(error, TimeoutError)
    status = error.status if isinstance(error, CutOff) else "timed_out" if late else "failed"
    problem = (f"the session took more than {self.work.parts.settings.session_s:g} seconds" if late
               else _said(error))
    return lanes.kept(self.work, status, problem)

  async def _routed(self) -> None:
    work = self.work
    if work.spec.lane is not None:
      route: Mapping[str, Any] = {"lane": work.spec.lane, "rule": "forced", "inputs": {}, "audit": False}
    else:
      route = await self._decided()
    if route["lane"] != "auto" and work.parts.supervisor is None:
      route = {**route, "without": "a teacher"}  # Attempts are unverified, and say so.
    work.emit("route", "POINT", data=route)

  async def _decided(self) -> Mapping[str, Any]:
    """Returns a router's choice; where it has none, the session is supervised."""
    try:
      async with self.work.within(self.work.parts.settings.step_s):
        found = await self.work.parts.router.decide(self.work)
      if found.get("lane") not in lanes.LANES:
        raise ValueError(f"lane={found.get('lane')!r} must be one of {', '.join(lanes.LANES)}")
      return found
    except (asyncio.CancelledError, CutOff):
      raise
    except Exception as error:
      said = "it took too long" if isinstance(error, TimeoutError) else _said(error)
      logging.warning("session %s: the router failed: %s", self.work.spec.key, said)
      self.work.notes.setdefault("problems", []).append(f"routing failed: {said}")
      return {"lane": "paired", "rule": "router_failed", "inputs": {}, "audit": False, "problem": said}

  async def _shown(self) -> None:
    if self.work.parts.lessons is not None:
      await self._safely("reading lessons", self._with_lessons())

  async def _with_lessons(self) -> None:
    self.work.lessons = await self.work.parts.lessons.shown(self.work)

  # Behind the answer.

  async def _behind(self) -> None:
    """Scores, audits and learns; whatever goes wrong is told and changes nothing."""
    await self._safely("scoring", self._scored())
    state = self.work.state
    if state.routing.get("audit") and state.lane == "auto" and self.work.budget.allows("audit"):
      await self._safely("the audit", self._audited())
    if self.work.parts.lessons is not None and self.work.budget.allows("learner"):
      await self._safely("learning", self._learnt())

  async def _safely(self, what: str, doing) -> None:
    try:
      async with asyncio.timeout(self.work.parts.settings.step_s):
        await doing
    except asyncio.CancelledError:
      raise
    except Exception as error:
      said = "it took too long" if isinstance(error, TimeoutError) else _said(error)
      logging.warning("session %s: %s failed: %s", self.work.spec.key, what, said)
      self.work.notes.setdefault("problems", []).append(f"{what} failed: {said}")

  async def _scored(self) -> None:
    work = self.work
    spec, state, scorer = work.spec, work.state, work.parts.scorer
    if state.answer is None or state.reward is not None:
      return
    with work.span("grade") as closing:
      found = scorer.grade(spec.task, state.answer, spec.ground_truth, state.attempts)
      closing.data |= scoring.of_events(found, final=not scorer.has_judges)
    if found.value is not None or not scorer.has_judges:
      return
    if not work.budget.allows("judge"):
      work.emit("budget", "POINT", data={"without": "judge", **work.budget.to_json()})
      work.notes["reward_reason"] = "the budget is too short for judges"
      return
    with work.span("judge", actor="judge") as closing:
      found = await scorer.judge(spec.task, state.answer, spec.ground_truth, state.attempts, state.plan)
      work.spent(closing, "judge", found.tokens)
      closing.data |= scoring.of_events(found)

  async def _audited(self) -> None:
    work = self.work
    assert work.state.answer is not None
    verdict = await work.validated(work.spec.task, work.state.answer, step=1, attempt=1, parent=0,
                                   shadow=True)
    work.notes["audit"] = {"valid": verdict.valid, "problem": verdict.problem}

  async def _learnt(self) -> None:
    with self.work.span("learn", actor="learner"):
      await self.work.parts.lessons.learn(self.work)

  # The end.

  def _ended(self, status: str) -> None:
    work = self.work
    if work.state.has_ended:
      return
    status = work.state.outcome or status
    work.emit("session", "END", span=0, data={"status": status,
                                              **({"problem": self._problem} if self._problem else {})})

  async def _flushed(self) -> None:
    if self.work.parts.store is not None:
      await self.work.parts.store.flush(self.work.spec.key)

  async def _recorded(self) -> None:
    work = self.work
    if work.parts.store is None:
      return
    trace = records.trace_of(work, began=self._began, ended=time.time())
    try:
      async with asyncio.timeout(RECORD_S):
        self._storage = await work.parts.store.finish(work.spec.key, trace)
    except asyncio.CancelledError:
      raise
    except Exception as error:
      said = _said(error)
      logging.error("session %s is not stored: %s", work.spec.key, said)
      self._storage = (None, "failed")
      work.notes.setdefault("problems", []).append(f"storing failed: {said}")

  def result(self) -> SessionResult:
    """Returns what is known of the session now."""
    work, state = self.work, self.work.state
    number, storage = self._storage
    reward = records.reward_of(work)
    problems = [one for one in (self._problem, *work.notes.get("problems", ())) if one]
    return SessionResult(
        session_key=work.spec.key, session_id=number, answer=state.answer, verified=state.verified,
        lane=state.lane, status=state.outcome or state.status or "failed", attempts=state.attempts,
        reward=reward["value"], reward_status=reward["status"], reward_reason=reward["reason"],
        storage_status=storage, tokens=work.budget.tokens, versions=records.versions_of(work),
        problem="; ".join(problems) or None, resumed=self.resumed)


def _said(error: BaseException) -> str:
  return one_line(error) or type(error).__name__
