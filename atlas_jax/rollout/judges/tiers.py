"""One judge: a small model asked at several temperatures, and an arbiter where its samples disagree.

"core" takes the surest sample, as Atlas Core does for each of its judges; "session" takes the mean, as the
SDK does for whole sessions. With `legacy` both have the originals' treatment of failures, which turns an
outage into a score of 0; without it an outage is no verdict.
"""
import asyncio
import collections
import dataclasses
from typing import Any

from atlas_jax.files.damage import one_line
from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.rollout.judges import backends, prompts, verdicts
from atlas_jax.rollout.judges.backends import Budget, BudgetError, JudgeBackend, JudgeCall
from atlas_jax.rollout.judges.case import Case
from atlas_jax.rollout.judges.verdicts import JudgeSample, JudgeVerdict

NO_SAMPLES = "tier1_no_valid_samples"
DISAGREE = "tier1_variance_or_uncertainty"
FAILED = "Failed to parse model response"
NO_SAMPLE = "no valid sample"
ARBITER_FAILED = "the arbiter gave no judgement"


@dataclasses.dataclass(frozen=True)
class TierSettings:
  """Settings of the tiers.

  Raises:
    ValueError: for temperatures that are none.
  """

  temperatures: tuple[float, ...] = (0.2, 0.5, 0.8)
  arbiter_temperature: float = 0.3
  variance_threshold: float = 0.15     # standard deviation of scores above which the arbiter is asked
  uncertainty_threshold: float = 0.3   # uncertainty of any sample above which it is
  mode: str = "core"                   # "core": the surest sample; "session": the mean
  out_of_range: str = "refuse"         # numbers beyond [0, 1]: "refuse" or "clamp"
  arbiter_failure: str = "no_verdict"  # or "keep" what the small model says
  legacy: bool = False
  audit: str = "brief"                 # of each call: "none", "brief" without texts, or "full"

  def __post_init__(self):
    if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
      raise ValueError(f"config.rim.temperatures={self.temperatures} must be numbers, no two of them equal")


@dataclasses.dataclass
class JudgeTally:
  """Counts of one evaluation."""

  calls: int = 0
  cached: int = 0
  tokens: int = 0
  escalated: int = 0
  failures: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # by kind
  audit: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class JudgePanel:
  """Judges as they are asked: settings, where replies come from, and what may be spent."""

  settings: TierSettings
  backend: JudgeBackend
  budget: Budget
  secret: bytes

  async def verdict(self, judge: str, case: Case, tally: JudgeTally) -> JudgeVerdict:
    """Returns the verdict of one judge on a case; counts go into the tally."""
    how = self.settings
    messages = prompts.judge_messages(judge, case, self.secret)
    calls = [JudgeCall(judge, backends.SMALL, temperature, case, messages, raw=how.legacy)
             for temperature in how.temperatures]
    given = await asyncio.gather(*(self._sample(call, tally) for call in calls))
    # In the order of temperatures, whichever was answered first: of equal samples the same one counts always.
    samples = [sample for sample in given if sample is not None]
    reason = self._escalates(samples)
    if reason is None:
      return _settled(judge, samples, how)
    tally.escalated += 1
    judged = [{**sample.to_json(), "flags": sorted(sample.flags)} for sample in samples]
    arbiter = await self._sample(JudgeCall(
      judge, backends.ARBITER, how.arbiter_temperature, case,
      prompts.arbiter_messages(judge, case, judged, self.secret), is_arbiter=True, raw=how.legacy), tally)
    if arbiter is None:
      return self._without_arbiter(judge, samples, reason)
    return _arbitrated(judge, samples, arbiter, reason, how)

  async def canary_score(self, judge: str, tally: JudgeTally, *, is_arbiter: bool) -> float | None:
    """Returns the score of a case that is worthless and orders a high one; None if there is no reply."""
    case, how = prompts.CANARY, self.settings
    messages = prompts.arbiter_messages(judge, case, [], self.secret) if is_arbiter else \
        prompts.judge_messages(judge, case, self.secret)
    temperature = how.arbiter_temperature if is_arbiter else how.temperatures[0]
    sample = await self._sample(
      JudgeCall(judge, backends.CANARY, temperature, case, messages, is_arbiter=is_arbiter), tally)
    return None if sample is None else sample.score

  def _escalates(self, samples: list[JudgeSample]) -> str | None:
    """Returns why the arbiter is asked, or None."""
    how = self.settings
    is_legacy_session = how.legacy and how.mode == "session"
    if len(samples) < (2 if is_legacy_session else 1):
      return None if is_legacy_session else NO_SAMPLES
    unsure = max(sample.uncertainty for sample in samples) > how.uncertainty_threshold
    return DISAGREE if unsure or verdicts.spread(samples) > how.variance_threshold else None

  def _without_arbiter(self, judge: str, samples: list[JudgeSample], reason: str) -> JudgeVerdict:
    how = self.settings
    if how.legacy and how.mode == "core":
      said = f"[{reason}] {FAILED}" if reason == NO_SAMPLES else ARBITER_FAILED
      return JudgeVerdict(judge, 0.0, said, samples=samples, escalated=True,
                          escalation_reason=reason if reason == NO_SAMPLES else None)
    if samples and (how.legacy or how.arbiter_failure == "keep"):
      return _settled(judge, samples, how)
    why = NO_SAMPLE if not samples else ARBITER_FAILED
    return JudgeVerdict(judge, None, why, samples=samples, escalated=True, escalation_reason=reason,
                        problem=why)

  async def _sample(self, call: JudgeCall, tally: JudgeTally) -> JudgeSample | None:
    """Returns a judgement, or None where there is none that can be used."""
    entry: dict[str, Any] = {"stage": call.stage, "judge": call.judge, "temperature": call.temperature}
    if self.settings.audit == "full":
      entry["messages"] = [dict(message) for message in call.messages]
    sample: JudgeSample | None
    try:
      sample = answered = await self._asked(call, tally, entry)
    except (BudgetError, EndpointError, ValueError) as error:
      kind = {BudgetError: "budget", ValueError: "value"}.get(type(error)) or getattr(error, "kind", "value")
      tally.failures[kind] += 1
      entry["error"] = one_line(error)
      sample = self._outage(call, error)
    else:
      entry |= {"score": answered.score, "uncertainty": answered.uncertainty,
                "reasoning": answered.rationale}
    if self.settings.audit != "none":
      tally.audit.append(entry)
    return sample

  def _outage(self, call: JudgeCall, error: Exception) -> JudgeSample | None:
    """Returns what a failed call counts as: nothing, but with `legacy` as Atlas Core has it."""
    is_outage = isinstance(error, EndpointError) and not call.is_arbiter
    if not (is_outage and self.settings.legacy and self.settings.mode == "core"):
      return None
    # A judgement of 0 that is not sure at all.
    return JudgeSample(0.0, 1.0, one_line(error), temperature=call.temperature)

  async def _asked(self, call: JudgeCall, tally: JudgeTally, entry: dict[str, Any]) -> JudgeSample:
    self.budget.take_call()
    tally.calls += 1
    try:
      reply = await self.backend.ask(call)
    except EndpointError as error:
      if not error.tries:  # As where the circuit is open.
        self.budget.give_back()
      raise
    self.budget.settle(reply)
    tally.cached += reply.is_cached
    tally.tokens += 0 if reply.is_cached else reply.tokens or 0
    if self.settings.audit == "full":
      entry["raw_response"] = reply.data
    if not call.raw:
      return verdicts.read_sample(reply.data, call.temperature, out_of_range=self.settings.out_of_range)
    found = verdicts.read_legacy(reply.data)
    if found is None:
      raise ValueError(FAILED)
    return JudgeSample(found["score"], found["uncertainty"], found["rationale"], tuple(found["principles"]),
                       call.temperature)


def _settled(judge: str, samples: list[JudgeSample], how: TierSettings) -> JudgeVerdict:
  """Returns the verdict of samples that agree."""
  if not samples:  # With `legacy` alone; else the arbiter was asked.
    nothing = JudgeSample(0.0, 1.0, NO_SAMPLE)
    return JudgeVerdict(judge, 0.0, NO_SAMPLE, samples=[nothing])
  best = verdicts.surest(samples)
  scores = [sample.score for sample in samples]
  score = sum(scores) / len(scores) if how.mode == "session" else best.score
  flags = frozenset().union(*(sample.flags for sample in samples))
  return JudgeVerdict(judge, score, best.rationale, best.principles, samples, flags=flags)


def _arbitrated(judge: str, samples: list[JudgeSample], arbiter: JudgeSample, reason: str,
                how: TierSettings) -> JudgeVerdict:
  """Returns the verdict of the arbiter, whose score is final."""
  said = arbiter.rationale
  if how.mode == "session":
    return JudgeVerdict(judge, arbiter.score, said, arbiter.principles, [arbiter], True, reason,
                        arbiter.flags)
  said = f"[{reason}] {said}" if reason == NO_SAMPLES else said
  # The original names the reason in one of the two cases alone.
  given = None if how.legacy and reason == DISAGREE else reason
  return JudgeVerdict(judge, arbiter.score, said, arbiter.principles, samples, True, given, arbiter.flags)
