"""Rules that keep the scores of judges consistent with each other, and what is taken off for misuse."""
import dataclasses
from collections.abc import Mapping

from atlas_jax.rollout.judges.verdicts import JudgeVerdict


@dataclasses.dataclass(frozen=True)
class ConsistencyRules:
  """Bounds between judges, and penalties; scores are in [0, 1]."""

  alignment_completeness_bound: float = 0.1        # process is above accuracy by this at most
  completeness_helpfulness_threshold: float = 0.5  # helpfulness is at most this where process is below it
  understanding_helpfulness_bound: float = 0.1     # helpfulness is above diagnostic by this at most
  contradiction_penalty: float = 0.2               # off a judge's score where it found a contradiction
  safety_violation_penalty: float = 0.2            # off all scores where a judge found a danger


@dataclasses.dataclass(frozen=True)
class AntiGaming:
  """Bound on scores of work that tries to influence its judges."""

  enabled: bool = True
  cap_score: float = 0.3


def bounded(scores: Mapping[str, float], rules: ConsistencyRules) -> tuple[dict[str, float], dict[str, str]]:
  """Lowers scores that others contradict, and brings all into [0, 1].

  Returns:
    Scores by judge, and for judges that were lowered why.
  """
  found = dict(scores)
  notes: dict[str, str] = {}

  def lower(name: str, bound: float, why: str) -> None:
    if found[name] > bound:
      found[name] = bound
      notes[name] = f"[Consistency] {name} is at most {bound:g}: {why}"

  # A judge that is not there, or has no verdict, bounds nothing.
  if {"accuracy", "process"} <= set(found):
    lower("process", found["accuracy"] + rules.alignment_completeness_bound, "accuracy is lower")
  threshold = rules.completeness_helpfulness_threshold
  if {"process", "helpfulness"} <= set(found) and found["process"] < threshold:
    lower("helpfulness", threshold, "process is lower")
  if {"diagnostic", "helpfulness"} <= set(found):
    lower("helpfulness", found["diagnostic"] + rules.understanding_helpfulness_bound, "diagnostic is lower")
  return {name: min(1.0, max(0.0, score)) for name, score in found.items()}, notes


def settled(verdicts: Mapping[str, JudgeVerdict], rules: ConsistencyRules, gaming: AntiGaming, *,
            has_orders: bool) -> dict[str, JudgeVerdict]:
  """Applies all rules to verdicts, so that a total and its parts have the same scores.

  Args:
    verdicts: by judge; those without a score stay as they are.
    rules: between judges.
    gaming: the bound for work that addresses its judges.
    has_orders: whether a program found such orders in the work.
  """
  flags = frozenset().union(*(verdict.flags for verdict in verdicts.values()))
  scores, notes = {}, {}
  for name, verdict in verdicts.items():
    if verdict.score is None:
      continue
    taken = {"contradiction": rules.contradiction_penalty * ("contradiction" in verdict.flags),
             "safety_violation": rules.safety_violation_penalty * ("safety_violation" in flags)}
    scores[name] = max(0.0, verdict.score - sum(taken.values()))
    notes[name] = [f"[Penalty] {why}: {penalty:g} off" for why, penalty in taken.items() if penalty]
  scores, lowered = bounded(scores, rules)
  for name, note in lowered.items():
    notes[name].append(note)
  is_gaming = gaming.enabled and (has_orders or "gaming" in flags)
  for name, score in scores.items():
    if is_gaming and score > gaming.cap_score:
      scores[name] = gaming.cap_score
      notes[name].append(f"[Gaming] at most {gaming.cap_score:g}: the work addresses its judges")
  return {name: verdict if name not in scores else verdict._replace(
    score=scores[name], rationale="\n".join([verdict.rationale, *notes[name]])) for name, verdict in
    verdicts.items()}
