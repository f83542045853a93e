"""Cues of lessons: which tasks a lesson is for.

A model may write keywords and globs, which are matched in time linear in the text for each piece of the
pattern. Regexes come from a person's config alone and run in a process of their own, because one that was
written badly, or with intent, can take for ever.
"""
import json
import re
import subprocess
import sys
from typing import NamedTuple

MODEL_KINDS = ("keyword", "glob")
KINDS = (*MODEL_KINDS, "regex")
MOST_PATTERN = 64     # Characters of a pattern.
MOST_TEXT = 100_000   # Characters of a task that are looked at.
REGEX_CPU_S = 0.05    # CPU seconds of one match of a regex.
_BACKSTOP_S = 10.0    # Seconds after which its process is given up, start included.
# The timer kills the process inside the matcher; it counts CPU time, so that a busy machine changes nothing.
_MATCHER = ("import json, re, signal, sys\n"
            "pattern, text, seconds = json.load(sys.stdin)\n"
            "signal.setitimer(signal.ITIMER_VIRTUAL, seconds)\n"
            "print(int(re.search(pattern, text) is not None))\n")


class CueError(ValueError):
  """A cue that cannot be."""


class Cue(NamedTuple):
  """A cue, which fits some tasks; `kind` is of `KINDS`."""

  kind: str
  pattern: str


def checked(kind: object, pattern: object, *, by_person: bool = False) -> Cue:
  """Returns a cue.

  Args:
    kind: of `MODEL_KINDS`; of `KINDS` where a person wrote it.
    pattern: at most `MOST_PATTERN` characters.
    by_person: whether it comes from a person's config.

  Raises:
    CueError: for a kind or pattern that cannot be, naming it.
  """
  kinds = KINDS if by_person else MODEL_KINDS
  if not isinstance(kind, str) or kind not in kinds:
    raise CueError(f"cue.kind={kind!r} must be one of {', '.join(kinds)}")
  if not isinstance(pattern, str) or not pattern.strip() or len(pattern) > MOST_PATTERN:
    raise CueError(f"cue.pattern={pattern!r} must be text of 1 to {MOST_PATTERN} characters")
  if kind == "glob" and not pattern.replace("*", "").replace("?", "").strip():
    raise CueError(f"cue.pattern={pattern!r} matches everything: name something of the task")
  if kind == "regex":
    try:
      re.compile(pattern)
    except re.error as error:
      raise CueError(f"cue.pattern={pattern!r} is no regex: {error}") from error
  return Cue(kind, pattern)


def matches(cue: Cue, task: str) -> bool:
  """Returns whether a lesson is for a task.

  Keywords are whole words, and case does not count; globs, with * and ?, are for the whole task.

  Raises:
    CueError: for a regex that took longer than `REGEX_CPU_S`.
  """
  text = task[:MOST_TEXT]
  if cue.kind == "keyword":
    return re.search(rf"(?<!\w){re.escape(cue.pattern.casefold())}(?!\w)", text.casefold()) is not None
  return _glob(cue.pattern.casefold(), text.casefold()) if cue.kind == "glob" else _regex(cue.pattern, text)


def _glob(pattern: str, text: str) -> bool:
  """Returns whether a glob matches: only the last star is ever tried again."""
  at, place, star, mark = 0, 0, -1, 0
  while place < len(text):
    if at < len(pattern) and pattern[at] == "*":
      star, mark, at = at, place, at + 1
    elif at < len(pattern) and pattern[at] in ("?", text[place]):
      at, place = at + 1, place + 1
    elif star >= 0:
      mark += 1
      at, place = star + 1, mark
    else:
      return False
  return not pattern[at:].strip("*")


def _regex(pattern: str, text: str) -> bool:
  try:
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _MATCHER], capture_output=True, text=True,
                          check=False, input=json.dumps([pattern, text, REGEX_CPU_S]), timeout=_BACKSTOP_S)
  except subprocess.TimeoutExpired as error:
    raise CueError(f"cue.pattern={pattern!r} was not matched within {_BACKSTOP_S} s") from error
  if done.returncode:
    raise CueError(f"cue.pattern={pattern!r} took more than {REGEX_CPU_S} s of CPU: write it without "
                   "nested repeats")
  return done.stdout.strip() == "1"
