"""Parity with the persona memory of the Atlas SDK 0.1.3, on recorded cases."""
import json
import pathlib

import pytest

from atlas_jax.runtime import persona_rules

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures/runtime"
RECORDED = json.loads((FIXTURES / "persona_memory.json").read_text())


def test_scores_are_classified_as_recorded():
  assert [[score, persona_rules.classify(score)] for score, _ in RECORDED["classify"]] == RECORDED["classify"]


@pytest.mark.parametrize("case", RECORDED["promotion"], ids=lambda case: case["case"])
def test_memories_are_moved_as_recorded(case):
  found = persona_rules.changes(case["records"], case["usage"])
  assert [[status, ids] for status, ids in found] == case["changes"]
  final = {str(one["memory_id"]): one["status"] for one in case["records"]}
  final |= {str(number): status for status, ids in found for number in ids}
  assert final == case["final"]
  scores = {number: persona_rules.used_score(uses) for number, uses in case["usage"].items()}
  assert scores == pytest.approx(case["usage_score"])


def test_memories_are_merged_as_recorded():
  assert [[one, persona_rules.merged("BASE", one)] for one, _ in RECORDED["merge"]] == RECORDED["merge"]
