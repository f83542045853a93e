"""Traces as the original trainer reads them, faults included, for comparison with its recorded results.

One bad line ends the whole reading; keys that it does not know are lost; a reward that is missing is 0.0; no
filter, no review. Nothing here is a source of training.

Source: the loader of Atlas Core at commit 1cf1883.
"""
import json
from collections.abc import Iterable
from typing import Any

from atlas_jax.data.traces import step_prompts

COPIED = ("trajectory_events", "student_learning", "teacher_learning", "learning_history", "adaptive_summary")
STEP_KEYS = ("step_id", "id", "description", "trace", "output", "reward", "evaluation", "tool", "tool_params",
             "context", "prior_results", "context_outputs", "validation", "attempts", "guidance", "metadata",
             "runtime", "depends_on", "artifacts", "deliverable")
ACCESSED = ("learning_key", "teacher_notes", "reward_summary", "drift", "drift_alert", "triage_dossier")


def load(lines: Iterable[str]) -> list[dict[str, Any]]:
  """Returns the sessions of lines.

  Raises:
    json.JSONDecodeError: for a line that is not JSON.
    AttributeError: for a line, step, reward or parameters of another type than an object.
  """
  return [_session(json.loads(line)) for line in map(str.strip, lines) if line]


def _session(found: Any) -> dict[str, Any]:
  reward = found.get("session_reward") or found.get("reward")
  if isinstance(reward, str):
    reward = _parsed(reward, None)
  return {"task": found.get("task", ""), "final_answer": found.get("final_answer", ""),
          "plan": found.get("plan", {}), "steps": [_step(one) for one in found.get("steps") or []],
          "session_metadata": found.get("session_metadata") or {}, "session_reward": reward,
          **{name: found.get(name) for name in COPIED}}


def _step(found: Any) -> dict[str, Any]:
  metadata = found.get("metadata") or {}
  others = {name: value for name, value in found.items() if name not in STEP_KEYS}
  metadata = {**others, **(metadata if isinstance(metadata, dict) else {})}
  params = found.get("tool_params") or {}
  if isinstance(params, str):
    params = _parsed(params, {"raw": params})
  context = found.get("context") or found.get("prior_results") or found.get("context_outputs") or {}
  if isinstance(context, str):
    context = _parsed(context, {"raw": context})
  return {
      "step_id": found.get("step_id") or found.get("id") or 0, "description": found.get("description", ""),
      "trace": found.get("trace", ""), "output": found.get("output", ""),
      "reward": _reward(found.get("evaluation") or found.get("reward") or {}),
      "tool": found.get("tool") or params.get("name"), "tool_params": params,
      "context": context if isinstance(context, dict) else {}, "validation": found.get("validation") or {},
      "attempts": found.get("attempts", 1), "guidance": found.get("guidance") or [], "metadata": metadata,
      **{name: found.get(name) for name in ("runtime", "depends_on", "artifacts", "deliverable")}}


def _reward(found: Any) -> dict[str, Any]:
  score = found.get("score")
  return {"score": 0.0 if score is None else score, "rationale": found.get("rationale"),
          "judges": found.get("judges") or [], "raw": found.get("raw") or found}


def _parsed(text: str, otherwise: Any) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    return otherwise


def records(session: dict[str, Any], *, system: str = step_prompts.DEFAULT_SYSTEM) -> list[dict[str, Any]]:
  """Returns a session's records for policy training, one for each step.

  Raises:
    AttributeError: if its metadata is no object.
  """
  return [_record(session, step, system) for step in session["steps"]]


def _record(session: dict[str, Any], step: dict[str, Any], system: str) -> dict[str, Any]:
  metadata, of_session = step["metadata"], session["session_metadata"]
  prompt = step_prompts.lines_of(
      system=metadata.get(step_prompts.SYSTEM) or of_session.get(step_prompts.SYSTEM) or system,
      task=session["task"], step_id=step["step_id"], description=step["description"], tool=step["tool"],
      tool_params=step["tool_params"], context=step["context"], guidance=step["guidance"],
      validation=step["validation"])
  truth = metadata.get("ground_truth") or of_session.get("ground_truth")
  return {
      "prompt": prompt, **_shared(session, step), "session_reward": session["session_reward"],
      **{name: session[name] for name in COPIED},
      **{name: step[name] for name in ("runtime", "artifacts")},
      "attempt_history": metadata.get("attempt_history"), **({"ground_truth": truth} if truth else {})}


def _shared(session: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
  return {
      "task": session["task"], "plan": session["plan"], "step_id": step["step_id"],
      "step_description": step["description"], "step_trace": step["trace"], "step_output": step["output"],
      "guidance_history": step["guidance"], "step_context": step["context"], "validation": step["validation"],
      "tool": step["tool"], "tool_params": step["tool_params"], "reward_breakdown": step["reward"],
      "reward_score": step["reward"]["score"], "session_metadata": session["session_metadata"]}


def flat(session: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns a session's flat records, one for each step."""
  return [{**_shared(session, step), "final_answer": session["final_answer"], "attempts": step["attempts"],
           "step_metadata": step["metadata"]} for step in session["steps"]]


def accessors(session: dict[str, Any]) -> dict[str, Any]:
  """Returns what the original's session gives by name besides: keys of its metadata."""
  return {name: session["session_metadata"].get(name) for name in ACCESSED}
