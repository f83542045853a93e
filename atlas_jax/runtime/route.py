"""Routing: how much a session is supervised, as a pure function of what is known.

The strictest of all rules counts, so that a model's word can make supervision stricter and never looser.

`legacy=True` is the rule of the Atlas SDK 0.1.15: its probe's mode counts whatever its confidence.
"""
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.runtime.agents.agent import CallTokens
from atlas_jax.runtime.evidence import Evidence
from atlas_jax.runtime.lanes import LANES

SEVERITIES = ("low", "medium", "high", "critical")
_PLACE = {lane: place for place, lane in enumerate(LANES)}


@dataclasses.dataclass(frozen=True)
class RoutePolicy:
  """Thresholds of routing.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  auto_from: float = 0.85    # confidence of the probe from which its word is auto,
  paired_from: float = 0.65  # paired,
  coach_from: float = 0.35   # coach; below, escalate
  fallback: str = "paired"   # lane without a confidence
  least: int = 5             # outcomes without which a session is paired at least
  auto_lower: float = 0.7    # lower bound of the chance to be right that auto needs
  coach_below: float = 0.4   # mean below which it is coached,
  escalate_below: float = 0.2  # and below which it is escalated
  certify: bool = False      # whether auto needs a certification besides
  audit_fraction: float = 0.05  # of auto sessions that are validated in the shadow

  def __post_init__(self):
    if self.fallback not in LANES[1:]:
      raise ValueError(f"routing.fallback={self.fallback!r} must be one of {', '.join(LANES[1:])}")
    if not 0 <= self.coach_from <= self.paired_from <= self.auto_from <= 1:
      raise ValueError(f"routing.coach_from={self.coach_from}, paired_from={self.paired_from} and "
                       f"auto_from={self.auto_from} must rise from 0 to 1")
    for name in ("auto_lower", "coach_below", "escalate_below", "audit_fraction"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"routing.{name}={getattr(self, name)} must be from 0 to 1")
    if self.least < 1:
      raise ValueError(f"routing.least={self.least} must be at least 1")


class ProbeWord(NamedTuple):
  """A probe's word of the student's chance."""

  mode: Any = None
  confidence: Any = None
  problem: str | None = None  # why there is no word


class Dossier(NamedTuple):
  """Findings of triage on a task."""

  summary: str = ""
  risks: tuple[Mapping[str, Any], ...] = ()  # {severity, description}
  tags: tuple[str, ...] = ()
  tokens: CallTokens | None = None  # that a model spent on it


class Route(NamedTuple):
  """A lane, and why."""

  lane: str
  confidence: float | None
  rule: str
  inputs: Mapping[str, Any]


NO_DOSSIER = Dossier()
DEFAULT = RoutePolicy()


def route(evidence: Evidence, probe: ProbeWord | None, dossier: Dossier = NO_DOSSIER,
          policy: RoutePolicy = DEFAULT, *, legacy: bool = False) -> Route:
  """Chooses a lane.

  Args:
    evidence: of the family of tasks.
    probe: its word; None: it was not asked.
    dossier: of triage.
    policy: thresholds.
    legacy: whether it is chosen as the Atlas SDK does; then `evidence.outcomes` are its rewarded sessions.
  """
  if legacy:
    return _legacy(evidence, probe, policy)
  confidence = _confidence(probe)
  lanes = {"history": _of_history(evidence, policy), "risk": _of_risk(dossier),
           "drift": "paired" if evidence.drift_alert else "auto",
           "certification": "paired" if policy.certify and not evidence.certified else "auto"}
  if probe is not None:
    lanes["confidence"] = policy.fallback if confidence is None else _of_confidence(confidence, policy)
    if isinstance(probe.mode, str) and probe.mode in LANES:
      lanes["probe"] = probe.mode
  rule = max(lanes, key=lambda name: _PLACE[lanes[name]])
  inputs = {"lanes": lanes, "right": evidence.right, "n": len(evidence.outcomes)}
  if probe is not None and probe.problem:
    inputs["probe_problem"] = probe.problem
  return Route(lanes[rule], confidence, rule, inputs)


def _confidence(probe: ProbeWord | None) -> float | None:
  """Returns a confidence that is one: a finite number from 0 to 1."""
  value: Any = None if probe is None else probe.confidence
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return float(value) if is_number and math.isfinite(value) and 0 <= value <= 1 else None


def _of_confidence(confidence: float, policy: RoutePolicy) -> str:
  bounds = (policy.auto_from, policy.paired_from, policy.coach_from)
  return next((lane for lane, least in zip(LANES, bounds) if confidence >= least), LANES[-1])


def _of_history(evidence: Evidence, policy: RoutePolicy) -> str:
  if len(evidence.outcomes) < policy.least:
    return "paired"
  if evidence.lower >= policy.auto_lower:  # Also where a teacher spoils what the agent does alone.
    return "auto"
  if evidence.mean < policy.escalate_below:
    return "escalate"
  if evidence.mean < policy.coach_below:
    return "coach"
  return "paired"


def _of_risk(dossier: Dossier) -> str:
  severities = [str(one.get("severity", "")).lower() for one in dossier.risks]
  # One that is not known may be any.
  known = [SEVERITIES.index(one) if one in SEVERITIES else 2 for one in severities]
  worst = max(known, default=0)
  return {3: "escalate", 2: "paired"}.get(worst, "auto")


def _legacy(evidence: Evidence, probe: ProbeWord | None, policy: RoutePolicy) -> Route:
  if not evidence.outcomes:
    return Route("paired", None, "no_learning_history", {})
  word = probe or ProbeWord()
  confidence = word.confidence
  is_number = isinstance(confidence, int | float)
  number = float(confidence) if is_number else None
  if isinstance(word.mode, str) and word.mode in ("auto", "paired", "coach"):
    return Route(word.mode, number, "capability_probe", {})
  if number is None:
    return Route(policy.fallback, None, "capability_probe", {})
  lane = "auto" if number >= policy.auto_from else "paired" if number >= policy.paired_from else "coach"
  return Route(lane, number, "capability_probe", {})


def strictest(lanes: Sequence[str]) -> str:
  """Returns the strictest of lanes."""
  return max(lanes, key=_PLACE.__getitem__)
