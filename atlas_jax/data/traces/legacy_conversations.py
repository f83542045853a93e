"""Conversations as the original builds them for distillation, for comparison with its recorded results.

Their last message, the target, is as a rule the student's own answer in the role of a user. Nothing here is a
source of training; see `conversation`.

Source: the conversation builder of Atlas Core at commit 1cf1883.
"""
from collections.abc import Iterable, Iterator
from typing import Any

from atlas_jax.data.traces.values import as_object

# Parts of an actor's name -> role, in the order in which they are looked for.
ROLES = {"student": "user", "user": "user", "executor": "user", "teacher": "assistant", "coach": "assistant",
         "assistant": "assistant", "system": "system", "runtime": "system"}
TEXT_KEYS = ("text", "content", "message", "guidance", "value", "explanation", "payload", "data", "details")
LEARNT = ("student_learning", "teacher_learning")


def role_of(actor: Any) -> str | None:
  """Returns the role of an actor, None for one that is left out."""
  name = str(actor or "").strip().lower()
  return next((role for part, role in ROLES.items() if part in name), None)


def search_text(value: Any) -> str | None:
  """Returns the first text that stands in a value under a key that is known to hold one."""
  if isinstance(value, str):
    return value.strip() or None
  if isinstance(value, int | float):
    return str(value)
  if isinstance(value, list):
    return "\n".join(text for one in value if (text := search_text(one))) or None
  there = as_object(value)
  found = (search_text(there[name]) for name in TEXT_KEYS if name in there)
  return next((text for text in found if text), None)


def messages_of_events(events: Iterable[Any]) -> Iterator[dict[str, str]]:
  """Yields a message for each event whose actor and text stand where the original looks for them."""
  for one in events:
    outer = as_object(one)
    inner = as_object(outer.get("event"))
    actors = [outer.get("actor"), inner.get("actor"), as_object(outer.get("metadata")).get("actor"),
              as_object(inner.get("metadata")).get("actor")]
    role = role_of(next((actor for actor in actors if actor), None))
    text = search_text(inner) or search_text(outer)
    if role and text:
      yield {"role": role, "content": text}


def _messages_of_steps(steps: Iterable[Any]) -> Iterator[dict[str, str]]:
  for step in steps:
    for note in step.get("guidance") or []:
      if isinstance(note, str) and note.strip():
        yield {"role": "assistant", "content": note.strip()}
    answer = (step.get("output") or "").strip() or (step.get("trace") or "").strip()
    if answer:
      yield {"role": "user", "content": answer}


def _system_of(session: dict[str, Any]) -> dict[str, str]:
  lines = [f"Task: {session['task'].strip()}"]
  planned = [step for step in as_object(session["plan"]).get("steps") or [] if step.get("description")]
  if planned:
    names = [f"{step['id']}: {step['description']}" if "id" in step else step["description"]
             for step in planned]
    lines += ["Plan:", *(f"- {name}" for name in names)]
  return {"role": "system", "content": "\n".join(lines)}


def build(session: dict[str, Any], *, system: bool = True, keep_empty: bool = False) -> dict[str, Any] | None:
  """Returns a session's conversation, as `legacy.load` returns sessions; None where nothing was said.

  Args:
    session: with task, plan, steps, trajectory_events, session_metadata, session_reward and both lessons.
    system: whether task and plan are the first message.
    keep_empty: whether a session in which nothing was said gives them alone.
  """
  said = (list(messages_of_events(session["trajectory_events"] or []))
          or list(_messages_of_steps(session["steps"])))
  if not said and not keep_empty:
    return None
  messages = [*([_system_of(session)] if system or not said else []), *said]
  asked = messages[:-1] or messages
  metadata = session["session_metadata"]
  known = {name: metadata[name] for name in ("status", "created_at") if name in metadata}
  return {
      "messages": messages, "session_id": metadata.get("session_id"),
      "learning_key": metadata.get("learning_key"),
      "reward": as_object(session["session_reward"]).get("score"),
      "prompt_text": "\n".join(f"{one['role']}: {one['content']}" for one in asked),
      "completion_text": messages[-1]["content"],
      "metadata": {**known, **{name: session[name] for name in LEARNT if session[name] is not None}}}
