"""Faults in real runs are told within fifty updates by the live sink, and afterwards by the same rows.

Runs here are of a recipe that compiles in a second; the faults of memories, which it has not, are put into
rows with the names of a memory_lm run, see `streams` and `test_the_names_of_streams_are_those_of_real_rows`.
"""

import errno
import json
import time

import pytest

from atlas_jax import config as configs
from atlas_jax import train
from atlas_jax.evals import Eval, EvalOut
from atlas_jax.monitor.alerts import __main__ as program
from atlas_jax.monitor.alerts import afterwards
from atlas_jax.monitor.alerts.live import Live
from tests import runs
from tests.helpers import quick_compilation
from tests.monitor.alerts import streams
from tests.monitor.alerts.receivers import TOKEN, Receiver

AT = 100  # Updates without a fault, then with it.
ALARMS = ("warning", "critical")


class Source(runs.ToySource):
  """Numbers; from update AT on `spoil(batch, step)` changes a batch."""

  def __init__(self, rows, spoil, **options):
    super().__init__(rows, **options)
    self.spoil = spoil

  def next(self, trained):
    """Returns the next batch."""
    batch = super().next(trained)
    return self.spoil(batch, self.step) if self.step > AT else batch


def grow(batch, step):
  """Values grow without end: so does the loss."""
  return batch | {"x_BTD": batch["x_BTD"] * 1.3 ** (step - AT)}


def full_disk(batch, step):
  """The disk is full."""
  raise OSError(errno.ENOSPC, "No space left on device")


def waits(seconds, *, once=False):
  """A source that takes long, at each batch or once."""
  def spoil(batch, step):
    if not once or step == AT + 1:
      time.sleep(seconds)
    return batch
  return spoil


KEPT = {}


def stuck(batch, step):
  """The same batch again and again."""
  return KEPT.setdefault("batch", batch) if step > AT + 1 else KEPT.update(batch=batch) or batch


def overfits(trained, *, step, workdir=None):
  """Held-out loss that rises from AT on."""
  return EvalOut({"val/loss_nats": 2.0 + max(0, step - AT) / 40})


RULES = {"throughput": {"least_change": 0.01}, "stall": {"least_change": 0.02}}
FAULTS = {
  "nan": dict(bad={AT + 7: "grad"}),
  "divergence": dict(spoil=grow),
  "stall": dict(spoil=waits(1.3, once=True)),
  "throughput": dict(spoil=waits(0.06)),
  "repeated_data": dict(spoil=stuck),
  "validation": dict(evals={"held_out": Eval(overfits, "every")}),
  "failed": dict(spoil=full_disk),
}


def config_of(**fields):
  """A config of a run of 160 updates."""
  return runs.toy_config(**{
    "optim__steps": AT + 60, "optim__lr": 1e-3, "train__log_every_steps": 5, "train__eval_every_steps": 10,
    "checkpoint__every_steps": 1000, "alerts__rules": RULES, "checkpoint__keep_best": 0,
    "checkpoint__every_eval": False, "data__batch_rows": 12, **fields})


def run(config, workdir, *, spoil=lambda batch, step: batch, evals=(), bad=()):
  """Trains; returns the error it ended by, if it did."""
  recipe = runs.toy_recipe(config, evals=evals)
  recipe = recipe._replace(source=Source(config.data.batch_rows, spoil, bad=bad))
  configs.save(config, workdir)  # As the program does; `afterwards` reads the rules in it.
  with quick_compilation():
    try:
      train.run(config, recipe, runs.one_device(), workdir)
    except OSError as error:
      return error
  return None


def recorded(workdir):
  """Events of alerts.jsonl."""
  return [json.loads(line) for line in (workdir / "alerts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_run_is_told_live_and_afterwards(name, tmp_path, monkeypatch, capsys):
  with Receiver() as receiver:
    for variable, value in receiver.environment.items():
      monkeypatch.setenv(variable, value)
    fields = {"train__eval_every_steps": None} if name != "validation" else {}
    config = config_of(alerts__sinks="telegram", alerts__stall_s=0.5, **fields)
    error = run(config, tmp_path, **FAULTS[name])
  assert (error is None) == (name != "failed")
  fired = [event for event in recorded(tmp_path) if event["severity"] in ALARMS
           and event["state"] != "recovered"]
  # The host sees an update while the next one is made.
  assert min(event["step"] for event in fired if event["rule"] == name) in range(AT - 1, AT + 51)
  assert any(f"{name} in {tmp_path.name} at step" in text for text in receiver.texts)
  assert TOKEN not in "".join(file.read_text(errors="replace") for file in tmp_path.rglob("*")
                              if file.is_file())
  # Afterwards, from the rows alone.
  verdict = afterwards.judge(tmp_path)
  assert [event.step for event in verdict.alarms if event.rule == name]
  live = {(event["rule"], event["step"], event["state"]) for event in recorded(tmp_path) if event["metric"]}
  assert {(event.rule, event.step, event.state) for event in verdict.events if event.metric} == live
  assert program.main([f"--runs={tmp_path}", "--json"]) == 1
  shown = json.loads(capsys.readouterr().out)["runs"][0]
  assert name in {event["rule"] for event in shown["alarms"]}


def test_a_healthy_run_gives_no_alarm_and_says_that_it_is_finished(tmp_path, capsys):
  held_out = Eval(lambda trained, *, step, workdir=None: EvalOut({"val/loss_nats": 2.0}), "every")
  assert run(config_of(alerts__rules={}), tmp_path, evals={"held_out": held_out}) is None
  events = recorded(tmp_path)
  assert [event["rule"] for event in events if event["rule"] != "checkpoint"] == ["finished"]
  assert "160 updates" in events[-1]["text"]
  assert program.main([f"--runs={tmp_path}"]) == 0
  assert "no alarm in 160 updates" in capsys.readouterr().out


@pytest.mark.parametrize("name", streams.FAULTS)
def test_a_fault_in_rows_is_told_live_and_afterwards_alike(name, tmp_path):
  found = streams.rows(streams.FAULTS[name])
  config = runs.toy_config(alerts__rules={}, alerts__sinks="telegram")
  with Receiver() as receiver:
    live = Live(config, tmp_path, environment=receiver.environment)
    told = [event for row in found for event in live.observe(row["step"], row)]
    live.close()
  assert min(event.step for event in told if event.rule == name) <= 250
  assert any(f"{name} in" in text for text in receiver.texts)
  streams.write(tmp_path, found)
  verdict = afterwards.judge(tmp_path, free_gib=lambda place: 100.0)
  # The measure of idle updates needs a config; both have the default one.
  assert [event for event in verdict.events if event.metric] == told


def test_a_run_that_goes_on_neither_repeats_nor_loses_an_alarm(tmp_path):
  """Cut behind the alarm; the rows behind the checkpoint are made again, and with them its events."""
  def one(workdir, *, stop):
    config = config_of(train__eval_every_steps=None, checkpoint__every_steps=AT + 10,
                       optim__steps=AT + 60, alerts__rules=RULES)
    def spoil(batch, step):
      if step == stop:
        runs.ask_to_stop()
      return stuck(batch, step)

    KEPT.clear()
    run(config, workdir, spoil=spoil)

  one(tmp_path / "whole", stop=None)
  one(tmp_path / "cut", stop=AT + 25)
  assert "stopped" in {event["rule"] for event in recorded(tmp_path / "cut")}
  one(tmp_path / "cut", stop=None)
  keys = lambda name: [(event["rule"], event["state"], event["step"]) for event in recorded(tmp_path / name)
                       if event["metric"]]
  assert keys("cut") == keys("whole") and len(set(keys("cut"))) == len(keys("cut")) > 0


def test_the_names_of_streams_are_those_of_real_rows(tmp_path):
  """A memory_lm run that is tiny: rules over memories have their numbers, and none fires."""
  config = runs.lm_config(runs.write_corpus(tmp_path / "text"), optim__steps=4, train__log_every_steps=1)
  with quick_compilation():
    runs.run_lm(config, tmp_path / "run")
  verdict = afterwards.judge(tmp_path / "run")
  assert not verdict.alarms and not verdict.problem
  real = set(json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]))
  # WATCHED ones come with the measurements of the machine, and val/ with an evaluation.
  strip = lambda names: {name.rpartition("/layer_")[0] or name for name in names}
  expected = {name for one in streams.rows() for name in one if not name.startswith(("system/", "val/"))}
  assert strip(expected) <= strip(real)
  assert {"gate_collapse", "dead_memory", "frozen_memory", "memory_recall", "idle", "repeated_data"} & set(
    verdict.unknown) == set()
