"""Queries of a store: the review gate and other filters, the order, and where to go on."""
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.data.traces import rows
from atlas_jax.data.traces.filters import Filters
from atlas_jax.data.traces.values import as_word

APPROVED, PENDING, QUARANTINED = "approved", rows.PENDING, "quarantined"
REQUIRE_APPROVAL = "ATLAS_REVIEW_REQUIRE_APPROVAL"
DEFAULT_STATUSES = "ATLAS_REVIEW_DEFAULT_EXPORT_STATUSES"
PAGE_ROWS = 100


class Cursor(NamedTuple):
  """The place of a session in the order of time; written TIME/ID."""
  at: datetime.datetime
  session_id: int

  @classmethod
  def parse(cls, text: str) -> "Cursor":
    """Reads what `str` writes.

    Raises:
      ValueError: for another text.
    """
    when, _, number = text.rpartition("/")
    at = rows.instant(when)
    if at is None or not (number.isdecimal() and rows.fits(int(number))):
      raise ValueError(f"the cursor {text!r} is none; take it from the manifest of an export, "
                       "such as 2026-01-31T12:00:00+00:00/17")
    return cls(at, int(number))

  def __str__(self) -> str:
    """Returns it as a text."""
    return f"{self.at.isoformat()}/{self.session_id}"


@dataclasses.dataclass(frozen=True)
class SessionQuery:
  """The sessions that are read, and their order.

  Attributes:
    review_statuses: those that pass; by default the gate lets approved sessions pass alone. None: all.
    statuses: of the session, in lower case, such as ("succeeded",); None: all.
    is_ended: whether sessions that still run are left out.
    ids: of sessions; None: all.
    learning_key: of sessions; None: all.
    since: no sessions that began before; None: all.
    min_reward: least score in the statistics of the reward; None: sessions without one too.
    newest_first: the order of the times at which they began, ties by id.
    cursor: begin behind this session; None: at the first.
    offset: how many to skip at the beginning.
    limit: how many at most; None: all.
    most_events: the newest so many events of each session; None: all.
  """

  review_statuses: tuple[str, ...] | None = (APPROVED,)
  statuses: tuple[str, ...] | None = None
  is_ended: bool = False
  ids: tuple[int, ...] | None = None
  learning_key: str | None = None
  since: datetime.datetime | None = None
  min_reward: float | None = None
  newest_first: bool = False
  cursor: Cursor | None = None
  offset: int = 0
  limit: int | None = None
  most_events: int | None = None

  def changed(self, **fields: Any) -> "SessionQuery":
    """Returns a selection with some fields replaced."""
    return dataclasses.replace(self, **fields)

  def clauses(self) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns the names of the clauses in `sql.CLAUSES` that select, and their values."""
    values: dict[str, Any] = {}
    if self.review_statuses is not None:
      one = len(self.review_statuses) == 1
      values |= ({"review_status": self.review_statuses[0]} if one
                 else {"review_statuses": list(self.review_statuses)})
    if self.statuses is not None:
      values["statuses"] = [status.lower() for status in self.statuses]
    if self.ids is not None:
      values["ids"] = [number for number in self.ids if rows.fits(number)]
    for name in ("learning_key", "since", "min_reward"):
      if getattr(self, name) is not None:
        values[name] = getattr(self, name)
    names = (*values, "ended") if self.is_ended else tuple(values)
    if self.cursor is None:
      return names, values
    place = {"at": self.cursor.at, "at_id": self.cursor.session_id}
    return (*names, "older_than" if self.newest_first else "newer_than"), values | place


def of_filters(filters: Filters, *, now: datetime.datetime | None = None) -> SessionQuery:
  """Returns the query of what filters let through, or of more.

  It selects by the review, the age and a single learning key; what has no column is left to the filters.

  Args:
    filters: of traces.
    now: what ages are counted to; None: the time of the call.
  """
  keys = filters.learning_key
  since = None
  if filters.max_age_days is not None:
    since = (now or datetime.datetime.now(datetime.UTC)) - datetime.timedelta(days=filters.max_age_days)
  return SessionQuery(review_statuses=tuple(filters.review_status), since=since,
                      learning_key=keys[0] if keys is not None and len(keys) == 1 else None)


def review_gate(include: Sequence[str] | None, include_all: bool, environment: Mapping[str, str], *,
                legacy: bool = False) -> tuple[str, ...] | None:
  """Returns the review statuses that an export lets pass; None is all.

  The environment says what passes where no status is asked for: REQUIRE_APPROVAL=0 lets pending sessions pass
  beside approved ones, DEFAULT_STATUSES lists statuses or says all.

  Args:
    include: statuses that are asked for.
    include_all: whether all are.
    environment: variables by name.
    legacy: the Atlas SDK's rule: statuses that are asked for come on top of those of the environment.

  Source: recorded from the Atlas SDK 0.1.15 with legacy; ours restricts to what is asked for.
  """
  if include_all:
    return None
  asked = _words(include or ())
  if asked and not legacy:
    return asked
  listed = _words(environment.get(DEFAULT_STATUSES, "").split(","))
  if "all" in listed:
    return None
  required = (environment.get(REQUIRE_APPROVAL) or "1").strip().lower() not in ("0", "false", "no", "off")
  default = listed or ((APPROVED,) if required else (APPROVED, PENDING))
  return tuple(dict.fromkeys((*default, *asked)))


def _words(texts: Sequence[str]) -> tuple[str, ...]:
  return tuple(dict.fromkeys(word for text in texts if (word := as_word(text))))
