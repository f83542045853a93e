"""Agents by the name of their kind, which is the name of the adapter's file; errors name the field."""
import contextlib
import dataclasses
import importlib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from atlas_jax import modules
from atlas_jax.fields import nearest
from atlas_jax.runtime.agents.agent import Agent
from atlas_jax.runtime.agents.threads import AgentThreads

# Kind -> what it is. Read from the text of the files, so that a kind that is not used imports nothing.
KINDS: dict[str, str] = modules.constants("runtime/agents", "ABOUT")


class Import(NamedTuple):
  """Code that a config has run, or a program that it has started."""

  field: str   # of the config, such as "agent.function"
  action: str  # "imports" or "starts"
  name: str    # of the code, or the command

  def __str__(self) -> str:
    return f"{self.field} {self.action} {self.name}"


def load(given: Mapping[str, Any], *, field: str = "agent", threads: AgentThreads | None = None) -> Agent:
  """Returns the agent of a config.

  Args:
    given: {"kind": one of `KINDS`, and the fields of that kind's settings}.
    field: its place in the config, for errors.
    threads: for agents that are plain functions; None: those of the process.

  Raises:
    ValueError: for a kind, field or value that cannot be, naming the field and what is near.
    ModuleNotFoundError: if the kind needs a package that is not installed; says which extra has it.
  """
  adapter, settings = _settings(given, field)
  with _naming(field):
    return adapter.make(settings, threads=threads)


def check(given: Mapping[str, Any], *, field: str = "agent") -> None:
  """Checks all of an agent's config that can be checked without running anything of the user's.

  Raises:
    ValueError: see `load`.
  """
  _settings(given, field)


def imports(given: Mapping[str, Any], *, field: str = "agent") -> list[Import]:
  """Returns the code that `load` would run, without running it; for people to look at.

  Raises:
    ValueError: see `load`.
  """
  adapter, settings = _settings(given, field)
  return [Import(f"{field}.{name}", action, what) for name, action, what in adapter.imports(settings)]


def _settings(given: Mapping[str, Any], field: str) -> tuple[Any, Any]:
  if not isinstance(given, Mapping):
    raise ValueError(f"{field} is {type(given).__name__}, not an object with a kind")
  kind = given.get("kind")
  if not isinstance(kind, str) or kind not in KINDS:
    listed = "; ".join(f"{name}: {about}" for name, about in sorted(KINDS.items()))
    near = nearest(kind, KINDS) if isinstance(kind, str) else "name one"
    raise ValueError(f"{field}.kind={kind!r} is no kind of agent; {near} ({listed})")
  adapter = importlib.import_module(f"{__package__}.{kind}")
  settings = typing.get_type_hints(adapter.make)["settings"]
  rest = {name: value for name, value in given.items() if name != "kind"}
  return adapter, filled(settings, rest, field)


def filled(settings: type, given: Mapping[str, Any], field: str) -> Any:
  """Returns a dataclass of settings with fields given by name.

  Raises:
    ValueError: for an unknown field, one that is missing, a value of another type or one that cannot be.
  """
  known = {one.name: one for one in dataclasses.fields(settings)}
  hints = typing.get_type_hints(settings)
  for name, value in given.items():
    if name not in known:
      raise ValueError(f"{field}.{name} is no field; {nearest(str(name), known)}")
    if not _fits(value, hints[name]):
      raise ValueError(f"{field}.{name}={value!r} is {type(value).__name__}; it must be "
                       f"{_named(hints[name])}")
  missing = [name for name, one in known.items() if one.default is dataclasses.MISSING
             and one.default_factory is dataclasses.MISSING and name not in given]
  if missing:
    raise ValueError(f"{field}.{missing[0]} is missing; it must be {_named(hints[missing[0]])}")
  with _naming(field):
    return settings(**given)


@contextlib.contextmanager
def _naming(field: str) -> Iterator[None]:
  """Puts a field's name before an error that does not have it."""
  try:
    yield
  except ValueError as error:
    if str(error).startswith(field):
      raise
    raise ValueError(f"{field}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
  """Returns whether a value is of a type; a whole number will do for a float."""
  if hint is Any:
    return True
  arguments = typing.get_args(hint)
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, one) for one in arguments)
  if origin in (list, tuple):
    inner = arguments[0]
    return isinstance(value, list | tuple) and all(_fits(one, inner) for one in value)
  if origin is not None:
    return isinstance(value, origin)
  if hint is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if hint is int:
    return type(value) is int
  return isinstance(value, hint)


def _named(hint: Any) -> str:
  names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false",
           type(None): "null"}
  arguments = typing.get_args(hint)
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    return " or ".join(map(_named, arguments))
  if origin in (list, tuple):
    return f"a list ({_named(arguments[0])} each)"
  if origin is not None:
    return "an object by name"
  return names.get(hint, "a JSON value")
