"""Records of sessions: the trace that stores keep and training reads, of schema version 2."""
import datetime
from typing import Any

from atlas_jax.data.traces.record import Trace
from atlas_jax.rollout import teaching
from atlas_jax.runtime.result import AttemptRecord, SessionResult
from atlas_jax.runtime.work import Work

SCHEMA_VERSION = 2


def versions_of(work: Work) -> dict[str, Any]:
  """Returns the versions that a session ran with."""
  protocol = {"protocol": teaching.PROTOCOL} if work.parts.supervisor is not None else {}
  lessons = {"playbook": work.notes["playbook"]} if "playbook" in work.notes else {}
  return {**protocol, **work.parts.versions, **lessons}


def reward_of(work: Work) -> dict[str, Any]:
  """Returns {value, status, reason, source, breakdown} of a session's reward; None: no value."""
  found = work.state.reward
  if found is not None:
    return {"value": found.get("value"), "status": found["status"], "reason": found.get("reason"),
            "source": found.get("source"), "breakdown": found.get("breakdown")}
  if work.state.answer is None:
    status, reason = "skipped", "there is no answer"
  elif "reward_reason" in work.notes:
    status, reason = "skipped", work.notes["reward_reason"]
  elif work.state.has_ended:
    status, reason = "no_verdict", "; ".join(work.notes.get("problems", ())) or "scoring was cut off"
  else:
    status, reason = "pending", "it is not scored yet"
  return {"value": None, "status": status, "reason": reason, "source": None, "breakdown": None}


def trace_of(work: Work, *, began: float, ended: float) -> Trace:
  """Returns the record of a session that has ended.

  Args:
    work: the session.
    began, ended: seconds since 1970.
  """
  spec, state = work.spec, work.state
  reward = reward_of(work)
  metadata = {**metadata_of(spec), "status": state.outcome or state.status,
              "created_at": _iso(began), "completed_at": _iso(ended)}
  record: dict[str, Any] = {
      "schema_version": SCHEMA_VERSION, "task": spec.task, "final_answer": state.answer or "",
      "verified": state.verified, "execution_mode": state.lane, "steps": _steps(work),
      "session_metadata": metadata, "versions": versions_of(work), "reward_status": reward["status"],
      "routing": dict(state.routing),
      "tokens": {role: dict(counts) for role, counts in work.budget.tokens.items()}}
  if state.plan is not None:
    record["plan"] = dict(state.plan)
  if reward["value"] is not None:
    record["session_reward"] = reward["breakdown"] or {"score": reward["value"], "source": reward["source"]}
    record["reward_stats"] = {"score": reward["value"], "sample_count": 1, "source": reward["source"]}
  elif reward["reason"]:
    metadata["reward_reason"] = reward["reason"]
  for name in ("lessons", "audit", "problems"):
    if work.notes.get(name):
      metadata[name] = work.notes[name]
  if used := [one.use for one in work.parts.streams if one.use is not None]:
    metadata["memory_streams"] = [{"id": one.id, "parent": one.parent, "sessions": list(one.lineage)}
                                  for one in used]
  return Trace.from_json(record)


def metadata_of(spec) -> dict[str, Any]:
  """Returns the metadata of a session: the caller's keys, but for those that are the runtime's, and ours."""
  found = {**{name: value for name, value in spec.metadata.items() if name not in OURS},
           "session_key": spec.key, "tenant_id": spec.tenant}
  given = {"learning_key": spec.learning_key, "tags": list(spec.tags), "ground_truth": spec.ground_truth}
  return found | {name: value for name, value in given.items() if value}


# What callers may not say of themselves: it is the runtime's to derive.
OURS = frozenset({
    "learning_key", "learning_key_override", "tenant_id", "session_key", "session_id", "status", "created_at",
    "completed_at", "review_status", "ground_truth", "versions", "verified", "lessons", "audit", "problems",
    "memory_streams",
    "reward_reason", "tags", "execution_mode", "adaptive_summary", "drift", "drift_alert"})


def result_of(trace: Trace, *, key: str, number: int) -> SessionResult:
  """Returns the result of a session that is stored.

  Args:
    trace: its record.
    key, number: of it.
  """
  data = trace.data
  attempts = tuple(
      AttemptRecord(step.step_id, one.number, one.answer, one.status or "unverified",
                    guidance=one.guidance[0] if one.guidance else None, validation=one.validation or None,
                    score=one.score.value, score_source=one.data.get("score_source"), tokens=one.tokens or {})
      for step in trace.steps for one in step.attempts)
  return SessionResult(
      session_key=key, session_id=number, answer=trace.final_answer or None, verified=trace.verified,
      lane=trace.lane, status=trace.status or "failed", attempts=attempts, reward=trace.reward.value,
      reward_status=data.get("reward_status") or "no_verdict",
      reward_reason=trace.session_metadata.get("reward_reason"), storage_status="stored",
      tokens=data.get("tokens") or {}, versions=trace.versions, resumed=True)


def _steps(work: Work) -> list[dict[str, Any]]:
  state = work.state
  described = {one["id"]: one for one in (state.plan or {}).get("steps", ())}
  planned = described if len(described) > 1 else ()
  names = dict.fromkeys([*planned, *(one.step for one in state.attempts)])
  return [_step(work, name, described.get(name, {})) for name in names]


def _step(work: Work, name: int | str, described: dict[str, Any]) -> dict[str, Any]:
  made = [one for one in work.state.attempts if one.step == name]
  settled = work.state.settled.get(name)
  last = made[-1] if made else None
  scored = next((one for one in reversed(made) if one.score is not None), None)
  verdict = last.validation if last else None
  found: dict[str, Any] = {
      "step_id": name, "description": described.get("description", ""),
      "output": (settled.answer if settled else last.answer if last else None) or "",
      "attempts": len(made), "attempt_details": [_attempt(one) for one in made],
      "guidance": [one.guidance for one in made if one.guidance]}
  if described.get("depends_on"):
    found["depends_on"] = described["depends_on"]
  if verdict:
    found["validation"] = dict(verdict)
  if scored is not None:
    found["reward"] = {"score": scored.score, "source": scored.score_source}
  elif verdict and isinstance(verdict.get("valid"), bool):
    found["reward"] = {"score": float(verdict["valid"]), "source": "validator"}
  return found


def _attempt(one: AttemptRecord) -> dict[str, Any]:
  found = {"attempt": one.attempt, "status": one.status, "answer": one.answer, "score": one.score,
           "score_source": one.score_source, "tokens": dict(one.tokens), "started": round(one.started, 3),
           "ended": round(one.ended, 3)}
  if one.validation is not None:
    found["validation"] = dict(one.validation)
  if one.guidance:
    found["guidance"] = one.guidance
  if one.problem:
    found["problem"] = one.problem
  return found


def _iso(seconds: float) -> str:
  return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
