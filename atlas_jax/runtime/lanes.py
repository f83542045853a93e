"""The four lanes: how much a session is supervised, from an answer alone to every step of a reviewed plan.

| lane | what happens |
| --- | --- |
| auto | the student answers |
| paired | every attempt is validated; guidance leads to another one |
| coach | the student's plan is reviewed and given to it, then as paired |
| escalate | every step of the plan is as paired, the whole is validated too, and no doubt is left: else a
person |
"""
import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.files.damage import one_line
from atlas_jax.rollout import reply_schema
from atlas_jax.runtime import plans
from atlas_jax.runtime.agents.agent import AgentError
from atlas_jax.runtime.plans import PlanStep
from atlas_jax.runtime.states import Settled
from atlas_jax.runtime.work import Work, student_messages

LANES = ("auto", "paired", "coach", "escalate")  # In the order of strictness.
WHOLE = "whole"  # The step that stands for the whole of an escalated session.
PLAN = ('{task}\n\nDo not solve this yet. Write a plan as one JSON object: {{"steps": [{{"id": 1, '
        '"description": text, "depends_on": [ids]}}]}}.')
PLANNED = "{task}\n\nFollow this plan:\n{plan}"
STEP = "{task}\n\nDo this step of it, and nothing else: {step}{results}"
SYNTHESIS = "{task}\n\nThe steps of it are done:\n{results}\n\nAnswer the task with them."
BAD_PLAN = "That cannot be used: {why}. Write the plan again as one JSON object."


class LaneOutcome(NamedTuple):
  """The end of a lane."""

  answer: str | None
  verified: bool | None
  status: str = "succeeded"  # or "failed", "needs_human"
  problem: str | None = None


async def run(lane: str, work: Work) -> LaneOutcome:
  """Runs a session in a lane.

  Raises:
    work.CutOff: if its time or budget is spent.
  """
  return await _LANES[lane](work)


async def _auto(work: Work) -> LaneOutcome:
  return _outcome(work, await _step(work, work.spec.task, step=1, supervised=False))


async def _paired(work: Work) -> LaneOutcome:
  return _outcome(work, await _step(work, work.spec.task, step=1))


async def _coach(work: Work) -> LaneOutcome:
  steps = await _planned(work)
  listed = "\n".join(f"{one.id}. {one.description}" for one in steps)
  question = work.spec.task if len(steps) == 1 else PLANNED.format(task=work.spec.task, plan=listed)
  return _outcome(work, await _step(work, question, step=1))


async def _escalate(work: Work) -> LaneOutcome:
  steps = await _planned(work)
  if len(steps) == 1:
    return _closed(_outcome(work, await _step(work, work.spec.task, step=1)))
  for level in plans.levels(steps):
    open_ = [one for one in level if not _blocked(work, one)]
    # Each of a level sees the results of earlier ones alone, in a text of its own.
    results = await asyncio.gather(*(_step(work, _question(work, one), step=one.id) for one in open_),
                                   return_exceptions=True)
    for error in results:
      if isinstance(error, BaseException):
        raise error
  unsolved = [one.id for one in steps if getattr(work.state.settled.get(one.id), "status", None) != "passed"]
  if unsolved:
    last = next((found.answer for one in reversed(steps) if (found := work.state.settled.get(one.id))), None)
    return LaneOutcome(last, False, "needs_human", f"the steps {unsolved} have no answer that passed")
  return await _synthesised(work, steps)


async def _synthesised(work: Work, steps: Sequence[PlanStep]) -> LaneOutcome:
  results = "\n".join(f"{one.id}. {one.description}: {work.state.settled[one.id].answer}" for one in steps)
  question = SYNTHESIS.format(task=work.spec.task, results=results)
  try:
    answer = await work.student(student_messages(work, question, None), step=WHOLE, attempt=1,
                                parent=work.root or 0, ends=work.ends, keep=False)
  except AgentError as error:
    return LaneOutcome(None, None, "needs_human", f"the steps passed, and the student did not join them: "
                                                  f"{error}")
  verdict = await work.validated(work.spec.task, answer, step=WHOLE, attempt=None, parent=work.root or 0)
  return _closed(LaneOutcome(answer, verdict.valid, problem=verdict.problem))


def kept(work: Work, status: str, problem: str) -> LaneOutcome:
  """Returns what there is of an answer where something has cut the session off.

  Args:
    work: the session.
    status: that it ends with without any.
    problem: what has cut it off.
  """
  made = {one.step for one in work.state.attempts if one.status != "errored" and one.answer is not None}
  is_in_steps = work.state.lane == "escalate" and len((work.state.plan or {}).get("steps", ())) > 1
  if len(made) != 1 or is_in_steps:  # The answer to a step is none to the task.
    return LaneOutcome(None, None, status, problem)
  found = _outcome(work, _chosen(work, *made))
  return (_closed(found) if work.state.lane == "escalate" else found)._replace(problem=problem)


def _closed(found: LaneOutcome) -> LaneOutcome:
  """Returns an outcome of the strictest lane, which needs a person unless the answer passed."""
  if found.verified or found.status != "succeeded":
    return found
  return found._replace(status="needs_human", problem=found.problem or "the answer did not pass")


def _outcome(work: Work, found: Settled) -> LaneOutcome:
  """Returns what the only step of a session has come to."""
  verified = {"passed": True, "failed": False}.get(found.status)
  last = work.state.attempts[-1] if work.state.attempts else None
  problem = last.problem if last else None
  if found.answer is None:
    return LaneOutcome(None, None, "failed", problem or "the student gave no answer")
  settings = work.parts.settings
  if verified is False and settings.on_failed == "raise":
    return LaneOutcome(found.answer, False, "failed", "no attempt passed (on_failed='raise')")
  is_unchecked = found.status == "unverified" and work.state.lane != "auto"
  if is_unchecked and settings.on_teacher_error == "closed":
    return LaneOutcome(found.answer, None, "needs_human", problem)
  return LaneOutcome(found.answer, verified, problem=problem)


# One step.


async def _step(work: Work, question: str, *, step: int | str, supervised: bool = True) -> Settled:
  """Has a step attempted until an attempt passes or nothing is left to say; returns what it came to."""
  ends = asyncio.get_running_loop().time() + work.parts.settings.step_s
  known = work.state.settled.get(step)
  if known is not None:  # Of a session that goes on.
    return known
  with work.span("step", step=step) as closing:
    parent = work.state.next_span - 1
    stubborn = await _attempts(work, question, step=step, parent=parent, ends=ends, supervised=supervised)
    found = _chosen(work, step)
    closing.data |= {"answer": found.answer, "status": found.status}
    closing.data |= {"stubborn": True} if stubborn else {}
  return found


async def _attempts(work: Work, question: str, *, step: int | str, parent: int, ends: float,
                    supervised: bool) -> bool:
  """Has attempts made; returns whether the student gave the same answer again after guidance."""
  settings = work.parts.settings
  guidance: str | None = None
  answers: list[str] = []
  for attempt in range(1, settings.max_attempts + 1):
    at: dict[str, Any] = {"step": step, "attempt": attempt, "parent": parent}
    try:
      answer = await work.student(student_messages(work, question, guidance), ends=ends, **at)
    except AgentError:  # The attempt says why; without an answer there is nothing to guide.
      continue
    if not supervised:
      return False
    if not settings.legacy and answers and answer.strip() == answers[-1].strip():
      _repeated(work, at)
      return True
    if settings.legacy and attempt == settings.max_attempts:
      _unchecked(work, at)
      return False
    verdict = await work.validated(question, answer, before=answers, ends=ends, **at)
    answers.append(answer)
    if verdict.valid or attempt == settings.max_attempts or not work.budget.allows("student"):
      return False
    guidance = verdict.guidance
    if guidance is None and verdict.valid is False and not settings.legacy:
      guidance = await work.guided(question, answers, ends=ends, **at)
    # Another attempt without a word would be a throw of dice.
    if guidance is None and not (settings.legacy and verdict.valid is False):
      return False
    work.emit("retry", "POINT", **at)
  return False


def _unchecked(work: Work, at: Mapping) -> None:
  """Says of an attempt that the original never checks that it was not; the original calls it passed."""
  with work.span("validate", actor="runtime", **at) as closing:
    closing.data["problem"] = "legacy: the last attempt is not validated"


def _repeated(work: Work, at: Mapping) -> None:
  """Validates an answer that is that of the attempt before the same verdict, without asking again."""
  before = [one for one in work.state.attempts if one.step == at["step"]][-2]
  verdict = before.validation or {}
  with work.span("validate", actor="runtime", **at) as closing:
    closing.data["repeated"] = True
    closing.data |= {name: verdict[name] for name in ("valid", "confidence") if name in verdict}
    closing.data |= {"problem": before.problem} if before.problem else {}


def _chosen(work: Work, step: int | str) -> Settled:
  """Returns the answer of a step that counts: the one that passed, else the last or first that there is."""
  made = [one for one in work.state.attempts if one.step == step and one.status != "errored"]
  if not made:
    return Settled(None, "errored")
  passed = [one for one in made if one.status == "passed"]
  one = passed[-1] if passed else made[0] if work.parts.settings.on_failed == "first" else made[-1]
  return Settled(one.answer, one.status)


# Plans.


async def _planned(work: Work) -> tuple[PlanStep, ...]:
  """Returns the plan of the student, reviewed; the task as its only step where there is none."""
  if work.state.plan is not None:
    return plans.read(work.state.plan)
  with work.span("plan", actor="student") as closing:
    try:
      steps, problem = await _written(work)
    except AgentError as error:
      steps, problem = plans.of_task(work.spec.task), one_line(error)
    closing.data |= {"plan": plans.to_json(steps), **({"problem": problem} if problem else {})}
  supervisor = work.parts.supervisor
  if supervisor is None:
    return steps
  with work.span("review", actor="teacher") as closing:
    try:
      async with work.within(work.parts.settings.call_s):
        found = await supervisor.review(work.spec.task, steps, most_steps=work.parts.settings.max_steps)
    except TimeoutError:
      closing.data["problem"] = "no review in its time"
    except Exception as error:  # A teacher of the user's may raise anything; the student's plan stands.
      closing.data["problem"] = f"the teacher failed: {one_line(error) or type(error).__name__}"
    else:
      work.spent(closing, "teacher", found.tokens)
      steps = found.plan or steps
      closing.data["concerns"] = list(found.concerns)
      closing.data |= {"problem": found.problem} if found.problem else {}
    closing.data["plan"] = plans.to_json(steps)
  return steps


async def _written(work: Work) -> tuple[tuple[PlanStep, ...], str | None]:
  """Returns a plan, and why it is not the student's own."""
  messages = student_messages(work, PLAN.format(task=work.spec.task), None)
  problem = None
  for _ in range(2):  # The second time with what was wrong.
    text = await work.student(messages, step="plan", attempt=1, parent=work.root or 0, ends=work.ends,
                              tools=False, keep=False)
    try:
      found = reply_schema.read(text, plans.SCHEMA)
      return plans.read(found, most_steps=work.parts.settings.max_steps), None
    except ValueError as error:
      problem = one_line(error)
      messages = [*messages, {"role": "assistant", "content": text},
                  {"role": "user", "content": BAD_PLAN.format(why=problem)}]
  return plans.of_task(work.spec.task), f"no plan: {problem}"


def _blocked(work: Work, step: PlanStep) -> bool:
  """Returns whether a step waits for one that has not passed."""
  return any(getattr(work.state.settled.get(one), "status", None) != "passed" for one in step.depends_on)


def _question(work: Work, step: PlanStep) -> str:
  results = "".join(f"\nResult of step {one}: {work.state.settled[one].answer}" for one in step.depends_on)
  return STEP.format(task=work.spec.task, step=step.description, results=results)


_LANES: dict[str, Callable[[Work], Awaitable[LaneOutcome]]] = {
    "auto": _auto, "paired": _paired, "coach": _coach, "escalate": _escalate}
