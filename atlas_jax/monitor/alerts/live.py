"""Alerts of a run while it trains: rows go to the engine, events to alerts.jsonl and to the sinks."""
import math
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from atlas_jax.defaults.bounds import names_of
from atlas_jax.monitor import writer
from atlas_jax.monitor.alerts import outbox, rules, sinks
from atlas_jax.monitor.alerts.engine import FIRING, RECOVERED, AlertEngine, Event
from atlas_jax.monitor.alerts.journal import Journal
from atlas_jax.monitor.alerts.message import Message, redacted
from atlas_jax.workdir import METRICS

SAY_UNKNOWN_ROWS = 10  # Rows after which rules without a number are named.


def check(config, environment: Mapping[str, str] = os.environ) -> None:
  """Refuses settings of alerts that cannot be, and places whose secrets are missing.

  Args:
    config: of a run.
    environment: variables by name.

  Raises:
    ValueError: names the field or the variables.
  """
  rules.read(config.alerts)
  outbox.quiet_hours(config.alerts.quiet_hours)
  _sinks(config.alerts, environment)


def _sinks(alerts, environment: Mapping[str, str]) -> list[sinks.Sink]:
  return sinks.make(alerts.sinks, environment, timeout_s=alerts.timeout_s) if alerts.on else []


def open_outbox(alerts, places, **options) -> outbox.Outbox:
  """Returns the outbox of config.alerts for some places; options as of `outbox.Outbox`."""
  return outbox.Outbox(places, quiet=outbox.quiet_hours(alerts.quiet_hours), per_minute=alerts.per_minute,
                       most=alerts.queue, tries=alerts.tries, **options)


def message_of(event: Event, run: str) -> Message:
  """Returns what is sent of an event of a run."""
  return Message(run=run, rule=event.rule, severity=event.severity, state=event.state, step=event.step,
                 metric=event.metric, value=event.value, text=event.text)


class _NoAlerts:
  """Alerts of a process that has none: takes everything, and says nothing."""

  def observe(self, step: int, scalars: Mapping[str, Any]) -> list[Event]:
    """Judges nothing."""
    return []

  def tell(self, rule: str, step: int, text: str = "") -> None:
    """Says nothing."""

  def beat(self, step: int) -> None:
    """Notes nothing."""

  def close(self) -> None:
    """Has nothing to close."""


NO_ALERTS = _NoAlerts()


class Live:
  """Alerts of the run in a workdir; of process 0 alone.

  Args:
    config: resolved.
    workdir: of the run, with the rows up to `resume_step`.
    resume_step: the step that it goes on from; 0: it begins.
    is_training: () -> whether the loop waits for a batch or an update now, for nothing that may take long.
    environment: where secrets come from.

  Raises:
    ValueError: see `check`.
  """

  def __init__(self, config, workdir, *, resume_step: int = 0, is_training: Callable[[], bool] = lambda: True,
               environment: Mapping[str, str] = os.environ):
    self._alerts = config.alerts
    self._rules = rules.read(config.alerts)
    self._off = set(names_of(config.alerts.off))
    self._workdir = pathlib.Path(workdir)
    self._is_training = is_training
    self._engine = AlertEngine(rules.judged(config.alerts, config.recipe), config)
    self._journal = Journal(workdir)
    places = _sinks(config.alerts, environment)
    self._secrets = [secret for place in places for secret in place.secrets]
    # Rows of earlier starts bring every rule to the state it was in; what they say was sent then. Steps that
    # are made again may say again what the start before has sent: that is in the file.
    if resume_step and (self._workdir / METRICS).exists():
      for row in writer.read_rows(self._workdir / METRICS):
        self._engine.observe(row["step"], row)
    self._sent_before = self._journal.keys() if resume_step else set()
    self._guard = threading.Lock()
    self._beat_s: float | None = None
    self._step = resume_step
    self._stalled = False
    self._stall_sent = False  # And the rows that hold it were not judged yet.
    self._unknown_said = False
    self._outbox = open_outbox(config.alerts, places, on_tick=self._look_for_stall)

  def observe(self, step: int, scalars: Mapping[str, Any]) -> list[Event]:
    """Judges a row that was written; returns the events."""
    found = self._engine.observe(step, {name: _number(value) for name, value in scalars.items()})
    for event in found:
      self._say(event)
    if self._engine.rows >= SAY_UNKNOWN_ROWS and not self._unknown_said:
      self._unknown_said = True
      self._say_unknown("so far")
    return found

  def tell(self, rule: str, step: int, text: str = "", *, severity: str | None = None) -> None:
    """Tells of an event that no row holds, such as "finished".

    Args:
      rule: its name among those without a metric.
      step: at which it happened.
      text: what to say besides the rule's message.
      severity: in place of the rule's.
    """
    named = self._rules[rule]
    if rule not in self._off:
      said = f"{named.message}: {text}" if text else named.message
      self._say(Event(step, rule, severity or named.severity, "told", None, "", said, named.send,
                      named.quiet))

  def beat(self, step: int) -> None:
    """Notes that an update was made."""
    self._beat_s = time.monotonic()
    self._step = step
    if self._stalled:
      self._end_stall(step)

  def rest(self) -> None:
    """Notes that something other than updates was done, such as an evaluation, which may have taken long."""
    if self._beat_s is not None:
      self._beat_s = time.monotonic()

  def close(self) -> None:
    """Sends what is on its way, for a while; calling it twice does nothing more."""
    self._beat_s = None
    if self._engine.rows >= SAY_UNKNOWN_ROWS:
      self._say_unknown("of this run", level=logging.DEBUG)
    self._outbox.close(self._alerts.close_s)

  def _say(self, event: Event) -> None:
    with self._guard:  # The thread tells of stalls, the loop of all else.
      if event.key in self._sent_before:
        return
      # Rows say of a stall what was sent while it lasted: it is written down, and not sent again.
      if event.rule == "stall" and event.metric and self._stall_sent:
        self._stall_sent = event.state == FIRING
        event = event._replace(send=False)
      event = event._replace(text=redacted(event.text, self._secrets))
      self._journal.write(event, text=event.text)
      if event.send:
        self._outbox.put(message_of(event, self._workdir.name), quiet=event.quiet)

  def _look_for_stall(self) -> None:
    began_s = self._beat_s
    if began_s is None or self._stalled or "stall" in self._off:
      return
    if not self._is_training():
      self.rest()
      return
    silent_s = time.monotonic() - began_s
    if silent_s > self._alerts.stall_s:
      self._stalled = self._stall_sent = True
      rule = self._rules["stall"]
      self._say(Event(self._step, "stall", rule.severity, FIRING, silent_s, "", f"{rule.message}: none for "
                      f"{silent_s:.0f} s (config.alerts.stall_s={self._alerts.stall_s:g}); {rule.remedy}",
                      rule.send, rule.quiet))

  def _end_stall(self, step: int) -> None:
    self._stalled = False
    rule = self._rules["stall"]
    self._say(Event(step, "stall", rule.severity, RECOVERED, None, "", rule.recovery, rule.send, rule.quiet))

  def _say_unknown(self, when: str, level: int = logging.INFO) -> None:
    if unknown := self._engine.unknown():
      logging.log(level, "alerts: rules without a number %s: %s", when,
                  "; ".join(f"{name} ({why})" for name, why in unknown.items()))


def tell_once(config, workdir, rule: str, step: int, text: str = "", *, severity: str | None = None,
              environment: Mapping[str, str] = os.environ) -> None:
  """Tells of an event of a run that no longer trains, such as the result of an upload; waits for sending.

  Args:
    config, workdir: of the run.
    rule, step, text, severity: see `Live.tell`.
    environment: where secrets come from.

  Raises:
    ValueError: see `check`.
  """
  if config.alerts.on:
    live = Live(config, workdir, environment=environment)
    live.tell(rule, step, text, severity=severity)
    live.close()


def _number(value: Any) -> float | None:
  """Returns a number as the file of metrics holds it: None where it is not finite."""
  if not isinstance(value, int | float):
    value = np.asarray(value).item()
  return float(value) if math.isfinite(value) else None
