"""Events of sessions: what happened, in order; a session's state is the fold of them, see `states`."""
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from atlas_jax.data.traces import storable

KINDS = ("START", "END", "POINT", "CHUNK")
# The closed list. "session" is the whole; what else a session does stands within it.
NAMES = ("session", "triage", "probe", "route", "plan", "review", "step", "agent_call", "tool", "validate",
         "guide", "synthesise", "answered", "grade", "judge", "arbitrate", "learn", "store", "drift",
         "budget", "retry")
ACTORS = ("runtime", "student", "teacher", "probe", "judge", "learner", "tool")


class SessionEvent(NamedTuple):
  """One event; `(session_key, seq)` is its identity, so that writing it again changes nothing."""

  session_key: str
  seq: int             # from 0, without gaps
  at: float            # seconds since 1970
  name: str            # one of NAMES
  kind: str            # one of KINDS
  actor: str           # one of ACTORS
  span: int            # number of the span that it begins, ends or lies in
  parent: int | None   # the span around that; None: there is none
  step: int | str | None = None
  attempt: int | None = None
  data: Mapping[str, Any] = {}
  usage: Mapping[str, Any] | None = None  # role -> {prompt, completion, calls}, of an END

  def to_json(self) -> dict[str, Any]:
    """Returns the event as a JSON object, without fields that say nothing."""
    return {name: value for name, value in self._asdict().items() if value not in (None, {})}


Sink = Callable[[SessionEvent], None]


class EventLog:
  """The events of one session: numbers them, and hands each to a sink before the next is made."""

  def __init__(self, session_key: str, sink: Sink, *, first_seq: int = 0, first_span: int = 0,
               clock: Callable[[], float] = time.time):
    """Starts the numbers; a session that is resumed goes on behind those that it has.

    Args:
      session_key: of the session.
      sink: takes every event, at once and without raising.
      first_seq: of the next event.
      first_span: of the next span.
      clock: seconds since 1970.
    """
    self.session_key = session_key
    self._sink = sink
    self._seq = itertools.count(first_seq)
    self._spans = itertools.count(first_span)
    self._clock = clock

  def span(self) -> int:
    """Returns the number of a new span."""
    return next(self._spans)

  def emit(self, name: str, kind: str, *, actor: str = "runtime", span: int, parent: int | None = None,
           step: int | str | None = None, attempt: int | None = None,
           data: Mapping[str, Any] | None = None, usage: Mapping[str, Any] | None = None) -> SessionEvent:
    """Makes an event, storable, and hands it on; see `SessionEvent` for the arguments.

    Raises:
      ValueError: for a name, kind or actor that is not in its list.
    """
    for value, listed in ((name, NAMES), (kind, KINDS), (actor, ACTORS)):
      if value not in listed:
        raise ValueError(f"{value!r} of an event must be one of {', '.join(listed)}")
    clean, _ = storable.record(dict(data or {}))
    event = SessionEvent(self.session_key, next(self._seq), self._clock(), name, kind, actor, span, parent,
                         step, attempt, clean, usage)
    self._sink(event)
    return event
