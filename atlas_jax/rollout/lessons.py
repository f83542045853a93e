"""Lessons: a question is answered alone, then with guidance of a teacher that is shown the student's work.

Per question there are one baseline answer and one probe, shared by its G guidances: 2 + 2 G generations. A
reward of config.teacher.rewards may ask, beside the columns of the row, for those of `COLUMNS`.
"""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.data.problems import Problem, StableRandom
from atlas_jax.rollout import leakage, reward_calls, teaching
from atlas_jax.rollout.students import Student, StudentReply
from atlas_jax.rollout.teaching import Teaching, TemplateSet
from atlas_jax.state import Trained

COLUMNS = ("question", "approach", "guidance", "baseline", "guided", "baseline_score", "guided_score", "leak")
ANSWER, PROBE = range(2)  # Seeds of draws; answers with guidance and without are drawn alike.


@dataclasses.dataclass(frozen=True)
class LessonSettings:
  """Settings of what students are asked and teachers are shown; fields as in config.teacher."""

  templates: TemplateSet = teaching.CHAT
  shown: str = "probe"
  probe_tokens: int = 50
  max_tokens: int = 256
  temperature: float = 0.0

  def __post_init__(self):
    if self.shown != "probe":
      fields = {name for _, text in self.templates.teacher for name in teaching.placeholders(text)}
      if not fields & {"attempts", "shown"}:
        raise ValueError(f"config.teacher.shown={self.shown!r} needs the student's attempt in the teacher's "
                         "prompt; put {attempts} or {shown} into config.teacher.formats.teacher")

  @property
  def asks_probe(self) -> bool:
    """Returns whether the student is asked how it would begin."""
    return self.shown == "probe" and bool(self.probe_tokens) and bool(self.templates.probe)


class Lesson(NamedTuple):
  """A question before the teacher says anything."""

  problem: Problem
  baseline: StudentReply
  baseline_score: float             # NaN: there is no truth, or no answer
  approach: StudentReply | None = None  # None: not asked


class Taught(NamedTuple):
  """A reply of the teacher, and what the student made of it."""

  lesson: Lesson
  teaching: Teaching
  leak: str | None            # how the guidance contains the answer, see `leakage.leak`
  guided: StudentReply        # the baseline's where there is no guidance
  guided_score: float
  reliance_nats: float | None = None  # see `Lessons.reliance`

  @property
  def columns(self) -> dict[str, Any]:
    """Returns what rewards and tables are given, by the names in `COLUMNS`."""
    lesson = self.lesson
    return {"question": reward_calls.text_of(lesson.problem.prompt),
            "approach": None if lesson.approach is None else lesson.approach.text,
            "guidance": self.teaching.guidance, "baseline": lesson.baseline.text, "guided": self.guided.text,
            "baseline_score": _or_none(lesson.baseline_score), "guided_score": _or_none(self.guided_score),
            "leak": self.leak}


class Lessons:
  """Has questions answered with and without guidance."""

  def __init__(self, student: Student, grade: Callable, settings: LessonSettings):
    """Takes a student and what grades it.

    Args:
      student: answers.
      grade: (problems, texts, *, step) -> score_B in [0, 1], NaN where there is no truth.
      settings: how it is asked.
    """
    self.settings = settings
    self.student: Any = student
    self._grade = grade

  def load(self, trained: Trained) -> None:
    """Hands its weights to a student that is a model here."""
    if hasattr(self.student, "load"):
      self.student.load(trained)

  def begin(self, problems: Sequence[Problem], *, seed: int, step: int = 0) -> list[Lesson]:
    """Has questions answered without guidance, and asks how the student would begin."""
    how = self.settings
    asked = [teaching.baseline_messages(one.prompt, how.templates) for one in problems]
    baselines = self._answers(asked, how.max_tokens, StableRandom(seed, ANSWER))
    approaches: Sequence[StudentReply | None] = [None] * len(problems)
    if how.asks_probe:
      probes = [teaching.probe_messages(one.prompt, how.templates) for one in problems]
      approaches = self._answers(probes, how.probe_tokens, StableRandom(seed, PROBE))
    score_B = self._scores(problems, baselines, step)
    return [Lesson(*parts) for parts in zip(problems, baselines, score_B, approaches, strict=True)]

  def teacher_problem(self, lesson: Lesson) -> Problem:
    """Returns what the teacher is asked, as a problem with the question's place and answer."""
    how = self.settings
    approach = None if lesson.approach is None else lesson.approach.text
    attempts = () if how.shown == "probe" else (lesson.baseline.text,)
    messages = teaching.teacher_messages(lesson.problem.prompt, approach=approach, attempts=attempts,
                                         templates=how.templates)
    # One message of a user is a text wherever the teacher has no chat template.
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    return lesson.problem._replace(prompt=messages[0]["content"] if alone else messages, solution=None,
                                   reply=())

  def finish(self, lessons: Sequence[Lesson], replies: Sequence[str], *, seed: int, step: int = 0
             ) -> list[Taught]:
    """Reads the teacher's replies, one per lesson, and has the questions answered with their guidance."""
    return self.finish_with(lessons, [self.parse(text) for text in replies], seed=seed, step=step)

  def parse(self, reply: str) -> Teaching:
    """Reads a reply of the teacher."""
    return teaching.parse_reply(reply, self.settings.templates)

  def finish_with(self, lessons: Sequence[Lesson], teachings: Sequence[Teaching], *, seed: int,
                  step: int = 0) -> list[Taught]:
    """Has questions answered with guidance, one per lesson."""
    how = self.settings
    problems = [one.problem for one in lessons]
    asked = self._guided_messages(lessons, teachings)
    # Those without guidance are asked with the others, so that there are few shapes to compile for; what
    # counts for them is the answer that they gave without.
    answers = self._answers(asked, how.max_tokens, StableRandom(seed, ANSWER))
    guided = [lesson.baseline if given.guidance is None else answer
              for lesson, given, answer in zip(lessons, teachings, answers, strict=True)]
    score_B = self._scores(problems, guided, step)
    found = []
    for lesson, given, answer, score in zip(lessons, teachings, guided, score_B, strict=True):
      same = given.guidance is None
      leak = None if same else leakage.leak(given.guidance or "", lesson.problem.answer,
                                            reward_calls.text_of(lesson.problem.prompt))
      found.append(Taught(lesson, given, leak, answer, lesson.baseline_score if same else score))
    return found

  def _guided_messages(self, lessons: Sequence[Lesson], teachings: Sequence[Teaching]) -> list[list[dict]]:
    return [teaching.guided_messages(lesson.problem.prompt, given.guidance, self.settings.templates)
            for lesson, given in zip(lessons, teachings, strict=True)]

  def reliance(self, taught: Sequence[Taught]) -> list[Taught]:
    """Measures by how much guidance makes the student's own answers likelier, in nats per token.

    An answer that the student would hardly have given alone was handed over; one that it would have given
    with some luck was found. None where there is no guidance or no answer.
    The student must have `mean_logprobs`, as `NativeStudent` does.
    """
    ids_B = [one.guided.ids for one in taught]
    lessons = [one.lesson for one in taught]
    alone = [teaching.baseline_messages(one.problem.prompt, self.settings.templates) for one in lessons]
    with_B = self.student.mean_logprobs(self._guided_messages(lessons, [one.teaching for one in taught]),
                                        ids_B)
    gain_B = with_B - self.student.mean_logprobs(alone, ids_B)
    return [one._replace(reliance_nats=None if one.teaching.guidance is None else _or_none(gain))
            for one, gain in zip(taught, gain_B, strict=True)]

  def _answers(self, asked: Sequence[Sequence[dict]], max_tokens: int, draws: StableRandom
               ) -> Sequence[StudentReply]:
    found = self.student.answer(asked, max_tokens=max_tokens, temperature=self.settings.temperature,
                                seed=draws.below(2**31))
    if len(found) != len(asked):
      raise ValueError(f"the student gave {len(found)} answers to {len(asked)} questions")
    return found

  def _scores(self, problems: Sequence[Problem], answers: Sequence[StudentReply], step: int) -> np.ndarray:
    score_B = np.asarray(self._grade(problems, [one.text for one in answers], step=step), np.float64)
    known_B = ~np.isnan(score_B)
    if known_B.any() and not ((score_B[known_B] >= 0) & (score_B[known_B] <= 1)).all():
      raise ValueError(f"config.teacher.grader gives {np.nanmin(score_B):g} to {np.nanmax(score_B):g}; "
                       "grades must be from 0 to 1")
    # An answer that could not be had says nothing of the guidance.
    return np.where([one.failed for one in answers], np.nan, score_B)


def _or_none(value: float) -> float | None:
  return None if np.isnan(value) else float(value)
