"""Rules between judges: as recorded, configurable, and the same for a total and its parts."""
import json
import pathlib

import hypothesis
import pytest
from hypothesis import strategies

from atlas_jax.rollout.judges import rules
from atlas_jax.rollout.judges.rules import AntiGaming, ConsistencyRules
from atlas_jax.rollout.judges.verdicts import JudgeVerdict

FIXTURE = pathlib.Path(__file__).parents[2] / "fixtures" / "arc_atlas" / "rim_core.json"
NAMES = ("accuracy", "diagnostic", "helpfulness", "process")


def settled(scores, *, flags=None, changed=None, gaming=None, has_orders=False):
  """(scores, rationales) after all rules."""
  given = {name: JudgeVerdict(name, score, "why", flags=frozenset((flags or {}).get(name, ())))
           for name, score in scores.items()}
  found = rules.settled(given, ConsistencyRules(**(changed or {})), gaming or AntiGaming(),
                        has_orders=has_orders)
  scores = {name: one.score for name, one in found.items()}
  return scores, {name: one.rationale for name, one in found.items()}


CASES = json.loads(FIXTURE.read_text())["consistency"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["in"]))
def test_bounds_between_judges_are_as_recorded(case):
  scores, notes = rules.bounded(case["in"], ConsistencyRules())
  assert scores == pytest.approx(case["out"], abs=1e-12)
  assert set(notes) == {name for name, note in case["notes"].items() if "NOTE" in note}


@pytest.mark.parametrize("changed, scores, expected", [
  ({"alignment_completeness_bound": 0.3}, {"accuracy": 0.2, "process": 0.8},
   {"accuracy": 0.2, "process": 0.5}),
  ({"completeness_helpfulness_threshold": 0.9}, {"process": 0.8, "helpfulness": 0.95},
   {"process": 0.8, "helpfulness": 0.9}),
  ({"understanding_helpfulness_bound": 0.0}, {"diagnostic": 0.4, "helpfulness": 0.5},
   {"diagnostic": 0.4, "helpfulness": 0.4})])
def test_bounds_are_those_of_the_config(changed, scores, expected):
  assert settled(scores, changed=changed)[0] == pytest.approx(expected)


def test_penalties_are_taken_off_where_judges_found_a_reason():
  flags = {"process": ["contradiction"]}
  assert settled({"process": 0.9, "diagnostic": 0.9}, flags=flags)[0] == pytest.approx(
    {"process": 0.7, "diagnostic": 0.9})
  assert settled({"process": 0.9}, flags=flags, changed={"contradiction_penalty": 0.4})[0]["process"] == 0.5
  flags = {"process": ["safety_violation"]}
  assert settled({"process": 0.9}, flags=flags)[0]["process"] == pytest.approx(0.7)
  found, said = settled({"process": 0.9, "diagnostic": 0.1}, flags=flags,
                        changed={"safety_violation_penalty": 0.5})
  assert found == pytest.approx({"process": 0.4, "diagnostic": 0.0}) and "[Penalty]" in said["diagnostic"]


@pytest.mark.parametrize("how", [dict(has_orders=True), dict(flags={"accuracy": ["gaming"]})])
def test_work_that_addresses_its_judges_is_bounded(how):
  found, said = settled({"accuracy": 1.0, "diagnostic": 0.2}, **how)
  assert found == {"accuracy": 0.3, "diagnostic": 0.2} and "[Gaming]" in said["accuracy"]
  assert settled({"accuracy": 1.0}, gaming=AntiGaming(cap_score=0.6), **how)[0] == {"accuracy": 0.6}
  assert settled({"accuracy": 1.0}, gaming=AntiGaming(enabled=False), **how)[0] == {"accuracy": 1.0}


@hypothesis.given(strategies.dictionaries(
  strategies.sampled_from(NAMES), strategies.none() | strategies.floats(0, 1), min_size=1))
def test_no_rule_raises_a_score_or_makes_one_of_no_verdict(scores):
  found, _ = settled(scores)
  assert found.keys() == scores.keys()
  for name, score in scores.items():
    assert found[name] is None if score is None else 0 <= found[name] <= score
