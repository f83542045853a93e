"""Judges of groups as a reward of training, by the name "group": completions of one prompt are compared."""
import asyncio
import functools
import json
import time
from collections.abc import Sequence
from typing import Any

from atlas_jax import fields
from atlas_jax.files.damage import clipped
from atlas_jax.rollout.judges import group_judge, settings
from atlas_jax.rollout.judges.group_judge import GroupJudge, GroupVerdict

# Metrics of a run, beside those that users' rewards log.
NO_VERDICT = "rollout/group_no_verdict_frac"
INCONSISTENT = "rollout/group_inconsistent_frac"
CALLS = "rollout/group_calls_per_completion"
TOKENS = "rollout/group_tokens_per_completion"
SECONDS = "rollout/group_s"
METRICS = (NO_VERDICT, INCONSISTENT, CALLS, TOKENS, SECONDS)
SHOWN_CHARS = 500  # Of a rationale in the table of completions.


class GroupReward:
  """A reward that compares the completions of each prompt; None, which masks them, where there is no verdict.

  Attributes:
    masks, once: see `judges.reward.JudgeReward`.
  """

  masks = True
  once = True

  def __init__(self, judge: GroupJudge | None):
    """Takes the judge; None: for a look at which columns are read."""
    self._judge = judge

  async def __call__(self, prompts, completions, answer=None, ground_truth=None, trajectory=None,
                     log_metric=None, log_extra=None) -> list[float | None]:
    """Scores completions, each relative to the others of its prompt.

    Args:
      prompts, completions: texts, or messages.
      answer, ground_truth: the reference answer; `ground_truth` goes before `answer`.
      trajectory: what was done on the way, which is judged in place of the completion where it is given.
      log_metric, log_extra: of the run.
    """
    if self._judge is None:
      raise ValueError("the reward 'group' needs the settings of config.rim; make it by rewards.of_config")
    truths = [_truth(row, ground_truth, answer) for row in range(len(completions))]
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
      groups.setdefault(json.dumps([prompt, truths[row]], sort_keys=True, default=str), []).append(row)
    began = time.perf_counter()
    shown = [completions[row] if trajectory is None or trajectory[row] is None else trajectory[row]
             for row in range(len(completions))]
    found = await asyncio.gather(*(
      self._judge.judge(prompts[rows[0]], [shown[row] for row in rows], ground_truth=truths[rows[0]])
      for rows in groups.values()))
    if log_metric is not None:
      for name, value in _metrics(found, len(completions), time.perf_counter() - began).items():
        log_metric(name, value)
    scores: list[float | None] = [None] * len(completions)
    notes = [""] * len(completions)
    for rows, verdict in zip(groups.values(), found, strict=True):
      for row, score in zip(rows, verdict.scores, strict=True):
        scores[row] = score
        notes[row] = clipped(verdict.rationale, SHOWN_CHARS) if score is not None else \
            f"no verdict: {verdict.problem}"
    if log_extra is not None:
      log_extra("group", notes)
    return scores


def of_config(rim) -> GroupReward:
  """Returns the reward of config.rim; rewards of the same settings have one judge, with one budget.

  Raises:
    ValueError: see `group_judge.of_rim`.
  """
  return GroupReward(_judge(tuple(sorted(fields.flat(rim).items()))))


@functools.lru_cache(maxsize=16)
def _judge(flat: tuple[tuple[str, Any], ...]) -> GroupJudge:
  return group_judge.of_rim(settings.group_of(dict(flat)))


def _truth(row: int, *columns: Sequence | None) -> Any:
  return next((values[row] for values in columns if values is not None and values[row] is not None), None)


def _metrics(found: Sequence[GroupVerdict], rows: int, seconds: float) -> dict[str, float]:
  silent = sum(score is None for one in found for score in one.scores)
  inconsistent = sum(len(one.scores) for one in found if one.problem == group_judge.INCONSISTENT)
  most = max(1, rows)
  return {NO_VERDICT: silent / most, INCONSISTENT: inconsistent / most,
          CALLS: sum(one.calls for one in found) / most, TOKENS: sum(one.tokens for one in found) / most,
          SECONDS: seconds}
