"""Attempts of one step as ranked responses: pairs of a worse and a better answer that were both graded.

Two attempts make a pair if a grader or a judge scored both, the scores differ, and so do the texts. Old
traces call the last attempt passed without a check and keep no text of the first; nothing can be learnt from
that order, and they are refused. Every step that gives no group is counted, with its reason.

A row is that of `data.responses`: {"prompt", "responses": [{"text", "rank", "score"}], "meta"}.
"""
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from atlas_jax.data import responses
from atlas_jax.data.responses import AnswerGroup
from atlas_jax.data.traces import step_prompts
from atlas_jax.data.traces.jsonl import FoundTrace
from atlas_jax.data.traces.record import Attempt, Step, Trace

GRADED = ("grader", "judge")
REASONS = {
    "one_attempt": "there is one attempt, or none is listed",
    "unchecked": "fewer than two attempts have a score of a grader or judge",
    "no_text": "fewer than two scored attempts keep their text",
    "same_text": "the texts are the same",
    "equal_scores": "the scores are equal",
    "contradiction": "one text has two scores",
}


def groups(found: Iterable[FoundTrace], refused: Counter, *, prompt: str = "task") -> Iterator[AnswerGroup]:
  """Yields the groups of traces, and counts in `refused` the steps that give none, by reason.

  Args:
    found: traces that passed the filters.
    refused: reason -> count, added to.
    prompt: what the responses answer, see `step_prompts.of_step`.
  """
  for where, trace in found:
    for step in step_prompts.unique_steps(trace, refused):
      scored, why = _scored(step)
      if why is not None:
        refused[why] += 1
        continue
      row = _row(trace, step, scored, prompt)
      yield responses.parse_row(f"{where}#{step.step_id}", row)


def _scored(step: Step) -> tuple[list[tuple[str, float]], str | None]:
  """Returns (text, score) of the attempts that count, and why they make no group, None if they do."""
  if len(step.attempts) < 2:
    return [], "one_attempt"
  graded = [one for one in step.attempts if one.score.has_verdict and one.score.source in GRADED]
  if len(graded) < 2:
    return [], "unchecked"
  worth: dict[str, float] = {}
  for one in graded:
    text, score = text_of(one), one.score.value
    if text is None or score is None:
      continue
    if worth.setdefault(text, score) != score:
      return [], "contradiction"
  if len(worth) < 2:
    kept = sum(text_of(one) is not None for one in graded)
    return [], "no_text" if kept < 2 else "same_text"
  return list(worth.items()), "equal_scores" if len(set(worth.values())) < 2 else None


def text_of(attempt: Attempt) -> str | None:
  """Returns the text of an attempt; None where the trace did not keep it."""
  answer = attempt.answer
  return answer if answer is not None and answer.strip() else None


def _row(trace: Trace, step: Step, scored: list[tuple[str, float]], prompt: str) -> dict[str, Any]:
  ranks = responses.renumbered([-score for _, score in scored])
  listed = [{"text": text, "rank": rank, "score": score}
            for (text, score), rank in zip(scored, ranks, strict=True)]
  meta = {"session_id": trace.session_id, "step_id": step.step_id, "learning_key": trace.learning_key}
  return {"prompt": step_prompts.of_step(trace, step, prompt), "responses": listed,
          "meta": {name: value for name, value in meta.items() if value is not None}}
