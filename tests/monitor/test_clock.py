"""What a row of metrics says of speed: whose time it is, and that no share is above one."""
import time

import jax
import jax.numpy as jnp
import pytest

from atlas_jax.monitor import report
from atlas_jax.monitor.clock import Clock, Sent, rate_text


class Told:
  """Metrics of a step that a test says is finished or not."""

  def __init__(self, ready):
    self.ready = ready

  def is_ready(self):
    return self.ready


def metrics(tokens=30):
  return {"train/step_tokens": jnp.asarray(tokens)}


def read(clock, finished_s, tokens=30):
  """Reads a step that was finished at a time since the clock's first."""
  return clock.read(Sent(metrics(tokens), 0.0, START + finished_s), counted="train/step_tokens")


START = time.perf_counter()


def timed(*finished_s, peak=None, flops=None, tokens=30):
  clock = Clock(peak)
  clock.flops_per_step = flops
  for at in finished_s:
    read(clock, at, tokens)
  return clock


def test_speed_is_that_from_the_end_of_one_step_to_that_of_another_without_the_first():
  """The first one is compiled meanwhile."""
  row = timed(100.0, 101.0, 103.0).row()
  assert row["perf/step_s"] == pytest.approx(1.5) and row["perf/tokens_per_s"] == pytest.approx(20)


def test_a_single_step_has_no_speed_but_its_memory():
  clock = timed(100.0)
  assert list(clock.row()) == ["perf/host_memory_gib"] and clock.per_s is None


def test_every_row_has_the_time_of_its_own_steps():
  """On a CPU a step may be finished when it was sent, before the metrics of the one before it are read."""
  clock = timed(100.0)
  for at in (101.0, 102.0, 103.0):
    read(clock, at)
    assert clock.row()["perf/step_s"] == pytest.approx(1.0)
    clock.next_row()


def test_what_is_finished_when_it_is_sent_is_told_from_what_is_not():
  clock = Clock(None)
  for told in (Told(True), Told(False)):
    state, sent = clock.send(lambda x: x, (5, {"a": told}))
    assert state == 5 and sent.metrics == {"a": told} and (sent.finished_s is not None) == told.ready


def test_a_step_is_finished_before_one_that_is_finished_when_it_is_sent():
  """Else that one would have taken no time, and its speed no bound."""
  clock, told = Clock(None), Told(False)
  _, first = clock.send(lambda x: x, (5, {"a": told}))
  _, second = clock.send(lambda x: time.sleep(0.01) or x, (5, {"a": Told(True)}))
  assert first.finished_s < second.finished_s
  _, third = clock.send(lambda x: x, (5, {"a": told}))
  told.ready = True
  clock.send(lambda x: x, (5, {"a": Told(False)}))
  assert second.finished_s < third.finished_s


def test_numbers_are_read_as_python_numbers():
  row = Clock(None).read(Sent({**metrics(), "x": jnp.asarray(0.5)}, 0.0), counted="train/step_tokens")
  assert row == {"train/step_tokens": 30, "x": 0.5} and isinstance(row["x"], float)


def test_a_run_that_is_faster_than_the_peak_raises_it_and_says_so_once(caplog):
  clock = timed(100.0, 102.0, peak=1e3, flops=3e3)
  first = clock.row()
  assert first["perf/flops_fraction_of_peak"] == 1 and first["perf/peak_flops_per_s"] == pytest.approx(1.5e3)
  clock.next_row()
  read(clock, 106.0)
  second = clock.row()
  assert second["perf/flops_fraction_of_peak"] == pytest.approx(0.5)
  assert [message.count("more than the 1e+03") for message in caplog.messages] == [1]
  found = report.speeds([first, second], "tokens")
  assert found["peak_flops_per_s"] == pytest.approx(1.5e3)
  assert found["flops_fraction_of_peak"] == pytest.approx(found["model_flops_per_s"] / 1.5e3)


def test_a_run_below_the_peak_says_nothing(caplog):
  row = timed(100.0, 102.0, peak=1e4, flops=3e3).row()
  assert row["perf/flops_fraction_of_peak"] == pytest.approx(0.15) and not caplog.messages


@pytest.mark.parametrize("per_s, text", [
    (45678.9, "45,679"), (100.0, "100"), (99.96, "100"), (12.345, "12.3"), (0.04567, "0.0457"), (0.0, "0")])
def test_a_slow_run_is_not_said_to_stand_still(per_s, text):
  assert rate_text(per_s) == text


def test_steps_of_a_device_are_timed_in_all(tmp_path):
  """Together the rows have the time from the end of the first step to that of the last."""
  step = jax.jit(lambda x: (x @ x / 200, {"train/step_tokens": jnp.sum(x[0, 0]) * 0 + 7}))
  clock, state, pending, total, ends = Clock(1e30), jnp.ones((200, 200)), None, 0.0, []
  for _ in range(5):
    state, sent = clock.send(step, state)
    if pending is not None:
      clock.read(pending, counted="train/step_tokens")
      ends.append(clock._finished)
      total += clock.row().get("perf/step_s", 0.0)
      clock.next_row()
    pending = sent
  assert total == pytest.approx(ends[-1] - ends[0], rel=1e-6)
