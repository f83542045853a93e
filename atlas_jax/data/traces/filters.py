"""Selects the traces that are used: those approved that succeeded, unless the config asks for others.

Every trace that is left out is left out for a reason, and the reasons are counted. A session that is still
running is never used: its answer, reward and review are not there yet.
"""
import datetime
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from atlas_jax.data.traces.jsonl import FoundTrace
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.values import as_word

RUNNING = "running"
APPROVED = "approved"
QUARANTINED = "quarantined"
REVIEWS = ("pending", APPROVED, QUARANTINED)
LANES = ("auto", "paired", "coach", "escalate")
MOST_DAYS = 100_000  # Of an age: the calendar goes no further back than year 1.
# Reasons of a trace that is left out, in the order in which they are looked for, and what they mean.
REASONS = {
    "running": "the session still ran",
    "review_status": "review has not let it pass",
    "status": "the session did not end as asked for",
    "task": "there is no task",
    "learning_key": "it is of another family of tasks",
    "lane": "it ran in another lane",
    "verified": "its answer was, or was not, verified",
    "guidance": "the teacher said nothing, or something",
    "versions": "it was made by another version",
    "date": "it does not say when it began",
    "age": "it is too old",
    "ground_truth": "it has no right answer",
    "no_verdict": "it has no reward to compare with the least one",
    "min_reward": "its reward is too small",
}


class Filters(NamedTuple):
  """Properties of a trace that is used; None asks for nothing."""

  review_status: tuple[str, ...] = (APPROVED,)
  status: tuple[str, ...] = ("succeeded",)
  min_reward: float | None = None  # with a number, sessions without a verdict are left out
  learning_key: tuple[str, ...] | None = None
  lane: tuple[str, ...] | None = None
  verified: bool | None = None
  guidance: bool | None = None  # whether the teacher must have said something, or must not have
  versions: Mapping[str, str] | None = None  # such as {"student": VERSION}
  max_age_days: float | None = None
  require_ground_truth: bool = False

  def to_json(self) -> dict[str, Any]:
    """Returns what is asked for, as an object."""
    given = {name: value for name, value in self._asdict().items() if value is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def checked(filters: Filters) -> Filters:
  """Returns filters whose words exist.

  Raises:
    ValueError: naming the field of config.traces, what it has and what it needs.
  """
  if RUNNING in filters.status or not filters.status:
    raise ValueError(f"config.traces.status={','.join(filters.status)!r} must name statuses of sessions that "
                     f"have ended, such as 'succeeded'; those still {RUNNING} have no answer to learn from")
  strange = sorted({*filters.review_status} - {*REVIEWS})
  if strange or not filters.review_status:
    raise ValueError(f"config.traces.review_status={','.join(filters.review_status)!r} must be of "
                     f"{', '.join(REVIEWS)}, with commas between them")
  strange = sorted({*(filters.lane or ())} - {*LANES})
  if strange:
    raise ValueError(f"config.traces.lane={','.join(filters.lane or ())!r} must be of {', '.join(LANES)}, "
                     "with commas between them")
  if filters.max_age_days is not None and not 0 < filters.max_age_days <= MOST_DAYS:  # Also NaN.
    raise ValueError(f"max_age_days={filters.max_age_days} of config.traces must be above 0 and at most "
                     f"{MOST_DAYS}; leave it out for sessions of any age")
  return filters


def reason(trace: Trace, filters: Filters, *, now: datetime.datetime | None = None) -> str | None:
  """Returns why a trace is left out, one of REASONS; None: it is used.

  Args:
    trace: the session.
    filters: what is asked for.
    now: what ages are counted to, with a zone; None: the time of the call.
  """
  # The gate before all else: the count of what review kept out does not depend on other filters.
  if (why := barred(trace, filters)) is not None:
    return why
  if trace.status not in filters.status:
    return "status"
  if not trace.task.strip():
    return "task"
  return _unlike(trace, filters) or _too_old(trace, filters, now) or _unrewarded(trace, filters)


def barred(trace: Trace, filters: Filters) -> str | None:
  """Returns why a trace does not pass the gate, "running" or "review_status"; None: it passes.

  A record may disagree with its metadata, as when one place was changed by hand: then the worse one counts.
  """
  inner = trace.session_metadata
  if RUNNING in (trace.status, as_word(inner.get("status"))):
    return RUNNING
  is_shut = as_word(inner.get("review_status")) == QUARANTINED and QUARANTINED not in filters.review_status
  return "review_status" if is_shut or trace.review_status not in filters.review_status else None


def _unlike(trace: Trace, filters: Filters) -> str | None:
  if filters.learning_key is not None and trace.learning_key not in filters.learning_key:
    return "learning_key"
  if filters.lane is not None and trace.lane not in filters.lane:
    return "lane"
  if filters.verified is not None and trace.verified is not filters.verified:
    return "verified"
  if filters.guidance is not None and trace.has_guidance is not filters.guidance:
    return "guidance"
  for name, version in (filters.versions or {}).items():
    if str(trace.versions.get(name)) != version:
      return "versions"
  return None


def _too_old(trace: Trace, filters: Filters, now: datetime.datetime | None) -> str | None:
  if filters.max_age_days is None:
    return None
  if trace.created is None:
    return "date"
  age = (now or datetime.datetime.now(datetime.UTC)) - trace.created
  return "age" if age > datetime.timedelta(days=filters.max_age_days) else None


def _unrewarded(trace: Trace, filters: Filters) -> str | None:
  if filters.require_ground_truth and trace.ground_truth is None:
    return "ground_truth"
  if filters.min_reward is None:
    return None
  value = trace.reward.value
  if value is None:
    return "no_verdict"
  return "min_reward" if value < filters.min_reward else None


def chosen(found: Iterable[FoundTrace], filters: Filters, dropped: Counter, *,
           now: datetime.datetime | None = None) -> Iterator[FoundTrace]:
  """Yields the traces that are used, and counts those that are not in `dropped`, by reason."""
  now = now or datetime.datetime.now(datetime.UTC)
  for one in found:
    why = reason(one.trace, filters, now=now)
    if why is None:
      yield one
    else:
      dropped[why] += 1


def of_config(fields) -> Filters:
  """Reads the filters of config.traces.

  Raises:
    ValueError: for words that do not exist; see `checked`.
  """
  return checked(Filters(
      review_status=words(fields.review_status), status=words(fields.status), min_reward=fields.min_reward,
      learning_key=words(fields.learning_key, lower=False) or None, lane=words(fields.lane) or None,
      verified=fields.verified, guidance=fields.guidance, versions=_versions(fields.versions),
      max_age_days=fields.max_age_days, require_ground_truth=fields.require_ground_truth))


def words(text: str | None, *, lower: bool = True) -> tuple[str, ...]:
  """Returns the words of a text with commas between them."""
  found = tuple(word.strip() for word in (text or "").split(",") if word.strip())
  return tuple(word.lower() for word in found) if lower else found


def _versions(text: str | None) -> dict[str, str] | None:
  pairs = [word.partition("=") for word in words(text, lower=False)]
  wrong = [name for name, equal, version in pairs if not (name and equal and version)]
  if wrong:
    raise ValueError(f"config.traces.versions={text!r} must be NAME=VERSION, with commas between them, such "
                     "as 'student=3,protocol=1'")
  return {name.strip(): version.strip() for name, _, version in pairs} or None
