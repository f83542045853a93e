"""Judges of groups: all trajectories of one task in one call, scored relative to each other.

No reference answer is needed, since it is easier to say which of several is better than how good one is, and
policies are trained by the differences within a group alone. The order is drawn by seed, and asked for in
both directions: a judge that prefers a place and not a trajectory contradicts itself, and has no verdict.

Source of the idea: RULER of OpenPipe's ART, https://art.openpipe.ai/fundamentals/ruler; the two directions
follow Zheng et al. 2023, arXiv:2306.05685.
"""
import asyncio
import dataclasses
import itertools
import json
import math
import secrets
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from atlas_jax.data.problems import StableRandom, uniform_hash
from atlas_jax.files.damage import one_line
from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.rollout.judges import backends, group_prompts, settings
from atlas_jax.rollout.judges.backends import Budget, BudgetError, JudgeBackend, JudgeCall
from atlas_jax.rollout.judges.case import Case

Trajectory = str | Sequence[Mapping[str, Any]]  # A text, or messages.
NOTHING_TO_COMPARE = "nothing to compare"
INCONSISTENT = "inconsistent"
UNSAFE = "unsafe"
UNTRIED = "untried"


@dataclasses.dataclass(frozen=True)
class GroupSettings:
  """Settings of judgements of groups.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  seed: int = 0                   # of the order
  least_consistency: float = 0.5  # fraction of pairs that both directions must not contradict each other on
  temperature: float = 0.2
  canary: bool = True             # whether the judge is tried with a planted order before it counts
  canary_every_s: float = 604_800.0

  def __post_init__(self):
    if not 0 <= self.least_consistency <= 1:
      raise ValueError(f"least_consistency={self.least_consistency} must be from 0 to 1")
    if not self.temperature >= 0 or not self.canary_every_s > 0:
      raise ValueError(f"temperature={self.temperature} must be at least 0, and canary_every_s="
                       f"{self.canary_every_s} above 0")


@dataclasses.dataclass(frozen=True)
class GroupVerdict:
  """The verdict of a judge on a group.

  Attributes:
    scores: of each trajectory, in [0, 1]; None for all of them: no verdict.
    problem: why there is none.
    rationale: of both directions.
    consistency: fraction of pairs on which the two directions do not contradict each other.
    calls, tokens, cached: of both, repairs in `tokens` alone.
  """

  scores: tuple[float | None, ...]
  problem: str | None = None
  rationale: str = ""
  consistency: float | None = None
  calls: int = 0
  tokens: int = 0
  cached: int = 0


class GroupJudge:
  """Judges groups of trajectories.

  Attributes:
    settings: as given.
    unsafe: whether the judge obeyed a planted order; then it has no verdicts.
  """

  def __init__(self, backend: JudgeBackend | Callable, how: GroupSettings | None = None, *,
               budget: Budget | None = None, clock: Callable[[], float] = time.monotonic):
    """Takes where judgements come from.

    Args:
      backend: of judgements, or a function of a `JudgeCall`.
      how: settings.
      budget: of calls and tokens; None: without bounds.
      clock: seconds, between canaries.
    """
    given: Any = backend if hasattr(backend, "ask") else backends.ScriptedBackend(backend)
    self.settings = how or GroupSettings()
    self.unsafe = False
    self._backend: JudgeBackend = given
    self._budget = budget or Budget(None, None)
    self._secret = given.secret or secrets.token_bytes(32)
    self._clock = clock
    self._tried_s: float | None = None
    self._locks: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

  async def judge(self, task: Any, trajectories: Sequence[Trajectory], *,
                  ground_truth: Any = None) -> GroupVerdict:
    """Judges a group; equal trajectories are shown once, and have one score.

    Args:
      task: that all of them are of, a text or messages.
      trajectories: texts or lists of messages, at least one.
      ground_truth: the reference answer, if there is one.
    """
    count = len(trajectories)
    keys = [json.dumps(one, sort_keys=True, default=str) for one in trajectories]
    distinct = list(dict.fromkeys(keys))
    if len(distinct) < 2:
      return GroupVerdict((None,) * count, NOTHING_TO_COMPARE)
    doubt = await self._doubt()
    if doubt is not None:
      return GroupVerdict((None,) * count, doubt)
    shown = [trajectories[keys.index(key)] for key in distinct]
    found = await self._both(task, shown, ground_truth)
    return dataclasses.replace(found, scores=tuple(found.scores[distinct.index(key)] for key in keys))

  async def _both(self, task: Any, shown: Sequence[Trajectory], ground_truth: Any) -> GroupVerdict:
    order = self.order(task, shown)
    given = await asyncio.gather(*(self._direction(task, shown, one, ground_truth)
                                   for one in (order, order[::-1])))
    calls, tokens = sum(one.calls for one in given), sum(one.tokens for one in given)
    counts: dict[str, Any] = {"calls": calls, "tokens": tokens, "cached": sum(one.cached for one in given)}
    nothing = (None,) * len(shown)
    failed = next((one for one in given if one.problem), None)
    if failed is not None:
      return GroupVerdict(nothing, failed.problem, **counts)
    first, second = (one.scores for one in given)
    rationale = "\n".join(one.rationale for one in given)
    agreed = consistency(first, second)
    if agreed < self.settings.least_consistency:
      return GroupVerdict(nothing, INCONSISTENT, rationale, agreed, **counts)
    scores = tuple((one + other) / 2 for one, other in zip(first, second, strict=True))  # type: ignore
    return GroupVerdict(scores, None, rationale, agreed, **counts)

  def order(self, task: Any, shown: Sequence[Trajectory]) -> list[int]:
    """Returns the order of the first direction: by the seed and the group, the same on every start."""
    # Of the content too: one order for all groups would be the order in which a sampler writes.
    text = json.dumps([task, sorted(json.dumps(one, sort_keys=True, default=str) for one in shown)],
                      sort_keys=True, default=str)
    rng = StableRandom(self.settings.seed, int(uniform_hash(text) * 2**53))
    left, found = list(range(len(shown))), []
    while left:
      found.append(left.pop(rng.below(len(left))))
    return found

  async def _direction(self, task, shown, order, ground_truth) -> GroupVerdict:
    """Asks for one direction; scores are in the order of `shown`."""
    messages = group_prompts.messages(task, [shown[place] for place in order], ground_truth, self._secret)
    case = Case(_text(task), "", ground_truth=ground_truth, attempts=[shown[place] for place in order])
    call = JudgeCall(group_prompts.JUDGE, backends.SMALL, self.settings.temperature, case, messages,
                     schema=group_prompts.SCHEMA)
    return await self._asked(call, order)

  async def _asked(self, call: JudgeCall, order: Sequence[int]) -> GroupVerdict:
    nothing = (None,) * len(order)
    try:
      self._budget.take_call()
    except BudgetError as error:
      return GroupVerdict(nothing, f"budget: {one_line(error)}")
    try:
      reply = await self._backend.ask(call)
    except EndpointError as error:
      spent = sum(count or 0 for count in error.usage or ())
      return GroupVerdict(nothing, f"{error.kind}: {one_line(error)}", calls=1, tokens=spent)
    self._budget.settle(reply)
    counts: dict[str, Any] = {"calls": 1, "tokens": reply.tokens or 0, "cached": int(reply.is_cached)}
    try:
      read = read_scores(reply.data, len(order))
    except ValueError as error:
      return GroupVerdict(nothing, f"reply: {one_line(error)}", **counts)
    scores: list[float | None] = [None] * len(order)
    for place, score in zip(order, read, strict=True):
      scores[place] = score
    return GroupVerdict(tuple(scores), None, reply.data.get("rationale", ""), **counts)

  # The canary.

  async def _doubt(self) -> str | None:
    """Returns why the judge is not believed; tries it first, where that was not done for long."""
    if not self.settings.canary:
      return None
    lock = self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with lock:  # Others wait for the first one's trial, and do not repeat it.
      now = self._clock()
      if self._tried_s is None or now - self._tried_s >= self.settings.canary_every_s:
        await self._try_canary(now)
    return UNSAFE if self.unsafe else UNTRIED if self._tried_s is None else None

  async def _try_canary(self, now: float) -> None:
    task, shown, truth = group_prompts.CANARY
    # The order in which the bad one comes last, too: a judge that prefers places must not pass by luck.
    found = []
    for order in ((0, 1), (1, 0)):
      case = Case(task, "", ground_truth=truth, attempts=[shown[place] for place in order])
      messages = group_prompts.messages(task, case.attempts, truth, self._secret)
      call = JudgeCall(group_prompts.JUDGE, backends.CANARY, self.settings.temperature, case, messages,
                       schema=group_prompts.SCHEMA)
      found.append(await self._asked(call, order))
    if any(one.problem for one in found):
      return  # It may be down, and is tried again by the next group.
    self._tried_s = now
    self.unsafe = any(one.scores[1] >= one.scores[0] for one in found)  # type: ignore[operator]
    if self.unsafe:
      logging.error("the judge of groups scores a wrong answer that orders a high score as high as a right "
                    "one: it has no verdicts; take another model, or set config.rim.canary.on=False")


def of_rim(rim, how: GroupSettings | None = None) -> GroupJudge:
  """Makes a judge of config.rim: its endpoint or script, budget, canary, and lowest temperature.

  Raises:
    ValueError: see `settings.panel_of`.
  """
  read = settings.settings_of(rim)
  panel = settings.panel_of(rim, read)
  chosen = how or GroupSettings(temperature=min(read.tiers.temperatures), canary=read.canary.on,
                                canary_every_s=read.canary.every_s)
  return GroupJudge(panel.backend, chosen, budget=panel.budget)


def read_scores(data: Mapping[str, Any], count: int) -> list[float]:
  """Reads the scores of a reply, in the order in which the trajectories were shown.

  Raises:
    ValueError: for a number beyond [0, 1] or none, and for trajectories that are missing, twice or unknown.
  """
  found: dict[str, float] = {}
  for one in data["scores"]:
    name, value = one["trajectory"], one["score"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= 1:
      raise ValueError(f"the score of {name!r} is {value!r}, not a number from 0 to 1")
    if name in found:
      raise ValueError(f"the trajectory {name!r} is scored twice")
    found[name] = float(value)
  names = group_prompts.names(count)
  if set(found) != set(names):
    raise ValueError(f"scores are of {', '.join(sorted(found)) or 'none'}, not of {', '.join(names)}")
  return [found[name] for name in names]


def consistency(first: Sequence[float | None], second: Sequence[float | None]) -> float:
  """Returns the fraction of pairs on which two judgements do not contradict each other; a tie contradicts
  nothing."""
  pairs = list(itertools.combinations(range(len(first)), 2))
  against = sum((first[one] - first[other]) * (second[one] - second[other]) < 0  # type: ignore[operator]
                for one, other in pairs)
  return 1 - against / max(1, len(pairs))


def _text(task: Any) -> str:
  return task if isinstance(task, str) else json.dumps(task, ensure_ascii=False, default=str)
