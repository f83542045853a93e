"""Ranked responses to the tasks made here: right in steps, right without them, wrong by a slip, and garbage.

What a response is worth is known exactly, so that nothing has to be judged. Groups have one to six responses,
and some of them are tied.
"""
from collections.abc import Callable, Mapping
from typing import Any

from atlas_jax.data import arithmetic, countdown, problems
from atlas_jax.data.problems import Problem, StableRandom
from atlas_jax.data.responses import AnswerGroup, Response, renumbered

SCORES = {"steps": 1.0, "direct": 0.6, "slip": 0.2, "garbage": 0.0}  # Only their order matters to ranks.
LARGEST = 6  # Responses of a group at most.
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SEED_WORD = 7919  # Sets these draws apart from those of the problems.


def make(name: str, *, split: str, count: int, seed: int, held_out_frac: float,
         options: Mapping[str, Any] = problems.NOTHING, scores: bool = False) -> list[AnswerGroup]:
  """Makes groups for different problems of a task.

  Args:
    name: "arithmetic" (sums) or "countdown".
    split: "train" or "held_out"; a hash of each problem decides.
    count: how many groups.
    seed: draws problems and responses.
    held_out_frac: fraction of the problems that are held out.
    options: of the task, see `Arithmetic` and `Countdown`.
    scores: whether responses have scores besides their ranks.

  Raises:
    ValueError: for an unknown task, settings that cannot be, or fewer problems than are wanted.
  """
  if name not in CANDIDATES:
    raise ValueError(f"config.data.name={name!r} has no ranked responses; without config.data.files it must "
                     f"be one of {', '.join(CANDIDATES)}")
  if name == "arithmetic" and set(options.get("operations", "+")) != {"+"}:
    raise ValueError(f"config.data.options={dict(options)}: ranked responses are made for sums alone, "
                     "operations='+'")
  of_task = arithmetic.Arithmetic if name == "arithmetic" else countdown.Countdown
  task = of_task(**options, split=split, held_out_frac=held_out_frac, seed=seed)
  return [group(name, problem, StableRandom(SEED_WORD, seed, index), scores=scores)
          for index, problem in enumerate(task.first(count))]


def group(name: str, problem: Problem, draws: StableRandom, *, scores: bool) -> AnswerGroup:
  """Ranks some of the candidates for a problem, in an order that says nothing."""
  # Candidates come best first. Where two kinds have one text, such as letters that hit an
  # answer, the text has the worth of the better kind: twice in a group with different worth it
  # would be pushed away from itself.
  pool: dict[str, str] = {}  # text -> kind
  for kind, text in CANDIDATES[name](problem, draws):
    pool.setdefault(text, kind)
  texts = list(pool)
  size = draws.between(1, min(LARGEST, len(texts)))
  # Drawn one by one without replacement: the place in the group says nothing of the rank.
  drawn = [texts.pop(draws.below(len(texts))) for _ in range(size)]
  kinds = [pool[text] for text in drawn]
  ranks = renumbered([-SCORES[kind] for kind in kinds])
  listed = [Response(text, rank, SCORES[kind] if scores else None)
            for text, kind, rank in zip(drawn, kinds, ranks, strict=True)]
  return AnswerGroup(problem.where, problem.prompt, tuple(listed), {"task": name, "answer": problem.answer,
                                                                    "kinds": kinds})


def sums(problem: Problem, draws: StableRandom) -> list[tuple[str, str]]:
  """Returns (kind, text) of candidates for a sum."""
  a = problem.extra["a"]
  b = problem.extra["b"]
  places = max(len(str(a)), len(str(b))) - 1
  slips = [(a + b + 1, f"#### {a + b + 1}")]  # Of one column, without a carry to slip on.
  if places:
    slips = [slipped(a, b, draws.below(places)) for _ in range(2)]
  return [("steps", arithmetic.solve("+", a, b)[1]), ("direct", f"#### {a + b}"), ("direct", f"{a + b}"),
          ("slip", slips[0][1]), ("slip", f"#### {slips[-1][0]}"), *garbage(problem, draws)]


def slipped(a: int, b: int, column: int) -> tuple[int, str]:
  """Returns the wrong answer to a + b, and its steps, the carry out of one column forgotten or made up.

  Args:
    a, b: the operands.
    column: which column, 0 for the lowest; not the highest.
  """
  steps = []
  total = 0
  carry = 0
  place = 0
  while a or b or not place:
    x = a % 10
    y = b % 10
    a = a // 10
    b = b // 10
    value = x + y + carry
    steps.append(f"{x}+{y}{'+1' if carry else ''}={value}")
    total += (value % 10 if a or b else value) * 10**place
    # 1 - carry: forgets one that there is, makes up one that there is not. So the answer is always wrong.
    carry = value // 10 if place != column else 1 - value // 10
    place += 1
  return total, " ".join([*steps, f"#### {total}"])


def expressions(problem: Problem, draws: StableRandom) -> list[tuple[str, str]]:
  """Returns (kind, text) of candidates for a Countdown."""
  assert problem.solution is not None
  right = problem.solution.rpartition("#### ")[2]
  return [("steps", problem.solution), ("direct", f"#### {right}"), ("direct", right),
          *(("slip", f"#### {wrong}") for wrong in _wrong(right, problem, draws)), *garbage(problem, draws)]


def _wrong(right: str, problem: Problem, draws: StableRandom) -> list[str]:
  """Returns the expression with one sign exchanged, two ways if there are, none that is right after all."""
  found = []
  for at in [place for place, char in enumerate(right) if char in "+-*/"]:
    # The drawn sign may be the one that is there, or lead to the target by another way:
    # both are right and left out.
    sign = "+-*"[draws.below(3)]
    text = right[:at] + sign + right[at + 1:]
    if not countdown.solves(text, problem.extra["target"], problem.extra["numbers"]):
      found.append(text)
  return found[:2]


def garbage(problem: Problem, draws: StableRandom) -> list[tuple[str, str]]:
  """Returns (kind, text) of two answers that say nothing: drawn letters, and the prompt again."""
  letters = "".join(LETTERS[draws.below(len(LETTERS))] for _ in range(draws.between(3, 12)))
  return [("garbage", letters), ("garbage", str(problem.prompt).strip())]


CANDIDATES: Mapping[str, Callable] = {"arithmetic": sums, "countdown": expressions}
