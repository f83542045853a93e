"""The engine of alerts: a state machine per rule, driven by rows of metrics and by nothing else.

  ok -> pending, at a row that breaks the bound -> firing, at the for_n-th such row in a row
  firing -> recovered (ok), at the for_n-th row in a row within the bound of recovery

No clock is read: cool-down counts the run's own seconds, which rows carry. So the rows of a run give the same
events live, behind a resume, and afterwards. A number that is null or not finite leaves a rule as it is.
"""
import collections
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.monitor.alerts import measures
from atlas_jax.monitor.alerts.rules import MEASURE, Rule, matches

OK, PENDING, FIRING, RECOVERED = "ok", "pending", "firing", "recovered"
TIME = "perf/time_"  # How the names of the ledger's seconds begin; together they are those of the run.
LEAST_SEEN = 5  # Rows before "typical" and "best" say anything.
OVER: dict[str, Callable[[Sequence[float]], float]] = {"max": max, "min": min, "mean": statistics.fmean}


class Event(NamedTuple):
  """A change that is told of."""

  step: int
  rule: str
  severity: str
  state: str  # "firing" or "recovered"; "told" of an event without a metric
  value: float | None
  metric: str
  text: str
  send: bool = True
  quiet: bool = True  # whether quiet hours hold it back

  def record(self, now_s: float) -> dict[str, Any]:
    """Returns its line of alerts.jsonl."""
    return {"time": now_s, "step": self.step, "rule": self.rule, "severity": self.severity,
            "state": self.state, "value": self.value, "metric": self.metric, "text": self.text}

  @property
  def key(self) -> tuple[str, str, int]:
    """Returns what tells it from other events of the run."""
    return self.rule, self.state, self.step


class Status(NamedTuple):
  """The state of a rule after some rows."""

  state: str
  step: int | None  # since which it stands
  value: float | None
  metric: str
  why: str  # it says nothing, "" where it does


class _Judge:
  """One rule at work."""

  def __init__(self, rule: Rule):
    self.rule = rule
    self.state = OK
    self.since: int | None = None
    self.value: float | None = None
    self.metric = ""
    self.seen = 0  # numbers, finite or not
    self.finite = 0
    self.said = False  # whether the alarm that stands was said
    self._in_row = 0
    self._said_s: float | None = None
    self._last: float = 0.0
    self._past: collections.deque[float] = collections.deque(maxlen=rule.window)
    self._best: float | None = None
    self._other: list[float] = []  # Of `against`, since the last row with the metric.
    self._others: collections.deque[float] = collections.deque(maxlen=rule.window)

  def take_other(self, value: float) -> None:
    """Notes a number of the metric that this one is held against."""
    if math.isfinite(value):
      self._other.append(value)

  def take(self, step: int, value: float, metric: str, elapsed_s: float | None) -> Event | None:
    """Judges a number; returns the event it is, if it is one."""
    self.seen += 1
    if not math.isfinite(value) or step < self.rule.from_step:
      return None
    self.finite += 1
    shown, breaks, heals = self._compare(value)
    self.value = shown
    self.metric = metric
    # What breaks a bound is no part of what is usual: a slow run would otherwise call its slowness normal.
    if self.rule.relative_to in ("spread", "against") or not breaks and self.state != FIRING:
      self._keep(value)
    return self._move(step, breaks, heals, elapsed_s)

  def _move(self, step: int, breaks: bool, heals: bool, elapsed_s: float | None) -> Event | None:
    if self.state == FIRING:
      self._in_row = self._in_row + 1 if heals else 0
      if self._in_row >= self.rule.for_n:
        self.state, self.since, self._in_row = OK, step, 0
        return self._event(step, RECOVERED) if self.said else None
      return None if self.said else self._tell(step, elapsed_s)
    self._in_row = self._in_row + 1 if breaks else 0
    if self._in_row >= self.rule.for_n:
      self.state, self.since, self._in_row, self.said = FIRING, step, 0, False
      return self._tell(step, elapsed_s)
    if (self.state == PENDING) != breaks:
      self.state, self.since = (PENDING if breaks else OK), step
    return None

  def _tell(self, step: int, elapsed_s: float | None) -> Event | None:
    """Returns the alarm, unless the same one was said within the cool-down."""
    if self._said_s is not None and elapsed_s is not None \
        and elapsed_s - self._said_s < self.rule.cooldown_s:
      return None
    self._said_s = elapsed_s
    self.said = True
    return self._event(step, FIRING)

  def _event(self, step: int, state: str) -> Event:
    rule = self.rule
    said = rule.message if state == FIRING else rule.recovery
    remedy = f"; {rule.remedy}" if state == FIRING and rule.remedy else ""
    text = f"{said}: {self.metric} is {_number(self.value)}{self._against()}{remedy}"
    return Event(step, rule.name, rule.severity, state, self.value, self.metric, text, rule.send, rule.quiet)

  def _against(self) -> str:
    """Says what the number is held against."""
    rule = self.rule
    if rule.relative_to == "typical":
      return f", typical is {_number(self._middle())}, the bound {rule.bound:g} times that"
    if rule.relative_to == "best":
      return f", the best was {_number(self._best)}, the bound {rule.bound:g} times that"
    if rule.relative_to == "against":
      return f", lower than before, and {rule.against} rises"
    return f", the bound {rule.direction} which it is an alarm {rule.bound:g}"

  def _compare(self, value: float) -> tuple[float, bool, bool]:
    """Returns the number that is shown, whether it breaks the bound, and whether it is well within it."""
    rule = self.rule
    back = rule.bound if rule.recover is None else rule.recover
    if rule.relative_to == "nothing":
      return value, self._beyond(value, rule.bound), not self._beyond(value, back)
    if rule.relative_to == "last":
      change, self._last = value - self._last, value
      return change, self._beyond(change, rule.bound), not self._beyond(change, back)
    if rule.relative_to == "spread":
      return self._spread(value, back)
    if rule.relative_to == "against":
      return self._pair(value)
    usual = self._middle() if rule.relative_to == "typical" else self._best
    if usual is None or self.finite <= min(LEAST_SEEN, rule.window):
      return value, False, True
    return (value, self._beyond(value, self._limit(usual, rule.bound)),
            not self._beyond(value, self._limit(usual, back)))

  def _limit(self, usual: float, factor: float) -> float:
    """Returns the bound that a factor on the usual number stands for."""
    distance = max(abs(factor - 1) * abs(usual), self.rule.least_change)
    return usual + distance if self.rule.direction == "above" else usual - distance

  def _beyond(self, value: float, bound: float) -> bool:
    return value > bound if self.rule.direction == "above" else value < bound

  def _middle(self) -> float | None:
    return statistics.median(self._past) if self._past else None

  def _spread(self, value: float, back: float) -> tuple[float, bool, bool]:
    last = [*self._past, value][-self.rule.window:]
    mean = abs(statistics.fmean(last))
    spread = (max(last) - min(last)) / mean if mean else 0.0
    full = len(last) == self.rule.window
    return spread, full and self._beyond(spread, self.rule.bound), not self._beyond(spread, back)

  def _pair(self, value: float) -> tuple[float, bool, bool]:
    """Compares the newer half of the rows with the older one, of this metric and of the other."""
    self._others.append(statistics.fmean(self._other) if self._other else math.nan)
    self._other = []
    rows = [*self._past, value][-self.rule.window:]
    others = list(self._others)[-len(rows):]
    if len(rows) < self.rule.window or any(map(math.isnan, others)):
      return value, False, True
    half = len(rows) // 2
    falls = statistics.fmean(rows[:half]) - statistics.fmean(rows[-half:])
    rises = statistics.fmean(others[-half:]) - statistics.fmean(others[:half])
    breaks = falls >= self.rule.bound and rises > self.rule.least_change
    return value, breaks, falls <= 0 or rises <= 0

  def _keep(self, value: float) -> None:
    """Notes a number as one of the usual ones."""
    self._past.append(value)
    if self.rule.relative_to == "best" and len(self._past) == self.rule.window:
      middle = statistics.median(self._past)
      better = min if self.rule.direction == "above" else max
      self._best = middle if self._best is None else better(self._best, middle)


class AlertEngine:
  """All rules of a run.

  Args:
    rules: over metrics, see `rules.judged`.
    config: of the run, for measures that look at it; None: they say nothing.
  """

  def __init__(self, rules: Sequence[Rule], config: Any = None):
    self._judges = [_Judge(rule) for rule in rules]
    self._config = config
    # Name of a metric -> what looks at it: which judge, which pattern of it (-1: the one it is held against).
    self._readers: dict[str, list[tuple[int, int]]] = {}
    self._measured = [(at, number, pattern.removeprefix(MEASURE))
                      for at, judge in enumerate(self._judges)
                      for number, pattern in enumerate(judge.rule.patterns) if pattern.startswith(MEASURE)]
    self._elapsed_s: float | None = None
    self._step: int | None = None
    self._seen: set[str] = set()  # Names of this step.
    self.rows = 0

  def observe(self, step: int, row: Mapping[str, Any]) -> list[Event]:
    """Takes a row, or numbers that join the last one; returns what is to be said.

    Args:
      step: of the row; rows come in the order of steps.
      row: numbers by name; None and what is not finite are unknown.
    """
    # The row of a step may come in parts, live, or whole, afterwards: each number of a step counts once.
    if step != self._step:
      self.rows += 1
      self._step, self._seen = step, set()
    numbers = {name: math.nan if value is None else float(value) for name, value in row.items()
               if name not in self._seen and (value is None or isinstance(value, int | float))}
    self._seen |= numbers.keys()
    found: dict[int, dict[int, list[tuple[str, float]]]] = {}
    for name, value in numbers.items():
      for at, pattern in self._readers_of(name):
        found.setdefault(at, {}).setdefault(pattern, []).append((name, value))
    for at, pattern, name in self._measured:
      if values := measures.MEASURES[name](numbers, step, self._config):
        found.setdefault(at, {})[pattern] = [(name, value) for value in values]
    times = [value for name, value in numbers.items() if name.startswith(TIME)]
    if times:
      self._elapsed_s = sum(times)
    events = []
    for at in sorted(found):
      if event := self._judge(step, self._judges[at], found[at]):
        events.append(event)
    return events

  def _judge(self, step: int, judge: _Judge, found: dict[int, list[tuple[str, float]]]) -> Event | None:
    if others := found.pop(-1, None):
      judge.take_other(OVER[judge.rule.over]([value for _, value in others]))
    if not found:
      return None
    named = found[min(found)]  # The first pattern that the row has.
    values = [value for _, value in named]
    # A number that is missing makes the whole unknown, whatever the order of blocks.
    value = math.nan if any(map(math.isnan, values)) else OVER[judge.rule.over](values)
    shown = min((name for name, one in named if one == value), default=named[0][0].rpartition("/")[0])
    return judge.take(step, value, shown, self._elapsed_s)

  def _readers_of(self, name: str) -> list[tuple[int, int]]:
    if name not in self._readers:
      readers = []
      for at, judge in enumerate(self._judges):
        if judge.rule.against and matches(judge.rule.against, name):
          readers.append((at, -1))
        for number, pattern in enumerate(judge.rule.patterns):
          if matches(pattern, name):
            readers.append((at, number))
            break
      self._readers[name] = readers
    return self._readers[name]

  def statuses(self) -> dict[str, Status]:
    """Returns the state of each rule, and why one says nothing."""
    return {judge.rule.name: Status(judge.state, judge.since, judge.value, judge.metric, _why(judge))
            for judge in self._judges}

  def unknown(self) -> dict[str, str]:
    """Returns why rules say nothing, by their names."""
    return {name: status.why for name, status in self.statuses().items() if status.why}


def _why(judge: _Judge) -> str:
  rule = judge.rule
  if judge.finite:
    return ""
  wanted = " or ".join(f"{measures.NEEDS[one.removeprefix(MEASURE)]}" if one.startswith(MEASURE) else one
                       for one in rule.patterns)
  if not judge.seen:
    return f"no row has {wanted}"
  return (f"{wanted} is null wherever it stands" if not rule.from_step else
          f"{wanted} is null, or of updates before {rule.from_step} (from_step)")


def _number(value: float | None) -> str:
  return "unknown" if value is None else f"{value:.4g}"
