"""Results of sessions."""
from collections.abc import Mapping
from typing import Any, NamedTuple

STATUSES = ("succeeded", "failed", "cancelled", "timed_out", "abandoned", "needs_human")
ATTEMPTS = ("passed", "failed", "unverified", "errored")
REWARDS = ("ok", "no_verdict", "skipped", "pending")
STORAGE = ("stored", "spooled", "off", "failed")


class AttemptRecord(NamedTuple):
  """One answer of the student to one step; `record_fields.ATTEMPT` names what of it a trace keeps."""

  step: int | str
  attempt: int                      # from 1
  answer: str | None
  status: str                       # one of ATTEMPTS
  guidance: str | None = None       # that the teacher gave after it
  validation: Mapping[str, Any] | None = None  # {valid, guidance, confidence}; None: no verdict
  score: float | None = None        # of a grader or judge, in [0, 1]
  score_source: str | None = None   # "grader" or "judge"
  tokens: Mapping[str, Any] = {}    # role -> {prompt, completion, calls}
  started: float = 0.0              # seconds since 1970
  ended: float = 0.0
  problem: str | None = None        # why it is errored or unverified


class SessionResult(NamedTuple):
  """A session that has ended.

  `reward` is None where it is not known, and `reward_reason` says why; `Runtime.reward` waits for one that
  is pending.
  """

  session_key: str
  session_id: int | None            # of the store's row; None: not stored, or spooled
  answer: str | None
  verified: bool | None             # None: not checked
  lane: str | None
  status: str                       # one of STATUSES
  attempts: tuple[AttemptRecord, ...] = ()
  reward: float | None = None
  reward_status: str = "pending"    # one of REWARDS
  reward_reason: str | None = None
  storage_status: str = "off"       # one of STORAGE
  tokens: Mapping[str, Any] = {}    # role -> {prompt, completion, calls}, of all roles
  versions: Mapping[str, Any] = {}  # {runtime, student, teacher, judge, prompt_sha, protocol, playbook}
  problem: str | None = None        # why it did not succeed
  resumed: bool = False             # whether it was there already, or a crash was mended

  def to_json(self) -> dict[str, Any]:
    """Returns the result as a JSON object, attempts as a list of objects."""
    return {**self._asdict(), "attempts": [one._asdict() for one in self.attempts]}
