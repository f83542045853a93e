"""Cues of lessons: which tasks a lesson is for.

A model may write keywords and globs, which are matched without repeats: in time that is at most the length
of the text times that of the pattern. Regexes come from a person's config alone and run in a process of their
own, because one that was written badly, or with intent, can take for ever.
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
  """Returns whether a glob matches; between its stars the first place that fits is always as good as any."""
  first, *parts = [re.compile(".".join(map(re.escape, part.split("?"))), re.DOTALL)
                   for part in pattern.split("*")]
  if not parts:
    return first.fullmatch(text) is not None
  found = first.match(text)
  for part in parts[:-1]:
    found = found and part.search(text, found.end())
  if found is None:
    return False
  start = len(text) - len(pattern.rpartition("*")[2])
  return start >= found.end() and parts[-1].fullmatch(text, start) is not None


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
