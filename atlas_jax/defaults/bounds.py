"""Bounds and choices of fields, written around their defaults: `at_least(1, 8)` is 8, and at least 1."""
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Bounded(NamedTuple):
  """A default and the values that may replace it."""

  default: Any
  fits: Callable | None = None  # value -> bool; not asked of None
  need: str = ""  # such as "at least 1", for errors
  choices: tuple[str, ...] = ()  # of a text; () for other fields
  or_module: bool = False  # whether a dotted module of one's own may stand in place of a choice
  may_be_none: bool = False  # whether None replaces a default that is not None


def at_least(least: int, default) -> Bounded:
  """Bounds a number from below."""
  return Bounded(default, lambda value: value >= least, f"at least {least}")


def at_most(least: int, most: int, default) -> Bounded:
  """Bounds a number from below and above."""
  return Bounded(default, lambda value: least <= value <= most, f"from {least} to {most}")


def seed(default: int) -> Bounded:
  """Bounds what random numbers are drawn from to 32 bits."""
  return Bounded(default, lambda value: 0 <= value < 2**32, "at least 0 and below 2**32")


def above_zero(default) -> Bounded:
  """Bounds a number to positive, finite ones."""
  return Bounded(default, lambda value: 0 < value < math.inf, "above 0")


def finite(default) -> Bounded:
  """Bounds a number to finite ones."""
  return Bounded(default, math.isfinite, "a finite number")


def fraction(default) -> Bounded:
  """Bounds a number to [0, 1]."""
  return Bounded(default, lambda value: 0 <= value <= 1, "from 0 to 1")


def open_fraction(default) -> Bounded:
  """Bounds a number to (0, 1)."""
  return Bounded(default, lambda value: 0 < value < 1, "above 0 and below 1")


def one_of(default, choices: str) -> Bounded:
  """Limits a text to choices, which stand with spaces between them."""
  return Bounded(default, choices=tuple(choices.split()))


def one_of_or_module(default, choices: str) -> Bounded:
  """Limits a text to choices and dotted names of modules of one's own."""
  return one_of(default, choices)._replace(or_module=True)


def numbers(default, least: float, most: float, *, whole: bool = True) -> Bounded:
  """Limits a text to numbers within bounds, with commas between them, such as "1024,4096"."""
  def fits(text):
    try:
      found = numbers_of(text, whole=whole)
    except ValueError:
      return False
    return bool(found) and all(least <= one <= most for one in found) and len(set(found)) == len(found)

  kind = "whole numbers" if whole else "numbers"
  return Bounded(default, fits, f"different {kind} from {least} to {most} with commas between them, such as "
                                f"{default}")


def several_of(default, choices: str) -> Bounded:
  """Limits a text to different ones of some names, which stand with spaces here and with commas in it."""
  known = choices.split()

  def fits(text):
    found = names_of(text)
    return bool(found) and set(found) <= set(known) and len(set(found)) == len(found)

  return Bounded(default, fits, f"one or more of {', '.join(known)}, with commas between them")


def span(default) -> Bounded:
  """Limits a text to a first and a last step, such as "20:25"."""
  def fits(text):
    first, between, last = text.partition(":")
    return bool(between) and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)

  return Bounded(default, fits, "a first and a last step, from 1 on, such as 20:25")


def numbers_of(text: str, *, whole: bool = True) -> tuple:
  """Returns the numbers of a text with commas between them.

  Raises:
    ValueError: if a part is none.
  """
  return tuple((int if whole else float)(part) for part in text.split(","))


def names_of(text: str) -> tuple[str, ...]:
  """Returns the names of a text with commas between them."""
  return tuple(part.strip() for part in text.split(",") if part.strip())


def or_none(default) -> Bounded:
  """Lets None replace a default that is not None."""
  bounded = default if isinstance(default, Bounded) else Bounded(default)
  return bounded._replace(may_be_none=True)


def plain(fields: Mapping[str, Any]) -> dict:
  """Returns fields with their defaults alone."""
  return {name: plain(value) if isinstance(value, Mapping) else
          value.default if isinstance(value, Bounded) else value for name, value in fields.items()}


def collect(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Bounded]:
  """Returns the bounded fields by dotted name."""
  found: dict[str, Bounded] = {}
  for name, value in fields.items():
    if isinstance(value, Mapping):
      found |= collect(value, f"{prefix}{name}.")
    elif isinstance(value, Bounded):
      found[prefix + name] = value
  return found
