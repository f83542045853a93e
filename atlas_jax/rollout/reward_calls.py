"""Reward functions as they come: their form, the columns they ask for, and calls whose results are checked.

A function of (prompt, completion, answer) is called once for each completion. One of (prompts, completions),
the signature of TRL, is called once for all of them and gives a list. Both may be async, have default
arguments, be bound by functools.partial or be objects that can be called; a parameter of another name asks
for the column of the rows that has this name.
"""
import asyncio
import copy
import functools
import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.data.problems import Problem
from atlas_jax.files.damage import clipped
from atlas_jax.rollout import async_loop

SINGLE = ("prompt", "completion", "answer", "tokens", "length", "extra")
BATCHED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
FORMS = (f"a function of one completion, with parameters out of {', '.join(SINGLE)}, or of all, with "
         f"parameters out of {', '.join(BATCHED)}; others are names of columns")
LARGEST = float(np.finfo(np.float32).max)
SHOWN_CHARS = 300  # Of a prompt or completion in an error.


class TrainerState(NamedTuple):
  """Progress of a run, for rewards that change with it."""

  global_step: int = 0  # updates made so far
  max_steps: int | None = None  # updates of the run


class Batch(NamedTuple):
  """Completions to be scored."""

  found: Sequence[Problem]  # of each completion
  completions: Sequence[str]
  tokens: Sequence[Sequence[int]] | None  # ids of each; None: not known
  state: TrainerState
  log: "Log"


class Log:
  """Numbers and texts that rewards log beside their values.

  Attributes:
    metrics: name -> numbers.
    columns: name -> a value for each completion.
  """

  def __init__(self, rows: int):
    """Starts empty, for so many completions."""
    self.metrics: dict[str, list[float]] = {}
    self.columns: dict[str, list] = {}
    self._rows = rows

  def log_metric(self, name: str, value: float) -> None:
    """Takes a number, which is averaged with others of its name."""
    self.metrics.setdefault(str(name), []).append(number(value))

  def log_extra(self, column: str, values: Sequence) -> None:
    """Takes a value for each completion, for the table of completions."""
    if len(values) != self._rows:
      raise ValueError(f"log_extra({column!r}) has {len(values)} values for {self._rows} completions")
    self.columns[str(column)] = [_plain(value) for value in values]


def _plain(value):
  """Returns a value as JSON holds it."""
  is_plain = isinstance(value, str | bool | int | None) or isinstance(value, float) and math.isfinite(value)
  return value if is_plain else str(value)


class RequiredColumns(NamedTuple):
  """Columns of rows that functions read."""

  required: frozenset[str] = frozenset()
  optional: frozenset[str] = frozenset()  # of parameters that have defaults
  every: bool = False  # whether a function takes all columns there are: **kwargs, or `extra`

  def uses(self, column: str) -> bool:
    """Returns whether a column reaches a function."""
    return self.every or column in self.required or column in self.optional


class RewardCall:
  """A reward function, ready to be called.

  Attributes:
    name: as config.rewards has it.
    is_batched: whether it scores all completions in one call.
    asked: columns that it reads.
    takes_extra: whether it reads all columns there are, as `extra`.
    masks: whether a completion that it says nothing of gets no reward at all.
    once: whether one process of a run calls it for all.
  """

  def __init__(self, name: str, function: Callable):
    """Looks at the signature.

    Raises:
      ValueError: if it is no function that can be called as a reward.
    """
    self.name = name
    self.masks = bool(getattr(function, "masks", False))
    self.once = bool(getattr(function, "once", False))
    self._function = function
    parameters = _parameters(name, function)
    taken = {one.name for one in parameters if one.kind not in _STARS}
    batched = sorted(taken & set(BATCHED))
    # `answer` is in both forms: a parameter of one completion, and the name of a column of all.
    single = sorted(taken & (set(SINGLE) - {"answer"}))
    has_kwargs = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    if batched and single or not (batched or single or has_kwargs):
      mixed = f"; {single[0]} is of one completion, {batched[0]} of all" if batched and single else ""
      raise ValueError(f"config.rewards has {name!r}, which takes ({', '.join(map(str, parameters))}); it "
                       f"must be {FORMS}{mixed}")
    # **kwargs alone is TRL's form, of all completions.
    self.is_batched = not single
    self._known = tuple(one for one in (BATCHED if self.is_batched else SINGLE) if one in taken)
    self.takes_extra = "extra" in self._known
    self._positional = [one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_ONLY]
    self._has_kwargs = has_kwargs
    self._bound = tuple(_bound(function))
    others = [one for one in parameters if one.kind not in _STARS and one.name not in self._known]
    optional = frozenset(one.name for one in others if one.default is not inspect.Parameter.empty)
    self.asked = RequiredColumns(frozenset(one.name for one in others) - optional, optional,
                                 has_kwargs or self.takes_extra)

  def start(self, batch: Batch) -> list:
    """Calls the function, for each completion or once for all.

    Returns:
      What each call gave, or an awaitable of it.

    Raises:
      ValueError: if the function raises; names the reward and what it was called with.
    """
    if self.is_batched:
      return [self._run(batch, self._batch_values(batch), None)]
    made: list = []
    try:
      for row in range(len(batch.completions)):
        made.append(self._run(batch, self._row_values(batch, row), row))
    except ValueError:
      abandon(made)  # Their coroutines would warn that nobody awaited them.
      raise
    return made

  def finish(self, given: Sequence, batch: Batch) -> np.ndarray:
    """Checks what the calls gave, awaited.

    Returns:
      reward_B, float32, NaN where the function gave None.

    Raises:
      ValueError: for what is no list of as many numbers, or no number that float32 holds; see `number`.
    """
    values = given if not self.is_batched else self._list(given[0], batch)
    reward_B = np.empty(len(values), np.float32)
    for row, value in enumerate(values):
      if isinstance(value, Exception):
        raise self.raised(value, batch, row) from value
      try:
        reward_B[row] = math.nan if value is None else number(value)
      except ValueError as error:
        raise ValueError(f"reward {self.name!r} gave {error}; {_about(batch, row)}") from None
    return reward_B

  def raised(self, error: BaseException, batch: Batch, row: int | None) -> ValueError:
    """Returns the error that says which reward raised, and for what."""
    return ValueError(f"reward {self.name!r} raised {type(error).__name__}: {error}; {_about(batch, row)}")

  def _run(self, batch: Batch, values: Mapping[str, Any], row: int | None):
    positional = [values[name] for name in self._positional if name in values]
    named = {name: value for name, value in values.items() if name not in self._positional}
    try:
      return self._function(*positional, **named)
    except (Exception, SystemExit) as error:  # Whatever a user's function raises, the run must say where.
      raise self.raised(error, batch, row) from error

  def _list(self, given, batch: Batch) -> list:
    """Returns what a call for all completions gave as a list of the right length."""
    if isinstance(given, Exception):
      raise self.raised(given, batch, None) from given
    # Arrays of NumPy, JAX and PyTorch have tolist.
    listed = given.tolist() if hasattr(given, "tolist") else given
    count = len(batch.completions)
    if not isinstance(listed, list | tuple):
      raise ValueError(f"reward {self.name!r} gave {short(given)}, not a list of {count} numbers, one for "
                       f"each completion; {_about(batch, None)}")
    if len(listed) != count:
      raise ValueError(f"reward {self.name!r} gave {len(listed)} rewards for {count} completions; it must "
                       "give one for each, None where it does not apply")
    return list(listed)

  def _row_values(self, batch: Batch, row: int) -> dict[str, Any]:
    problem = batch.found[row]
    wanted = {"prompt": lambda: text_of(problem.prompt), "completion": lambda: batch.completions[row],
              "answer": lambda: problem.answer, "tokens": lambda: list(_tokens(self, batch)[row]),
              "length": lambda: len(_tokens(self, batch)[row]), "extra": lambda: _own(dict(problem.extra))}
    names = self._columns((problem,), SINGLE)
    return {**{name: column(problem, name) for name in names},
            **{name: wanted[name]() for name in self._known}}

  def _batch_values(self, batch: Batch) -> dict[str, Any]:
    wanted = {
        "prompts": lambda: [_own(problem.prompt) for problem in batch.found],
        "completions": lambda: [_like(problem, text)
                                for problem, text in zip(batch.found, batch.completions, strict=True)],
        "completion_ids": lambda: [list(ids) for ids in _tokens(self, batch)],
        "trainer_state": lambda: batch.state, "log_extra": lambda: batch.log.log_extra,
        "log_metric": lambda: batch.log.log_metric}
    names = self._columns(batch.found, (*BATCHED, "prompt", "completion"))
    # With **kwargs all is handed over that is there; only a parameter that
    # names the ids makes their lack an error.
    spare = {"completion_ids"} if batch.tokens is None else set()
    known = [name for name in wanted if name in self._known or self._has_kwargs and name not in spare]
    return {**{name: [column(problem, name) for problem in batch.found] for name in names},
            **{name: wanted[name]() for name in known}}

  def _columns(self, found: Sequence[Problem], reserved: Iterable[str]) -> list[str]:
    """Returns the names of the columns to hand over: those asked for, or for **kwargs all that rows have."""
    there = dict.fromkeys(name for problem in found for name in columns_of(problem))
    optional = [name for name in there if name in self.asked.optional or self._has_kwargs]
    return [name for name in dict.fromkeys([*sorted(self.asked.required), *optional])
            if name not in (*reserved, *self._known, *self._bound)]


def run(calls: Sequence[RewardCall], batch: Batch) -> dict[str, np.ndarray]:
  """Calls rewards, those that are async side by side.

  Returns:
    name -> reward_B, float32, NaN where a reward gave None.

  Raises:
    ValueError: see `RewardCall.start` and `RewardCall.finish`.
  """
  given: list[list] = []
  try:
    for call in calls:
      given.append(call.start(batch))
  except ValueError:
    abandon(one for made in given for one in made)
    raise
  # Awaited together, over all rewards: each mostly waits for a server, so the slowest one is the time of all.
  waiting = [(at, row) for at, made in enumerate(given) for row, one in enumerate(made)
             if inspect.isawaitable(one)]
  for (at, row), result in zip(waiting, _awaited([given[at][row] for at, row in waiting]), strict=True):
    given[at][row] = result
  return {call.name: call.finish(made, batch) for call, made in zip(calls, given, strict=True)}


def abandon(given: Iterable) -> None:
  """Closes coroutines that will not be awaited."""
  for one in given:
    if inspect.iscoroutine(one):
      one.close()


def _awaited(awaitables: Sequence[Awaitable]) -> list:
  """Waits for all; gives the result of each, or the exception it raised."""
  if not awaitables:
    return []

  async def one(awaitable):
    try:
      return await awaitable
    except SystemExit as error:  # It would end the loop, and nothing would be awaited any more.
      raise RuntimeError(f"SystemExit: {error}") from error

  async def gather():
    return await asyncio.gather(*map(one, awaitables), return_exceptions=True)

  return async_loop.run(gather())


def number(value) -> float:
  """Returns a reward as a float: of a number, a boolean, or an array without axes.

  Raises:
    ValueError: if it is none of these, not finite, or more than float32 holds; it begins with the value.
  """
  # Arrays without axes, of NumPy, JAX or PyTorch, are no numbers.Real.
  plain = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
  try:
    real = float(plain) if isinstance(plain, numbers.Real) else math.nan
  except OverflowError:
    real = math.inf
  # NaN is refused, not taken for a missing reward: that is None, and NaN is the sign of a mistake.
  if isinstance(plain, numbers.Real) and (isinstance(plain, int) or math.isfinite(real)):
    if abs(real) > LARGEST:
      raise ValueError(f"{short(value)}, more than float32 holds, {LARGEST:.3g}; scale it down")
    return real
  raise ValueError(f"{short(value)}, neither a finite number nor None")


def columns_of(problem: Problem) -> list[str]:
  """Returns the names by which functions can ask for what a row has."""
  own = ["answer"] if problem.answer is not None else []
  return list(dict.fromkeys([*problem.columns, *own]))


def column(problem: Problem, name: str) -> Any:
  """Returns a column of a row by its name, None if the row has none of that name; a caller may change it."""
  if name == problem.read_from.get("prompt"):
    return _own(problem.prompt)
  # A row's own column called answer, among what no format reads, goes before what was read as the answer.
  if name in ("answer", problem.read_from.get("answer")) and name not in problem.extra:
    return problem.answer
  return _own(problem.columns.get(name))


def _own(value: Any) -> Any:
  """Returns a copy, so that a function that adds to a list of messages does not change what is learnt."""
  return value if isinstance(value, str) else copy.deepcopy(value)


def text_of(prompt: str | Sequence[Mapping]) -> str:
  """Returns a prompt as a text: itself, or the contents of its messages with blank lines between."""
  return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def short(value) -> str:
  """Returns a value as an error shows it."""
  try:
    shown = repr(value)
  except ValueError:  # Of a whole number with thousands of digits.
    return f"a whole number of {value.bit_length()} bits"
  count = f"{len(value)} characters" if isinstance(value, str) else f"{len(shown)} characters in all"
  return clipped(shown, SHOWN_CHARS, f" ({count})")


_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(name: str, function) -> list[inspect.Parameter]:
  """Returns the parameters that a call can fill: all but those that functools.partial has bound by name."""
  if not callable(function) or inspect.isclass(function):
    kind = "a class; name an object of it" if inspect.isclass(function) else f"a {type(function).__name__}"
    raise ValueError(f"config.rewards has {name!r}, which is {kind}; it must be {FORMS}")
  try:
    found = inspect.signature(function).parameters.values()
  except (TypeError, ValueError) as error:
    raise ValueError(f"config.rewards has {name!r}, whose parameters cannot be read ({error}); it must be "
                     f"{FORMS}") from error
  return [one for one in found if one.name not in _bound(function)]


def _bound(function) -> Mapping[str, Any]:
  return function.keywords if isinstance(function, functools.partial) else {}


def _like(problem: Problem, text: str) -> str | list[dict]:
  """Returns a completion in the form of its prompt: a text, or a list of the assistant's message."""
  return text if isinstance(problem.prompt, str) else [{"role": "assistant", "content": text}]


def _tokens(call: RewardCall, batch: Batch) -> Sequence[Sequence[int]]:
  if batch.tokens is None:
    raise ValueError(f"reward {call.name!r} asks for the ids of completions, which are not handed over here")
  return batch.tokens


def _about(batch: Batch, row: int | None) -> str:
  """Returns what a reward was called with: a completion, or all of them, of which the first is shown."""
  if row is None and not batch.completions:
    return "for no completion"
  problem = batch.found[row or 0]
  completion = batch.completions[row or 0]
  shown = (f"prompt {short(text_of(problem.prompt))}, completion {short(completion)}, answer "
           f"{short(problem.answer)}")
  count = len(batch.completions)
  return f"for {shown}" if row is not None else f"for {count} completions, the first of them: {shown}"
