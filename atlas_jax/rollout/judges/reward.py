"""Judges as a reward of training, by the name "rim": all completions at once, failures masked and counted."""
import functools
import time
from collections.abc import Sequence
from typing import Any

from atlas_jax import fields
from atlas_jax.files.damage import clipped
from atlas_jax.rollout.judges.case import Case
from atlas_jax.rollout.judges.rim import RIMEvaluation, RIMReward

# Metrics of a run, beside those that users' rewards log.
NO_VERDICT = "rollout/judge_no_verdict_frac"
CALLS = "rollout/judge_calls_per_completion"
CACHED = "rollout/judge_cached_frac"
TOKENS = "rollout/judge_tokens_per_completion"
ESCALATED = "rollout/judge_escalated_frac"
SECONDS = "rollout/judge_s"
UNSAFE = "rollout/judge_unsafe"
METRICS = (NO_VERDICT, CALLS, CACHED, TOKENS, ESCALATED, SECONDS, UNSAFE)
SHOWN_CHARS = 500  # Of a rationale in the table of completions.


class JudgeReward:
  """A reward that judges give; None, which masks the sample, where there is no verdict.

  Attributes:
    masks: a sample that it says nothing of gets no reward at all: without its part a sum would be lower than
      that of others, as if the judge had said 0.
    once: it is asked by one process of a run alone, since no two of its answers need be the same.
  """

  masks = True
  once = True

  def __init__(self, judge: RIMReward | None):
    """Takes the judges; None: for a look at which columns are read."""
    self._judge = judge

  async def __call__(self, prompts, completions, answer=None, ground_truth=None, baseline=None, plan=None,
                     guidance=None, trajectory=None, attempts=None, principles=None, log_metric=None,
                     log_extra=None) -> list[float | None]:
    """Scores completions.

    Args:
      prompts, completions: texts, or messages.
      answer, ground_truth: the reference answer; `ground_truth` goes before `answer`.
      baseline, plan, guidance, trajectory, attempts, principles: more of each row, see `case.Case`.
      log_metric, log_extra: of the run.
    """
    if self._judge is None:
      raise ValueError("the reward 'rim' needs the settings of config.rim; make it by rewards.of_config")
    columns = {"baseline": baseline, "plan": plan, "guidance": guidance, "trajectory": trajectory,
               "attempts": attempts, "principles": principles}
    cases = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
      given = {name: values[row] for name, values in columns.items() if values is not None}
      truths = [values[row] for values in (ground_truth, answer) if values is not None]
      truth = next((one for one in truths if one is not None), None)
      cases.append(Case(_text(prompt), _text(completion), ground_truth=truth, **given))
    began = time.perf_counter()
    found = await self._judge.judge_all(cases)
    if log_metric is not None:
      for name, value in self._metrics(found, time.perf_counter() - began).items():
        log_metric(name, value)
    if log_extra is not None:
      log_extra("rim", [clipped(one.rationale, SHOWN_CHARS) if one.score is not None else
                        f"no verdict: {one.extra['no_verdict']}" for one in found])
    return [one.score for one in found]

  def _metrics(self, found: Sequence[RIMEvaluation], seconds: float) -> dict[str, float]:
    assert self._judge is not None
    rows = max(1, len(found))
    calls = sum(one.extra["calls"] for one in found)
    verdicts = rows * len(self._judge.settings.judges)
    return {
      NO_VERDICT: sum(one.score is None for one in found) / rows, CALLS: calls / rows,
      CACHED: sum(one.extra["cached"] for one in found) / max(1, calls),
      TOKENS: sum(one.extra["tokens"] for one in found) / rows,
      ESCALATED: sum(one.extra["escalated"] for one in found) / verdicts, SECONDS: seconds,
      UNSAFE: float(len(self._judge.unsafe))}


def of_config(rim) -> JudgeReward:
  """Returns the reward of config.rim; rewards of the same settings have the same judges, with one budget.

  Raises:
    ValueError: see `RIMReward`.
  """
  return JudgeReward(_judges(tuple(sorted(fields.flat(rim).items()))))


@functools.lru_cache(maxsize=16)
def _judges(settings: tuple[tuple[str, Any], ...]) -> RIMReward:
  return RIMReward(dict(settings))


def _text(value: Any) -> str:
  """Returns a prompt or completion as a text: itself, or the contents of its messages."""
  if isinstance(value, str):
    return value
  return "\n\n".join(str(message["content"]) for message in value)
