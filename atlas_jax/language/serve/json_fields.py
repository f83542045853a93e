"""Fields of a request's JSON objects, read one by one: each is used, or refused by its name."""
import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from atlas_jax.language.serve.api_error import invalid

KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list",
         dict: "an object"}
SHOWN_CHARS = 60  # Of a value in an error.
UNSUPPORTED = "unsupported_parameter"
Kind = TypeVar("Kind")


class JsonFields:
  """Takes fields out of an object; a field that is null counts as absent, as clients send it so."""

  def __init__(self, values: Any, at: str = ""):
    """Starts with all fields of an object.

    Args:
      values: what the JSON holds.
      at: where it stands in the request, such as "tools[0].function"; "" for the request itself.

    Raises:
      ApiError: if it is no object.
    """
    if not isinstance(values, Mapping):
      raise invalid(f"{at or 'the request'} is {kind_of(values)}, and must be an object", at or None)
    self._at = at
    self._left = dict(values)
    self._known: list[str] = []

  def name(self, field: str) -> str:
    """Returns the full name of a field."""
    return f"{self._at}.{field}" if self._at else field

  def has(self, field: str) -> bool:
    """Returns whether a field that was not taken yet has a value."""
    return self._left.get(field) is not None

  def rest(self) -> dict[str, Any]:
    """Returns the fields that were not taken yet."""
    return dict(self._left)

  def take(self, field: str, kind: type[Kind], default: Any = None, *, least: float | None = None,
           most: float | None = None, choices: tuple[Any, ...] = ()) -> Any:
    """Returns a field's value, or the default.

    Args:
      field: its name.
      kind: str, bool, int, float, list or dict; `object` takes all.
      default: where it is absent.
      least, most: bounds of a number.
      choices: all values that it may have; (): any.

    Raises:
      ApiError: for another kind of value, or one out of its bounds.
    """
    self._known.append(field)
    value = self._left.pop(field, None)
    if value is None:
      return default
    name = self.name(field)
    if kind is not object and not _is(value, kind):
      raise invalid(f"{name} is {kind_of(value)}, and must be {KINDS[kind]}", name)
    if choices and value not in choices:
      known = ", ".join(repr(one) for one in choices)
      raise invalid(f"{name}={shown(value)} must be one of {known}", name)
    if least is not None and value < least:
      raise invalid(f"{name}={shown(value)} must be at least {least:g}", name)
    if most is not None and value > most:
      raise invalid(f"{name}={shown(value)} must be at most {most:g}", name)
    return float(value) if kind is float else value

  def need(self, field: str, kind: type[Kind], **bounds) -> Any:
    """Returns a field that must be there; arguments and errors as of `take`."""
    value = self.take(field, kind, **bounds)
    if value is None:
      raise invalid(f"{self.name(field)} is missing", self.name(field), "missing_required_parameter")
    return value

  def texts(self, field: str, *, most: int) -> tuple[str, ...]:
    """Returns a field that is a text or a list of at most so many; none of them may be empty.

    Raises:
      ApiError: for other values.
    """
    value = self.take(field, object, [])
    found = [value] if isinstance(value, str) else value
    name = self.name(field)
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
      raise invalid(f"{name} must be a text, or a list of texts that are not empty", name)
    if len(found) > most:
      raise invalid(f"{name} has {len(found)} texts; it may have {most} at most", name)
    return tuple(found)

  def inner(self, field: str) -> "JsonFields | None":
    """Returns the fields of a field that is an object; None where it is absent."""
    value = self.take(field, dict)
    return None if value is None else JsonFields(value, self.name(field))

  def refuse(self, field: str, why: str, *, allowed: tuple[Any, ...] = ()) -> None:
    """Takes a field that this server does not have, and refuses it unless its value asks for nothing.

    Args:
      field: its name.
      why: what to do without it.
      allowed: values that change nothing, besides null.

    Raises:
      ApiError: status 400, with the code `UNSUPPORTED`.
    """
    self._known.append(field)
    value = self._left.pop(field, None)
    # Equal alone is not enough: 0 and False, and 1 and True, are equal to Python.
    if value is None or any(type(value) is type(one) and value == one for one in allowed):
      return
    raise invalid(f"{self.name(field)} is not supported: {why}", self.name(field), UNSUPPORTED)

  def done(self) -> None:
    """Refuses all fields that are left and have a value, by name.

    Raises:
      ApiError: status 400, naming the first of them.
    """
    for field, value in self._left.items():
      # Clients that send back what they were told give a null to every field that their types have besides.
      if value is None:
        continue
      close = difflib.get_close_matches(field, self._known, n=1, cutoff=0.6)
      hint = f"; did you mean {close[0]!r}?" if close else ""
      name = self.name(field)
      raise invalid(f"there is no field {shown(name)} here{hint}", name[:SHOWN_CHARS], "unknown_parameter")


def each(values: list, at: str) -> list[tuple[str, Any]]:
  """Returns the values of a list, each with its place."""
  return [(f"{at}[{number}]", value) for number, value in enumerate(values)]


def whole_numbers(values: Any, name: str, fits: Callable[[int], bool]) -> tuple[int, ...]:
  """Returns a list of ids that all fit.

  Raises:
    ApiError: if it is none, or one does not fit.
  """
  if not isinstance(values, list) or not all(_is(one, int) and fits(one) for one in values):
    raise invalid(f"{name} must be a list of ids, whole numbers from 0 on", name)
  return tuple(values)


def kind_of(value: Any) -> str:
  """Says what kind of value JSON holds."""
  return "null" if value is None else next(said for kind, said in KINDS.items() if _is(value, kind))


def shown(value: Any) -> str:
  """Returns a value for an error, cut off where it is long."""
  text = repr(value)
  return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def _is(value: Any, kind: type) -> bool:
  if kind is bool or isinstance(value, bool):  # Which is a whole number to Python.
    return isinstance(value, bool) and kind is bool
  return isinstance(value, (int, float) if kind is float else kind)


