"""Tasks that texts are tried on: of a file or of reviewed sessions, some of them held out."""
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from atlas_jax.data.problems import StableRandom
from atlas_jax.data.traces.record import Trace
from atlas_jax.runtime import evidence
from atlas_jax.runtime.reflection_log import texts_sha

LEAST_TASKS = 2


class ReflectionTask(NamedTuple):
  """A task that texts are tried on."""

  key: str                        # no two tasks have the same
  task: str
  ground_truth: str | None = None  # for the metric; the reflecting model is not shown it


def tasks_of_sessions(found: Sequence[Trace]) -> tuple[list[ReflectionTask], int]:
  """Returns the tasks of sessions that are evidence: approved, or graded by a program and not quarantined.

  Args:
    found: sessions.

  Returns:
    The tasks, each once, and how many sessions are withheld.
  """
  passed = [one for one in found if evidence.passes_gate(one)]
  tasks: dict[str, ReflectionTask] = {}
  for trace in passed:
    truth = trace.session_metadata.get("ground_truth")
    made = ReflectionTask("", trace.task, None if truth is None else str(truth))
    key = texts_sha({"task": made.task, "ground_truth": made.ground_truth or ""})
    tasks.setdefault(key, made._replace(key=key))
  return list(tasks.values()), len(found) - len(passed)


def split(tasks: Sequence[ReflectionTask], held_out_frac: float, seed: int
          ) -> tuple[list[ReflectionTask], list[ReflectionTask]]:
  """Returns the tasks of the search and those held out, drawn by the seed.

  Raises:
    ValueError: for too few tasks, or two of one key.
  """
  if len({one.key for one in tasks}) < len(tasks):
    raise ValueError("two tasks have the same key; give each its own")
  if len(tasks) < LEAST_TASKS:
    raise ValueError(f"{len(tasks)} tasks are too few for a search and held-out tasks; give {LEAST_TASKS} or "
                     "more")
  shuffled = drawn(StableRandom(seed, 1), list(tasks), len(tasks))
  held = min(len(tasks) - 1, max(1, round(held_out_frac * len(tasks))))
  return shuffled[held:], shuffled[:held]


def drawn(rng: StableRandom, items: Sequence[ReflectionTask], count: int) -> list[ReflectionTask]:
  """Returns tasks that are drawn without replacement, all where there are no more."""
  left, found = list(items), []
  while left and len(found) < count:
    found.append(left.pop(rng.below(len(left))))
  return found


def read_texts(path) -> dict[str, str]:
  """Reads texts: a JSON object of them by name, or any other file as the one text "prompt".

  Raises:
    ValueError: for a JSON file that has something else.
  """
  content = pathlib.Path(path).read_text(encoding="utf-8")
  if not str(path).endswith(".json"):
    return {"prompt": content.strip()}
  found = json.loads(content)
  if not isinstance(found, dict) or not found or not all(isinstance(one, str) for one in found.values()):
    raise ValueError(f'{path} must be an object of texts by name, such as {{"prompt": "..."}}')
  return found
