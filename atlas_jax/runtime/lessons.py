"""The memory of lessons: which are shown in a session, what becomes of them, and who writes new ones.

Lessons come from sessions that a reviewer approved or a program graded, are tried in half of the sessions
that they fit, and stay where they are shown to help. See `lesson_states`, `lesson_trials` and `learner`.
"""
import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.data.traces.query import APPROVED, QUARANTINED
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.values import as_object
from atlas_jax.runtime import (
  evidence,
  lesson_cues,
  lesson_entries,
  lesson_legacy,
  lesson_states,
  lesson_trials,
  records,
)
from atlas_jax.runtime.learner import AUDIENCE, Learner, Learnt
from atlas_jax.runtime.lesson_states import Entry, LessonBookSettings, Sources
from atlas_jax.runtime.lesson_trials import ACTIVE, CANDIDATE, RETIRED, TRIAL, Use
from atlas_jax.runtime.store import RuntimeStore
from atlas_jax.runtime.work import Work

DEFAULT = LessonBookSettings()
TRIED = "in_trial"  # Of the notes on a session's lessons: those of the shown ones that are in trial.
UNANSWERED = ("failed", "timed_out")  # How sessions end to which the student has no answer.


class LearntFrom(NamedTuple):
  """The outcome of `learn_from_approved`."""

  sessions: int                   # that the learner was asked for
  added: Mapping[str, list[str]]  # ids of new lessons, by playbook
  skipped: Mapping[int, str]      # sessions that it was not asked for, and why
  refused: Sequence[str]          # lessons that cannot be
  problems: Sequence[str]         # of the learner


class LessonBook:
  """The lessons of all families of tasks; `session.LessonMemory` is its interface.

  Attributes:
    settings: limits.
  """

  def __init__(self, store: RuntimeStore, settings: LessonBookSettings = DEFAULT, *,
               learner: Learner | None = None, clock: Callable[[], float] = time.monotonic):
    """Takes what it works with.

    Args:
      store: of playbooks, uses and sessions.
      settings: limits.
      learner: writes new lessons; None: those that are there are shown and tried.
      clock: seconds.
    """
    self.settings = settings
    self._store = store
    self._learner = learner
    self._clock = clock
    self._written = tuple(lesson_entries.made(one, by_person=True) for one in settings.written)
    self._reviewed: dict[int, tuple[float, str]] = {}    # session id -> when it was read, and what it is
    self._judged: dict[str, float] = {}                  # playbook -> when it was last looked at
    self._due: dict[tuple[str, str], int] = {}           # (playbook, lesson) -> uses with which to look again

  async def shown(self, work: Work) -> str | None:
    """Returns a text of the lessons that fit a session, and keeps in `work.notes` which they are."""
    key = work.spec.learning_key
    if key is None:  # Without a family there is nobody to fraction with, and no playbook.
      return None
    version, entries = await self._store.read_playbook(key)
    states = (CANDIDATE, ACTIVE) if self.settings.legacy else (TRIAL, ACTIVE)
    live = [one for one in entries if one["state"] in states]
    fitting = await self._fitting(work, (*self._written, *live))
    picked = lesson_states.chosen(await self._passing(fitting), self.settings)
    withheld = [one["id"] for one in picked if one["state"] == TRIAL
                and not lesson_trials.is_shown(work.spec.key, one["id"])]
    seen = [one for one in picked if one["id"] not in withheld]
    work.notes["playbook"] = version
    if not picked:
      return None
    ids = [one["id"] for one in seen]
    # Before they are shown: a use that cannot be written would be missing in its trial.
    await self._store.add_uses(key, work.spec.key, ids, withheld)
    work.notes["lessons"] = {"playbook": key, "version": version, "shown": ids, "withheld": withheld,
                             TRIED: [one["id"] for one in seen if one["state"] == TRIAL]}
    return lesson_states.block(seen) if seen else None

  async def learn(self, work: Work) -> None:
    """Takes from a session that was scored what can be learnt, if the gate lets it through already."""
    key = work.spec.learning_key
    if key is None:
      return
    now = time.time()
    trace = records.trace_of(work, began=now, ended=now)
    if self._learner is not None and evidence.passes_gate(trace) and _nothing_in(trace) is None:
      number = await self._store.number(work.spec.key)
      found = await self._asked(key, trace, number, work.spec.key)
      if found is not None:
        _report(work, *found)
    await self.judge(key)

  async def judge(self, key: str, *, now: bool = False) -> list[Entry]:
    """Moves the lessons of a playbook to the states that follow; returns its lessons.

    Args:
      key: of the playbook.
      now: also where trials are not due: reviews may have changed which sessions count.
    """
    if not now and self._clock() < self._judged.get(key, float("-inf")) + self.settings.read_s:
      return []
    self._judged[key] = self._clock()
    _, entries = await self._store.read_playbook(key)
    if self.settings.legacy:
      return await self._judge_as_before(key, entries)
    uses: dict[str, list[Use]] = {}
    counts: dict[str, int] = {}
    for one in entries:
      if one["state"] == TRIAL:
        await self._read_uses(key, one, uses, counts, now)
    sources = await self._sources(entries, now)
    return await lesson_entries.change_all(
        self._store, key, lambda there: lesson_states.moved(there, uses, counts, sources, self.settings))

  # Showing.

  async def _fitting(self, work: Work, entries: Iterable[Entry]) -> list[Entry]:
    """Returns the lessons for students whose cue matches a task; in a thread: tasks may be long."""
    def match():
      found, problems, ids = [], [], set()
      for one in entries:
        if one["audience"] != AUDIENCE or one["id"] in ids:
          continue
        try:
          if lesson_cues.matches(lesson_cues.Cue(**one["cue"]), work.spec.task):
            found.append(one)
            ids.add(one["id"])
        except lesson_cues.CueError as error:
          problems.append(f"lesson {one['id']} was not matched: {error}")
      return found, problems

    found, problems = await asyncio.to_thread(match)
    if problems:
      work.notes.setdefault("problems", []).extend(problems)
    return found

  async def _passing(self, entries: Sequence[Entry]) -> list[Entry]:
    """Returns the lessons of a person, and those whose session passes the gate as it is reviewed now."""
    sources = await self._sources(entries, False)
    return [one for one in entries if one in self._written or lesson_states.passes(one, sources)]

  async def _sources(self, entries: Iterable[Entry], now: bool) -> Sources:
    ids = {number for one in entries if (number := lesson_states.source_of(one)) is not None}
    old = self._clock() - self.settings.read_s
    unread = [number for number in sorted(ids) if now or self._reviewed.get(number, (old, ""))[0] <= old]
    found = {trace.session_id: trace for trace in await self._store.sessions(unread)}
    for number in unread:
      self._reviewed[number] = self._clock(), _review_of(found.get(number))
    known = {number: self._reviewed[number][1] for number in ids}
    return Sources({number for number, what in known.items() if what == APPROVED},
                   {number for number, what in known.items() if what == QUARANTINED})

  # Learning.

  async def _read_uses(self, key: str, entry: Entry, uses: dict[str, list[Use]], counts: dict[str, int],
                       now: bool) -> None:
    """Reads the scored uses of a lesson in trial, unless they are too few for its next look."""
    name = entry["id"]
    listed = await self._store.uses_of(key, name, self.settings.uses)
    if not now and len(listed) < self._due.get((key, name), 0):
      return
    traces = {trace.session_id: trace for trace in await self._store.sessions([one for one, _ in listed])}
    uses[name] = [Use(number, shown, value) for number, shown in listed
                  if number in traces and (value := _score(traces[number])) is not None]
    counts[name] = len(listed)
    looks = (entry.get("trial") or {}).get("looks", 0)
    missing = lesson_trials.missing(len(uses[name]), looks) if self.settings.rule == "looks" else 0
    self._due[key, name] = min(len(listed) + (missing or 0), self.settings.uses)

  async def _judge_as_before(self, key: str, entries: Sequence[Entry]) -> list[Entry]:
    listed = {one["id"]: await self._store.uses_of(key, one["id"], self.settings.uses) for one in entries}
    used = {name: {number for number, shown in uses if shown} for name, uses in listed.items()}
    sources = {number for one in entries if (number := lesson_states.source_of(one)) is not None}
    ids = sources.union(*used.values())
    traces = [*await self._store.history(key, self.settings.uses), *await self._store.sessions(sorted(ids))]
    sessions = {one.session_id: one for one in traces if isinstance(one.session_id, int)}
    return await lesson_entries.change_all(
        self._store, key, lambda there: lesson_legacy.moved(there, used, sessions))

  async def _asked(self, key: str, trace: Trace, number: int | None, session_key: str
                   ) -> tuple[Learnt, list[str]] | None:
    """Asks the learner, and adds its lessons; None: there are candidates enough, or some of this session."""
    _, entries = await self._store.read_playbook(key)
    waiting = sum(one["state"] == CANDIDATE for one in entries)
    if waiting >= self.settings.waiting or any(lesson_states.source_of(one) == number for one in entries):
      return None
    known = await self._passing([one for one in entries if one["state"] != RETIRED])
    assert self._learner is not None
    found = await self._learner.lessons(trace, session_id=number, session_key=session_key, known=known)
    return found, await lesson_entries.add(self._store, key, found.entries) if found.entries else []


async def learn_from_approved(store: RuntimeStore, ids: Sequence[int], *, learner: Learner | None = None,
                              settings: LessonBookSettings = DEFAULT) -> LearntFrom:
  """Learns from sessions that a reviewer has approved: new lessons, and what their scores say of trials.

  To be called after decisions of reviewers, with the sessions that they moved, whichever way: lessons of
  those that were quarantined are retired.

  Args:
    store: of the sessions.
    ids: of sessions.
    learner: writes lessons; None: trials alone are judged.
    settings: limits.
  """
  book = LessonBook(store, settings, learner=learner)
  added: dict[str, list[str]] = {}
  skipped: dict[int, str] = {}
  replies: list[Learnt] = []
  keys: dict[str, None] = {}
  for trace in await store.sessions(ids):
    number, key = trace.session_id, trace.learning_key
    assert isinstance(number, int)  # The store's own.
    why = _why_not(trace, learner)
    if key is not None and _is_of_its_tenant(trace):
      keys[key] = None
    found = None
    if why is None and key is not None:
      found = await book._asked(key, trace, number, str(trace.session_metadata.get("session_key")))
    if found is None or key is None:
      skipped[number] = why or "there are lessons of it, or candidates enough"
      continue
    replies.append(found[0])
    added.setdefault(key, []).extend(found[1])
  for key in keys:
    await book.judge(key, now=True)
  refused = [why for one in replies for why in one.refused]
  return LearntFrom(len(replies), added, skipped, refused, [one.problem for one in replies if one.problem])


def _why_not(trace: Trace, learner: Learner | None) -> str | None:
  """Returns why the learner is not asked for a session; None: it is."""
  if not _is_of_its_tenant(trace):
    return "it is of no family of tasks of its tenant"
  if learner is None:
    return "there is no learner"
  if trace.review_status != APPROVED:
    return "it is not approved"
  return _nothing_in(trace)


def _is_of_its_tenant(trace: Trace) -> bool:
  tenant = trace.session_metadata.get("tenant_id")
  return isinstance(tenant, str) and (trace.learning_key or "").startswith(f"{tenant}/")


def _nothing_in(trace: Trace) -> str | None:
  """Returns why there is nothing to learn from a session; None: there may be.

  With a lesson in trial it may have failed by that lesson: what is learnt from it would fail likewise, and be
  the source of more.
  """
  if as_object(trace.session_metadata.get("lessons")).get(TRIED):
    return "it was shown a lesson in trial"
  value = evidence.score(trace)
  if value is None or value < evidence.RIGHT_FROM or any(len(step.attempts) > 1 for step in trace.steps):
    return None
  return "its first answer was right"


def _score(trace: Trace) -> float | None:
  """Returns the score of a session in a trial; without an answer it is 0 where an answer would be graded.

  Else a lesson with which the student fails would not be blamed for it.
  """
  if trace.status in UNANSWERED and trace.ground_truth is not None and not trace.final_answer and \
      trace.review_status != QUARANTINED:
    return 0.0
  return evidence.score(trace)


def _review_of(trace: Trace | None) -> str:
  """Returns `APPROVED` for sessions that the gate lets through, whoever opened it, else what holds them."""
  if trace is None:
    return "deleted"
  return APPROVED if evidence.passes_gate(trace) else trace.review_status or "pending"


def _report(work: Work, found: Learnt, added: Sequence[str]) -> None:
  """Writes what a learner did into the session's events and notes."""
  counted = work.budget.spend("learner", found.tokens)
  data: dict[str, Any] = {"added": list(added)}
  if found.refused:
    data["refused"] = list(found.refused)
  if found.problem:
    data["problem"] = found.problem
    work.notes.setdefault("problems", []).append(f"the learner wrote nothing: {found.problem}")
  usage = {"learner": counted} if counted["calls"] else None
  work.emit("learn", "POINT", actor="learner", data=data, usage=usage)
