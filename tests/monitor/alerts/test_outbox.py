"""The outbox: one thread, a queue with a bound, pauses, a rate, quiet hours; nothing waits for a network."""

import datetime
import threading
import time

import pytest
from absl import logging

from atlas_jax.monitor.alerts import sinks
from atlas_jax.monitor.alerts.outbox import Outbox, quiet_hours
from atlas_jax.monitor.alerts.sinks import SendError
from tests.monitor.alerts.receivers import Receiver
from tests.monitor.alerts.test_sinks import message

pytestmark = pytest.mark.core


class Clock:
  """A clock that is set by hand."""

  def __init__(self, hour=12):
    self.s, self.hour = 0.0, hour

  def now(self):
    """The time of day."""
    return datetime.datetime(2026, 1, 1, self.hour)


class Place:
  """A sink that notes when it gets what; `plan` holds errors of the next tries."""

  name, secrets = "place", ("hush",)

  def __init__(self, clock=None, plan=()):
    self.clock, self.plan, self.got = clock, list(plan), []

  def send(self, said):
    """Takes a message, or refuses it."""
    error = self.plan.pop(0) if self.plan else None
    if error is not None:
      raise error
    self.got.append((None if self.clock is None else self.clock.s, said.text))

  def preview(self, said):
    """Returns the text."""
    return said.text


def outbox(clock, place, **options):
  """An outbox without a thread, by that clock."""
  return Outbox([place], now_s=lambda: clock.s, now=clock.now, thread=False, **options)


def run(made, clock, until_s):
  """Lets time go on until nothing waits, or so long."""
  while (wait_s := made.work()) is not None and clock.s + wait_s <= until_s:
    clock.s += wait_s


def test_pauses_between_tries_grow():
  clock = Clock()
  tries = []
  place = Place(clock)
  place.send = lambda said: tries.append(clock.s) or (_ for _ in ()).throw(SendError("no", again=True))
  made = outbox(clock, place, tries=5)
  made.put(message())
  run(made, clock, 1e6)
  assert tries == [0, 1, 3, 7, 15] and made.unsent == 1 and made.sent == 0


def test_what_stays_refused_is_not_tried_again():
  clock = Clock()
  made = outbox(clock, Place(clock, [SendError("HTTP 401", again=False)]))
  made.put(message())
  run(made, clock, 1e6)
  assert clock.s == 0 and made.unsent == 1


def test_a_place_that_asks_for_a_pause_gets_it_for_all_messages():
  clock = Clock()
  place = Place(clock, [SendError("429", again=True, after_s=30.0)])
  made = outbox(clock, place)
  made.put(message("a"))
  made.put(message("b"))
  run(made, clock, 1e6)
  assert sorted(place.got) == [(30.0, "a"), (30.0, "b")]


def test_no_more_than_so_many_messages_a_minute():
  clock = Clock()
  place = Place(clock)
  made = outbox(clock, place, per_minute=2)
  for number in range(5):
    made.put(message(str(number)))
  run(made, clock, 1e6)
  assert place.got == list(zip([0, 0, 60, 60, 120], "01234"))


def test_the_queue_has_a_bound_and_what_is_lost_is_counted():
  clock = Clock()
  made = outbox(clock, Place(clock), most=3)
  for _ in range(10):
    made.put(message())
  assert made.unsent == 7


def test_quiet_hours_hold_back_what_may_wait():
  """In the original they existed as a field only."""
  clock = Clock(hour=23)
  place = Place(clock)
  made = outbox(clock, place, quiet=quiet_hours("22-8"))
  made.put(message("waits"))
  made.put(message("does not"), quiet=False)
  run(made, clock, 1e6)
  assert place.got == [(0.0, "does not"), (9 * 3600.0, "waits")]


@pytest.mark.parametrize("text, hour, wait_h", (
  ("22-8", 23, 9), ("22-8", 3, 5), ("22-8", 8, 0), ("22-8", 21, 0), ("22-8", 22, 10), ("9-17", 12, 5),
  ("9-17", 8, 0), ("22:30-7:15", 6, 1.25), ("0-24", 5, None)))
def test_quiet_hours_are_read(text, hour, wait_h):
  if wait_h is None:
    with pytest.raises(ValueError, match="two hours"):
      quiet_hours(text)
  else:
    assert quiet_hours(text).wait_s(datetime.datetime(2026, 1, 1, hour)) == wait_h * 3600


def test_a_fault_of_a_sink_loses_its_message_and_not_the_next_ones():
  clock = Clock()
  place = Place(clock, [KeyError("hush"), None])
  made = outbox(clock, place)
  made.put(message("a"))
  made.put(message("b"))
  run(made, clock, 1e6)
  assert made.unsent == 1 and [text for _, text in place.got] == ["b"]


def test_secrets_are_taken_out_of_texts_and_of_the_log(caplog):
  clock = Clock()
  place = Place(clock, [SendError("no, hush", again=False)])
  made = outbox(clock, place)
  with caplog.at_level(logging.converter.ABSL_TO_STANDARD[logging.INFO]):
    made.put(message("first"))
    made.work()
    made.put(message("the word is hush"))
    made.work()
    made.close(0.0)
  assert place.got == [(0.0, "the word is [secret]")] and "hush" not in caplog.text
  assert caplog.text.count("could not be sent") == 1 and "1 alert messages were not sent" in caplog.text


class Hanging(Place):
  """A network that is dead: a try takes as long as it may."""

  def __init__(self):
    super().__init__()
    self.free = threading.Event()

  def send(self, said):
    """Hangs."""
    self.free.wait(30.0)
    raise SendError("TimeoutError: timed out", again=True)


def test_a_dead_network_holds_up_neither_the_run_nor_its_end(caplog):
  place = Hanging()
  made = Outbox([place], most=5)
  began_s = time.monotonic()
  for _ in range(1000):
    made.put(message())
  made.close(0.2)
  took_s = time.monotonic() - began_s
  place.free.set()
  assert took_s < 20  # A single try takes 30 s: nobody waited for one.
  assert made.unsent >= 1000 - 1 and "were not sent" in caplog.text


def test_the_thread_sends_through_answers_of_all_kinds():
  busy = (429, {"description": "Too Many Requests", "parameters": {"retry_after": 0}})
  with Receiver([busy, (500, {}), "parse"]) as receiver:
    made = Outbox(sinks.make("telegram", receiver.environment, timeout_s=0.5), tries=6)
    made.put(message())
    made.close(20.0)
  assert made.sent == 1 and made.unsent == 0 and receiver.tries == 4 and len(receiver.got) == 1


def test_what_the_thread_calls_may_fail_without_ending_it(caplog):
  place = Place()
  made = Outbox([place], on_tick=lambda: 1 / 0)
  made.put(message("a"))
  made.close(5.0)
  assert [text for _, text in place.got] == ["a"]
