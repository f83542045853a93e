"""Steps of a session, and the attempts at each.

Attempts stand in a step's `attempt_details` (or `attempt_history`, or `attempts` where that is a list); an
attempt of schema version 2 has answer, score, score_source and tokens beside what old ones have.
"""
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from atlas_jax.data.traces.score import Score
from atlas_jax.data.traces.values import (
  NOTHING,
  as_boolean,
  as_number,
  as_object,
  as_text,
  as_texts,
  decoded,
)


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One answer of the student to a step.

  Attributes:
    data: its JSON object.
    number: from 1.
  """

  data: Mapping[str, Any]
  number: int

  @property
  def answer(self) -> str | None:
    """The student's text; None in traces that did not keep it."""
    return as_text(self.data.get("answer")) or None

  @property
  def status(self) -> str | None:
    """"passed", "failed", "unverified" or "errored"; None: not said."""
    return self.data.get("status")

  @property
  def validation(self) -> Mapping[str, Any]:
    """The teacher's verdict on it, empty where there is none."""
    return as_object(self.data.get("validation")) or as_object(self._evaluation.get("validation"))

  @property
  def valid(self) -> bool | None:
    """The teacher's verdict; None: there is none, or it is no boolean."""
    return as_boolean(self.validation.get("valid"))

  @property
  def guidance(self) -> tuple[str, ...]:
    """Guidance that the teacher gave after it."""
    return as_texts(self.data.get("guidance")) or as_texts(self.validation.get("guidance"))

  @property
  def score(self) -> Score:
    """Its score by a grader or judge; in old traces the reward of its evaluation."""
    if "score" in self.data:
      source = self.data.get("score_source")
      return Score.of(self.data["score"], source if source in ("grader", "judge") else None)
    return Score.read(self._evaluation.get("reward"), "judge")

  @property
  def tokens(self) -> Mapping[str, Any] | None:
    """role -> {prompt, completion, calls}; None: not counted."""
    return self.data.get("tokens")

  @property
  def _evaluation(self) -> Mapping[str, Any]:
    return as_object(self.data.get("evaluation"))


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of a session.

  Attributes:
    data: its JSON object.
    position: its place among the steps, from 0.
  """

  data: Mapping[str, Any]
  position: int

  @property
  def step_id(self) -> int | str:
    """Its id; its place from 1 where it has none."""
    for name in ("step_id", "id"):
      if isinstance(self.data.get(name), int | str):  # One that was too long is none.
        return self.data[name]
    return self.position + 1

  @property
  def description(self) -> str:
    """The words of the plan for it."""
    return as_text(self.data.get("description"))

  @property
  def output(self) -> str:
    """The student's last text."""
    return as_text(self.data.get("output"))

  @property
  def trace(self) -> str:
    """Transcript of the step."""
    return as_text(self.data.get("trace"))

  @property
  def answer(self) -> str:
    """The deliverable if it is a text, else the output."""
    delivered = self.data.get("deliverable")
    return delivered if isinstance(delivered, str) and delivered.strip() else self.output

  @property
  def metadata(self) -> Mapping[str, Any]:
    """Its metadata."""
    return as_object(self.data.get("metadata"))

  @property
  def context(self) -> Mapping[str, Any]:
    """Results of the steps before it."""
    for name in ("context", "prior_results", "context_outputs"):
      if self.data.get(name):
        return decoded(self.data[name])
    return NOTHING

  @property
  def tool(self) -> str | None:
    """Name of its tool."""
    name = self.data.get("tool") or self.tool_params.get("name")
    return name if isinstance(name, str) else None

  @property
  def tool_params(self) -> Mapping[str, Any]:
    """Parameters of its tool."""
    return decoded(self.data.get("tool_params"))

  @property
  def validation(self) -> Mapping[str, Any]:
    """The teacher's verdict, empty where there is none."""
    return as_object(self.data.get("validation"))

  @property
  def guidance(self) -> tuple[str, ...]:
    """The teacher's notes in order, without blank ones."""
    return as_texts(self.data.get("guidance"))

  @property
  def reward(self) -> Score:
    """Its score, no verdict for the placeholders that old runtimes write."""
    return Score.read(self.data.get("evaluation") or self.data.get("reward"), "steps")

  @functools.cached_property
  def attempts(self) -> tuple[Attempt, ...]:
    """Its attempts in order, as far as the trace lists them."""
    for name in ("attempts", "attempt_details", "attempt_history"):
      listed = self.data.get(name)
      if isinstance(listed, list) and listed:
        return tuple(Attempt(one, as_number(one.get("attempt"), place))
                     for place, one in enumerate(listed, start=1))
    return ()

  @property
  def attempt_count(self) -> int:
    """Number of attempts that were made, at least 1."""
    count = self.data.get("attempts")
    return max(1, count if isinstance(count, int) else len(self.attempts) or len(self.guidance))
