"""Steps that are timed, against what is estimated for them, on a recipe that compiles in a second."""

import json

import jax

from atlas_jax.plan import measure, targets
from atlas_jax.plan.count import count
from tests import runs
from tests.plan.test_roofline import MACHINE


def toy(monkeypatch):
  monkeypatch.setattr(measure.recipes, "load", lambda config, mesh, workdir: runs.toy_recipe(config))
  return runs.toy_config()


def test_steps_are_timed_and_counted(monkeypatch, tmp_path):
  config = toy(monkeypatch)
  measured = measure.measure(config, str(tmp_path), steps=3, enough_s=0)
  assert len(measured.seconds) == len(measured.cpu_seconds) == 3 and min(measured.seconds) > 0
  # Its products are six rows of four numbers with a vector of three, and back.
  assert measured.counts.total().product_flops == 2 * (2 * 6 * 4 * 3)
  found = measure.row("toy", measured, MACHINE)
  assert found["ratio"] == round(found["estimate_s"] / min(measured.seconds), 3)
  assert found["measured_s"] <= found["measured_median_s"]
  assert found["launches"] * MACHINE.launch_s == found["terms_s"]["launches"]


def test_configs_of_a_command_are_measured_with_its_changes(monkeypatch, capsys):
  config = toy(monkeypatch)
  asked = []

  def read_config(name, overrides):
    asked.append((name, overrides))
    return config

  monkeypatch.setattr(measure, "read_config", read_config)
  monkeypatch.setattr(measure.configs, "resolve", lambda config: config)
  monkeypatch.setattr(measure.machine, "measure", lambda: {"rates": (), "flops_s": {"float32": 1.0}})
  monkeypatch.setattr(measure.machine, "better", lambda one, other: one)
  monkeypatch.setattr(targets, "of_machine", lambda measured: MACHINE)
  counts = count(jax.make_jaxpr(lambda x: x + 1)(1.0))
  monkeypatch.setattr(measure, "measure",
                      lambda config, workdir: measure.Measured([2.0, 1.0], [2.0, 1.0], counts, 0.1))
  assert measure.main(["a.py", "--config.optim.steps=3", "b.py:cpu"]) == 0
  assert asked == [(name, {"optim.steps": "3"}) for name in ("a.py", "b.py:cpu")]
  rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [row["config"] for row in rows] == ["a.py", "b.py:cpu"] and rows[0]["measured_s"] == 1.0
