"""Entries of playbooks."""
import asyncio

import pytest

from atlas_jax.runtime import lesson_entries
from atlas_jax.runtime.lesson_entries import LessonError

LESSON = {"audience": "student", "cue": {"kind": "keyword", "pattern": "pump"}, "action": "read the gauge"}


class _Playbooks:
  """A store in which every read and write gives way to other tasks."""

  def __init__(self, is_busy=False):
    self.version, self.entries, self.is_busy, self.refused = 0, [], is_busy, 0

  async def read_playbook(self, key):
    found = self.version, list(self.entries)
    await asyncio.sleep(0)
    return found

  async def write_playbook(self, key, version, entries):
    await asyncio.sleep(0)
    if self.is_busy or version != self.version:
      self.refused += 1
      return False
    self.version, self.entries = version + 1, list(entries)
    return True


def _made(number=0, **changes):
  return lesson_entries.made({**LESSON, "action": f"read gauge {number}", **changes}, session_id=number,
                             session_key=str(number))


def test_six_writers_leave_six_lessons():
  async def written(store):
    await asyncio.gather(*(lesson_entries.add(store, "t/f", [_made(number)]) for number in range(6)))
  store = _Playbooks()
  asyncio.run(written(store))
  assert {one["action"] for one in store.entries} == {f"read gauge {number}" for number in range(6)}
  assert len(store.entries) == 6 and store.refused > 0


def test_a_lesson_that_is_there_is_not_added_again():
  store = _Playbooks()
  for _ in range(2):
    asyncio.run(lesson_entries.add(store, "t/f", [_made(), _made()]))
  assert len(store.entries) == 1 and store.version == 1


def test_a_playbook_that_others_always_write_is_given_up():
  with pytest.raises(LessonError, match="written by others"):
    asyncio.run(lesson_entries.add(_Playbooks(is_busy=True), "t/f", [_made()]))


@pytest.mark.parametrize("field", ["id", "impact", "metadata", "playbook_entries", "provenance", "state"])
def test_a_learner_sets_its_own_fields_alone(field):
  with pytest.raises(LessonError, match=f"lesson.{field} is not a learner's"):
    _made(**{field: {}})


@pytest.mark.parametrize("changes", [
    {"audience": "judge"}, {"cue": "pump"}, {"cue": {"kind": "regex", "pattern": "a"}}, {"action": " "},
    {"action": None}, {"effect": "a" * 301}, {"scope": {"category": "x"}}])
def test_a_lesson_that_cannot_be_is_refused(changes):
  with pytest.raises(LessonError, match=f"lesson.{next(iter(changes))}"):
    _made(**changes)
