"""Parity with the gates and the pruning of playbooks of the Atlas SDK 0.1.15, on recorded cases."""
import json
import pathlib

import pytest

from atlas_jax.runtime import playbook_rules

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures/runtime"
RECORDED = json.loads((FIXTURES / "playbook_rules.json").read_text())


@pytest.mark.parametrize("case", RECORDED["pruning"], ids=lambda case: case["case"])
def test_entries_are_dropped_as_recorded(case):
  reason = playbook_rules.dropped_for(case["impact"])
  assert (reason is None, reason) == (case["kept"], case["reason"])


@pytest.mark.parametrize("case, strict", [
    pytest.param(case, strict, id=f"{name}-{case['case']}")
    for name, strict in (("gates_default", False), ("gates_strict", True)) for case in RECORDED[name]])
def test_lessons_pass_the_gates_as_recorded(case, strict):
  found = playbook_rules.evaluated(case["input"], RECORDED["allowed_handles"], strict=strict)
  assert (found.gates, found.scores, list(found.reasons), found.id) == (
      case["gates"], case["scores"], case["reasons"], case["id"])
  assert found.total == pytest.approx(case["total"])


def test_the_weights_are_as_recorded():
  assert playbook_rules.WEIGHTS == RECORDED["weights"]
