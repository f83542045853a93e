"""The state of a session: the fold of its events, by a function without side effects.

Every transition is one event, so that a session that a crash has cut off is known from the events that were
written. `answered` is the point of no loss: no event behind it changes the answer.
"""
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from atlas_jax.runtime.events import SessionEvent
from atlas_jax.runtime.result import STATUSES, AttemptRecord

# In the order in which a session goes through them; a lane passes over those that it has not.
STAGES = ("created", "triaged", "routed", "planned", "reviewed", "attempting", "validated", "answered",
          "judged", "learned", "recorded")
_PLACE = {name: place for place, name in enumerate(STAGES)}
NO_LOSS = _PLACE["answered"]
Step = int | str


class Settled(NamedTuple):
  """A step whose attempts are over."""

  answer: str | None
  status: str  # one of `result.ATTEMPTS`


class SessionState(NamedTuple):
  """State of a session."""

  stage: str = "new"
  status: str | None = None                # one of `result.STATUSES` once it has ended
  lane: str | None = None
  routing: Mapping[str, Any] = {}
  plan: Mapping[str, Any] | None = None
  attempts: tuple[AttemptRecord, ...] = ()
  settled: Mapping[Step, Settled] = {}
  answer: str | None = None
  verified: bool | None = None
  outcome: str | None = None               # status that the answer was given with
  reward: Mapping[str, Any] | None = None  # {value, status, reason, source} once it is known
  next_seq: int = 0
  next_span: int = 0
  stubborn: int = 0
  tokens: Mapping[str, Mapping[str, int]] = {}

  @property
  def is_answered(self) -> bool:
    """True if the answer is given and cannot be lost."""
    return self.outcome is not None

  @property
  def has_ended(self) -> bool:
    """True if nothing more may happen."""
    return self.status is not None


class WrongTransition(ValueError):
  """An event that cannot follow on a state."""


def advance(state: SessionState, event: SessionEvent) -> SessionState:
  """Returns the state behind an event.

  Raises:
    WrongTransition: if the event cannot happen in that state, or is not the next by its number.
  """
  if event.seq != state.next_seq:
    raise WrongTransition(f"event {event.seq} of {event.session_key} follows on {state.next_seq - 1}")
  if state.has_ended:
    raise WrongTransition(f"{event.name} {event.kind} behind the end of the session ({state.status})")
  if (state.stage == "new") != (event.name == "session" and event.kind == "START"):
    raise WrongTransition(f"{event.name} {event.kind} in a session that "
                          f"{'has not begun' if state.stage == 'new' else 'has begun'}")
  change = _CHANGES.get((event.name, event.kind))
  found = change(state, event) if change else state
  tokens = _added(found.tokens, event.usage) if event.usage else found.tokens
  return found._replace(next_seq=event.seq + 1, next_span=max(state.next_span, event.span + 1), tokens=tokens)


def replay(events: Iterable[SessionEvent]) -> SessionState:
  """Returns the state behind all events of a session."""
  state = SessionState()
  for event in events:
    state = advance(state, event)
  return state


def _added(tokens: Mapping[str, Mapping[str, int]], usage: Mapping[str, Any]) -> dict[str, dict[str, int]]:
  found = {role: dict(counts) for role, counts in tokens.items()}
  for role, counts in usage.items():
    total = found.setdefault(role, {})
    for name, value in counts.items():
      total[name] = total.get(name, 0) + value
  return found


def _to(stage: str, state: SessionState, event: SessionEvent) -> SessionState:
  """Returns a state in a later stage, or in one of work, through which sessions go often."""
  between = _PLACE["planned"] <= _PLACE[stage] < NO_LOSS
  before = _PLACE[state.stage] if state.stage in _PLACE else -1
  if before >= NO_LOSS and _PLACE[stage] <= NO_LOSS or not between and _PLACE[stage] <= before:
    raise WrongTransition(f"{event.name} {event.kind} leads to {stage!r}, and the session is {state.stage!r}")
  return state._replace(stage=stage)


def _begun(state: SessionState, event: SessionEvent) -> SessionState:
  return state._replace(stage="created")


def _triaged(state: SessionState, event: SessionEvent) -> SessionState:
  return _to("triaged", state, event)


def _routed(state: SessionState, event: SessionEvent) -> SessionState:
  return _to("routed", state, event)._replace(lane=event.data["lane"], routing=event.data)


def _planned(state: SessionState, event: SessionEvent) -> SessionState:
  return _to("planned", state, event)._replace(plan=event.data.get("plan"))


def _reviewed(state: SessionState, event: SessionEvent) -> SessionState:
  return _to("reviewed", state, event)._replace(plan=event.data.get("plan", state.plan))


def _attempting(state: SessionState, event: SessionEvent) -> SessionState:
  # Of a step that a crash has cut off and that begins again, what was tried is in the events alone.
  left = tuple(one for one in state.attempts if one.step != event.step)
  return _to("attempting", state, event)._replace(attempts=left)


def _attempted(state: SessionState, event: SessionEvent) -> SessionState:
  given = event.data
  if event.step is None or event.attempt is None:
    raise WrongTransition(f"{event.name} {event.kind} names no step and attempt")
  one = AttemptRecord(event.step, event.attempt, given.get("answer"), given.get("status", "unverified"),
                      tokens=event.usage or {}, started=given.get("started", event.at), ended=event.at,
                      problem=given.get("problem"))
  return _to("attempting", state, event)._replace(attempts=(*state.attempts, one))


def _changed(state: SessionState, event: SessionEvent, **fields: Any) -> SessionState:
  """Returns a state with fields of one attempt replaced."""
  places = [place for place, one in enumerate(state.attempts)
            if (one.step, one.attempt) == (event.step, event.attempt)]
  if not places:
    raise WrongTransition(f"{event.name} {event.kind} of attempt {event.attempt} of step {event.step}, "
                          "which was not made")
  attempts = list(state.attempts)
  attempts[places[-1]] = attempts[places[-1]]._replace(**fields)
  return state._replace(attempts=tuple(attempts))


def _validated(state: SessionState, event: SessionEvent) -> SessionState:
  if event.data.get("shadow"):  # An audit: recorded, not applied.
    return state
  valid, problem = event.data.get("valid"), event.data.get("problem")
  verdict = None if valid is None else {name: event.data[name] for name in ("valid", "guidance", "confidence")
                                        if name in event.data}
  found = _to("validated", state, event)
  if event.attempt is None:  # Of the whole.
    return found
  status = "unverified" if valid is None else "passed" if valid else "failed"
  return _changed(found, event, status=status, validation=verdict, problem=problem,
                  guidance=event.data.get("guidance"))


def _guided(state: SessionState, event: SessionEvent) -> SessionState:
  return _changed(state, event, guidance=event.data.get("guidance"))


def _settled(state: SessionState, event: SessionEvent) -> SessionState:
  if event.step is None:
    raise WrongTransition(f"{event.name} {event.kind} names no step")
  one = Settled(event.data.get("answer"), event.data.get("status", "unverified"))
  return state._replace(settled={**state.settled, event.step: one},
                        stubborn=state.stubborn + bool(event.data.get("stubborn")))


def _answered(state: SessionState, event: SessionEvent) -> SessionState:
  given = event.data
  return _to("answered", state, event)._replace(answer=given.get("answer"), verified=given.get("verified"),
                                                outcome=given["status"])


def _graded(state: SessionState, event: SessionEvent) -> SessionState:
  if not state.is_answered:
    raise WrongTransition(f"{event.name} before the answer")
  scores = event.data.get("scores") or {}
  source = "grader" if event.name == "grade" else "judge"
  attempts = tuple(one._replace(score=scores[name], score_source=source)
                   if (name := f"{one.step}/{one.attempt}") in scores and scores[name] is not None else one
                   for one in state.attempts)
  stage = state if state.stage == "judged" else _to("judged", state, event)
  return stage._replace(attempts=attempts, reward=event.data.get("reward", state.reward))


def _learned(state: SessionState, event: SessionEvent) -> SessionState:
  return _to("learned", state, event)


def _recorded(state: SessionState, event: SessionEvent) -> SessionState:
  return _to("recorded", state, event)


def _ended(state: SessionState, event: SessionEvent) -> SessionState:
  status = event.data.get("status")
  if status not in STATUSES:
    raise WrongTransition(f"a session ends as one of {', '.join(STATUSES)}, not {status!r}")
  if state.is_answered and status != state.outcome:
    raise WrongTransition(f"the session is answered as {state.outcome!r} and cannot end as {status!r}")
  return state._replace(status=status)


_CHANGES = {
    ("session", "START"): _begun, ("session", "END"): _ended, ("triage", "END"): _triaged,
    ("route", "POINT"): _routed, ("plan", "END"): _planned, ("review", "END"): _reviewed,
    ("step", "START"): _attempting, ("agent_call", "END"): _attempted, ("validate", "END"): _validated,
    ("guide", "END"): _guided, ("step", "END"): _settled, ("answered", "POINT"): _answered,
    ("grade", "END"): _graded, ("judge", "END"): _graded, ("learn", "END"): _learned,
    ("store", "POINT"): _recorded,
}
