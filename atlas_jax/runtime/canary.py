"""When a new version stays: paired comparisons with the one before, on the same tasks, as a pure function."""
import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

from atlas_jax.runtime.settings import DeploySettings

Z90 = 1.2815515655446004  # A normal deviate exceeds it with a probability of 0.1.
LEAST = 10  # Pairs from which a version that is clearly worse is taken back, before `pairs` are there.
STARTING, CANARY, ACTIVE, STANDBY, ROLLED_BACK, FAILED = (
    "starting", "canary", "active", "standby", "rolled_back", "failed")
# What may follow a state. A version that was replaced stands by, so that it can be gone back to at once.
MOVES = {STARTING: (CANARY, ACTIVE, FAILED), CANARY: (ACTIVE, ROLLED_BACK), ACTIVE: (STANDBY, ROLLED_BACK),
         STANDBY: (ACTIVE,), ROLLED_BACK: (), FAILED: ()}


class CanaryPair(NamedTuple):
  """One task done under both versions."""

  new: float | None    # score of the answer under the new version, in [0, 1]; None: not known
  old: float | None
  is_error: bool = False  # whether the new version's model gave nothing that could be used


class CanaryDecision(NamedTuple):
  """Outcome of the comparisons so far."""

  what: str          # "wait", "promote" or "roll_back"
  why: str
  pairs: int         # that have both scores
  delta: float | None = None  # mean gain
  lower: float | None = None  # its lower bound of 90%
  ndr: float | None = None    # fraction of tasks that did not become worse


def check_move(before: str, after: str) -> None:
  """Refuses a move of a deployment that there is not.

  Raises:
    ValueError: naming the moves that there are.
  """
  if after not in MOVES.get(before, ()):
    raise ValueError(f"a deployment that is {before} cannot become {after}; it can become "
                     f"{' or '.join(MOVES.get(before, ())) or 'nothing else'}")


def is_canary(session_key: str, fraction: float) -> bool:
  """Returns whether a session gets the new version: by a hash of its key, so that it is always the same
  one."""
  drawn = int(hashlib.sha256(f"canary {session_key}".encode()).hexdigest()[:13], 16) / 16**13
  return drawn < fraction


def decide(pairs: Sequence[CanaryPair], settings: DeploySettings) -> CanaryDecision:
  """Returns whether a new version is promoted, taken back, or tried further.

  The bound of the gain is of the normal distribution. Sessions that cannot be compared are no evidence for a
  version: when there are twice as many as are needed, it is taken back.
  """
  both = [(one.new, one.old) for one in pairs if one.new is not None and one.old is not None]
  errors = sum(one.is_error for one in pairs)
  most_errors = (1 - settings.parse_fraction) * max(len(pairs), LEAST)
  if len(pairs) >= LEAST and errors > most_errors:
    why = f"{errors} of {len(pairs)} sessions had no usable reply of the new version"
    return CanaryDecision("roll_back", why, len(both))
  if not both:
    return _few(pairs, both, settings, CanaryDecision("wait", "nothing is compared yet", 0))
  n = len(both)
  gains = [new - old for new, old in both]
  delta = sum(gains) / n
  spread = math.sqrt(sum((one - delta)**2 for one in gains) / (n - 1)) if n > 1 else 0.0
  lower, upper = delta - Z90 * spread / math.sqrt(n), delta + Z90 * spread / math.sqrt(n)
  ndr = sum(one >= 0 for one in gains) / n
  said = CanaryDecision("wait", f"{n} of {settings.pairs} pairs", n, delta, lower, ndr)
  if n >= settings.pairs:
    if lower >= settings.delta_lower and ndr >= settings.ndr:
      return said._replace(what="promote", why="it is not worse")
    worse = (f"the lower bound of the gain is {lower:.3f}, below {settings.delta_lower}"
             if lower < settings.delta_lower else f"{1 - ndr:.1%} of the tasks became worse")
    return said._replace(what="roll_back", why=worse)
  if n >= LEAST and upper < settings.delta_lower:
    return said._replace(what="roll_back", why=f"the upper bound of the gain is {upper:.3f}, below "
                                               f"{settings.delta_lower}")
  return _few(pairs, both, settings, said)


def _few(pairs: Sequence[CanaryPair], both: Sequence, settings: DeploySettings,
         said: CanaryDecision) -> CanaryDecision:
  if len(pairs) >= 2 * settings.pairs:
    return said._replace(what="roll_back", why=f"only {len(both)} of {len(pairs)} pairs have both scores; "
                                               "give tasks a ground_truth, or set judges")
  return said
