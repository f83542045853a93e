"""What hints do to a student on held-out questions, whoever writes the hints."""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from atlas_jax.data.convention import CONVENTIONS, Convention, in_format
from atlas_jax.data.problems import Problem, StableRandom
from experiments.adaptive_teacher import config as settings
from experiments.adaptive_teacher.models import Writer

QUESTIONS = 512  # Held out, of each seed.


class Asked(NamedTuple):
  """What a student answered to the held-out questions of a seed."""

  right_B: np.ndarray  # bool
  hint_tokens_B: np.ndarray  # int32, 0 where there is no hint


def questions(seed: int) -> list[Problem]:
  """Returns the held-out questions of a seed, the same for every arm."""
  return Convention(split="held_out", seed=seed, tag_seed=seed).first(QUESTIONS)


def guided(student: Writer, found: Sequence[Problem], hints: Sequence[str]) -> Asked:
  """Has a student answer with a hint for each question; "" is none."""
  written = answers(student, found, hints)
  right = [text.strip() == problem.answer for text, problem in zip(written, found, strict=True)]
  # A byte is a token.
  return Asked(np.array(right), np.array([len(hint.encode()) for hint in hints], np.int32))


def alone(student: Writer, found: Sequence[Problem]) -> Asked:
  """Has a student answer without hints."""
  return guided(student, found, [""] * len(found))


def answers(student: Writer, found: Sequence[Problem], hints: Sequence[str]) -> list[str]:
  """Returns what a student answers, with a hint for each question; "" is none."""
  texts = [in_format(settings.FORMATS, "guided" if hint else "baseline", one.prompt, hint)
           for one, hint in zip(found, hints, strict=True)]
  return student.write(texts, max_tokens=settings.ANSWER_TOKENS)


def hints_of(teacher: Writer, student: Writer, found: Sequence[Problem]) -> list[str]:
  """Returns the teacher's likeliest hint for each question, after the student was probed."""
  probes = [in_format(settings.FORMATS, "probe", one.prompt) for one in found]
  approaches = student.write(probes, max_tokens=settings.PROBE_TOKENS)
  asked = [in_format(settings.FORMATS, "teacher", one.prompt, approach=approach)
           for one, approach in zip(found, approaches, strict=True)]
  return [text.strip() for text in teacher.write(asked, max_tokens=settings.HINT_TOKENS)]


def of_others(hints: Sequence[str], seed: int) -> list[str]:
  """Returns hints in another order, each from another question: a placebo of the same words and lengths."""
  draws = StableRandom(seed)
  order = list(range(len(hints)))
  for last in range(len(order) - 1, 0, -1):
    # Sattolo's: a single cycle, so that no hint stays where it was.
    other = draws.below(last)
    order[last], order[other] = order[other], order[last]
  return [hints[place] for place in order]


def right_hints(found: Sequence[Problem]) -> list[str]:
  """Returns the conventions of the questions, which no teacher is told: the most that hints can do."""
  return [one.extra["convention"] for one in found]


def fixed_hints() -> list[str]:
  """Returns the hints that can be given to all questions alike."""
  return list(CONVENTIONS)


def row(before: Asked, after: Asked) -> dict:
  """Returns what changed between two answers to the same questions.

  Returns:
    accuracies, the mean change `lift`, `ndr` (fraction of the questions that did not get worse), mean tokens
    of a hint, lift per 1,000 of these, and which answers were right, a digit for each question.
  """
  change_B = after.right_B.astype(int) - before.right_B.astype(int)
  tokens = float(after.hint_tokens_B.mean())
  bits = lambda right_B: "".join("01"[int(right)] for right in right_B)
  return {"accuracy_before": round(float(before.right_B.mean()), 4),
          "accuracy": round(float(after.right_B.mean()), 4),
          "lift": round(float(change_B.mean()), 4), "ndr": round(float((change_B >= 0).mean()), 4),
          "hint_tokens": round(tokens, 2),
          "lift_per_1000_tokens": round(float(1_000 * change_B.mean() / tokens), 2) if tokens else None,
          "right_before": bits(before.right_B), "right": bits(after.right_B)}
