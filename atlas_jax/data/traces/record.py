"""One session of agents as a record: what the SDK exports, what stores hold, and what training reads.

A `Trace` keeps its JSON object whole, keys that nobody knows included, and reads typed values from it, so
that `Trace.from_json(x).to_json()` is x up to what cannot be stored, see `storable`. Where a key stands in
two places, such as learning_key in the record and in its metadata, the record's own wins. Review, verdicts
and rewards are read from the record alone: whoever starts a session writes keys into its metadata, and must
not approve or reward it there.
"""
import dataclasses
import datetime
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from atlas_jax.data.traces import record_fields, storable
from atlas_jax.data.traces.score import Score, is_outage
from atlas_jax.data.traces.steps import Attempt, Step
from atlas_jax.data.traces.values import as_boolean, as_object, as_text, as_texts, as_word

__all__ = ["Attempt", "Score", "Step", "Trace"]


@dataclasses.dataclass(frozen=True)
class Trace:
  """One session.

  Attributes:
    data: its JSON object, storable, with all keys that it came with.
    sanitized: how much of it was replaced when it was read, see `storable`.
  """

  data: Mapping[str, Any]
  sanitized: int = 0

  @classmethod
  def from_json(cls, value: Any) -> "Trace":
    """Reads a record.

    Args:
      value: the JSON object.

    Raises:
      ValueError: if it is no object, a field has a type that it cannot have, or `task` is missing or too
        long; the message names the field.
    """
    if not isinstance(value, dict):
      raise ValueError(f"is {record_fields.kind(value)}, not an object")
    record_fields.check("trace", "", value)
    found, count = storable.record(value)
    if not isinstance(found["task"], str):  # Without the question there is nothing to learn.
      raise ValueError(f"task has {found['task'][storable.TRUNCATED]} bytes; it must have at most "
                       f"{storable.MOST_TEXT_BYTES}")
    before = found.get("sanitized") or 0
    return cls({**found, "sanitized": before + count} if count else found, before + count)

  def to_json(self) -> dict[str, Any]:
    """Returns the record as a JSON object."""
    return dict(self.data)

  def changed(self, **fields: Any) -> "Trace":
    """Returns the trace with some fields of its record replaced."""
    return Trace.from_json({**self.data, **fields})

  @functools.cached_property
  def sha256(self) -> str:
    """Hash of the record: equal for equal records, whatever the order of their keys."""
    return hashlib.sha256(storable.canonical(self.data).encode()).hexdigest()

  @property
  def identity(self) -> str:
    """Text that tells sessions apart: the session's id, or the hash of the record where it has none."""
    return f"sha256:{self.sha256}" if self.session_id is None else str(self.session_id)

  @property
  def task(self) -> str:
    """The user's request."""
    return self.data["task"]

  @property
  def final_answer(self) -> str:
    """The text that was delivered, "" if there is none."""
    return as_text(self.data.get("final_answer"))

  @property
  def plan(self) -> Any:
    """{steps, execution_mode}, or what was found in its place."""
    return {} if self.data.get("plan") is None else self.data["plan"]

  @functools.cached_property
  def steps(self) -> tuple[Step, ...]:
    """Its steps in order."""
    return tuple(Step(one, place) for place, one in enumerate(self.data.get("steps") or ()))

  @property
  def session_metadata(self) -> Mapping[str, Any]:
    """Keys of the caller and of the runtime."""
    return as_object(self.data.get("session_metadata"))

  @property
  def session_id(self) -> int | str | None:
    """Id of the session."""
    return self._either("session_id")

  @property
  def status(self) -> str | None:
    """"running", "succeeded", "failed" and others; None: not said."""
    return as_word(self._either("status"))

  @property
  def review_status(self) -> str | None:
    """"pending", "approved", "quarantined"; None: not said, which is as good as pending."""
    return as_word(self.data.get("review_status"))

  @property
  def lane(self) -> str | None:
    """Amount of supervision: "auto", "paired", "coach" or "escalate"."""
    adaptive = as_object(self.data.get("adaptive_summary")) or as_object(
        self.session_metadata.get("adaptive_summary"))
    routing = as_object(self.data.get("routing"))
    found = self._either("execution_mode") or adaptive.get("adaptive_mode") or routing.get("lane")
    return as_word(found) if isinstance(found, str) else None

  @property
  def verified(self) -> bool | None:
    """True if the answer passed its last check; None: it was not checked, as in all old traces.

    Old traces call the last attempt valid whatever it is, so that nothing is concluded from that.
    """
    return as_boolean(self.data.get("verified"))

  @property
  def learning_key(self) -> str | None:
    """Name of the family of tasks."""
    found = self._either("learning_key")
    return found if isinstance(found, str) and found else None

  @property
  def ground_truth(self) -> str | None:
    """The right answer as a text."""
    found = self._either("ground_truth")
    if found is None and len(self.steps) == 1:  # Of several steps each has its own.
      found = self.steps[0].metadata.get("ground_truth")
    if isinstance(found, str):
      return found if found.strip() else None
    return str(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

  @property
  def guidance(self) -> tuple[str, ...]:
    """All that the teacher said, in order."""
    of_steps = tuple(note for step in self.steps for note in step.guidance)
    return of_steps or as_texts(self._either("teacher_notes"))

  @property
  def has_guidance(self) -> bool:
    """True if the teacher said anything."""
    return bool(self.guidance) or any(one.guidance for step in self.steps for one in step.attempts)

  @property
  def created_at(self) -> str | None:
    """When the session began, as the record has it."""
    found = self._either("created_at")
    return found if isinstance(found, str) else None

  @property
  def created(self) -> datetime.datetime | None:
    """When the session began, in UTC where no zone is given; None: not said, or not readable."""
    try:
      found = datetime.datetime.fromisoformat((self.created_at or "").replace("Z", "+00:00"))
    except ValueError:
      return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)

  @property
  def versions(self) -> Mapping[str, Any]:
    """{runtime, student, teacher, judge, prompt_sha, protocol, playbook}, empty in old traces."""
    return as_object(self.data.get("versions")) or as_object(self.session_metadata.get("versions"))

  @functools.cached_property
  def reward(self) -> Score:
    """The session's score, else that of its statistics, else the mean of its steps' real scores."""
    status = self.data.get("reward_status")
    if status not in (None, "ok"):
      return Score.absent(f"the reward's status is {status}", "session")
    session = self.session_reward
    if session.has_verdict:
      return session
    stats = Score.of_stats(self.data.get("reward_stats"))
    if stats.has_verdict:
      return stats
    real = [score for step in self.steps if (score := step.reward.value) is not None]
    if real:
      return Score(sum(real) / len(real), None, "steps")
    if self._payload is not None:
      return session
    return stats if self.data.get("reward_stats") else Score.absent("there is no reward")

  @property
  def session_reward(self) -> Score:
    """The score of the whole session alone."""
    found = Score.read(self._payload, "session")
    stats = as_object(self.data.get("reward_stats"))
    if found.value == 0 and Score.of_stats(stats).value is None and (
        stats.get("sample_count") == 1 or is_outage(stats)):
      # The breakdown of an outage may have lost its samples; its statistics still have them.
      return Score.absent("the reward's statistics are those of an outage", "session")
    return found

  @property
  def _payload(self) -> Any:
    found = self.data.get("session_reward")
    return self.data.get("reward") if found is None else found

  def _either(self, name: str) -> Any:
    """Returns a field of the record, else of its metadata."""
    found = self.data.get(name)
    return self.session_metadata.get(name) if found is None else found
