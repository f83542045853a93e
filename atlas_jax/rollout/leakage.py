"""Guidance that contains the answer, and prompts that do.

An answer is looked for as it is compared: as a number by its value, as a text but for case and spacing, and
in a box or tag. What stands in the question too tells nothing and is no leak, unless the guidance calls it
the answer. An answer in words for digits, or in a code that teacher and student agree on, is not found.
"""
import re
from collections.abc import Sequence

from atlas_jax.rollout import answers

KINDS = ("box", "number", "text")
MOST_CHARS = 20_000  # Of a guidance, that are searched.
# Letters may stand before it: else a teacher that is rewarded for right answers would learn to write "x132".
_NUMBERS = re.compile(r"(?<![0-9])(?<![0-9]\.)[+-]?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?)(?:\s*/\s*[0-9]+)?")
_SPREAD = re.compile(r"(?<=[0-9])[ \-_·](?=[0-9])")  # 1 3 2 and 1-3-2 are read as 132, too.


def leak(guidance: str, answer: str | None, question: str = "") -> str | None:
  """Returns how a guidance contains the answer, one of `KINDS`; None if it does not, or there is no answer.

  Args:
    guidance: what the student is told.
    answer: the truth, or a solution that states it in a box, a tag or behind "####".
    question: what the student knows anyway.
  """
  if answer is None or not answer.strip():
    return None
  truth = answers.extract(answer) if answers.is_marked(answer) else answer
  guidance = guidance[:MOST_CHARS]
  if (answers.is_marked(guidance) or answers.says_answer(guidance)) and \
      answers.same(answers.extract(guidance), truth):
    return "box"
  wanted = answers.value(truth)
  if wanted is not None:
    return "number" if _values(guidance, wanted.number) and not _values(question, wanted.number) else None
  return "text" if contains_text(guidance, truth) and not contains_text(question, truth) else None


def _values(text: str, number) -> bool:
  """Returns whether a text has a number of that value."""
  readings = {text, _SPREAD.sub("", text)}
  found = (answers.value(match[0]) for reading in readings for match in _NUMBERS.finditer(reading))
  return any(value is not None and value.number in (number, -number) for value in found)


def contains_text(text: str, wanted: str) -> bool:
  """Returns whether a text has another one in it as whole words, but for case and spacing.

  A single letter, the name of an option, counts only in brackets: "a" is a word of its own.
  """
  plain = " ".join(wanted.casefold().split()).strip(" .,;:!?'\"")
  if not plain:
    return False
  inside = " ".join(text.casefold().split())
  if len(plain) == 1:
    return f"({plain})" in inside
  return re.search(rf"(?<!\w){re.escape(plain)}(?!\w)", inside) is not None


def contaminated(prompt: str, *, answer: str | None, solution: str | None = None,
                 question: str = "") -> str | None:
  """Returns how a prompt shows the truth: "solution" or one of `KINDS`; None if it does not.

  Args:
    prompt: as the student is shown it.
    answer, solution: of the problem.
    question: the problem's own text. An answer that stands in it is the problem's and no fault of the prompt.
  """
  if solution is not None and len(solution.strip()) > 1 and contains_text(prompt, solution) and \
      not contains_text(question, solution):
    return "solution"
  return leak(prompt.replace(question, "\n") if question else prompt, answer, question)


def count_contaminated(prompts: Sequence[tuple[str, str | None, str | None, str]]) -> int:
  """Returns how many of (prompt, answer, solution, question) show the truth."""
  return sum(contaminated(prompt, answer=answer, solution=solution, question=question) is not None
             for prompt, answer, solution, question in prompts)
