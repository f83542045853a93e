"""Prompts of sessions and of their steps."""
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from atlas_jax.data.traces.record import Step, Trace

KINDS = ("task", "step")
TWICE = "step_twice"  # Why a step is left out whose id another one has.
SYSTEM = "executor_system_prompt"  # In the metadata of a step or of the session.
DEFAULT_SYSTEM = ("You carry out one step of a plan. Use the context of the steps before it and the guidance "
                  "that you are given, and answer with the result of this step alone.")


def unique_steps(trace: Trace, refused: Counter) -> Iterator[Step]:
  """Yields the steps of a session, of those with one id the first; the others are counted in `refused`."""
  seen = set()
  for step in trace.steps:
    if step.step_id in seen:
      refused[TWICE] += 1
    else:
      seen.add(step.step_id)
      yield step


def of_step(trace: Trace, step: Step, kind: str = "task") -> str:
  """Returns the prompt that a step answers.

  Args:
    trace: the session.
    step: one of its steps.
    kind: "task": the task, where it is the only step, for a step of several does not answer the task;
      "step": `laid_out`.

  Raises:
    ValueError: for another kind.
  """
  if kind not in KINDS:
    raise ValueError(f"config.traces.prompt={kind!r} must be one of {', '.join(KINDS)}")
  alone = kind == "task" and len(trace.steps) == 1
  return trace.task if alone else laid_out(trace, step)


def laid_out(trace: Trace, step: Step, *, default_system: str = DEFAULT_SYSTEM) -> str:
  """Returns all that is known before a step, in labelled lines.

  A system's line, a blank one, then Task, Step ID, Description, Tool, Tool Parameters, Context, Guidance
  History and Previous Validation; the last three as JSON that is indented by two spaces.

  Source: the prompt of Atlas Core's records for policy training.
  """
  return lines_of(
      system=step.metadata.get(SYSTEM) or trace.session_metadata.get(SYSTEM) or default_system,
      task=trace.task, step_id=step.step_id, description=step.description, tool=step.tool,
      tool_params=step.tool_params, context=step.context, guidance=list(step.guidance),
      validation=step.validation)


def lines_of(*, system: str, task: str, step_id: Any, description: str, tool: str | None,
             tool_params: Mapping, context: Mapping, guidance: list, validation: Mapping) -> str:
  """Returns the lines of `laid_out`."""
  lines = [system, "", f"Task: {task}", f"Step ID: {step_id}", f"Description: {description}",
           f"Tool: {tool or 'none'}", f"Tool Parameters: {_json(tool_params)}",
           f"Context: {_json(context, 2)}", f"Guidance History: {_json(guidance, 2)}",
           f"Previous Validation: {_json(validation, 2)}"]
  return "\n".join(lines)


def _json(value: Any, indent: int | None = None) -> str:
  return json.dumps(value, ensure_ascii=False, indent=indent)
