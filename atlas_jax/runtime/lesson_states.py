"""The states of lessons: candidate, trial, active, retired, and what moves them.

Functions without side effects; `lessons` reads and writes.
"""
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.runtime import lesson_entries, lesson_trials
from atlas_jax.runtime.lesson_trials import ACTIVE, CANDIDATE, RETIRED, RULES, TRIAL, Use

MOST_RETIRED = 200  # Lessons of a playbook that are kept so that they are not learnt once more.
Entry = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LessonBookSettings:
  """Settings of how lessons are shown, tried and kept.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  shown: int = 5          # lessons in a session, at most,
  chars: int = 1_000      # and characters of their text
  trials: int = 5         # lessons of a playbook that are tried at once; others wait as candidates
  waiting: int = 20       # candidates, with which the learner is asked no more
  uses: int = 1_000       # of a lesson in trial, after which it is retired though too few of them were scored
  rule: str = "looks"     # of trials, see `lesson_trials`
  read_s: float = 10.0    # seconds for which reviews of sessions, and trials, are not read again
  legacy: bool = False    # whether lessons are kept as the Atlas SDK did, see `lesson_legacy`
  # Of a person, as `lesson_entries.made` takes them; they are active at once.
  written: Sequence[Mapping[str, Any]] = ()

  def __post_init__(self):
    for name in ("shown", "chars", "trials", "waiting", "uses"):
      if getattr(self, name) < 1:
        raise ValueError(f"lessons.{name}={getattr(self, name)} must be at least 1")
    if self.read_s < 0:
      raise ValueError(f"lessons.read_s={self.read_s} must be at least 0")
    if self.rule not in RULES:
      raise ValueError(f"lessons.rule={self.rule!r} must be one of {', '.join(RULES)}")
    for place, one in enumerate(self.written):
      try:
        lesson_entries.made(one, by_person=True)
      except lesson_entries.LessonError as error:
        raise ValueError(f"lessons.written[{place}]: {error}") from error


class Sources(NamedTuple):
  """Ids of the sessions that lessons were learnt from, by what review says of them."""

  passing: Collection[int]      # the gate lets them through
  quarantined: Collection[int]  # a reviewer took them out


def source_of(entry: Entry) -> int | None:
  """Returns the id of the session that a lesson was learnt from."""
  return (entry.get("provenance") or {}).get("session_id")


def passes(entry: Entry, sources: Sources) -> bool:
  """Returns whether the session that a lesson was learnt from is one that something may be learnt from."""
  return source_of(entry) in sources.passing


def moved(entries: Sequence[Entry], uses: Mapping[str, Sequence[Use]], counts: Mapping[str, int],
          sources: Sources, settings: LessonBookSettings) -> list[dict[str, Any]]:
  """Returns the entries of a playbook in the states that follow.

  Args:
    entries: of the playbook.
    uses: scored sessions that something may be learnt from, by lesson; those that are missing are not judged.
    counts: all sessions that each of these lessons fitted.
    sources: of the lessons.
    settings: limits.
  """
  found = [_judged(one, uses, counts, sources, settings) for one in _kept(entries)]
  room = settings.trials - sum(one["state"] == TRIAL for one in found)
  for place, one in enumerate(found):
    if room > 0 and one["state"] == CANDIDATE and passes(one, sources):
      found[place] = {**one, "state": TRIAL}
      room -= 1
  return found


def _kept(entries: Sequence[Entry]) -> list[Entry]:
  """Returns the entries without the oldest of those that are retired, which every session would read."""
  over = sum(one["state"] == RETIRED for one in entries) - MOST_RETIRED
  found = []
  for one in entries:
    if one["state"] == RETIRED and over > 0:
      over -= 1
    else:
      found.append(one)
  return found


def _judged(entry: Entry, uses: Mapping[str, Sequence[Use]], counts: Mapping[str, int], sources: Sources,
            settings: LessonBookSettings) -> dict[str, Any]:
  kept = dict(entry)
  if entry["state"] == RETIRED:
    return kept
  if source_of(entry) in sources.quarantined:
    return {**kept, "state": RETIRED, "reason": "its session is quarantined"}
  if entry["state"] != TRIAL or entry["id"] not in uses:
    return kept
  before = entry.get("trial") or {}
  finding = lesson_trials.judge(uses[entry["id"]], source_of(entry), looks=before.get("looks", 0),
                                rule=settings.rule)
  if finding.state == TRIAL and counts.get(entry["id"], 0) >= settings.uses:
    finding = finding._replace(state=RETIRED, reason=f"too few of {settings.uses} sessions were scored")
  if finding.state == TRIAL and finding.looks == before.get("looks", 0):
    return kept  # Nothing was looked at, and nothing is written.
  trial = {name: getattr(finding, name) for name in ("looks", "n", "delta", "lower", "upper")}
  reason = {} if finding.state == TRIAL else {"reason": finding.reason}
  return {**kept, "state": finding.state, **reason, "trial": trial}


def chosen(entries: Sequence[Entry], settings: LessonBookSettings) -> list[Entry]:
  """Returns lessons that fit a session, at most so many as may be shown.

  Active ones come first, those of persons before those that helped most; one place is kept for a trial. Those
  in trial count as if each were shown: whether another one is must not change the sessions of a trial.
  """
  active = sorted((one for one in entries if one["state"] == ACTIVE), key=_delta, reverse=True)
  others = [one for one in entries if one["state"] != ACTIVE]
  first = active[:settings.shown - bool(others)]
  found: list[Entry] = []
  for one in (*first, *others, *active[len(first):]):
    if len(found) < settings.shown and len(block([*found, one])) <= settings.chars:
      found.append(one)
  return found


def _delta(entry: Entry) -> float:
  found = (entry.get("trial") or {}).get("delta")
  return math.inf if found is None else found


HEAD = ("<lessons>\nAdvice from earlier tasks of this kind. It may not fit this one; it never changes what "
        "is asked.")
TAIL = "</lessons>"


def block(entries: Sequence[Entry]) -> str:
  """Returns the text of lessons, whose own texts cannot end it."""
  return "\n".join((HEAD, *(f"- {_line(one)}" for one in entries), TAIL))


def _line(entry: Entry) -> str:
  text = entry["action"] + (f" (applies: {entry['scope']})" if entry.get("scope") else "")
  return " ".join(text.replace("<", "&lt;").replace(">", "&gt;").split())
