"""Plans of a student: what they must be, and the order in which their steps can be done."""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MOST_STEPS = 12
SCHEMA: Mapping[str, Any] = {
    "type": "object", "required": ["steps"], "additionalProperties": False,
    "properties": {"steps": {"type": "array", "minItems": 1, "items": {
        "type": "object", "required": ["id", "description"], "additionalProperties": False,
        "properties": {"id": {"type": "integer"}, "description": {"type": "string", "minLength": 1},
                       "depends_on": {"type": "array", "items": {"type": "integer"}}}}}}}


class PlanStep(NamedTuple):
  """One step of a plan."""

  id: int
  description: str
  depends_on: tuple[int, ...] = ()


def of_task(task: str) -> tuple[PlanStep, ...]:
  """Returns the plan of one step, which is the task itself."""
  return (PlanStep(1, task),)


def read(value: Any, *, most_steps: int = MOST_STEPS) -> tuple[PlanStep, ...]:
  """Reads a plan that fits `SCHEMA`.

  Raises:
    ValueError: for too many steps, an id twice, a step that is not there or waits for itself.
  """
  steps = tuple(PlanStep(one["id"], one["description"], tuple(dict.fromkeys(one.get("depends_on") or ())))
                for one in value["steps"])
  if len(steps) > most_steps:
    raise ValueError(f"the plan has {len(steps)} steps; it may have {most_steps}")
  ids = [one.id for one in steps]
  if len(set(ids)) < len(ids):
    raise ValueError(f"the ids {ids} of the steps are not all different")
  for one in steps:
    if unknown := sorted(set(one.depends_on) - set(ids)):
      raise ValueError(f"step {one.id} depends on {unknown}, which are no steps")
  levels(steps)
  return steps


def levels(steps: Sequence[PlanStep]) -> list[list[PlanStep]]:
  """Returns the steps in levels: those of one depend on earlier ones alone, and can be done side by side.

  Raises:
    ValueError: if steps wait for one another.
  """
  left, done, found = list(steps), set(), []
  while left:
    level = [one for one in left if done.issuperset(one.depends_on)]
    if not level:
      raise ValueError(f"the steps {[one.id for one in left]} wait for one another")
    found.append(level)
    done.update(one.id for one in level)
    left = [one for one in left if one.id not in done]
  return found


def to_json(steps: Sequence[PlanStep]) -> dict[str, Any]:
  """Returns a plan as records have it."""
  return {"steps": [{"id": one.id, "description": one.description, "depends_on": list(one.depends_on)}
                    for one in steps]}
