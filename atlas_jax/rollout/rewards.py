"""Rewards: functions of prompts, completions and answers, found by name, checked, and added up with weights.

A reward gives a number, or None where it has nothing to say; `reward_calls` says which signatures there are.
"""
import difflib
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from atlas_jax.data import countdown as countdowns
from atlas_jax.data.problems import Problem
from atlas_jax.parallel import hosts
from atlas_jax.rollout import answers, reward_calls, user_functions
from atlas_jax.rollout.judges import group_reward
from atlas_jax.rollout.judges import reward as judge_reward
from atlas_jax.rollout.reward_calls import Batch, Log, RequiredColumns, RewardCall, TrainerState

ALWAYS = ("prompt", "completion", "answer")
JUDGES = "rim"  # The reward that config.rim describes,
GROUPS = "group"  # and that of the same judges who compare the completions of a prompt.
LOOKED_AT = 100_000  # Rows at most that are searched for a column.


def correct(prompt: str, completion: str, answer: str | None) -> float | None:
  """Returns 1 if the completion states the answer, else 0; None if there is no answer to compare with.

  The answer itself may be a solution that ends in a box, a tag or "####". See `answers.extract` and `same`.
  """
  del prompt
  if answer is None:
    return None  # And not 0: a row without an answer says nothing of the model.
  truth = answers.extract(answer) if answers.is_marked(answer) else answer
  return float(answers.same(answers.extract(completion), truth))


def countdown(prompt: str, completion: str, answer: str | None) -> float | None:
  """Returns 1 if the completion states an expression that solves a Countdown problem, else 0.

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
  # As text, because a row of a file holds it as one; `data.countdown` writes the same.
  target, sign, numbers = answer.partition(" from ")
  if not sign or not all(word.isdecimal() for word in [target, *numbers.split()]):
    raise ValueError(f"the answer {answer!r} is not 'TARGET from NUMBERS', such as '24 from 3 8 5'")
  expression = answers.extract(completion)
  return float(countdowns.solves(expression, int(target), [int(number) for number in numbers.split()]))


def marked(prompt: str, completion: str, answer: str | None) -> float:
  """Returns 1 if the completion states its answer in a box, a tag or behind "####", right or wrong."""
  del prompt, answer
  return float(answers.is_marked(completion))


def verbatim(prompt: str, completion: str, answer: str | None) -> float | None:
  """Returns 1 if the completion is the answer, letter by letter but for outer white space."""
  del prompt
  return None if answer is None else float(completion.strip() == answer.strip())


def places(prompt: str, completion: str, answer: str | None) -> float | None:
  """Returns the fraction of the answer's characters that stand in their place: credit for part of a number.

  What is longer than the answer counts as wrong places.
  """
  del prompt
  if answer is None:
    return None
  said = completion.strip()
  truth = answer.strip()
  # Over the longer one, or it would pay to write on and on.
  return sum(one == other for one, other in zip(said, truth)) / max(1, len(said), len(truth))


def letters(prompt: str, completion: str, answer: str | None) -> float:
  """Returns the fraction of ASCII letters in the completion, 0 where it is empty: a toy to learn."""
  del prompt, answer
  return sum(char.isascii() and char.isalpha() for char in completion) / max(1, len(completion))


class RewardScores(NamedTuple):
  """The rewards of B completions."""

  reward_B: np.ndarray                # float32: weighted sum of what each reward gave; NaN where none did
  each: Mapping[str, np.ndarray]      # name -> float32 [B], NaN where it had nothing to say
  weights: Mapping[str, float]        # name -> weight
  logged: Mapping[str, float] = MappingProxyType({})  # name -> mean of the numbers that rewards logged
  columns: Mapping[str, list] = MappingProxyType({})  # name -> B values for the table of completions
  masks: frozenset[str] = frozenset()  # names of rewards without which there is no sum


class Rewards:
  """Several rewards with weights.

  Attributes:
    weights: name -> weight.
    asked: columns of the rows that the rewards read.
    masks: names of rewards without which a completion has no reward.
  """

  def __init__(self, weights: Mapping[str, float], *, max_steps: int | None = None, rim=None):
    """Finds rewards.

    Args:
      weights: name -> weight; see `load` for names.
      max_steps: updates of the run, for rewards that ask for `trainer_state`.
      rim: config.rim, for the reward of judges.

    Raises:
      ValueError: if there is none, if one is not found, or if it is no function that can be a reward.
    """
    if not weights:
      raise ValueError(f"config.rewards is empty; give at least one with a weight: {', '.join(names())}, "
                       "FILE.py:FUNCTION, or the dotted name of a function")
    # A weight that is no finite number would make every advantage NaN, many steps later.
    for name, weight in weights.items():
      if not math.isfinite(weight) or abs(weight) > reward_calls.LARGEST:
        raise ValueError(f"config.rewards[{name!r}]={weight} must be a finite weight")
    self._calls = [RewardCall(name, load(name, rim)) for name in weights]
    self._max_steps = max_steps
    self.weights = {name: float(weight) for name, weight in weights.items()}
    # One that only watches, with weight 0, decides nothing.
    self.masks = frozenset(call.name for call in self._calls if call.masks and weights[call.name])
    # What all of them read: columns that none does are named once in a warning.
    self.asked = RequiredColumns(
        frozenset().union(*(call.asked.required for call in self._calls)),
        frozenset().union(*(call.asked.optional for call in self._calls)),
        any(call.asked.every for call in self._calls))

  def check_columns(self, found: Iterable[Problem]) -> None:
    """Refuses rewards that ask for a column which none of the rows has.

    Args:
      found: the rows; only as many are looked at as it takes to find all columns.

    Raises:
      ValueError: names the reward, the column, and the columns that there are.
    """
    there: dict[str, None] = {}  # In the order of the rows, for the message.
    for problem in itertools.islice(found, LOOKED_AT):
      there.update(dict.fromkeys(reward_calls.columns_of(problem)))
      if self.asked.required <= set(there):
        return
    for call in self._calls:
      for name in sorted(call.asked.required - set(there)):
        close = difflib.get_close_matches(name, there, n=1)
        raise ValueError(
            f"config.rewards has {call.name!r}, which asks for the column {name!r}, and no row has it; "
            f"{f'did you mean {close[0]!r}? ' if close else ''}rows have {', '.join(there) or 'no columns'} "
            f"besides the prompt; add the column, or give the parameter a default")

  def score(self, found: Sequence[Problem], completions: Sequence[str], *,
            tokens: Sequence[Sequence[int]] | None = None, step: int = 0) -> RewardScores:
    """Scores completions.

    Args:
      found: the problem of each completion.
      completions: B texts.
      tokens: ids of each completion; only rewards that ask for them need them.
      step: updates made so far.

    Raises:
      ValueError: if a reward raises, gives what is neither None nor a finite number that float32 holds, or
        not one for each completion; it names the reward, the prompt and the completion.
    """
    rows = len(completions)
    lengths = [len(column) for column in (found, tokens) if column is not None]
    # Else the shorter list would decide, and completions would be scored by others' answers.
    if set(lengths) != {rows}:
      raise ValueError(f"{rows} completions cannot be paired with problems and tokens of which there are "
                       f"{lengths}; give one of each per completion")
    log = Log(rows)
    batch = Batch(found, completions, tokens, TrainerState(step, self._max_steps), log)
    mine = [call for call in self._calls if hosts.is_main() or not call.once]
    each = reward_calls.run(mine, batch)
    for call in self._calls:
      if call.once:
        each[call.name] = hosts.of_main(each.get(call.name, np.zeros(rows, np.float32)))
    each = {call.name: each[call.name] for call in self._calls}
    logged = {name: float(np.mean(values)) for name, values in log.metrics.items()}
    return RewardScores(self._sum(each), each, self.weights, logged, log.columns, self.masks)

  def _sum(self, each: Mapping[str, np.ndarray]) -> np.ndarray:
    reward_B = combine(each, self.weights, masks=self.masks)
    # Each reward fits into float32, and weights can still make a sum that does not.
    if (endless_B := np.isinf(reward_B)).any():
      row = int(np.argmax(endless_B))
      parts = ", ".join(f"{name} {each[name][row]:g} times {weight:g}"
                        for name, weight in self.weights.items())
      raise ValueError(f"config.rewards add up to more than float32 holds: {parts}; lower the weights")
    return reward_B


def of_config(config) -> Rewards:
  """Finds the rewards of a config; errors as of `Rewards` and `parse_weights`."""
  return Rewards(parse_weights(config.rewards), max_steps=config.optim.steps, rim=config.rim)


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


def combine(each: Mapping[str, np.ndarray], weights: Mapping[str, float], *,
            masks: Iterable[str] = ()) -> np.ndarray:
  """Adds up rewards by weight, skipping those that are NaN.

  Args:
    each: name -> reward_B.
    weights: name -> weight.
    masks: names of rewards without which there is no sum.

  Returns:
    reward_B, float32: NaN where all are or one of `masks` is, infinite where the sum is more than float32
    holds.
  """
  rows = len(next(iter(each.values())))
  total_B = np.zeros(rows)
  known_B = np.zeros(rows, bool)
  for name, given_B in each.items():
    there_B = ~np.isnan(given_B)
    total_B += np.where(there_B, given_B, 0).astype(np.float64) * weights[name]
    known_B |= there_B
  for name in masks:
    known_B &= ~np.isnan(each[name])
  with np.errstate(over="ignore"):  # `Rewards` refuses an infinite sum, and says why.
    return np.where(known_B, total_B, np.nan).astype(np.float32)


def names() -> list[str]:
  """Lists the rewards of this file."""
  module = sys.modules[__name__]
  # By their form, so that a new reward is one function here and stands in no list.
  found = inspect.getmembers(module, inspect.isfunction)
  of_programs = [name for name, function in found if function.__module__ == __name__ and
                 tuple(inspect.signature(function).parameters)[:3] == ALWAYS]
  return sorted([*of_programs, JUDGES, GROUPS])


def load(name: str, rim=None) -> Callable:
  """Finds a reward.

  Args:
    name: one of `names()`; or "FILE.py:FUNCTION" or a dotted name, see `user_functions.find`.
    rim: config.rim for "rim" and "group", the judges; None: for a look at the columns that they read.

  Raises:
    ValueError: if there is none of that name, or if it cannot be called as a reward.
  """
  if "." not in name and ":" not in name:
    if name not in names():
      close = difflib.get_close_matches(name, names(), n=1, cutoff=0.6)
      raise ValueError(f"config.rewards has {name!r}, which is unknown; known rewards: {', '.join(names())}, "
                       "or FILE.py:FUNCTION, or the dotted name of a function"
                       f"{f'; did you mean {close[0]!r}?' if close else ''}")
    if name == JUDGES:
      return judge_reward.JudgeReward(None) if rim is None else judge_reward.of_config(rim)
    if name == GROUPS:
      return group_reward.GroupReward(None) if rim is None else group_reward.of_config(rim)
    return getattr(sys.modules[__name__], name)
  try:
    function = user_functions.find(name)
  except ValueError as error:
    raise ValueError(f"config.rewards has {name!r}, which cannot be loaded: {error}") from error
  RewardCall(name, function)  # Refuses a form that cannot be called, before anything is sampled.
  return function
