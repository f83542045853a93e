"""Cues of lessons."""
import pytest

from atlas_jax.runtime import lesson_cues
from atlas_jax.runtime.lesson_cues import Cue, CueError


@pytest.mark.parametrize("cue, task, found", [
    (("keyword", "pump"), "The Pump leaks", True), (("keyword", "pump"), "pumpkins", False),
    (("keyword", "c++"), "in C++ please", True), (("keyword", "a.c"), "abc", False),
    (("glob", "*pump*leak?"), "a pump that leaks", True), (("glob", "pump*"), "a pump", False),
    (("glob", "a*b*c"), "aXbYbc", True), (("glob", "a*b*c"), "aXbYbcd", False),
    (("glob", "[ab]*"), "abc", False),
    (("regex", r"pump\s+\d"), "pump 7", True), (("regex", r"pump\s+\d"), "pump x", False)])
def test_a_cue_matches(cue, task, found):
  assert lesson_cues.matches(lesson_cues.checked(*cue, by_person=True), task) is found


def test_a_glob_of_many_stars_ends():
  assert not lesson_cues.matches(Cue("glob", "*a" * 31 + "*b"), "a" * 20_000)


def test_a_regex_that_takes_too_long_is_stopped():
  with pytest.raises(CueError, match="of CPU"):
    lesson_cues.matches(Cue("regex", "(a+)+$"), "a" * 40 + "b")


@pytest.mark.parametrize("kind, pattern, by_person", [
    ("regex", "a", False), ("predicate", "a", True), ("keyword", " ", False), ("keyword", "a" * 65, False),
    ("glob", "*?*", False), ("regex", "(", True), (["glob"], "a", False), ("keyword", 7, False)])
def test_a_cue_that_cannot_be_is_refused(kind, pattern, by_person):
  with pytest.raises(CueError, match=r"cue\.(kind|pattern)="):
    lesson_cues.checked(kind, pattern, by_person=by_person)
