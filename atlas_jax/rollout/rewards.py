"""Rewards: pure functions of (prompt, completion, answer), found by name, checked, and added up with weights.

A reward gives a number, or None where it has nothing to say. One that needs more names it in its signature:
`tokens` (ids of the completion), `length` (how many) or `extra` (the other columns of the problem).
"""
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from atlas_jax.data import countdown as countdowns
from atlas_jax.rollout import answers

ALWAYS = ("prompt", "completion", "answer")
MORE = ("tokens", "length", "extra")
SHOWN_CHARS = 300  # Of a prompt or completion in an error.


def correct(prompt: str, completion: str, answer: str | None) -> float | None:
  """Gives 1 if the completion states the answer, else 0; None if there is no answer to compare with.

  The answer itself may be a solution that ends in a box, a tag or "####". See `answers.extract` and `same`.
  """
  del prompt
  if answer is None:
    return None
  truth = answers.extract(answer) if answers.is_marked(answer) else answer
  return float(answers.same(answers.extract(completion), truth))


def countdown(prompt: str, completion: str, answer: str | None) -> float | None:
  """Gives 1 if the completion states an expression that solves a Countdown problem, else 0.

  Args:
    prompt: not read.
    completion: the expression stands in a box, a tag, behind "####" or in the last line.
    answer: "TARGET from NUMBERS"; None: nothing to say.

  Raises:
    ValueError: if the answer is no Countdown problem.
  """
  del prompt
  if answer is None:
    return None
  target, sign, numbers = answer.partition(" from ")
  if not sign or not all(word.isdecimal() for word in [target, *numbers.split()]):
    raise ValueError(f"the answer {answer!r} is not 'TARGET from NUMBERS', such as '24 from 3 8 5'")
  expression = answers.extract(completion)
  return float(countdowns.solves(expression, int(target), [int(number) for number in numbers.split()]))


def marked(prompt: str, completion: str, answer: str | None) -> float:
  """Gives 1 if the completion states its answer in a box, a tag or behind "####", right or wrong."""
  del prompt, answer
  return float(answers.is_marked(completion))


def verbatim(prompt: str, completion: str, answer: str | None) -> float | None:
  """Gives 1 if the completion is the answer, letter by letter but for outer white space."""
  del prompt
  return None if answer is None else float(completion.strip() == answer.strip())


def places(prompt: str, completion: str, answer: str | None) -> float | None:
  """Gives the share of the answer's characters that stand in their place: credit for part of a number.

  What is longer than the answer counts as wrong places.
  """
  del prompt
  if answer is None:
    return None
  said, truth = completion.strip(), answer.strip()
  return sum(one == other for one, other in zip(said, truth)) / max(1, len(said), len(truth))


def letters(prompt: str, completion: str, answer: str | None) -> float:
  """Gives the share of ASCII letters among the characters of the completion, 0 for none: a toy to learn."""
  del prompt, answer
  return sum(char.isascii() and char.isalpha() for char in completion) / max(1, len(completion))


class Scores(NamedTuple):
  """The rewards of B completions."""

  reward_B: np.ndarray                # float32: weighted sum of what each reward gave; NaN where none did
  each: Mapping[str, np.ndarray]      # name -> float32 [B], NaN where it had nothing to say
  weights: Mapping[str, float]        # name -> weight


class _Reward(NamedTuple):
  function: Callable
  needs: tuple[str, ...]


class Rewards:
  """Several rewards with weights.

  Attributes:
    weights: name -> weight.
  """

  def __init__(self, weights: Mapping[str, float]):
    """Finds rewards.

    Args:
      weights: name -> weight; a name of `names()`, or a function by its dotted name.

    Raises:
      ValueError: if there is none, if one is not found, or if it is no function of what a reward may ask.
    """
    if not weights:
      raise ValueError(f"config.rewards is empty; give at least one with a weight: {', '.join(names())}, or "
                       f"the dotted name of a function of (prompt, completion, answer)")
    self._rewards = {}
    for name, weight in weights.items():
      if not math.isfinite(weight):
        raise ValueError(f"config.rewards[{name!r}]={weight} must be a finite weight")
      function = load(name)
      needs = tuple(one for one in inspect.signature(function).parameters if one in MORE)
      self._rewards[name] = _Reward(function, needs)
    self.weights = {name: float(weight) for name, weight in weights.items()}

  def score(self, prompts: Sequence[str], completions: Sequence[str], truths: Sequence[str | None], *,
            tokens: Sequence[Sequence[int]] | None = None,
            extras: Sequence[Mapping] | None = None) -> Scores:
    """Scores completions, each with its prompt and answer.

    Args:
      prompts, completions, truths: B of each.
      tokens: ids of each completion; only rewards that ask for `tokens` or `length` need them.
      extras: other columns of each problem, for rewards that ask for `extra`.

    Raises:
      ValueError: if a reward raises, or gives what is neither None nor a finite number; it names the reward,
        the prompt and the completion.
    """
    rows = len(completions)
    lengths = [len(column) for column in (prompts, truths, tokens, extras) if column is not None]
    if set(lengths) != {rows}:
      raise ValueError(f"{rows} completions cannot be paired with prompts, answers, tokens and extras of "
                       f"which there are {lengths}; give one of each per completion")
    each = {}
    for name, reward in self._rewards.items():
      missing = [need for need in reward.needs if (extras if need == "extra" else tokens) is None]
      if missing:
        raise ValueError(f"reward {name!r} asks for {', '.join(missing)}, which this run does not hand over")
      more = [{need: _more(need, row, tokens, extras) for need in reward.needs} for row in range(rows)]
      given = [_call(name, reward.function, *row) for row in zip(prompts, completions, truths, more)]
      each[name] = np.array([math.nan if one is None else one for one in given], np.float32)
    return Scores(combine(each, self.weights), each, self.weights)


def parse_weights(text: str) -> dict[str, float]:
  """Reads names with weights, such as "correct=1,marked=0.1"; a name alone weighs 1.

  Raises:
    ValueError: if a weight is no number, or a name comes twice.
  """
  weights: dict[str, float] = {}
  for part in filter(None, (part.strip() for part in text.split(","))):
    name, given, weight = (word.strip() for word in part.partition("="))
    try:
      value = float(weight) if given else 1.0
    except ValueError:
      raise ValueError(f"config.rewards={text!r}: {part!r} must be NAME or NAME=NUMBER") from None
    if name in weights:
      raise ValueError(f"config.rewards={text!r} names {name!r} twice; name it once")
    weights[name] = value
  return weights


def combine(each: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
  """Adds up rewards by weight, skipping those that are NaN; reward_B is NaN where all are."""
  rows = len(next(iter(each.values())))
  total_B, known_B = np.zeros(rows, np.float32), np.zeros(rows, bool)
  for name, given_B in each.items():
    there_B = ~np.isnan(given_B)
    total_B += np.where(there_B, given_B, 0) * weights[name]
    known_B |= there_B
  return np.where(known_B, total_B, np.nan).astype(np.float32)


def names() -> list[str]:
  """Lists the rewards of this file."""
  module = sys.modules[__name__]
  found = inspect.getmembers(module, inspect.isfunction)
  return [name for name, function in found
          if function.__module__ == __name__ and tuple(inspect.signature(function).parameters)[:3] == ALWAYS]


def load(name: str) -> Callable:
  """Finds a reward by its name here, or a function by its dotted name.

  Raises:
    ValueError: if there is none of that name, or if it asks for what no reward is given.
  """
  module, _, attribute = name.rpartition(".")
  if not module and name not in names():
    raise ValueError(f"config.rewards has {name!r}, which is unknown; known rewards: {', '.join(names())}, "
                     f"or the dotted name of a function of (prompt, completion, answer)")
  try:
    function = getattr(importlib.import_module(module or __name__), attribute)
  except (ModuleNotFoundError, AttributeError) as error:
    raise ValueError(f"config.rewards has {name!r}, which cannot be imported: {error}") from error
  parameters = list(inspect.signature(function).parameters) if callable(function) else []
  if tuple(parameters[:3]) != ALWAYS or set(parameters[3:]) - set(MORE):
    raise ValueError(f"config.rewards has {name!r}, which takes ({', '.join(parameters)}); it must be a "
                     f"function of ({', '.join(ALWAYS)}), and of {', '.join(MORE)} if it needs them")
  return function


def _more(need: str, row: int, tokens, extras):
  return extras[row] if need == "extra" else len(tokens[row]) if need == "length" else tokens[row]


def _call(name: str, function: Callable, prompt: str, completion: str, answer: str | None,
          more: Mapping) -> float | None:
  """Gives what a reward gives, checked."""
  about = f"for prompt {_short(prompt)}, completion {_short(completion)}, answer {_short(answer)}"
  try:
    given = function(prompt, completion, answer, **more)
  except Exception as error:  # Whatever a user's function raises, the run must say where.
    raise ValueError(f"reward {name!r} raised {type(error).__name__}: {error}; {about}") from error
  if given is None:
    return None
  if not isinstance(given, int | float | np.number | np.bool_) or not math.isfinite(given):
    raise ValueError(f"reward {name!r} gave {given!r}, neither a finite number nor None; {about}")
  return float(given)


def _short(text) -> str:
  shown = repr(text)
  return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}... ({len(text)} characters)"
