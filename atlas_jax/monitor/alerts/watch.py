"""Watches runs from outside, and sends what a trainer that is dead cannot tell: that it is, a full disk."""
import os
import pathlib
import time
from collections.abc import Callable, Mapping

from absl import logging

from atlas_jax.files.damage import Damaged
from atlas_jax.monitor.alerts import afterwards, live, sinks
from atlas_jax.monitor.alerts.engine import FIRING, Event
from atlas_jax.monitor.alerts.journal import Journal
from atlas_jax.monitor.alerts.outbox import Outbox

OUTSIDE = ("silent", "disk")  # Rules that are told from here; the trainer tells of all others.


class Watcher:
  """Runs that are watched.

  Args:
    folder: of runs, see `afterwards.runs_of`.
    names: of places to send to, in place of those of each run's config; None: those.
    environment: where secrets come from.
    options: of each run's `afterwards.Follower`.

  Raises:
    ValueError: if there is no run, or the variables of a place are missing.
  """

  def __init__(self, folder, *, names: str | None = None, environment: Mapping[str, str] = os.environ,
               **options):
    self._folder = pathlib.Path(folder)
    self._names = names
    self._environment = environment
    self._options = options
    self._followers: dict[pathlib.Path, afterwards.Follower] = {}
    self._outboxes: dict[str, Outbox] = {}
    self._refused: set[pathlib.Path] = set()
    for run in afterwards.runs_of(folder):
      self._follow(run)

  def look(self) -> list[Event]:
    """Looks at all runs, new ones too; sends what is new, and returns it."""
    for run in afterwards.runs_of(self._folder):
      if run not in self._followers and run not in self._refused:
        try:
          self._follow(run)
        except ValueError as error:  # A run that begins later must not end the watch over the others.
          self._refused.add(run)
          logging.warning("%s is not watched: %s", run, error)
    return [event for run in list(self._followers) for event in self._look_at(run)]

  def close(self, wait_s: float = 10.0) -> None:
    """Sends what is on its way, for a while."""
    for outbox in self._outboxes.values():
      outbox.close(wait_s)

  def _follow(self, run: pathlib.Path) -> None:
    follower = afterwards.Follower(run, **self._options)
    alerts = follower.config.alerts
    names = alerts.sinks if self._names is None else self._names
    if names not in self._outboxes:
      field = "--sinks" if self._names is not None else "config.alerts.sinks"
      places = sinks.make(names, self._environment, timeout_s=alerts.timeout_s, field=field)
      self._outboxes[names] = live.open_outbox(alerts, places)
    self._followers[run] = follower

  def _look_at(self, run: pathlib.Path) -> list[Event]:
    follower = self._followers[run]
    try:
      found = [event for event in follower.look() if event.rule in OUTSIDE and not event.metric]
    except Damaged as error:
      del self._followers[run]
      self._refused.add(run)
      logging.warning("%s is no longer watched: %s", run, error)
      return []
    if not found:
      return []
    journal = Journal(run)
    before = journal.keys()  # A watch that is started again finds the same signs, and has told of them.
    new = [event for event in found if event.key not in before]
    names = follower.config.alerts.sinks if self._names is None else self._names
    for event in new:
      journal.write(event, text=event.text)
      self._outboxes[names].put(live.message_of(event, run.name), quiet=event.quiet)
    return new


def watch(folder, *, every_s: float, names: str | None = None,
          sleep: Callable[[float], None] = time.sleep, **options) -> int:
  """Watches until it is interrupted; returns the exit status, 1 if there was an alarm.

  Args:
    folder, names, options: see `Watcher`.
    every_s: seconds between looks.
    sleep: waits so many seconds; KeyboardInterrupt ends the watch.
  """
  watcher = Watcher(folder, names=names, **options)
  alarm = False
  try:
    while True:
      alarm |= any(event.state == FIRING for event in watcher.look())
      sleep(every_s)
  except KeyboardInterrupt:
    pass  # The way to end it.
  finally:
    watcher.close()
  return int(alarm)
