"""Countdown: reach a target from a few numbers by + - * /, using each at most once; and its verifier."""
import collections
import fractions
import json
import re
from collections.abc import Sequence

from atlas_jax.data import problems
from atlas_jax.data.problems import Problem

TRIES = 20_000         # Draws for one problem before its settings count as impossible.
MAX_CHARS = 200        # Length of an expression that is still read.
MAX_DEPTH = 30         # Parentheses within parentheses.
LARGEST = 10**9        # Numbers in an expression are below it.
# What models write for the ASCII signs: multiplication, division and minus as typeset, and square brackets.
SIGNS = str.maketrans({"×": "*", "·": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})


class Countdown:
  """Endless Countdown, always solvable; see `problems.Problems`."""

  count = None

  def __init__(self, *, size: int = 3, max_number: int = 10, max_target: int = 100,
               prompt: str = "Make {target} from {numbers}: ", split: str = "train",
               held_out_frac: float = 0.1, seed: int = 0):
    """Sets which problems are drawn.

    Args:
      size: numbers given, 2 or more.
      max_number: largest of them; the least is 1.
      max_target: largest target; it is never one of the numbers.
      prompt: the question, a format of {target} and {numbers}.
      split: "train" or "held_out"; a hash of target and sorted numbers decides.
      held_out_frac: fraction of the problems that "train" never shows.
      seed: of the random numbers that draw problems.

    Raises:
      ValueError: for a setting that cannot be, or that no problem fits.
    """
    if size < 2 or max_number < 2 or max_target < 2:
      raise ValueError(f"size={size}, max_number={max_number} and max_target={max_target} must be 2 or more")
    problems.check_split(split, held_out_frac)
    self._size = size
    self._max_number = max_number
    self._max_target = max_target
    self._prompt = prompt
    self._split = split
    self._held_out_frac = held_out_frac
    self._seed = seed
    # All that changes problem(i): compared when a run goes on, see `Arithmetic`.
    self.fingerprint = json.dumps(["countdown", size, max_number, max_target, prompt, split, held_out_frac,
                                   seed])
    self.problem(0)

  def problem(self, index: int) -> Problem:
    """Returns one problem; its answer is "TARGET from NUMBERS", extra has "target" and "numbers"."""
    draws = problems.StableRandom(self._seed, index)
    for _ in range(TRIES):
      numbers = [draws.between(1, self._max_number) for _ in range(self._size)]
      target, expression, steps = _combine(numbers, draws)
      # A target among the numbers would be its own solution, without a sign.
      fits = 2 <= target <= self._max_target and target not in numbers
      if fits and problems.in_split(key(target, numbers), self._split, self._held_out_frac):
        listed = " ".join(map(str, numbers))
        return Problem(
            f"countdown@{index}", self._prompt.format(target=target, numbers=listed),
            f"{target} from {listed}", " ".join([*steps, f"#### {expression}"]),
            {"target": target, "numbers": numbers})
    raise ValueError(f"no {self._split} problem found with size={self._size}, max_number={self._max_number}, "
                     f"max_target={self._max_target} in {TRIES} draws; make them larger")

  def first(self, count: int) -> list[Problem]:
    """Returns the first problems that differ from each other, such as a set to evaluate on."""
    return problems.drawn(self, lambda one: key(one.extra["target"], one.extra["numbers"]), count)


def key(target: int, numbers: Sequence[int]) -> str:
  """Returns what decides the split; the order of the numbers is of no account."""
  return f"{target} from {sorted(numbers)}"


def solves(expression: str, target: int, numbers: Sequence[int]) -> bool:
  """Returns whether an expression gives the target and uses only the numbers, each at most once.

  An equals sign at its end, with the target or nothing behind it, is allowed.
  """
  left, sign, right = expression.partition("=")
  if sign and right.strip() not in ("", str(target)):
    return False
  try:
    value, used = evaluate(left)
  except ValueError:
    return False
  # Counter's minus keeps what is above 0: numbers used more often than given, or not given at all.
  return value == target and not collections.Counter(used) - collections.Counter(numbers)


def evaluate(expression: str) -> tuple[fractions.Fraction, list[int]]:
  """Returns the exact value of an expression of whole numbers, + - * / and parentheses, and its numbers.

  Raises:
    ValueError: if it is anything else, divides by zero, or is longer or deeper than a person would write.
  """
  # The length bounds the time of what follows, since the text comes from a model: each number has nine digits
  # at most, so fractions stay small too.
  text = expression.translate(SIGNS).strip()
  if not text or len(text) > MAX_CHARS:
    raise ValueError(f"an expression has 1 to {MAX_CHARS} characters, this one {len(text)}")
  # Anything that is no number, sign or parenthesis becomes a word by itself, which the parser then refuses.
  # No `eval`: a completion could be any Python, and 9**9**9 would never end.
  words = re.findall(r"[0-9]+|\S", text)
  reader = _ExpressionParser(words)
  value = reader.sum(0)
  if reader.at != len(words):
    raise ValueError(f"cannot read {words[reader.at]!r} in {text!r}")
  return value, reader.numbers


class _ExpressionParser:
  """Reads an expression by recursive descent: a sum of products of numbers and sums in parentheses."""

  def __init__(self, words: list[str]):
    self.words = words
    self.at = 0
    self.numbers = []

  def _take(self, choices: str) -> str:
    """Returns the next word and goes past it, if it is one of the signs; else ""."""
    word = self.words[self.at] if self.at < len(self.words) else ""
    # The empty word at the end is "in" every text, so it must be excluded first.
    if word and word in choices:
      self.at += 1
      return word
    return ""

  def sum(self, depth: int) -> fractions.Fraction:
    value = self._product(depth)
    # A loop, not recursion to the right: 8-3-2 is (8-3)-2.
    while sign := self._take("+-"):
      other = self._product(depth)
      value = value + other if sign == "+" else value - other
    return value

  def _product(self, depth: int) -> fractions.Fraction:
    value = self._atom(depth)
    while sign := self._take("*/"):
      other = self._atom(depth)
      if sign == "/" and not other:
        raise ValueError("the expression divides by zero")
      value = value * other if sign == "*" else value / other
    return value

  def _atom(self, depth: int) -> fractions.Fraction:
    # Before Python's own limit on recursion, whose RecursionError is no ValueError.
    if depth > MAX_DEPTH:
      raise ValueError(f"the expression has more than {MAX_DEPTH} parentheses within each other")
    if self._take("("):
      value = self.sum(depth + 1)
      if not self._take(")"):
        raise ValueError("a parenthesis is not closed")
      return value
    word = self.words[self.at] if self.at < len(self.words) else "the end"
    if not re.fullmatch(r"[0-9]{1,9}", word):
      raise ValueError(f"{word!r} stands where a number below {LARGEST} should")
    self.at += 1
    self.numbers.append(int(word))
    # Exact: (1/3)*3 is 1, which floats may miss, and a right answer would be scored as wrong.
    return fractions.Fraction(int(word))


def _combine(numbers: Sequence[int], draws: problems.StableRandom) -> tuple[int, str, list[str]]:
  """Joins numbers two by two by drawn signs, every result a positive whole number.

  Returns:
    (value, expression, one "a+b=c" per sign).
  """
  pool = [(number, str(number)) for number in numbers]
  steps = []
  while len(pool) > 1:
    # Solved backwards from numbers, a target has a solution by construction, and no search is needed.
    a, left = pool.pop(draws.below(len(pool)))
    b, right = pool.pop(draws.below(len(pool)))
    signs = ["+", "*", *(["-"] if a > b else []), *(["/"] if a % b == 0 and b > 1 else [])]
    sign = signs[draws.below(len(signs))]
    value = {"+": a + b, "*": a * b, "-": a - b, "/": a // b}[sign]
    steps.append(f"{a}{sign}{b}={value}")
    pool.append((value, f"({left}{sign}{right})"))
  value, expression = pool[0]
  # The outermost parentheses; size >= 2, so there is always a pair.
  return value, expression[1:-1], steps
