"""Routing: the strictest rule counts, a model's word never loosens it; legacy=True is the SDK's table."""
import json
import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_jax.runtime.evidence import Evidence
from atlas_jax.runtime.lanes import LANES
from atlas_jax.runtime.route import Dossier, ProbeWord, RoutePolicy, route, strictest

CASES = json.loads((pathlib.Path(__file__).parents[1] / "fixtures/runtime/routing.json").read_text())["cases"]
GOOD = Evidence((True,) * 20)
# Replies to which our own rule is looser than the SDK's, which takes them for low confidences: they are none.
LOOSER = {'{"confidence":-1}', '{"confidence":NaN}'}


def read_word(reply):
  """A probe's reply as the SDK reads it."""
  if not isinstance(reply, str):
    return ProbeWord(problem="failed")
  try:
    found = json.loads(reply)
  except ValueError as error:
    return ProbeWord(problem=str(error))
  return ProbeWord(found.get("mode"), found.get("confidence")) if isinstance(found, dict) else ProbeWord(
      problem="no object")


@pytest.mark.parametrize("case", CASES, ids=[f"{number}" for number in range(len(CASES))])
def test_legacy_is_the_table_of_the_sdk(case):
  word = read_word(case["probe_reply"]) if case["key_present"] else ProbeWord(problem="no key")
  policy = RoutePolicy(fallback=case["fallback"])
  found = route(Evidence((True,) * case["history_count"]), word, policy=policy, legacy=True)
  assert (found.lane, found.rule) == (case["mode"], case["source"])
  if case["confidence"] == "nan":
    assert math.isnan(found.confidence)
  else:
    assert found.confidence == case["confidence"]


@pytest.mark.parametrize("case", CASES, ids=[f"{number}" for number in range(len(CASES))])
def test_our_own_rule_is_nowhere_looser_than_that_table(case):
  word = read_word(case["probe_reply"]) if case["key_present"] else ProbeWord(problem="no key")
  ours = route(Evidence((True,) * case["history_count"]), word, policy=RoutePolicy(fallback=case["fallback"]))
  is_looser = LANES.index(ours.lane) < LANES.index(case["mode"])
  assert is_looser == (case["probe_reply"] in LOOSER if isinstance(case["probe_reply"], str) else False)


@pytest.mark.parametrize("outcomes, lane", [
    ((), "paired"), ((True,) * 4, "paired"), ((True,) * 5, "paired"), ((True,) * 7, "auto"),
    ((True,) * 9 + (False,), "paired"), ((False,) * 3 + (True,) * 2, "paired"),
    ((False,) * 5 + (True,) * 2, "coach"),
    ((False,) * 10, "escalate")])
def test_auto_needs_measured_success(outcomes, lane):
  assert route(Evidence(outcomes), None).lane == lane


@pytest.mark.parametrize("confidence, lane", [
    (1.0, "auto"), (0.85, "auto"), (0.8499, "paired"), (0.65, "paired"), (0.6499, "coach"), (0.35, "coach"),
    (0.3499, "escalate"), (True, "paired"), (7, "paired"), (-1, "paired"), (float("nan"), "paired"),
    ("0.9", "paired"), (None, "paired"), ([1], "paired")])
def test_a_confidence_that_is_none_is_absent(confidence, lane):
  assert route(GOOD, ProbeWord(None, confidence)).lane == lane


@pytest.mark.parametrize("risks, lane", [
    ((), "auto"), (("low", "medium"), "auto"), (("high",), "paired"), (("critical", "low"), "escalate"),
    (("who knows",), "paired")])
def test_risks_make_it_stricter(risks, lane):
  assert route(GOOD, None, Dossier(risks=tuple({"severity": one} for one in risks))).lane == lane


def test_drift_and_a_missing_certification_make_it_paired():
  assert route(Evidence((True,) * 20, drift_alert=True), None).lane == "paired"
  certify = RoutePolicy(certify=True)
  assert route(Evidence((True,) * 20, (True,) * 20), None, policy=certify).lane == "auto"
  assert route(GOOD, None, policy=certify).rule == "certification"  # Right answers that nobody verified.


WORDS = st.builds(ProbeWord, st.one_of(st.none(), st.sampled_from(LANES), st.text(max_size=8), st.integers()),
                  st.one_of(st.none(), st.floats(), st.integers(-3, 3), st.booleans(), st.text(max_size=4)))
EVIDENCE = st.builds(Evidence, st.lists(st.booleans(), max_size=30).map(tuple),
                     drift_alert=st.booleans())


@given(EVIDENCE, WORDS)
def test_a_models_word_never_makes_it_looser(evidence, word):
  without, found = route(evidence, None), route(evidence, word)
  assert LANES.index(found.lane) >= LANES.index(without.lane)
  assert strictest(list(found.inputs["lanes"].values())) == found.lane


@pytest.mark.parametrize("changed, said", [
    ({"fallback": "auto"}, "routing.fallback='auto'"), ({"auto_from": 0.1}, "must rise"),
    ({"least": 0}, "least=0"),
    ({"audit_fraction": 2}, "audit_fraction=2")])
def test_policies_that_cannot_be_are_refused(changed, said):
  with pytest.raises(ValueError, match=said):
    RoutePolicy(**changed)
