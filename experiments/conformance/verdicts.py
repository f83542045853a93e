"""Judges a subject by every check, with the benefit of the doubt.

A check is run in float64 where the package offers it. Where it fails it is run again in float32 with its
wider bound (some packages have float32 inside whatever they are given), with other draws of the start
(liveness), and with every option that the adapter names; the best result counts, and the cell says what it
took. What a package's documentation says does not hold is no fault of it.
"""
import traceback
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.conformance.checks import CHECKS, NEEDS, SEEDS, Finding, Trial
from experiments.conformance.subject import Subject

ORDER = ("pass", "option", "documented", "part", "fail", "error", "n/a")  # From the best on.


class Verdict(NamedTuple):
  """One cell of the table."""

  status: str  # One of ORDER
  text: str  # what was seen, or why it is not asked for
  attempts: Sequence[dict] = ()  # each with option, seed, dtype, status, text and numbers


def judge(subject: Subject, check: str) -> Verdict:
  """Runs one check, again under every option until one passes."""
  lack = subject.lacks.get(NEEDS.get(check, ""))
  if lack is not None:
    return Verdict("n/a", lack)
  attempts = []
  draws = [("", {}, seed) for seed in SEEDS.get(check, (0,))]
  for label, option, seed in (*draws, *((label, option, 0) for label, option in subject.options.items())):
    attempts.append(_attempt(subject, check, label, dict(option), seed))
    if attempts[-1]["status"] == "pass":
      break
  verdict = _verdict(attempts)
  if verdict.status in ("part", "fail") and check in subject.says:
    return verdict._replace(status="documented", text=f"{subject.says[check]}. {verdict.text}")
  return verdict


def _attempt(subject: Subject, check: str, label: str, option: dict, seed: int) -> dict:
  """Runs a check in float64, and in float32 where that does not pass; returns the better, or the first."""
  dtypes, results = ("float32",) if "float64" in subject.lacks else ("float64", "float32"), []
  for dtype in dtypes:
    try:
      found = CHECKS[check](Trial(subject, dtype, seed, option))
    except Exception as error:  # Of a package: whatever it raises is a finding.
      traceback.print_exc()
      found = Finding("error", f"{dtype}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", {})
    results.append({"option": label, "seed": seed, "dtype": dtype, **found._asdict()})
    if found.status == "pass":
      break
  return min(results, key=_rank)


def _rank(attempt: dict) -> int:
  return ORDER.index(attempt["status"])


def _verdict(attempts: Sequence[dict]) -> Verdict:
  """Chooses the best attempt, the first of equals, and says what else was tried."""
  best = min(attempts, key=_rank)
  status, text = best["status"], best["text"]
  if status == "pass" and best["option"]:
    first = attempts[0]["text"]
    return Verdict("option", f"passes with {best['option']}: {text}. Without: {first}", attempts)
  if status == "pass" and best["seed"]:
    text += f"; seed 0 does not: {attempts[0]['text']}"
  tried = [one for one in attempts if one["option"] and one is not best]
  if status != "pass" and tried:
    text += f". Tried too, no better: {', '.join(dict.fromkeys(one['option'] for one in tried))}"
  return Verdict(status, text, attempts)


def judge_all(subjects: Iterable[Subject], checks: Sequence[str]) -> list[dict]:
  """Returns a row for each subject: its name, settings and cells."""
  found = []
  for subject in subjects:
    cells = {check: judge(subject, check)._asdict() for check in checks}
    found.append({"row": subject.name, "settings": subject.settings, "cells": cells})
    subject.release()
  return found
