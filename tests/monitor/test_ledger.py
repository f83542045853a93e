"""The account of time: kinds, compilation, what starts add up to."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from atlas_jax.monitor import ledger
from atlas_jax.monitor.ledger import KINDS, Ledger


class Time:
  """A clock that is set by hand."""

  def __init__(self, monkeypatch):
    self.now = 1000.0
    monkeypatch.setattr(ledger.time, "monotonic", lambda: self.now)
    monkeypatch.setattr(ledger.time, "time", lambda: 5e8 + self.now)


@pytest.fixture
def clock(monkeypatch):
  return Time(monkeypatch)


def spend(book, clock, **seconds):
  """Spends seconds by kind, in this order."""
  for kind, duration in seconds.items():
    with book.at(kind):
      clock.now += duration


def totals(book):
  return {kind: round(seconds, 6) for kind, seconds in book.totals().items() if seconds}


def test_every_second_has_one_kind(clock):
  book = Ledger(began_s=5e8 + 990)
  spend(book, clock, compile=5, input=1)
  with book.at("evaluation"):
    clock.now += 2
    with book.at("checkpoint"):
      clock.now += 3
    clock.now += 4
  clock.now += 7
  assert totals(book) == {"start": 17, "compile": 5, "input": 1, "evaluation": 6, "checkpoint": 3}
  row = book.row()
  assert row["perf/time_evaluation_s"] == 6 and row["perf/goodput_frac"] == 0
  assert set(row) == {f"perf/time_{kind}_s" for kind in KINDS} | {"perf/goodput_frac"}


def test_compilation_counts_as_such_whatever_it_interrupts(clock):
  book = Ledger()
  with book.at("evaluation"):
    clock.now += 3
    book.add_compilation(2)
  assert totals(book) == {"compile": 2, "evaluation": 1}
  book.add_compilation(50)  # Never more than has passed.
  clock.now += 1
  assert totals(book) == {"compile": 3, "evaluation": 1}


def test_a_run_that_is_killed_loses_what_it_worked_since_its_checkpoint(clock, tmp_path):
  first = Ledger(tmp_path / "time.json")
  spend(first, clock, compile=5, step=10)
  saved = json.loads(json.dumps(first.saved()))
  spend(first, clock, step=4, input=1)
  first.write()  # A heartbeat; then the process dies.
  clock.now += 100
  second = Ledger(tmp_path / "time.json")
  second.resume(saved)
  spend(second, clock, step=2)
  assert totals(second) == {"compile": 5, "step": 12, "lost": 5, "stopped": 100}
  assert sum(second.totals().values()) == pytest.approx(clock.now - 1000)


def test_a_run_that_stops_loses_nothing(clock, tmp_path):
  first = Ledger(tmp_path / "time.json")
  spend(first, clock, step=10)
  saved = first.saved()
  spend(first, clock, checkpoint=1)
  first.write(clean=True)
  clock.now += 50
  second = Ledger(tmp_path / "time.json")
  second.resume(saved)
  assert totals(second) == {"step": 10, "checkpoint": 1, "stopped": 50}


def test_a_start_without_a_checkpoint_loses_all_work_of_the_one_before(clock, tmp_path):
  first = Ledger(tmp_path / "time.json")
  spend(first, clock, start=2, step=10)
  first.write()
  second = Ledger(tmp_path / "time.json")
  second.resume(None)
  assert totals(second) == {"start": 2, "lost": 10}


@pytest.mark.parametrize(
  "text", ["", "{", "[]", '{"totals": {"step": 1}, "wall_s": 1, "clean": false}', "[" * 10**5]
)
def test_a_damaged_account_is_named_and_the_checkpoint_tells(clock, tmp_path, text, caplog):
  first = Ledger(tmp_path / "time.json")
  spend(first, clock, step=10)
  saved = first.saved()
  (tmp_path / "time.json").write_text(text)
  clock.now += 5
  second = Ledger(tmp_path / "time.json")
  second.resume(saved)
  assert totals(second) == {"step": 10, "stopped": 5}
  assert "time.json cannot be read" in caplog.text


def test_what_jax_compiles_is_counted(tmp_path):
  book = Ledger()
  with ledger.counting_compilation(book):
    jax.jit(lambda x: jnp.sin(x) * time.time())(jnp.ones(3))
  assert book.totals()["compile"] > 0


def test_a_process_knows_when_it_began():
  assert 0 < time.time() - ledger.process_began_s() < 1e6
