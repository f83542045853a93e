"""A case for judges: an answer with all that is known of it, as data that no judge takes for instructions."""
import dataclasses
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Names in Atlas Core of what a case holds.
CORE_NAMES = {
  "ground_truths": "ground_truth", "baseline_solutions": "baseline", "student_plans": "plan",
  "teacher_traces": "guidance", "student_traces": "trajectory", "constitution_principles": "principles"}
# Orders to whoever judges. Each names rules or a judge: an answer about marks in an exam is none.
_JUDGE = r"(?:grader|judge|evaluator|reviewer)s?"
_ORDERS = re.compile(
  r"\b(?:ignore|disregard|forget)\b[^.\n]{0,40}\b(?:previous|above|prior|earlier|other)\b[^.\n]{0,30}"
  r"\b(?:instruction|rule|prompt)s?\b"
  rf"|\b{_JUDGE}\b[^\n]{{0,60}}\b(?:give|assign|award|output|return|reply|score|rate)\b[^\n]{{0,40}}"
  r"\b(?:1(?:\.0+)?|10|100|full|maximum|perfect|highest)\b"
  rf"|\b(?:note|message|instructions?) (?:to|for) (?:the |all |any )?{_JUDGE}\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Case:
  """An answer to be judged; None: not known. All values are JSON's."""

  prompt: str
  response: str
  ground_truth: Any = None  # the reference answer
  baseline: Any = None      # the answer without guidance
  plan: Any = None
  guidance: Any = None      # of the teacher
  trajectory: Any = None    # what was done on the way
  attempts: Any = None      # all of them, with guidance and verdicts
  principles: Any = None    # by which to judge, besides the judge's own
  mode: Any = None          # how the task was run
  metadata: Any = None

  def shown(self) -> dict[str, Any]:
    """Returns what judges are shown."""
    return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

  def has_orders(self) -> bool:
    """Returns whether what was written for this case, the task apart, holds orders to whoever judges it."""
    written = [self.response, self.guidance, self.trajectory, self.attempts, self.plan]
    return any(_ORDERS.search(text) for value in written for text in _texts(value))


FIELDS = tuple(field.name for field in dataclasses.fields(Case))


def of_core_names(prompt: str, response: str, given: Mapping[str, Any]) -> Case:
  """Makes a case of values by the names of Atlas Core, or by those of `Case`.

  Raises:
    TypeError: for another name, or one value given by two names.
  """
  values: dict[str, Any] = {}
  for name, value in given.items():
    field = CORE_NAMES.get(name, name)
    if field not in FIELDS:
      raise TypeError(f"judges do not read {name!r}; known are {', '.join([*CORE_NAMES, *FIELDS[2:]])}")
    if field in values:
      raise TypeError(f"{name!r} is {field!r} by another name; give it once")
    # A list of one for one answer is that one; principles are a list by nature.
    is_single = field != "principles" and isinstance(value, list | tuple) and len(value) == 1
    values[field] = value[0] if is_single else value
  return Case(prompt, response, **values)


def enclosed(content: Mapping[str, Any], secret: bytes) -> tuple[str, str]:
  """Writes data between two lines that nobody who wrote a part of it can have known.

  Args:
    content: JSON's values.
    secret: of this process or cache.

  Returns:
    The mark in the two lines, and the text. The same data with the same secret have the same mark, so that
    replies on disk are found again.
  """
  text = json.dumps(content, ensure_ascii=False, indent=1, default=str)
  mark = hmac.new(secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]
  assert mark not in text  # By chance once in 2**128; by will never, without the secret.
  return mark, f"BOUNDARY {mark}\n{text}\nBOUNDARY {mark}"


def _texts(value: Any) -> list[str]:
  """Lists the texts in a value, without recursion: a row of a file may nest deeply."""
  found, level = [], [value]
  while level:
    one = level.pop()
    if isinstance(one, str):
      found.append(one)
    elif isinstance(one, Mapping):
      level += list(one.values())
    elif isinstance(one, Sequence):
      level += list(one)
  return found
