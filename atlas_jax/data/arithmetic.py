"""Arithmetic: sums, differences and products of given lengths; the number of carries says how hard one is.

A solution in steps writes one column after another, the lowest first: 47+85 is "7+5=12 4+8+1=13 #### 132".
"""
import json
from collections.abc import Sequence

from atlas_jax.data import problems
from atlas_jax.data.problems import Problem

OPERATIONS = "+-*"
STYLES = ("steps", "direct")
TRIES = 20_000  # Draws for one problem before its settings count as impossible.


class Arithmetic:
  """Endless arithmetic; see `problems.Problems`. Settings, seed and index alone decide a problem."""

  count = None

  def __init__(self, *, operations: str = "+", digits: int | Sequence[int] = 2,
               carries: Sequence[int] | None = None, style: str = "steps", prompt: str = "{a}{op}{b}=",
               split: str = "train", held_out_frac: float = 0.1, seed: int = 0):
    """Sets which problems are drawn.

    Args:
      operations: which of "+", "-" and "*" are drawn, as one string; a difference is never negative.
      digits: digits of the operands: one number, or the least and the most.
      carries: least and most carries (borrows in a difference); None: any.
      style: of the solution: "steps" writes the columns and "#### ANSWER", "direct" the answer alone.
      prompt: the question, a format of {a}, {op} and {b}.
      split: "train" or "held_out"; a hash of the problem decides, and a+b counts as b+a.
      held_out_frac: fraction of the problems that "train" never shows.
      seed: of the random numbers that draw problems.

    Raises:
      ValueError: for a setting that cannot be, or that no problem fits.
    """
    low, high = (digits, digits) if isinstance(digits, int) else _pair(digits)
    if not 1 <= low <= high:
      raise ValueError(f"digits={digits} must be one positive number, or the least and the most")
    if not operations or set(operations) - set(OPERATIONS):
      raise ValueError(f"operations={operations!r} must be made of '+', '-' and '*'")
    if style not in STYLES:
      raise ValueError(f"style={style!r} is unknown; known styles: {', '.join(STYLES)}")
    problems.check_split(split, held_out_frac)
    self._digits = (low, high)
    self._operations = operations
    self._carries = carries and tuple(carries)
    self._style = style
    self._prompt = prompt
    self._split = split
    self._held_out_frac = held_out_frac
    self._seed = seed
    # The source of prompts saves it with its place and compares it on resume, so all that changes problem(i)
    # must stand here: a setting that is left out would let a run go on with other problems unseen.
    self.fingerprint = json.dumps(["arithmetic", operations, low, high, self._carries, style, prompt, split,
                                   held_out_frac, seed])
    self.problem(0)  # Settings that no problem fits fail now, not at the first batch.

  def problem(self, index: int) -> Problem:
    """Returns one problem; extra has "a", "op", "b" and "carries"."""
    # One stream per index: a draw that does not fit is followed by the next draw of the same stream, so
    # problem(i) never depends on problem(i - 1), on the number of processes, or on what was asked for before.
    draws = problems.StableRandom(self._seed, index)
    for _ in range(TRIES):
      op = self._operations[draws.below(len(self._operations))]
      a = self._operand(draws)
      b = self._operand(draws)
      if op == "-" and a < b:
        a, b = b, a
      hard = count_carries(op, a, b)
      wanted = self._carries is None or self._carries[0] <= hard <= self._carries[1]
      if wanted and problems.in_split(key(op, a, b), self._split, self._held_out_frac):
        answer, steps = solve(op, a, b)
        solution = steps if self._style == "steps" else str(answer)
        return Problem(f"arithmetic@{index}", self._prompt.format(a=a, op=op, b=b), str(answer), solution,
                       {"a": a, "op": op, "b": b, "carries": hard})
    raise ValueError(
        f"no {self._split} problem found with carries={self._carries}, digits={self._digits}, "
        f"operations={self._operations!r} in {TRIES} draws; allow other carries or more digits")

  def first(self, count: int) -> list[Problem]:
    """Returns the first problems that differ from each other, such as a set to evaluate on."""
    return problems.drawn(self, lambda one: key(one.extra["op"], one.extra["a"], one.extra["b"]), count)

  def _operand(self, draws: problems.StableRandom) -> int:
    size = draws.between(*self._digits)
    # The length is drawn first, then the number: drawn evenly from all numbers, nine in ten would have the
    # most digits. One digit starts at 0, since 10**0 would leave 0 out.
    return draws.between(10 ** (size - 1) if size > 1 else 0, 10**size - 1)


def _pair(digits) -> tuple[int, int]:
  """Returns two whole numbers as a pair; (0, 0), which the caller refuses, for anything else."""
  fits = isinstance(digits, Sequence) and len(digits) == 2 and all(isinstance(one, int) for one in digits)
  return (digits[0], digits[1]) if fits else (0, 0)


def key(op: str, a: int, b: int) -> str:
  """Returns what decides the split: the same for a+b and b+a, and for a*b and b*a."""
  # Without this "3+5" could be trained on and "5+3" held out, which has the same answer. A difference is not
  # symmetric, and its larger operand comes first already.
  low, high = (b, a) if op == "-" else sorted((a, b))
  return f"{high}{op}{low}"


def count_carries(op: str, a: int, b: int) -> int:
  """Counts carries of a sum or of long multiplication (in its rows and in adding them), borrows of a-b."""
  if op == "+":
    return sum(carry for _, _, carry, _ in _columns(a, b, 1))
  if op == "-":
    return sum(carry for _, _, carry, _ in _columns(a, b, -1))
  total = 0
  carries = 0
  for place, digit in enumerate(reversed(str(b))):
    carry = 0
    for other in reversed(str(a)):
      carry = (int(other) * int(digit) + carry) // 10
      carries += carry > 0
    row = a * int(digit) * 10**place
    carries += count_carries("+", total, row)
    total += row
  return carries


def solve(op: str, a: int, b: int) -> tuple[int, str]:
  """Returns the answer and the solution in steps.

  Args:
    op: "+", "-" (with a >= b) or "*".
    a, b: the operands.
  """
  if op == "*":
    answer = a * b
    steps = _products(a, b)
  else:
    sign = 1 if op == "+" else -1
    answer = a + sign * b
    steps = [_column_text(op, *column) for column in _columns(a, b, sign)]
  return answer, " ".join([*steps, f"#### {answer}"])


def _columns(a: int, b: int, sign: int) -> list[tuple[int, int, int, int]]:
  """Returns (digit of a, digit of b, whether it carries, carry from the column before), the lowest first."""
  columns = []
  carry = 0
  # At least one column, so that 0+0 has a step. A carry out of the highest digit makes no column of its own:
  # it shows in the last total, as "4+8+1=13" of 47+85 does.
  while True:
    before = carry
    x = a % 10
    y = b % 10
    # sign -1 is a borrow: total is then negative exactly where ten must be taken from the next column.
    total = x + sign * (y + before)
    carry = int(total > 9 or total < 0)
    columns.append((x, y, carry, before))
    a = a // 10
    b = b // 10
    if not (a or b):
      return columns


def _column_text(op: str, x: int, y: int, carries: int, before: int) -> str:
  if op == "-":
    x += 10 * carries  # Ten borrowed from the next column.
  total = x + y + before if op == "+" else x - y - before
  return f"{x}{op}{y}{f'{op}1' if before else ''}={total}"


def _products(a: int, b: int) -> list[str]:
  """Returns a times every digit of b in its place, and the running sums."""
  # Zeros of b are passed over, as in writing by hand; b = 0 keeps one part, or there would be no step.
  parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b))) if digit != "0"] or [0]
  steps = [f"{a}*{part}={a * part}" for part in parts]
  total = a * parts[0]
  for part in parts[1:]:
    steps.append(f"{total}+{a * part}={total + a * part}")
    total += a * part
  return steps
