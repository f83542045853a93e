"""Entries of playbooks: what a learner may write, and how entries are added by many writers at once."""
import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from atlas_jax.runtime import lesson_cues, lesson_trials

AUDIENCES = ("student", "teacher")
FIELDS = ("audience", "cue", "action", "effect", "scope")
MOST_TEXT = 300   # Characters of action, effect and scope, each.
MOST_TRIES = 50


class LessonError(ValueError):
  """A lesson that cannot be, or a playbook that could not be written."""


class Playbooks(Protocol):
  """The interface of a store of playbooks; see `runtime.store`."""

  async def read_playbook(self, key: str) -> tuple[int, list[Any]]:
    """Returns version and entries."""

  async def write_playbook(self, key: str, version: int, entries: Sequence[Any]) -> bool:
    """Writes entries if the version is still that; returns whether it was."""


def made(lesson: Mapping[str, Any], *, session_id: int | None = None, session_key: str | None = None,
         by_person: bool = False) -> dict[str, Any]:
  """Makes an entry of a learner's lesson; its id, state and provenance are the runtime's.

  Args:
    lesson: with `FIELDS` alone.
    session_id, session_key: of the session that it is learnt from.
    by_person: whether it comes from a person's config: then it is active at once, and may have a regex.

  Raises:
    LessonError: for a field that a learner may not set, or a value that cannot be, naming it.
  """
  if unknown := sorted(set(lesson) - set(FIELDS)):
    raise LessonError(f"lesson.{unknown[0]} is not a learner's to set: it may set {', '.join(FIELDS)}")
  if lesson.get("audience") not in AUDIENCES:
    raise LessonError(f"lesson.audience={lesson.get('audience')!r} must be one of {', '.join(AUDIENCES)}")
  cue = lesson.get("cue")
  if not isinstance(cue, Mapping) or set(cue) != {"kind", "pattern"}:
    raise LessonError(f"lesson.cue={cue!r} must be {{kind, pattern}}")
  try:
    kept = lesson_cues.checked(cue["kind"], cue["pattern"], by_person=by_person)
  except lesson_cues.CueError as error:
    raise LessonError(f"lesson.{error}") from error
  texts = {name: lesson.get(name, "") for name in ("action", "effect", "scope")}
  for name, text in texts.items():
    if not isinstance(text, str) or len(text) > MOST_TEXT or (name == "action" and not text.strip()):
      raise LessonError(f"lesson.{name}={text!r} must be text of at most {MOST_TEXT} characters")
  entry = {"audience": lesson["audience"], "cue": kept._asdict(), **texts}
  name = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:12]
  state = lesson_trials.ACTIVE if by_person else lesson_trials.CANDIDATE
  provenance = {"by": "person"} if by_person else {"session_id": session_id, "session_key": session_key}
  return {"id": name, **entry, "state": state, "provenance": provenance}


async def add(store: Playbooks, key: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
  """Adds entries to a playbook, beside those of other writers; returns the ids of those that are new.

  Raises:
    LessonError: if others wrote between each of `MOST_TRIES` reads and writes.
  """
  new: list[Mapping[str, Any]] = []

  def change(there):
    names = {one["id"] for one in there}
    new[:] = [one for one in {one["id"]: one for one in entries}.values() if one["id"] not in names]
    return [*there, *new]

  await change_all(store, key, change)
  return [one["id"] for one in new]


async def change_all(store: Playbooks, key: str, change: Callable[[list[Any]], list[Any]]) -> list[Any]:
  """Changes the entries of a playbook as they are then, also where others write; returns them.

  Args:
    store: of playbooks.
    key: of the playbook.
    change: returns the entries that follow; it is called again where others wrote meanwhile.

  Raises:
    LessonError: if others wrote between each of `MOST_TRIES` reads and writes.
  """
  for _ in range(MOST_TRIES):
    version, there = await store.read_playbook(key)
    changed = change(there)
    if changed == there or await store.write_playbook(key, version, changed):
      return changed
    await asyncio.sleep(0)
  raise LessonError(f"the playbook of {key!r} was written by others in each of {MOST_TRIES} tries")
