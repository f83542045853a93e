"""Events of the runtime in the form of the Atlas SDK's trajectory events, for those who read exports.

The store keeps an event once, under the runtime's names; `rendered` gives it the SDK's. Events that the SDK
has not, of validation, guidance, scores and lessons, are CUSTOM there, as its own of triage and routing.
"""
import datetime
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class OldName(NamedTuple):
  """A name of the SDK."""

  type: str  # of the event, before _START or _END
  name: str  # {step} stands for the step's number


# Of the runtime's names; those that are not here are CUSTOM under their own.
OLD_NAMES: Mapping[str, OldName] = {
    "session": OldName("WORKFLOW", "orchestration"),
    "probe": OldName("CUSTOM", "capability_probe"),
    "route": OldName("CUSTOM", "adaptive_route"),
    "plan": OldName("FUNCTION", "plan_creation"),
    "review": OldName("FUNCTION", "plan_review"),
    "synthesise": OldName("FUNCTION", "final_synthesis"),
    "step": OldName("TASK", "step_{step}"),
    "agent_call": OldName("TASK", "agent"),
    "tool": OldName("TOOL", "tool"),
    "validate": OldName("CUSTOM", "validation"),
    "guide": OldName("CUSTOM", "guidance"),
}
CHUNK = "SPAN_CHUNK"
ROOT = "root"


def rendered(events: Iterable[Mapping[str, Any]], *, task: str, answer: str | None) -> list[dict[str, Any]]:
  """Returns rows {id, event, created_at} as of the SDK's table.

  Args:
    events: of one session, by their numbers, as `runtime.events.Event.to_json` writes them.
    task, answer: of the session, which its first and last event have there.
  """
  return [_row(event, task, answer) for event in events]


def _row(event: Mapping[str, Any], task: str, answer: str | None) -> dict[str, Any]:
  kind, step = event["kind"], event.get("step")
  old = OLD_NAMES.get(event["name"], OldName("CUSTOM", event["name"]))
  data = dict(event.get("data") or {})
  if event["name"] == "session":
    data |= {"task": task} if kind == "START" else {"final_answer": answer}
  place = {"START": "input", "CHUNK": "chunk"}.get(kind, "output")
  known = {"actor": event["actor"], "step": step, "attempt": event.get("attempt")}
  parent = event.get("parent")
  at = datetime.datetime.fromtimestamp(event["at"], datetime.UTC)
  end = "START" if kind == "START" else "END"
  return {
      "id": event["seq"] + 1, "created_at": at.isoformat(),
      "event": {
          "parent_id": ROOT if parent is None else str(parent),
          "payload": {
              "event_type": CHUNK if kind == "CHUNK" else f"{old.type}_{end}",
              "event_timestamp": event["at"], "name": old.name.replace("{step}", str(step)),
              "UUID": str(event["span"]), "data": {"input": None, "output": None, "chunk": None, place: data},
              "metadata": {name: value for name, value in known.items() if value is not None},
              "usage_info": event.get("usage")}}}
