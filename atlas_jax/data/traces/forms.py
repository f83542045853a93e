"""Two forms of one record: the Atlas SDK's, and a plain one in which each value stands once.

`without_copies` leaves out copies alone, so that a trace means the same in both forms; `expand` puts them
back.
"""
from collections.abc import Mapping
from typing import Any

from atlas_jax.data.traces import rows, sdk_record
from atlas_jax.data.traces.values import as_object

_ATTEMPTS = ("attempt_history", "attempt_details")
# Values of a step that mean as much as no value, and that `expand` writes again.
_EMPTY = {"tool": None, "tool_params": {}, "guidance": [], "depends_on": []}


def without_copies(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a record without what stands in it twice, and without what follows from the rest.

  Left out are keys of the metadata that the record has at its top with the same value, keys of a step's
  metadata that the step has, attempts that are listed twice, an evaluation beside reward and validation, what
  a reward repeats of its raw form, and the results of earlier steps.
  """
  found = dict(record)
  metadata = record.get("session_metadata")
  if isinstance(metadata, dict):
    found["session_metadata"] = {name: value for name, value in metadata.items()
                                 if name not in record or not rows.same(record[name], value)}
  steps = record.get("steps")
  if isinstance(steps, list) and all(isinstance(step, dict) for step in steps):
    results: dict[str, Any] = {}
    found["steps"] = []
    for step in steps:
      found["steps"].append(_compact_step(step, results))
      if isinstance(step.get("output"), str):
        results[str(step.get("step_id"))] = sdk_record.result_of(step)
  return found


def _compact_step(step: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
  found = {name: value for name, value in step.items()
           if name not in _EMPTY or not rows.same(_EMPTY[name], value)}
  nested = {name: value for name, value in as_object(step.get("metadata")).items()
            if name not in step or not rows.same(step[name], value)}
  found.pop("metadata", None)
  if nested:
    found["metadata"] = nested
  if all(name in step for name in _ATTEMPTS) and rows.same(step[_ATTEMPTS[0]], step[_ATTEMPTS[1]]):
    del found[_ATTEMPTS[0]]
  if rows.same(as_object(step.get("context")), sdk_record.context_of(dict(results))):
    found.pop("context", None)
  reward = as_object(step.get("reward"))
  raw = as_object(reward.get("raw"))
  evaluation = {"reward": raw, "validation": step.get("validation")}
  is_coerced = "raw" in reward and rows.same(sdk_record.coerced(raw), reward)
  if is_coerced and rows.same(step.get("raw_evaluation"), evaluation):
    del found["raw_evaluation"]
    found["reward"] = raw
  return found


def expand(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a storable record in the SDK's form, from either form; fields that the SDK has not are kept."""
  return sdk_form(rows.split(record if rows.fits(rows.id_of(record)) else rows.without_id(record)))


def sdk_form(stored: rows.SessionRows) -> dict[str, Any]:
  """Returns the record of rows in the SDK's form; fields that the SDK has not come at its end."""
  session = stored.session
  metadata = dict(as_object(session["metadata"]))
  ours = as_object(metadata.pop(rows.STORE, None))
  clean = rows.SessionRows({**session, "metadata": metadata}, [_unmarked(step) for step in stored.steps],
                           [_unwrapped(event) for event in stored.events])
  record = sdk_record.build(clean)
  fields = as_object(as_object(as_object(ours.get("patch")).get("top")).get("set"))
  return {**record, **{name: value for name, value in fields.items()
                       if name not in record and name not in (*rows.REVIEW, "session_id")}}


def _unmarked(step: Mapping[str, Any]) -> dict[str, Any]:
  details = []
  for one in step["attempt_details"]:
    evaluation = one["evaluation"]
    if isinstance(evaluation, dict) and rows.FLAT in evaluation:
      evaluation = {name: value for name, value in evaluation.items() if name != rows.FLAT}
    details.append({"attempt": one["attempt"], "evaluation": evaluation})
  return {**step, "attempt_details": details}


def _unwrapped(event: Mapping[str, Any]) -> dict[str, Any]:
  inner = event["event"]
  return {**event, "event": inner[rows.ENTRY] if isinstance(inner, dict) and rows.ENTRY in inner else inner}
