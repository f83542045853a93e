"""The fields of a trace by name: which JSON types each may have, and what it means.

One table for the check of a record, for the JSON Schema and for the documentation. A field that the tables do
not name is kept as it is. Fields that may be null count as absent when they are.

Source: the trace of the Atlas SDK 0.1.15, with the keys of 0.1.3 and those of schema version 2.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

KINDS: dict[type, str] = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer",
                          float: "number", type(None): "null"}
# (table, field) -> table of the objects that the field lists.
LISTED = {("trace", "steps"): "step", **{("step", name): "attempt" for name in
                                         ("attempts", "attempt_history", "attempt_details")}}


class Field(NamedTuple):
  """One field."""

  types: tuple[str, ...]  # of JSON; () takes any
  meaning: str


def _field(types: str, meaning: str) -> Field:
  return Field(tuple(types.split()), meaning)


REWARD = "object string number null"  # A breakdown, JSON text of one, or a bare number.
OBJECT = "object null"
LIST = "array null"
TEXT = "string null"
ANY = ""

TRACE: Mapping[str, Field] = {
    "task": _field("string", "the user's request; may be empty"),
    "final_answer": _field(TEXT, "text that the session delivered"),
    "plan": _field(ANY, "{steps: [{id, description, tool, tool_params, depends_on}], execution_mode}, or "
                   "what was found in its place"),
    "steps": _field(LIST, "what was done, in order"),
    "session_metadata": _field(OBJECT, "keys of the caller and of the runtime: session_id, status, ..."),
    "execution_mode": _field(TEXT, "the lane that was used: auto, paired, coach; in old traces escalate"),
    "review_status": _field(TEXT, "pending, approved or quarantined"),
    "review_notes": _field(TEXT, "note of the reviewer or of the drift guard"),
    "reward_stats": _field(OBJECT, "{score, score_mean, score_stddev, sample_count, uncertainty_mean, ...}"),
    "reward_audit": _field(LIST, "calls of judges"),
    "session_reward": _field(REWARD, "{score, rationale, judges, raw} of the whole session"),
    "reward": _field(REWARD, "session_reward under its older name"),
    "student_learning": _field(TEXT, "the lesson for the student"),
    "teacher_learning": _field(TEXT, "the lesson for the teacher"),
    "adaptive_summary": _field(OBJECT, "{adaptive_mode, mode_history, confidence, probe}"),
    "triage_dossier": _field(OBJECT, "what was known before the run"),
    "learning_key": _field(TEXT, "groups the sessions of one family of tasks"),
    "learning_history": _field(OBJECT, "digest of earlier sessions"),
    "teacher_notes": _field(LIST, "all guidance of all steps"),
    "reward_summary": _field(OBJECT, "{score, ...}, or {average, count} over steps"),
    "drift": _field(OBJECT, "how far the reward is from its baseline"),
    "drift_alert": _field("boolean null", "whether that is too far"),
    "trajectory_events": _field(LIST, "events, oldest first"),
    "personas_used": _field(LIST, "personas, up to version 0.1.3"),
    "persona_updates": _field(OBJECT, "{new_candidates, promotion_result}, up to version 0.1.3"),
    "persona_usage": _field(OBJECT, "persona -> {reward, retries, mode}, up to version 0.1.3"),
    "session_id": _field("integer string null", "of the session, where it stands outside of its metadata"),
    "status": _field(TEXT, "of the session, where it stands outside of its metadata"),
    "created_at": _field(TEXT, "time in ISO 8601, where it stands outside of the metadata"),
    "completed_at": _field(TEXT, "time in ISO 8601, where it stands outside of the metadata"),
    "ground_truth": _field("string number boolean null", "the answer, where it is not in the metadata"),
    "schema_version": _field("integer null", "2; traces without it are of version 1"),
    "versions": _field(OBJECT, "{runtime, student, teacher, judge, prompt_sha, protocol, playbook}"),
    "verified": _field("boolean null", "whether the answer passed its last check; null: it was not checked"),
    "reward_status": _field(TEXT, "ok, no_verdict, skipped or pending"),
    "routing": _field(OBJECT, "{rule, inputs, lane}"),
    "tokens": _field(OBJECT, "role -> {prompt, completion, calls}, of the whole session"),
    "sanitized": _field("integer null", "how much was replaced because no store takes it"),
}
STEP: Mapping[str, Field] = {
    "step_id": _field("integer string null", "of the step"),
    "id": _field("integer string null", "step_id under its older name"),
    "description": _field(TEXT, "what was to be done"),
    "tool": _field(TEXT, "name of the tool"),
    "tool_params": _field("object string null", "its parameters, or JSON text of them"),
    "trace": _field(TEXT, "transcript"),
    "output": _field(TEXT, "text that the student wrote"),
    "reward": _field(REWARD, "{score, rationale, judges, raw} of the step"),
    "evaluation": _field(REWARD, "reward under its older name"),
    "context": _field("object string null", "{prior_results, prior_results_text}, or JSON text of it"),
    "prior_results": _field("object string null", "context under an older name"),
    "context_outputs": _field("object string null", "context under an older name"),
    "validation": _field(OBJECT, "{valid, guidance, ...}: the teacher's verdict"),
    "attempts": _field("integer array null", "how many attempts were made, or the attempts"),
    "guidance": _field("array string null", "the teacher's notes in order"),
    "artifacts": _field(ANY, "what the step made besides its text"),
    "deliverable": _field(ANY, "what it delivers"),
    "runtime": _field(OBJECT, "{timings_ms, reward_skipped}"),
    "depends_on": _field(LIST, "steps before it"),
    "attempt_history": _field(LIST, "attempts, each with its evaluation"),
    "attempt_details": _field(LIST, "attempts, each with its evaluation"),
    "raw_evaluation": _field(OBJECT, "{validation, reward} as stored"),
    "metadata": _field(OBJECT, "other keys once more"),
}
ATTEMPT: Mapping[str, Field] = {
    "attempt": _field("integer null", "its number, from 1"),
    "status": _field(TEXT, "passed, failed, unverified or errored"),
    "evaluation": _field(OBJECT, "{validation, reward} as old traces have it"),
    "validation": _field(OBJECT, "{valid, guidance, confidence}: the teacher's verdict"),
    "guidance": _field("array string null", "what the teacher said after it"),
    "answer": _field(TEXT, "text that the student wrote"),
    "score": _field("number null", "in [0, 1]; null: no verdict"),
    "score_source": _field(TEXT, "grader or judge; null without a score"),
    "tokens": _field(OBJECT, "role -> {prompt, completion, calls}"),
    "started": _field("string number null", "time"),
    "ended": _field("string number null", "time"),
}
TABLES = {"trace": TRACE, "step": STEP, "attempt": ATTEMPT}
REQUIRED = {"trace": ("task",), "step": (), "attempt": ()}
# Of the metadata, what is read by name.
METADATA_TEXTS = ("status", "created_at", "completed_at", "execution_mode", "learning_key", "review_status")


def inner_table(table: str, name: str) -> str | None:
  """Returns the table of the objects that a field lists, None where it lists none."""
  return LISTED.get((table, name))


def kind(value: Any) -> str:
  """Returns the JSON type of a value."""
  return KINDS.get(type(value), type(value).__name__)


def _allowed(types: tuple[str, ...]) -> frozenset[type]:
  wanted = {*types, *(("integer",) if "number" in types else ())}
  return frozenset(one for one, name in KINDS.items() if name in wanted)


# By Python's types: looked up once a field of every record.
_TYPES = {table: {name: _allowed(field.types) for name, field in fields.items() if field.types}
          for table, fields in TABLES.items()}


def check(table: str, where: str, value: Mapping[str, Any]) -> None:
  """Checks the types of the fields of an object that a table names, and of those within it.

  Args:
    table: "trace", "step" or "attempt".
    where: the object's place in the record, "" or such as "steps[0].", for errors.
    value: the object.

  Raises:
    ValueError: naming the first field that is missing or has another type, and what it needs.
  """
  types = _TYPES[table]
  for name in REQUIRED[table]:
    if name not in value:
      raise ValueError(f"has no {where}{name}, which every {table} has")
  for name, one in value.items():
    if name in types and type(one) not in types[name]:
      wanted = " or ".join(TABLES[table][name].types)
      raise ValueError(f"{where}{name} is {kind(one)}; it must be {wanted}")
    inner = inner_table(table, name)
    if inner is not None and type(one) is list:
      _check_list(inner, f"{where}{name}", one)
  if table == "trace":
    _check_metadata(value.get("session_metadata"))


def _check_list(table: str, where: str, listed: list) -> None:
  for number, one in enumerate(listed):
    if type(one) is not dict:
      raise ValueError(f"{where}[{number}] is {kind(one)}; it must be object")
    check(table, f"{where}[{number}].", one)


def _check_metadata(found: Mapping[str, Any] | None) -> None:
  for name in METADATA_TEXTS:
    one = (found or {}).get(name)
    if one is not None and not isinstance(one, str):
      raise ValueError(f"session_metadata.{name} is {kind(one)}; it must be string or null")
  one = (found or {}).get("session_id")
  if one is not None and type(one) not in (int, str):
    raise ValueError(f"session_metadata.session_id is {kind(one)}; it must be integer, string or null")
