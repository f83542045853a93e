"""Records in the form of the Atlas SDK's exporter, built from rows of its tables.

The form is large: events, audits and statistics stand in the record and again in its metadata, and all keys
of a step's metadata stand twice. Rewards are coerced: a score that is no number is 0.0.

Source: what the exporter of the Atlas SDK 0.1.15 writes, recorded in the fixture export_all.jsonl.
"""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LANE = "execution_mode"
# Keys of a session's metadata that a record has at its top if they are not empty, in their order there.
LIFTED = ("adaptive_summary", "triage_dossier", "learning_key", "learning_history", "teacher_notes",
          "reward_summary", "drift", "drift_alert")
HOISTED = ("type", "event_type", "name", "actor")
OF_PLAN = ("id", "description", "tool", "tool_params", "depends_on")


class SessionRows(NamedTuple):
  """The rows of one session, JSON decoded.

  Attributes:
    session: columns of `sessions`, and "plan"; times in ISO 8601.
    steps: columns of `step_results` in the order of their ids, with "attempt_details", a list of
      {attempt, evaluation}, and "guidance_notes", a list of texts.
    events: {id, event, created_at}, oldest first.
  """
  session: dict[str, Any]
  steps: list[dict[str, Any]]
  events: list[dict[str, Any]]


def build(rows: SessionRows) -> dict[str, Any]:
  """Returns the record of a session, its keys in the exporter's order."""
  row = rows.session
  metadata = _enriched(rows)
  plan = plan_of(row["plan"])
  record = {"task": row["task"] or "", "final_answer": row["final_answer"] or "", "plan": plan,
            "steps": _steps(rows.steps, plan), "session_metadata": metadata}
  summary = metadata.get("adaptive_summary")
  lane = metadata.get(LANE) or (summary.get("adaptive_mode") if isinstance(summary, dict) else None)
  if isinstance(lane, str) and lane:
    record[LANE] = lane
  for name in ("review_status", "review_notes"):
    _keep_text(record, name, row[name])
  _keep_if(record, "reward_stats", row["reward_stats"])
  _keep_if(record, "reward_audit", row["reward_audit"])
  _keep_if(record, "session_reward", row["reward"])
  for name in ("student_learning", "teacher_learning"):
    _keep_text(record, name, row[name])
  for name in LIFTED:
    value = metadata.get(name)
    if isinstance(value, bool) or value not in (None, "", {}, []):
      record[name] = value
  _keep_if(record, "trajectory_events", metadata.get("trajectory_events"))
  return record


def _keep_if(record: dict, name: str, value: Any) -> None:
  if value:
    record[name] = value


def _keep_text(record: dict, name: str, value: Any) -> None:
  if isinstance(value, str) and value.strip():
    record[name] = value


def _enriched(rows: SessionRows) -> dict[str, Any]:
  """Returns the metadata with the columns that the exporter adds to it."""
  row = rows.session
  metadata = dict(row["metadata"]) if isinstance(row["metadata"], dict) else {}
  for name, column in (("session_id", "id"), ("status", "status")):
    if row[column] is not None:
      metadata.setdefault(name, row[column])
  for name in ("created_at", "completed_at"):
    if row[name] is not None and not metadata.get(name):
      metadata[name] = row[name]
  if rows.events:
    metadata["trajectory_events"] = [hoisted(event) for event in rows.events]
  # The column decides: a review moves it, and not what stands in the metadata.
  if row["review_status"]:
    metadata["review_status"] = row["review_status"]
  for name in ("reward_stats", "reward_audit"):
    if row[name]:
      metadata.setdefault(name, row[name])
  return metadata


def hoisted(event: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an event with those keys beside `event` that stand directly under it."""
  inner = event["event"]
  found = dict(event)
  if isinstance(inner, dict):
    found.update({name: inner[name] for name in HOISTED if name in inner and name not in found})
  return found


def plan_of(found: Any) -> dict[str, Any]:
  """Returns a plan with the keys of its model in order; one that does not fit the model as it was found."""
  if not isinstance(found, dict):
    return {}
  steps = found.get("steps")
  fits = (isinstance(steps, list) and all(_fits(step) for step in steps)
          and isinstance(found.get(LANE, "stepwise"), str) and found.keys() <= {"steps", LANE})
  if not fits or not isinstance(steps, list):
    return found
  defaults = {"tool": None, "tool_params": None, "depends_on": []}
  ordered = [{name: step.get(name, defaults.get(name)) for name in OF_PLAN} for step in steps]
  return {"steps": ordered, LANE: found.get(LANE, "stepwise")}


def _fits(step: Any) -> bool:
  return (isinstance(step, dict) and step.keys() <= set(OF_PLAN) and type(step.get("id")) is int
          and isinstance(step.get("description"), str)
          and isinstance(step.get("tool"), str | None) and isinstance(step.get("tool_params"), dict | None)
          and isinstance(step.get("depends_on", []), list))


def steps_of_plan(plan: Any) -> dict[int, Mapping[str, Any]]:
  """Returns the steps of a plan by id."""
  listed = plan.get("steps") if isinstance(plan, dict) else None
  found: dict[int, Mapping[str, Any]] = {}
  for step in listed if isinstance(listed, list) else ():
    if isinstance(step, dict) and type(step.get("id")) is int:
      found[step["id"]] = step
  return found


def _steps(rows: Sequence[Mapping[str, Any]], plan: dict) -> list[dict[str, Any]]:
  planned = steps_of_plan(plan)
  built: list[dict[str, Any]] = []
  results: dict[str, Any] = {}
  for row in rows:
    step = _step(row, planned.get(row["step_id"], {}), dict(results))
    built.append(step)
    results[str(row["step_id"])] = result_of(step)
  return built


def result_of(step: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what later steps are shown of a step."""
  metadata = step.get("metadata") or {}
  result = {"output_text": step["output"]}
  for name in ("artifacts", "status"):
    if metadata.get(name) is not None:
      result[name] = metadata[name]
  if metadata.get("notes"):
    result["notes"] = metadata["notes"]
  return result


def context_of(results: dict[str, Any]) -> dict[str, Any]:
  """Returns the context of a step from the results of the steps before it."""
  texts = {name: one["output_text"] for name, one in results.items()}
  return {"prior_results": results, "prior_results_text": texts}


def _step(row: Mapping[str, Any], planned: Mapping[str, Any], results: dict[str, Any]) -> dict[str, Any]:
  evaluation = row["evaluation"]
  of = evaluation if isinstance(evaluation, dict) else {}
  notes = row["guidance_notes"]
  details = row["attempt_details"]
  metadata = _metadata(row, planned)
  count = row["attempts"]
  tool_params = planned.get("tool_params")
  validation = of.get("validation")
  step = {
    "step_id": row["step_id"], "description": planned.get("description") or "", "trace": row["trace"] or "",
    "output": row["output"] or "", "reward": coerced(of.get("reward")), "tool": planned.get("tool"),
    "tool_params": tool_params if isinstance(tool_params, dict) else {},
    "context": context_of(results),
    "validation": validation if isinstance(validation, dict) else {},
    "attempts": count if count is not None else len(details) or len(notes), "guidance": list(notes)}
  for name in ("artifacts", "deliverable", "runtime"):
    if metadata.get(name) is not None:
      step[name] = metadata[name]
  step.update({name: value for name, value in metadata.items() if name not in step})
  step["metadata"] = metadata
  return step


def _metadata(row: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the metadata of a step with attempts, evaluation and dependencies added."""
  found = row["metadata"]
  metadata = dict(found) if isinstance(found, dict) else {} if found is None else {"raw": found}
  if row["attempt_details"]:
    metadata.setdefault("attempt_history", row["attempt_details"])
    metadata.setdefault("attempt_details", row["attempt_details"])
  metadata.setdefault("raw_evaluation", row["evaluation"] or {"raw": row["evaluation"]})
  if isinstance(planned.get("depends_on"), list):
    metadata.setdefault("depends_on", list(planned["depends_on"]))
  return metadata


def coerced(reward: Any) -> dict[str, Any]:
  """Returns a reward with all keys that the exporter writes, numbers coerced, and itself as `raw`."""
  found = reward if isinstance(reward, dict) else {}
  judges = [_judge(one) for one in _objects(found, "judges")]
  return {"score": _number(found.get("score", 0.0)), "judges": judges, "rationale": found.get("rationale"),
          "raw": found}


def _judge(found: Mapping[str, Any]) -> dict[str, Any]:
  samples = [{"score": _number(one.get("score")), "rationale": one.get("rationale") or "",
              "principles": one.get("principles") or [], "uncertainty": _number(one.get("uncertainty"), None),
              "temperature": _number(one.get("temperature"), None)} for one in _objects(found, "samples")]
  return {"identifier": found.get("identifier") or "", "score": _number(found.get("score")),
          "rationale": found.get("rationale") or "", "principles": found.get("principles") or [],
          "samples": samples, "escalated": bool(found.get("escalated", False)),
          "escalation_reason": found.get("escalation_reason")}


def _objects(found: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
  listed = found.get(name)
  return [one if isinstance(one, dict) else {} for one in listed] if isinstance(listed, list) else []


def _number(value: Any, without: float | None = 0.0) -> float | None:
  """Returns a number, `without` for what is none."""
  try:
    return float(value)
  except (TypeError, ValueError, OverflowError):
    return without
