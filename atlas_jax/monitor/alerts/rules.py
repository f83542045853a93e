"""The rules of a config: the defaults with its changes, checked before anything is trained."""
import fnmatch
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from atlas_jax.defaults import alerts as defaults
from atlas_jax.defaults.bounds import names_of
from atlas_jax.fields import nearest
from atlas_jax.monitor.alerts import measures

CHOICES = {
    "over": ("max", "min", "mean"),
    "relative_to": ("nothing", "typical", "best", "last", "spread", "against"),
    "direction": ("above", "below"),
    "severity": ("info", "warning", "critical"),
}
ALARMS = ("warning", "critical")
FACTORS = ("typical", "best")
WHOLE = {"window": 1, "for_n": 1, "from_step": 0}  # Fields that are whole numbers, and the least of each.
MEASURE = "measure:"


class Rule(NamedTuple):
  """A rule; the fields are explained in RULE of defaults/alerts.py."""

  name: str
  metric: str
  over: str
  relative_to: str
  against: str
  direction: str
  bound: float
  recover: float | None
  least_change: float
  window: int
  for_n: int
  from_step: int
  cooldown_s: float
  severity: str
  quiet: bool
  send: bool
  recipes: str
  message: str
  recovery: str
  remedy: str

  @property
  def patterns(self) -> tuple[str, ...]:
    """Returns the names and patterns of its metric, in the order in which they are looked for."""
    return names_of(self.metric)

  @property
  def is_event(self) -> bool:
    """Returns whether it is no rule over metrics, but an event that is told as it happens."""
    return not self.metric

  @property
  def is_alarm(self) -> bool:
    """Returns whether something is wrong where it fires."""
    return self.severity in ALARMS


def matches(pattern: str, name: str) -> bool:
  """Returns whether a metric is one of a pattern."""
  return name == pattern or "*" in pattern and fnmatch.fnmatchcase(name, pattern)


def read(alerts: Mapping[str, Any]) -> dict[str, Rule]:
  """Returns the rules by name, those of config.alerts.off among them.

  Args:
    alerts: config.alerts.

  Raises:
    ValueError: for a rule or a field that cannot be, with its name, its value and what is needed.
  """
  changes = {name: dict(change) for name, change in alerts["rules"].items()
             if _is_group(name, change)}
  found = {name: _rule(name, {**defaults.RULE, **fields, **changes.pop(name, {})})
           for name, fields in defaults.RULES.items()}
  for name, change in changes.items():
    if not str(change.get("metric", "")).strip():  # Only the events of RULES have none.
      raise ValueError(f"config.alerts.rules.{name} has no metric, and is none of the rules that exist "
                       f"({nearest(name, defaults.RULES)}); set its metric, such as 'train/loss_nats'")
    found[name] = _rule(name, {**defaults.RULE, "message": name, **change})
  for name in names_of(alerts["off"]):
    if name not in found:
      raise ValueError(f"config.alerts.off names {name!r}, which is no rule; {nearest(name, found)}")
  return found


def judged(alerts: Mapping[str, Any], recipe: str) -> tuple[Rule, ...]:
  """Returns the rules over metrics that a run is judged by: not switched off, and for its recipe."""
  off = names_of(alerts["off"])
  return tuple(rule for name, rule in read(alerts).items() if not rule.is_event and name not in off
               and (not rule.recipes or recipe in rule.recipes.split()))


def _is_group(name: str, change: Any) -> bool:
  if not isinstance(change, Mapping) and not hasattr(change, "to_dict"):
    raise ValueError(f"config.alerts.rules.{name}={change!r} must be fields by name, such as "
                     "{'bound': 3.0}")
  return True


def _rule(name: str, fields: dict[str, Any]) -> Rule:
  for field, value in fields.items():
    where = f"config.alerts.rules.{name}.{field}={value!r}"
    if field not in defaults.RULE:
      raise ValueError(f"{where}: a rule has no such field; {nearest(field, defaults.RULE)}")
    _check(where, field, value)
  rule = Rule(name=name, **fields)
  _check_whole(rule)
  return rule


def _check(where: str, field: str, value: Any) -> None:
  usual = defaults.RULE[field]
  if field in CHOICES:
    if value not in CHOICES[field]:
      raise ValueError(f"{where} is unknown; {nearest(str(value), CHOICES[field])}")
  elif isinstance(usual, bool | str):
    if not isinstance(value, type(usual)):
      raise ValueError(f"{where} must be {'text' if isinstance(usual, str) else 'True or False'}")
  elif field in WHOLE:
    if not isinstance(value, int) or isinstance(value, bool) or value < WHOLE[field]:
      raise ValueError(f"{where} must be a whole number of at least {WHOLE[field]}")
  elif not (value is None and usual is None):
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
      raise ValueError(f"{where} must be a finite number")
    if field in ("least_change", "cooldown_s") and value < 0:
      raise ValueError(f"{where} must be at least 0")


def _check_whole(rule: Rule) -> None:
  """Refuses fields that contradict each other."""
  where = f"config.alerts.rules.{rule.name}"
  for pattern in rule.patterns:
    name = pattern.removeprefix(MEASURE)
    if pattern.startswith(MEASURE) and name not in measures.MEASURES:
      raise ValueError(f"{where}.metric={rule.metric!r} names the measure {name!r}, which is unknown; "
                       f"{nearest(name, measures.MEASURES)}")
  if rule.relative_to in FACTORS and (rule.bound > 1) != (rule.direction == "above"):
    raise ValueError(f"{where}.bound={rule.bound} is a factor on the {rule.relative_to} value: with "
                     f"direction={rule.direction!r} it must be {rule.direction} 1")
  if rule.recover is not None:
    if (rule.recover > rule.bound) == (rule.direction == "above") and rule.recover != rule.bound:
      raise ValueError(f"{where}.recover={rule.recover} lies on the side of alarms of bound={rule.bound} "
                       f"(direction={rule.direction!r}): an alarm would be over while it stands")
  if (rule.relative_to == "against") != bool(rule.against):
    raise ValueError(f"{where}.against={rule.against!r} and relative_to={rule.relative_to!r} belong "
                     "together; set both, or neither")
  if rule.relative_to in ("against", "spread") and rule.window < 2:
    raise ValueError(f"{where}.window={rule.window} must be at least 2 with relative_to="
                     f"{rule.relative_to!r}, which compares rows")
