"""The program that imports code which a person trusts, and says what it is; see `discover.trusted`."""
import inspect
import json
import pathlib
from typing import Any

from atlas_jax.files.damage import one_line
from atlas_jax.rollout import user_functions
from atlas_jax.runtime.agents import signatures


def main(place: str, answer: str) -> None:
  """Writes {kind, takes, problem} of what a name stands for to a file, as JSON."""
  try:
    found = described(user_functions.find(place))
  except ValueError as error:
    found = {"kind": None, "takes": None, "problem": one_line(error)}
  pathlib.Path(answer).write_text(json.dumps(found))


def described(value: Any) -> dict[str, Any]:
  """Returns which kind of agent a value can be, what a function takes, or why it can be none."""
  if inspect.iscoroutinefunction(getattr(value, "ainvoke", None)) and not inspect.isclass(value):
    return {"kind": "graph", "takes": None, "problem": None}
  if inspect.isclass(value):
    return _none("it is a class; an object of it, or a function, is needed")
  if not callable(value):
    return _none(f"it is {type(value).__name__}, which cannot be called")
  try:
    return {"kind": "python", "takes": signatures.read(value, "it").takes, "problem": None}
  except ValueError as error:
    parameters = _parameters(value)
    if parameters is not None and all(one.default is not one.empty for one in parameters):
      return {"kind": "graph", "takes": None, "problem": None}  # It is called for one.
    return _none(one_line(error))


def _parameters(value: Any) -> list[inspect.Parameter] | None:
  try:
    given = inspect.signature(value).parameters.values()
  except (TypeError, ValueError):
    return None  # Of a function that is not written in Python.
  return [one for one in given if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _none(problem: str) -> dict[str, Any]:
  return {"kind": None, "takes": None, "problem": problem}
