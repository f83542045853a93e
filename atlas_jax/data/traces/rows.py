"""Turns a record into rows of the store's tables and back, and loses nothing of it.

Columns hold what the Atlas SDK keeps in them, so that its exporter reads what we write. A record is built
again from its rows in the SDK's form or in a plain form, where each value stands once; what still differs
from the record that was given is kept in the session's metadata, under STORE. What a review decides is never
part of that: review status and notes are those of the columns.
"""
import datetime
from collections.abc import Mapping
from typing import Any

from atlas_jax.data.traces import sdk_record, storable
from atlas_jax.data.traces.sdk_record import LANE, LIFTED, SessionRows
from atlas_jax.data.traces.values import as_object, as_word

STORE = "_atlas_jax"             # Key of the metadata that is ours: {form, patch, event_ids}.
FLAT, ENTRY = "_flat", "_entry"  # Marks of attempts and events that are not in the SDK's form.
MOST_ID = 2**31 - 1              # Ids are INTEGER in PostgreSQL.
PENDING = "pending"
UNKNOWN = "unknown"              # Status of a record that says none; the column must have one.
SOURCE_ID = "source_session_id"  # Key of the metadata for the id that a session had elsewhere.
REVIEW = ("review_status", "review_notes")
_IDENTITY = ("session_id", "created_at")
_TEXTS = ("final_answer", "student_learning", "teacher_learning")  # Columns under the name of the record's.
_COLUMNS = ("status", "completed_at", *_IDENTITY, *REVIEW, "reward_stats", "reward_audit",
            "trajectory_events")
_LISTS = ("attempt_details", "attempts", "attempt_history")
_OF_PLAN = ("description", "tool", "tool_params", "depends_on")
_OF_STEP = ("step_id", *_OF_PLAN, "trace", "output", "reward", "validation", "attempts", "guidance",
            "attempt_details", "metadata", "raw_evaluation")


def split(record: Mapping[str, Any]) -> SessionRows:
  """Returns the rows of a storable record, from which `join` builds it again.

  `session["id"]` and `session["created_at"]` are None where the record has none.

  Raises:
    ValueError: for an id that is no id of a store; see `without_id`.
  """
  metadata = dict(as_object(record.get("session_metadata")))
  session = _session(record, metadata)
  for name in (*_COLUMNS, STORE):
    metadata.pop(name, None)
  metadata.update({name: record[name] for name in (LANE, *LIFTED) if name in record})
  events = [_event_row(event) for event in _list(record.get("trajectory_events"))]
  rows = SessionRows(session | {"metadata": metadata}, _steps(record), events)
  forms = [{"form": "plain", "patch": _difference(_plain(rows), record)}]
  # A record without these is nearer to the plain form.
  if all("raw_evaluation" in step for step in _dicts(record.get("steps"))):
    forms.append({"form": "sdk", "patch": _difference(sdk_record.build(rows), record)})
    if not forms[-1]["patch"]:
      return rows
  nearest = min(forms, key=lambda one: len(storable.dumps(one)))
  metadata[STORE] = nearest if nearest["patch"] else {"form": nearest["form"]}
  return rows


def id_of(record: Mapping[str, Any]) -> Any:
  """Returns the id that a record has for its session, whatever it is; None if it has none."""
  return _either(record, "session_id")


def fits(number: Any) -> bool:
  """Returns whether a value can be the id of a row."""
  return type(number) is int and 0 < number <= MOST_ID


def without_id(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a record for which the store chooses the id; the one it has is kept under SOURCE_ID."""
  number = id_of(record)
  metadata = {name: value for name, value in as_object(record.get("session_metadata")).items()
              if name != "session_id"}
  found = {name: value for name, value in record.items() if name != "session_id"}
  return {**found, "session_metadata": metadata | ({} if number is None else {SOURCE_ID: number})}


def _session(record: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the columns of a session but for its metadata."""
  either = lambda name: _either(record, name)
  number = either("session_id")
  if number is not None and not fits(number):
    raise ValueError(f"session_id is {number!r}; the id of a row is an integer from 1 to {MOST_ID}")
  # Review and rewards of the record alone: whoever starts a session writes its metadata, see `record`.
  reward = next((record[name] for name in ("session_reward", "reward") if record.get(name) is not None), None)
  columns = {name: _text(record.get(name)) for name in _TEXTS}
  return columns | {
    "id": number, "task": _text(record["task"]), "status": _text(either("status")) or UNKNOWN,
    "plan": record.get("plan") or None, "reward": reward, "reward_stats": record.get("reward_stats"),
    "reward_audit": record.get("reward_audit"), "review_notes": _text(record.get("review_notes")),
    "review_status": as_word(record.get("review_status")) or PENDING,
    "created_at": normal(either("created_at")), "completed_at": normal(either("completed_at"))}


def _either(record: Mapping[str, Any], name: str) -> Any:
  found = record.get(name)
  return as_object(record.get("session_metadata")).get(name) if found is None else found


def _steps(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  steps = _dicts(record.get("steps"))
  ids = [step.get("step_id", step.get("id")) for step in steps]
  # Rows are read in the order of their ids: others are numbered by their place.
  numbers: Any = ids if _rises(ids) else range(1, len(ids) + 1)
  return [_step_row(step, number) for step, number in zip(steps, numbers)]


def _rises(numbers: list[Any]) -> bool:
  """Returns whether numbers can be the second part of a key, and come in its order."""
  return all(type(one) is int and 0 <= one <= MOST_ID for one in numbers) and numbers == sorted(set(numbers))


def _step_row(step: Mapping[str, Any], number: int) -> dict[str, Any]:
  raw = step.get("raw_evaluation")
  if isinstance(raw, dict):
    evaluation = raw.get("raw") if raw.keys() == {"raw"} else raw
  else:
    evaluation = {name: step[name] for name in ("reward", "validation") if name in step} or None
  nested = as_object(step.get("metadata"))
  metadata = {**nested, **{name: value for name, value in step.items() if name not in _OF_STEP}}
  listed = _listed(step)
  for name in _LISTS if listed else ():
    metadata.pop(name, None)
  if isinstance(raw, dict):  # The SDK's form, in which these are derived.
    for name in ("raw_evaluation", "depends_on", *(() if "context" in nested else ("context",))):
      metadata.pop(name, None)
  notes = step.get("guidance")
  count = step.get("attempts")
  stored = count if type(count) is int and -MOST_ID <= count <= MOST_ID else None
  return {"step_id": number, "trace": _text(step.get("trace")), "output": _text(step.get("output")),
          "evaluation": evaluation, "attempts": stored, "metadata": metadata or None,
          "attempt_details": [_attempt_row(one, place) for place, one in enumerate(step[listed], start=1)]
          if listed else [],
          "guidance_notes": [_text(note) or "" for note in notes] if isinstance(notes, list) else []}


def _listed(step: Mapping[str, Any]) -> str | None:
  """Returns the key under which a step lists its attempts."""
  for name in _LISTS:
    found = step.get(name)
    if isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
      numbers = [one.get("attempt", place) for place, one in enumerate(found, start=1)]
      return name if _rises(numbers) else None
  return None


def _attempt_row(entry: Mapping[str, Any], place: int) -> dict[str, Any]:
  number = entry.get("attempt", place)
  if entry.keys() == {"attempt", "evaluation"}:
    return {"attempt": number, "evaluation": entry["evaluation"]}
  rest = {name: value for name, value in entry.items() if name != "attempt"}
  return {"attempt": number, "evaluation": {**rest, FLAT: "attempt" in entry}}


def _event_row(entry: Any) -> dict[str, Any]:
  if isinstance(entry, dict) and isinstance(entry.get("event"), dict) and ENTRY not in entry["event"]:
    row = {"id": entry.get("id"), "event": entry["event"], "created_at": normal(entry.get("created_at"))}
    if fits(row["id"]) and row["created_at"] and same(sdk_record.hoisted(row), entry):
      return row
  return {"id": None, "event": {ENTRY: entry}, "created_at": None}


def join(rows: SessionRows) -> dict[str, Any]:
  """Returns the record that rows were made from, as it is now in review.

  Raises:
    ValueError: if what stands under STORE is nothing that `split` writes.
  """
  metadata = dict(as_object(rows.session["metadata"]))
  ours = as_object(metadata.pop(STORE, None))
  events = _numbered(rows.events, _list(ours.get("event_ids")))
  rows = SessionRows(rows.session | {"metadata": metadata}, rows.steps, events)
  try:
    record = _FORMS[ours.get("form", "sdk")](rows)
    _apply(record, as_object(ours.get("patch")))
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f"its metadata has {STORE!r}, and not as this program writes it") from error
  _settle(record, rows.session)
  return record


def _settle(record: dict[str, Any], session: Mapping[str, Any]) -> None:
  """Sets id, status and review to the values of the columns, wherever they stand in a record.

  Other programs put the metadata of their callers into a database as it is. Whatever a caller puts there, no
  session can say of itself that it was approved, that it has ended, or that it is another one.
  """
  # The place that counts, see `record`; a record that disagrees with itself keeps the other one as it was.
  place = record if record.get("status") is not None else record.get("session_metadata")
  if isinstance(place, dict) and as_word(place.get("status")) is not None:
    place["status"] = session["status"]
  for holder in (record, record.get("session_metadata")):
    if isinstance(holder, dict):
      for name, column in (("session_id", "id"), *((name, name) for name in REVIEW)):
        if name in holder and session[column] is None:
          del holder[name]
        elif name in holder:
          holder[name] = session[column]
  record["review_status"] = session["review_status"]  # Also where it was dropped.


def _numbered(events: list[dict[str, Any]], ids: list) -> list[dict[str, Any]]:
  """Returns events with the ids that they had elsewhere; of a part it is the newest ones that are there."""
  if not ids:
    return events
  late = ids[max(0, len(ids) - len(events)):]
  return [{**event, "id": number} for event, number in zip(events, late)] + events[len(late):]


def _plain(rows: SessionRows) -> dict[str, Any]:
  """Returns a record in which each value stands once."""
  row = rows.session
  metadata = dict(as_object(row["metadata"]))
  lifted = {name: metadata.pop(name) for name in (LANE, *LIFTED) if name in metadata}
  metadata |= {name: value for name, value in (
    ("session_id", row["id"]), ("status", row["status"]), ("created_at", row["created_at"]),
    ("completed_at", row["completed_at"])) if value is not None}
  planned = sdk_record.steps_of_plan(row["plan"])
  record = {"task": row["task"], "final_answer": row["final_answer"], "plan": row["plan"] or {},
            "steps": [_plain_step(step, planned) for step in rows.steps], "session_metadata": metadata,
            **lifted, "review_status": row["review_status"]}
  optional = {"review_notes": row["review_notes"], "reward_stats": row["reward_stats"],
              "reward_audit": row["reward_audit"], "session_reward": row["reward"],
              "student_learning": row["student_learning"], "teacher_learning": row["teacher_learning"]}
  record |= {name: value for name, value in optional.items() if value is not None}
  if rows.events:
    record["trajectory_events"] = [_event(event) for event in rows.events]
  return record


def _event(row: Mapping[str, Any]) -> Any:
  inner = row["event"]
  return inner[ENTRY] if isinstance(inner, dict) and ENTRY in inner else sdk_record.hoisted(row)


_FORMS = {"sdk": sdk_record.build, "plain": _plain}


def _plain_step(row: Mapping[str, Any], planned: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
  of_plan = planned.get(row["step_id"], {})
  step = {"step_id": row["step_id"], **{name: of_plan[name] for name in _OF_PLAN if name in of_plan}}
  step |= {name: row[name] for name in ("trace", "output") if row[name] is not None}
  step.update(as_object(row["evaluation"]))
  if row["attempts"] is not None:
    step["attempts"] = row["attempts"]
  step["guidance"] = list(row["guidance_notes"])
  if row["attempt_details"]:
    step["attempt_details"] = [_attempt(one) for one in row["attempt_details"]]
  return {**step, **as_object(row["metadata"])}


def _attempt(row: Mapping[str, Any]) -> dict[str, Any]:
  evaluation = row["evaluation"]
  if not isinstance(evaluation, dict) or FLAT not in evaluation:
    return dict(row)
  rest = {name: value for name, value in evaluation.items() if name != FLAT}
  return {"attempt": row["attempt"], **rest} if evaluation[FLAT] else rest


def _difference(built: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what makes the record that rows give equal to the one that was wanted, but for its review."""
  theirs, ours = wanted.get("steps"), built["steps"]
  by_step = isinstance(theirs, list) and len(theirs) == len(ours)
  passed = {"session_metadata", *REVIEW, *(("steps",) if by_step else ())}
  metadata = _changes(built["session_metadata"], as_object(wanted.get("session_metadata")), set(REVIEW))
  # Rows always have these: they are added to a record that has none, and to no other.
  kept = [name for name in metadata.pop("drop", ()) if name not in _IDENTITY]
  kept += [name for name in _IDENTITY if _either(wanted, name) is not None
           and name not in as_object(wanted.get("session_metadata"))]
  patch = {"top": _changes(built, wanted, passed), "metadata": metadata | ({"drop": kept} if kept else {}),
           "steps": {}}
  for place, (one, other) in enumerate(zip(ours, theirs) if isinstance(theirs, list) and by_step else ()):
    moved = _moved(one, other)
    change = moved | _changes(_as_listed(one, moved), other, set())
    if change:
      patch["steps"][str(place)] = change
  return {name: change for name, change in patch.items() if change}


def _moved(built: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
  """Returns where the attempts are listed, if not in attempt_details."""
  key = _listed(wanted)
  return {"listed": key} if key not in (None, "attempt_details") and "attempt_details" in built else {}


def _as_listed(step: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
  if "listed" not in change:
    return dict(step)
  found = {name: value for name, value in step.items() if name != "attempt_details"}
  return {**found, change["listed"]: step["attempt_details"]}


def _changes(built: Mapping[str, Any], wanted: Mapping[str, Any], passed: set[str]) -> dict[str, Any]:
  """Returns {set, drop} of the keys of an object, but for those that are passed over."""
  fresh = {name: value for name, value in wanted.items()
           if name not in passed and not (name in built and same(built[name], value))}
  gone = [name for name in built if name not in wanted and name not in passed]
  return ({"set": fresh} if fresh else {}) | ({"drop": gone} if gone else {})


def _apply(record: dict[str, Any], patch: Mapping[str, Any]) -> None:
  _change(record, as_object(patch.get("top")))
  if isinstance(record.get("session_metadata"), dict):
    _change(record["session_metadata"], as_object(patch.get("metadata")))
  for place, change in as_object(patch.get("steps")).items():
    step = _as_listed(record["steps"][int(place)], change)
    _change(step, change)
    record["steps"][int(place)] = step


def _change(found: dict[str, Any], change: Mapping[str, Any]) -> None:
  for name in change.get("drop", ()):
    found.pop(name, None)
  found.update(change.get("set", {}))


def same(one: Any, other: Any) -> bool:
  """Returns whether two JSON values are written alike; 1 and 1.0 are not."""
  if one is other:
    return True
  return one == other and storable.dumps(one, sort_keys=True) == storable.dumps(other, sort_keys=True)


def _text(value: Any) -> str | None:
  """Returns a text for a column; what is none, such as a text that was truncated, as JSON."""
  return value if value is None or isinstance(value, str) else storable.dumps(value)


def _list(value: Any) -> list:
  return value if isinstance(value, list) else []


def _dicts(value: Any) -> list[dict[str, Any]]:
  return [one for one in _list(value) if isinstance(one, dict)]


def instant(value: Any) -> datetime.datetime | None:
  """Returns a time in UTC, from a text of ISO 8601, where it has no zone in UTC; None for anything else."""
  if isinstance(value, datetime.datetime):
    found = value
  else:
    try:
      found = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (ValueError, AttributeError):
      return None
  try:
    return found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)
  except OverflowError:  # The first and last day of the calendar have no UTC everywhere.
    return None


def normal(value: Any) -> str | None:
  """Returns a time as records of a store have it, in UTC; None for what is no time."""
  found = instant(value)
  return None if found is None else found.isoformat()
