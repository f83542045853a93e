"""The comparison of linear rules runs without the packages that it compares with, and names them."""

import json
import sys

import pytest

from experiments.benchmarks import linear_rules


@pytest.mark.parametrize("rule", linear_rules.RULES)
def test_sides_that_are_not_installed_are_named_as_skipped(rule, monkeypatch, capsys):
  peers = {name: (f"absent_{needed[0]}", *needed[1:]) for name, needed in linear_rules.PACKAGES.items()}
  monkeypatch.setattr(linear_rules, "PACKAGES", peers | {"atlas_jax": linear_rules.PACKAGES["atlas_jax"]})
  sizes = ["--length=8", "--heads=2", "--width=4", "--chunk=4", "--repeats=1"]
  monkeypatch.setattr(sys, "argv", ["linear_rules.py", f"--rule={rule}", "--passes=forward_backward", *sizes])
  linear_rules.main()
  rows = {row["side"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
  assert "absent_jla is not installed" in rows["jax-linear-attention"]["skipped"]
  assert "absent_fla is not installed" in rows["flash-linear-attention"]["skipped"]
  ours = rows["atlas_jax"]
  assert ours["cpu_ms"] > 0 and set(ours["gaps"].values()) == {0.0}
  gates = {"kda": {"rate"}, "gated_delta_2": {"erase", "write"}}[rule]
  grads = {f"gradient of {name}" for name in {"q", "k", "v", "log_keep", "start"} | gates}
  assert set(ours["gaps"]) == {"reads", "memory"} | grads
