"""Sends messages from one thread: a queue with a bound, tries with growing pauses, a rate, quiet hours.

`put` never waits for a network. What could not be sent is counted, and said once in the log.
"""
import collections
import datetime
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import logging

from atlas_jax.monitor.alerts.message import Message, redacted
from atlas_jax.monitor.alerts.sinks import SendError, Sink

FIRST_PAUSE_S = 1.0  # Before the second try; it doubles with each.
LONGEST_PAUSE_S = 300.0
MINUTE_S = 60.0
TICK_S = 1.0  # Between calls of `on_tick`.


class QuietHours(NamedTuple):
  """Hours of the day, from the first minute to before the last."""

  begin: int  # minutes after midnight
  end: int

  def wait_s(self, now: datetime.datetime) -> float:
    """Returns the seconds until they are over; 0 outside of them."""
    minute = now.hour * 60 + now.minute
    inside = self.begin <= minute < self.end if self.begin < self.end else \
        minute >= self.begin or minute < self.end
    if not inside:
      return 0.0
    return ((self.end - minute) % 1440) * 60.0 - now.second


def quiet_hours(text: str | None) -> QuietHours | None:
  """Reads config.alerts.quiet_hours, such as "22-8" or "22:30-07:15"; None: there are none.

  Raises:
    ValueError: if it is no span of hours.
  """
  if text is None:
    return None
  try:
    begin, end = (_minutes(part) for part in text.split("-"))
  except ValueError:
    begin = end = -1
  if begin == end:
    raise ValueError(f"config.alerts.quiet_hours={text!r} must be two hours of the day, such as '22-8' or "
                     "'22:30-07:15', or None")
  return QuietHours(begin, end)


def _minutes(text: str) -> int:
  hour, _, minute = text.strip().partition(":")
  found = datetime.time(int(hour) % 24 if int(hour) == 24 else int(hour), int(minute or 0))
  return found.hour * 60 + found.minute


class _Delivery(NamedTuple):
  """A message on its way to a place."""

  due_s: float
  number: int
  sink: int
  message: Message
  tries: int  # so far


class Outbox:
  """Messages on their way.

  Args:
    sinks: where each message goes.
    quiet: hours in which messages wait that may.
    per_minute, most, tries: see config.alerts.per_minute, queue, tries.
    on_tick: called about every second by the thread; what it raises is logged once.
    now_s: the clock for pauses, never set back.
    now: the time of day.
    thread: whether a thread sends; False: `work` is called, as tests do.
  """

  def __init__(self, sinks: Sequence[Sink], *, quiet: QuietHours | None = None, per_minute: int = 20,
               most: int = 200, tries: int = 6, on_tick: Callable[[], None] | None = None,
               now_s: Callable[[], float] = time.monotonic,
               now: Callable[[], datetime.datetime] = datetime.datetime.now, thread: bool = True):
    self._sinks = list(sinks)
    self._quiet = quiet
    self._per_minute = per_minute
    self._most = most
    self._tries = tries
    self._on_tick = on_tick
    self._now_s = now_s
    self._now = now
    self._secrets = [secret for sink in sinks for secret in sink.secrets]
    self._waiting: list[_Delivery] = []
    self._numbers = itertools.count()
    self._sent_s: list[collections.deque[float]] = [collections.deque() for _ in sinks]
    self._not_before_s = [0.0] * len(self._sinks)  # What a place asked for, as by 429.
    self._changed = threading.Condition()
    self._ending = False  # Nothing more is put.
    self._ending_now = False  # And what waits is given up.
    self._at_work = False
    self.sent = 0
    self.unsent = 0
    self._reasons: collections.Counter[str] = collections.Counter()
    self._thread = threading.Thread(target=self._run, name="alerts", daemon=True) if thread else None
    if self._thread is not None:
      self._thread.start()

  def put(self, message: Message, *, quiet: bool = True) -> None:
    """Hands a message over; returns at once.

    Args:
      message: with secrets, if any, taken out here.
      quiet: whether quiet hours hold it back.
    """
    message = message._replace(text=redacted(message.text, self._secrets))
    wait_s = self._quiet.wait_s(self._now()) if self._quiet is not None and quiet else 0.0
    with self._changed:
      for at in range(len(self._sinks)):
        if len(self._waiting) >= self._most:
          self._lose("the queue is full (config.alerts.queue)")
          continue
        heapq.heappush(self._waiting, _Delivery(self._now_s() + wait_s, next(self._numbers), at, message, 0))
      self._changed.notify_all()

  def work(self) -> float | None:
    """Sends what is due; returns the seconds until the next is, None if nothing waits."""
    while True:
      with self._changed:
        now_s = self._now_s()
        if not self._waiting:
          return None
        if (wait_s := self._waiting[0].due_s - now_s) > 0:
          return wait_s
        delivery = heapq.heappop(self._waiting)
        later_s = self._free_s(delivery.sink, now_s)
        if later_s > now_s:
          heapq.heappush(self._waiting, delivery._replace(due_s=later_s))
          continue
        self._sent_s[delivery.sink].append(now_s)
        self._at_work = True
      self._try(delivery)
      with self._changed:
        self._at_work = False
        self._changed.notify_all()

  def _free_s(self, sink: int, now_s: float) -> float:
    """Returns when a place takes the next message."""
    sent = self._sent_s[sink]
    while sent and sent[0] <= now_s - MINUTE_S:
      sent.popleft()
    free_s = sent[-self._per_minute] + MINUTE_S if len(sent) >= self._per_minute else now_s
    return max(free_s, self._not_before_s[sink])

  def _try(self, delivery: _Delivery) -> None:
    """Sends a message once, and says when it is tried again if that failed."""
    try:
      self._sinks[delivery.sink].send(delivery.message)
      self.sent += 1
      return
    except SendError as error:
      failed = error
    except Exception as error:  # A fault of ours must not end the thread: later messages would be lost.
      failed = SendError(f"{self._sinks[delivery.sink].name}: {type(error).__name__}: {error}", again=False)
    tries = delivery.tries + 1
    with self._changed:
      if not failed.again or tries >= self._tries:
        self._lose(str(failed))
        return
      pause_s = min(FIRST_PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S)
      if failed.after_s is not None:
        pause_s = max(pause_s, failed.after_s)
        # The place asked for quiet, and not for quiet about this message alone.
        self._not_before_s[delivery.sink] = self._now_s() + failed.after_s
      heapq.heappush(self._waiting, delivery._replace(due_s=self._now_s() + pause_s, tries=tries))

  def _lose(self, why: str) -> None:
    why = redacted(why, self._secrets)
    self.unsent += 1
    self._reasons[why] += 1
    if self.unsent == 1:  # Later ones are counted, and said at the end.
      logging.warning("an alert could not be sent, and stands in alerts.jsonl alone: %s", why)

  def _run(self) -> None:
    broken = False
    while True:
      wait_s = self.work()
      with self._changed:
        if self._ending and (not self._waiting or self._ending_now):
          return
        if not (self._waiting and self._waiting[0].due_s <= self._now_s()):
          self._changed.wait(TICK_S if wait_s is None else min(TICK_S, wait_s))
      if self._on_tick is not None and not broken:
        try:
          self._on_tick()
        except Exception as error:  # As above.
          broken = True
          logging.warning("the watch over stalls ended: %s: %s", type(error).__name__, error)

  def close(self, wait_s: float) -> None:
    """Waits for messages on their way, at most so long, and says what was not sent; once."""
    if self._ending:
      return
    self._ending = True
    until_s = time.monotonic() + wait_s
    with self._changed:
      self._changed.notify_all()
      while (self._at_work or any(one.due_s - self._now_s() <= wait_s for one in self._waiting)) \
          and (left_s := until_s - time.monotonic()) > 0 and self._thread is not None:
        self._changed.wait(min(left_s, 0.2))
      self._ending_now = True
      left = len(self._waiting) + self._at_work
      self._waiting.clear()
      self._changed.notify_all()
    if left:
      self.unsent += left
      self._reasons["the run ended before they were sent (config.alerts.close_s, quiet_hours)"] += left
    if self.unsent:
      reasons = "; ".join(f"{why} ({count})" for why, count in self._reasons.most_common(3))
      logging.warning("%d alert messages were not sent: %s", self.unsent, reasons)
