"""Sums of two numbers: a student that forgets to carry, and a first teacher that says nothing of use.

The student is `rollout.toy_student`: it adds column by column, carries where the guidance has a "c" in it,
and spoils its answer where that has an "x". So a teacher can learn what to tell it, see
`configs/teacher_rcl.py:cpu`.
"""
import functools
import json
import sys

from atlas_jax.data.problems import StableRandom
from atlas_jax.files import closed_pipe
from atlas_jax.rollout import toy_student

FIRST_WORDS = "add"  # What the first teacher says to every answer.


@functools.cache
def _student() -> toy_student.ToyStudent:
  return toy_student.ToyStudent()


def student(messages: list) -> str:
  """Answers the last sum in messages."""
  [reply] = _student().answer([messages], max_tokens=8, temperature=0.0, seed=0)
  return reply.text


def first_teacher(messages: list) -> str:
  """Returns what the first teacher says; it does not look at the answer."""
  del messages
  return FIRST_WORDS


def tasks(count: int, seed: int = 0) -> list[dict]:
  """Returns sums of two numbers of two digits, with their results; no two are the same.

  Args:
    count: of tasks, at most 8,100.
    seed: chooses which.
  """
  if not 1 <= count <= 8_100:
    raise ValueError(f"count={count} must be from 1 to 8100: there are so many sums of two numbers of two "
                     f"digits")
  found: dict[str, dict] = {}
  index = 0
  while len(found) < count:
    draw = StableRandom(seed, index)
    left, right = 10 + draw.below(90), 10 + draw.below(90)
    found.setdefault(f"{left}+{right}=", {"task": f"{left}+{right}=", "ground_truth": str(left + right),
                                          "tags": ["sums"]})
    index += 1
  return list(found.values())


@closed_pipe.quiet
def main(arguments: list[str]) -> None:
  """Prints the tasks, one a line."""
  for one in tasks(*map(int, arguments)):
    print(json.dumps(one))


if __name__ == "__main__":  # python -m atlas_jax.runtime.worlds.arithmetic COUNT [SEED] > FILE.jsonl
  main(sys.argv[1:3])
