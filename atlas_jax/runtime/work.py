"""The tools of lanes: the student, the teacher, events, deadlines and the budget.

Every call stands between a START and an END, which is written whatever happens, and is folded into the state
before the next begins.
"""
import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atlas_jax.files.damage import one_line
from atlas_jax.rollout import teaching
from atlas_jax.runtime import states
from atlas_jax.runtime.agents.agent import AgentError, AgentSession, CallTokens
from atlas_jax.runtime.agents.tool_loop import ToolLoop, ToolLoopSettings
from atlas_jax.runtime.budget import SessionBudget
from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.states import SessionState
from atlas_jax.runtime.supervision import TeacherVerdict

GUIDANCE = "guidance"  # The name of messages with guidance.


class CutOff(Exception):
  """A session that must stop: its time or budget is spent."""

  def __init__(self, status: str, why: str):
    """Takes the status that it ends with."""
    super().__init__(why)
    self.status = status


@dataclasses.dataclass
class Closing:
  """Contents of an END; the block of `Work.span` fills it."""

  data: dict[str, Any]
  usage: dict[str, Any]


class Work:
  """One session at work.

  Attributes:
    spec: the session's task.
    parts: who works at it.
    state: the fold of its events.
    budget: what it has spent.
    lessons: a text of lessons for the student.
    notes: what else the record says.
  """

  def __init__(self, spec, parts, log: EventLog, *, state: SessionState | None = None):
    """Starts the clock.

    Args:
      spec: `session.SessionSpec`.
      parts: `session.Parts`.
      log: of the session.
      state: of a session that goes on.
    """
    self.spec = spec
    self.parts = parts
    self.state = state or SessionState()
    self.budget = SessionBudget(parts.settings.budget)
    for role, counts in self.state.tokens.items():
      self.budget.spend(role, CallTokens(**counts))
    self.ends = asyncio.get_running_loop().time() + parts.settings.session_s
    self.root: int | None = None
    self.lessons: str | None = None     # shown to the student
    self.notes: dict[str, Any] = {}     # for the record: lessons, audit, problems, playbook
    self._log = log

  # Events.

  def emit(self, name: str, kind: str, *, span: int | None = None, **fields: Any) -> None:
    """Writes an event, and folds it in."""
    event = self._log.emit(name, kind, span=self._log.span() if span is None else span, **fields)
    self.state = states.advance(self.state, event)

  def absorb(self, event) -> None:
    """Folds in an event that somebody else wrote to the log, such as those of tools."""
    self.state = states.advance(self.state, event)

  @contextlib.contextmanager
  def span(self, name: str, *, actor: str = "runtime", parent: int | None = None,
           step: int | str | None = None, attempt: int | None = None,
           data: Mapping[str, Any] | None = None) -> Iterator["Closing"]:
    """Writes START, and END with what the block has put into the closing, or with the error."""
    number = self._log.span()
    around: dict[str, Any] = {"actor": actor, "span": number,
                             "parent": self.root if parent is None else parent, "step": step,
                             "attempt": attempt}
    self.emit(name, "START", data=data, **around)
    closing = Closing({}, {})
    try:
      yield closing
    except BaseException as error:
      cancelled = isinstance(error, asyncio.CancelledError | TimeoutError)
      closing.data.setdefault("problem", "cut off" if cancelled else one_line(error) or type(error).__name__)
      if name == "agent_call":
        closing.data.setdefault("status", "errored")
      raise
    finally:
      self.emit(name, "END", data=closing.data, usage=closing.usage or None, **around)

  def spent(self, closing: Closing, role: str, tokens: CallTokens | None) -> None:
    """Counts tokens of a role, in the budget and in the END of a span."""
    counted = self.budget.spend(role, tokens)
    if counted["calls"]:
      closing.usage[role] = counted

  # Time.

  def within(self, *seconds: float, ends: float | None = None):
    """Returns a deadline: so many seconds from now, but never behind the session's or that of a step."""
    now = asyncio.get_running_loop().time()
    known = [self.ends] if ends is None else [self.ends, ends]
    return asyncio.timeout_at(min([*known, *(now + one for one in seconds)]))

  def check(self) -> None:
    """Ends the session where its time or budget is spent."""
    if asyncio.get_running_loop().time() >= self.ends:
      raise CutOff("timed_out", f"the session took more than {self.parts.settings.session_s:g} seconds")
    if not self.budget.allows("student"):
      self.emit("budget", "POINT", data=self.budget.to_json())
      raise CutOff("failed", "the session's budget is spent; raise it, or ask for less")

  # The student.

  async def student(self, messages: Sequence[Mapping[str, Any]], *, step: int | str, attempt: int,
                    parent: int, ends: float, tools: bool = True, keep: bool = True) -> str:
    """Asks the student; returns its text.

    Args:
      messages: for it.
      step, attempt: that it is asked for.
      parent: span around.
      ends: of the step, by the loop's clock.
      tools: whether it may call tools.
      keep: whether the text is an attempt, and not a plan or a part of the work.

    Raises:
      AgentError: if it fails or is too late.
    """
    self.check()
    # Callers of the SDK put the right answer there: it is for graders alone.
    metadata = {name: value for name, value in self.spec.metadata.items() if name != "ground_truth"}
    session = AgentSession(self.spec.key, self.spec.task, metadata, step, attempt)
    listed = self.parts.tools if tools else ()
    log: Any = _Watched(self)
    rounds = self.parts.settings.tool_rounds
    loop = ToolLoop(self.parts.agent, listed, settings=ToolLoopSettings(rounds=rounds))
    name = "agent_call" if keep else "synthesise"
    with self.span(name, actor="student", parent=parent, step=step, attempt=attempt,
                   data={"messages": len(messages)}) as closing:
      closing.data["started"] = time.time()
      try:
        async with self.within(self.parts.settings.call_s, ends=ends):
          reply = await loop.answer(messages, session=session, log=log, parent=parent)
      except TimeoutError as error:
        raise AgentError("late", f"no answer of {self.parts.agent.name} within its time") from error
      finally:
        self.spent(closing, "student", loop.tokens)
      closing.data["answer"] = reply.text
    return reply.text

  # The teacher.

  async def validated(self, question: str, answer: str, *, step: int | str, attempt: int | None,
                      parent: int, before: Sequence[str] = (), context: str | None = None,
                      shadow: bool = False, ends: float | None = None) -> TeacherVerdict:
    """Asks the teacher for its verdict; one that cannot be had has a problem, and is no verdict."""
    supervisor = self.parts.supervisor
    data = {"shadow": True} if shadow else None
    at: dict[str, Any] = {"parent": parent, "step": step, "attempt": attempt, "data": data}
    with self.span("validate", actor="teacher", **at) as closing:
      closing.data |= data or {}
      if supervisor is None:
        verdict = TeacherVerdict(problem="there is no teacher")
      else:
        asking = supervisor.validate(question, answer, before=before, approach=self.spec.approach,
                                     context=context)
        verdict = await self._taught(asking, ends)
      self.spent(closing, "teacher", verdict.tokens)
      closing.data |= {name: value for name, value in verdict._asdict().items()
                       if value is not None and name != "tokens"}
    return verdict

  async def guided(self, question: str, answers: Sequence[str], *, step: int | str, attempt: int,
                   parent: int, ends: float | None = None) -> str | None:
    """Asks the teacher once for guidance; returns None where there is none."""
    supervisor = self.parts.supervisor
    assert supervisor is not None
    with self.span("guide", actor="teacher", parent=parent, step=step, attempt=attempt) as closing:
      found = await self._taught(supervisor.guide(question, answers, approach=self.spec.approach), ends)
      self.spent(closing, "teacher", found.tokens)
      closing.data |= {"guidance": found.guidance, **({"problem": found.problem} if found.problem else {})}
    return found.guidance

  async def _taught(self, asking, ends: float | None) -> TeacherVerdict:
    """Awaits a teacher, whatever it does: it must not take an answer away."""
    try:
      async with self.within(self.parts.settings.call_s, ends=ends):
        return await asking
    except TimeoutError:
      return TeacherVerdict(problem="the teacher gave no verdict in its time", tokens=CallTokens())
    except asyncio.CancelledError:
      raise
    except Exception as error:  # A teacher of the user's may raise anything.
      return TeacherVerdict(problem=f"the teacher failed: "
                             f"{one_line(error) or type(error).__name__}", tokens=CallTokens())


class _Watched:
  """A log for tools, whose events are folded into the session's state."""

  def __init__(self, work: Work):
    self._work = work

  def span(self) -> int:
    return self._work._log.span()

  def emit(self, name: str, kind: str, **fields: Any) -> None:
    self._work.absorb(self._work._log.emit(name, kind, **fields))


def student_messages(work: Work, question: str, guidance: str | None) -> list[dict[str, Any]]:
  """Returns what the student is asked: a question with lessons, if there are any, and guidance.

  Guidance is a message of its own, of the role user and by the name `GUIDANCE`, where the templates have it
  so. Lessons are a message of the user's too, and stand behind what the system says.
  """
  templates = work.parts.templates
  messages = teaching.guided_messages(question, guidance, templates)
  if guidance is not None and len(templates.guided) > 1:
    messages[-1] = {**messages[-1], "name": GUIDANCE}
  if work.lessons:
    place = next((place for place, one in enumerate(messages) if one["role"] != "system"), len(messages))
    messages.insert(place, {"role": "user", "name": "lessons", "content": work.lessons})
  return messages
