"""Parity with the pruning of playbooks of the Atlas SDK 0.1.15, on recorded cases."""
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
