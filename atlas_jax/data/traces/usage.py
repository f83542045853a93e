"""Tokens that sessions took, by role, where the traces counted them all.

Old traces count the student's calls alone: not the teacher's, the probe's, the judges' and the learner's. A
reduction of tokens by the help of a teacher that is not counted is no reduction, so it is refused.
"""
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.values import as_object

STUDENT = "student"
PARTS = ("prompt", "completion")


class TokenUsage(NamedTuple):
  """Tokens of one session."""

  by_role: Mapping[str, int]  # prompts and completions
  complete: bool  # whether all roles that took part were counted

  @property
  def total(self) -> int:
    """Tokens of all roles."""
    return sum(self.by_role.values())


def of_trace(trace: Trace) -> TokenUsage | None:
  """Returns what a session took; None: nothing was counted."""
  counted: dict[str, int] = {}
  listed = [as_object(trace.data.get("tokens"))] if trace.data.get("tokens") else [
      as_object(one.tokens) for step in trace.steps for one in step.attempts if one.tokens]
  for roles in listed:
    for role, tokens in roles.items():
      counted[role] = counted.get(role, 0) + _sum(tokens)
  if counted:
    # A teacher took part in every lane but auto; where it is not among the roles it was not counted.
    return TokenUsage(counted, complete=trace.lane == "auto" or set(counted) != {STUDENT})
  old = as_object(trace.session_metadata.get("token_usage"))
  if not old:
    return None
  return TokenUsage({STUDENT: _whole(old.get("total_tokens")) or _whole(old.get("prompt_tokens"))
                     + _whole(old.get("completion_tokens"))}, complete=False)


def reduction(before: Iterable[Trace], after: Iterable[Trace]) -> float:
  """Returns the fraction of tokens per session that is saved: 1 - mean after / mean before.

  Raises:
    ValueError: if a session has no counts, or those of the student alone.
  """
  means = [_mean(side, name) for side, name in ((before, "before"), (after, "after"))]
  if not means[0]:
    raise ValueError("the sessions before took no tokens, so that nothing can be saved")
  return 1 - means[1] / means[0]


def _mean(side: Iterable[Trace], name: str) -> float:
  found = [(trace.identity, of_trace(trace)) for trace in side]
  partial = [identity for identity, usage in found if usage is None or not usage.complete]
  if partial or not found:
    raise ValueError(f"{len(partial)} of {len(found)} sessions {name} count the student's tokens alone, or "
                     f"none ({', '.join(partial[:5])}); a reduction needs those of all roles, which traces "
                     "of schema version 2 have")
  return sum(usage.total for _, usage in found if usage is not None) / len(found)


def _sum(tokens: Any) -> int:
  return sum(_whole(as_object(tokens).get(part)) for part in PARTS)


def _whole(value: Any) -> int:
  return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
