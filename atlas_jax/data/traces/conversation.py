"""Sessions as problems: what is asked, the right answer, and a text of the assistant's to learn.

The text that is learnt is always the assistant's. For a student it is an answer that was verified; for a
teacher it is the guidance, behind the question and the attempt that it was given for. A session may give no
problem, for a reason that is counted.
"""
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from atlas_jax.data.problems import Problem
from atlas_jax.data.row_formats import TEACHER
from atlas_jax.data.traces import step_prompts
from atlas_jax.data.traces.record import Attempt, Step, Trace

TARGETS = ("student", "teacher", "none")
SHOWN = ("task", "attempts")
REASONS = {
    step_prompts.TWICE: "another step of the session has its id",
    "no_guidance": "the teacher said nothing",
    "harmful": "the attempt behind the guidance was scored lower than the one before it",
    "no_answer": "there is no answer",
    "unverified": "nothing says that its answer is right",
}


class TeachingTurn(NamedTuple):
  """One piece of guidance, and what it was given for."""

  question: str  # what the student was asked
  attempts: tuple[str, ...]  # the student's texts before it, the last one that it is about; may be empty
  earlier: tuple[str, ...]  # guidance before it
  guidance: str
  valid: bool | None  # the verdict that it came with; None: none was kept


def plain_lesson(turn: TeachingTurn) -> tuple[list[dict], str]:
  """Returns (messages, reply) of the teacher for one piece of guidance, in plain words."""
  parts = [turn.question]
  if turn.attempts:
    parts.append(f"Student's attempt:\n{turn.attempts[-1]}")
  if turn.earlier:
    parts.append("Guidance so far:\n" + "\n".join(f"- {note}" for note in turn.earlier))
  return ([{"role": "system", "content": TEACHER}, {"role": "user", "content": "\n\n".join(parts)}],
          turn.guidance)


class TraceConversation(NamedTuple):
  """Settings of the problems that are made of sessions."""

  target: str = "student"  # whose text is learnt, one of TARGETS; "none": prompts and answers alone
  prompt: str = "task"  # one of `step_prompts.KINDS`; for "student" and "none"
  shown: str = "task"  # for "student": "task" alone, or the "attempts" and guidance before the answer
  verified_reward: float | None = None  # from it on, answers that nobody verified are learnt; None: never
  lesson: Callable[[TeachingTurn], tuple[list[dict], str]] = plain_lesson  # how a teacher is asked

  def problems(self, where: str, trace: Trace, refused: Counter) -> Iterator[Problem]:
    """Yields the problems of a session, and counts in `refused` what gave none, by one of REASONS."""
    if self.target == "teacher":
      yield from self._lessons(where, trace, refused)
    elif self.prompt == "task":
      yield from self._answered(where, trace, None, refused)
    else:
      for step in step_prompts.unique_steps(trace, refused):
        yield from self._answered(f"{where}#{step.step_id}", trace, step, refused)

  def _answered(self, where: str, trace: Trace, step: Step | None, refused: Counter) -> Iterator[Problem]:
    """Yields the problem of a session, or of a step of it."""
    prompt: str | list[dict] = trace.task if step is None else step_prompts.laid_out(trace, step)
    answer = _answer_of(trace) if step is None else step.answer
    truth = trace.ground_truth if step is None or len(trace.steps) == 1 else _truth_of(step)
    if self.target == "none":
      yield Problem(where, prompt, truth, None, _known(trace, step))
      return
    if not answer.strip():
      refused["no_answer"] += 1
    elif not is_verified(trace, answer, truth, least_reward=self.verified_reward):
      refused["unverified"] += 1
    else:
      if self.shown == "attempts" and isinstance(prompt, str):
        prompt = _with_attempts(prompt, trace.steps if step is None else [step])
      yield Problem(where, prompt, truth, answer, _known(trace, step))

  def _lessons(self, where: str, trace: Trace, refused: Counter) -> Iterator[Problem]:
    if not trace.has_guidance:
      refused["no_guidance"] += 1
    for step in step_prompts.unique_steps(trace, refused):
      for number, turn in enumerate(turns_of(trace, step, refused), start=1):
        messages, reply = self.lesson(turn)
        # Without an answer: the right one is the student's, and no grader compares guidance with it.
        yield Problem(f"{where}#{step.step_id}.{number}", messages, None, reply,
                      {**_known(trace, step), "teaching_turn": turn._asdict()})


def turns_of(trace: Trace, step: Step, refused: Counter) -> Iterator[TeachingTurn]:
  """Yields the guidance of a step in order; that behind which the student did worse is counted as refused."""
  question = step_prompts.of_step(trace, step) if len(trace.steps) == 1 else (
      f"{trace.task}\n\nStep {step.step_id}: {step.description}")
  earlier: tuple[str, ...] = ()
  for place, one in enumerate(step.attempts):
    texts = tuple(each.answer for each in step.attempts[:place + 1] if each.answer)
    for note in one.guidance:
      if _is_harmful(step.attempts[place:place + 2]):
        refused["harmful"] += 1
      else:
        # Only if this attempt's own text was kept: guidance must not stand behind another's.
        yield TeachingTurn(question, texts if one.answer else (), earlier, note, one.valid)
      earlier = (*earlier, note)
  # Old traces list notes apart from the attempts, whose texts they lost.
  for note in step.guidance:
    if note not in earlier:
      yield TeachingTurn(question, (), earlier, note, None)
      earlier = (*earlier, note)


def is_verified(trace: Trace, answer: str, truth: str | None, *, least_reward: float | None = None) -> bool:
  """Returns whether something says that an answer is right: the last check, the truth, or a large reward.

  Args:
    trace: the session.
    answer: the text.
    truth: the right answer; one that equals it up to blanks and case is right.
    least_reward: reward of the session from which on it counts too; None: no reward does.
  """
  if trace.verified is not None:
    return trace.verified  # Also against the truth: a check may ask for more than the text.
  if truth is not None and " ".join(answer.split()).casefold() == " ".join(truth.split()).casefold():
    return True
  value = trace.reward.value
  return least_reward is not None and value is not None and value >= least_reward


def _is_harmful(pair: Sequence[Attempt]) -> bool:
  scores = [one.score.value for one in pair]
  return len(scores) == 2 and None not in scores and scores[1] < scores[0]  # type: ignore[operator]


def _with_attempts(prompt: str, steps: Sequence[Step]) -> list[dict]:
  """Returns a chat of the prompt, and the attempts before the last one, each with the guidance behind it."""
  messages = [{"role": "user", "content": prompt}]
  if len(steps) != 1:
    return messages
  for one in steps[0].attempts[:-1]:
    if one.answer and one.guidance:
      messages += [{"role": "assistant", "content": one.answer},
                   {"role": "user", "content": "\n".join(one.guidance)}]
  return messages


def _answer_of(trace: Trace) -> str:
  return trace.final_answer if trace.final_answer.strip() or len(trace.steps) != 1 else trace.steps[0].answer


def _truth_of(step: Step) -> str | None:
  found = step.metadata.get("ground_truth")
  return found if isinstance(found, str) and found.strip() else None


def _known(trace: Trace, step: Step | None) -> dict[str, Any]:
  """Returns what is known of a problem besides, for rewards that ask for it by name and for tables."""
  found = {"session_id": trace.session_id, "step_id": None if step is None else step.step_id,
           "learning_key": trace.learning_key, "lane": trace.lane, "reward": trace.reward.value}
  return {name: value for name, value in found.items() if value is not None}
