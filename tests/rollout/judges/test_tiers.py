"""Tiers of one judge: the recordings of both originals, and the mended forms where they are wrong."""
import json
import pathlib

import pytest

from atlas_jax.rollout.judges.tiers import TierSettings
from tests.rollout.judges.scripts import judged, reply

FIXTURES = pathlib.Path(__file__).parents[2] / "fixtures" / "arc_atlas"
CORE = json.loads((FIXTURES / "rim_core.json").read_text())["tiers"]
SESSION = json.loads((FIXTURES / "rim_sdk_session.json").read_text())
LEGACY = {"legacy": True}
# What the recordings have in place of texts of the originals.
STANDS_FOR = {"<ARBITER_FAILED>": "the arbiter gave no judgement", "<NO_VALID_SAMPLE>": "no valid sample"}


def said(text):
  """A rationale with notes in the form of the recordings."""
  lines = []
  for line in text.split("\n"):
    name = line.partition("[Consistency] ")[2].split(" ")[0]
    bound = {"process": "process<=accuracy+0.1", "helpfulness": None}.get(name)
    if name == "helpfulness":
      bound = "helpfulness<=0.5" if "process" in line else "helpfulness<=diagnostic+0.1"
    lines.append(f"[Consistency] <NOTE {bound}>" if bound else line)
  return "\n".join(lines)


def expected(text):
  """A recorded text with what it stands for."""
  for name, meaning in STANDS_FOR.items():
    text = text.replace(name, meaning)
  return text


@pytest.mark.parametrize("case", CORE, ids=lambda case: case["name"])
def test_core_with_legacy_is_as_recorded(case):
  found, script = judged(case["small"], case["large"],
                         config={**LEGACY, "active_judges": {"accuracy": False, "helpfulness": False,
                                                             "process": False, "diagnostic": False,
                                                             **case["active_judges"]}})
  assert (script.count("small"), script.count("arbiter")) == (case["n_small"], case["n_large"])
  assert found.score == case["score"] and dict(found.judge_scores) == case["judge_scores"]
  assert said(found.rationale) == expected(case["rationale"])
  assert {name: said(note) for name, note in found.judge_explanations.items()} == \
      {name: expected(note) for name, note in case["judge_explanations"].items()}
  assert found.breakdown["score"] == pytest.approx(case["structured_score"], abs=1e-12)
  for judge, recorded in zip(found.breakdown["judges"], case["judges"], strict=True):
    given = {**judge, "n_samples": len(judge["samples"]), "rationale": said(judge["rationale"])}
    assert {name: given[name] for name in recorded} == \
        {**recorded, "rationale": expected(recorded["rationale"])}


def replies(values):
  """Session replies in the order of temperatures."""
  return dict(zip(("0.2", "0.5", "0.8"), values, strict=True))


@pytest.mark.parametrize("case", SESSION, ids=lambda case: case["name"])
def test_sessions_with_legacy_are_as_recorded(case):
  large = case["large"][0] if case["large"] else None
  large = "not json" if large == "bad json" else large
  found, script = judged(replies(case["small"]), large, config={**LEGACY, "mode": "session"})
  assert (script.count("small"), script.count("arbiter")) == (case["n_small"], case["n_large"])
  recorded = case["reward"]
  raw = {name: recorded["raw"][name] for name in ("score", "samples")}
  assert {**found.breakdown, "raw": found.breakdown["raw"]} == \
      {**json.loads(expected(json.dumps(recorded))), "raw": raw}
  for name, value in case["statistics"].items():
    assert found.extra["statistics"][name] == pytest.approx(value, abs=1e-12), name
  stages = [{"small": "tier1"}.get(entry["stage"], entry["stage"]) for entry in found.extra["audit"]]
  assert stages == [stage.rstrip("!") for stage in case["audit_stages"]]


def test_the_surest_sample_counts_and_of_equal_ones_that_of_the_lowest_temperature():
  found, script = judged({"0.2": reply(0.8, 0.2, "a"), "0.5": reply(0.82, 0.05, "b"),
                          "0.8": reply(0.78, 0.05, "c")})
  assert found.score == 0.82 and found.judge_explanations == {"accuracy": "b"}
  assert [call.temperature for call in script.calls] == [0.2, 0.5, 0.8]
  assert judged({"0.2": reply(0.8), "0.5": reply(0.7), "0.8": reply(0.75)})[0].score == 0.8
  assert judged({"0.2": reply(0.8), "0.5": reply(0.7), "0.8": reply(0.75)},
                config={"mode": "session"})[0].score == pytest.approx(0.75)


@pytest.mark.parametrize("mode", ["core", "session"])
@pytest.mark.parametrize("small, reason", [
  ({"0.2": reply(0.9), "0.5": reply(0.4), "0.8": reply(0.9)}, "tier1_variance_or_uncertainty"),
  ({"0.2": reply(0.9), "0.5": reply(0.9, 0.31), "0.8": reply(0.9)}, "tier1_variance_or_uncertainty"),
  # A single sample that is not sure decides nothing, which the SDK lets it.
  ({"0.2": "raise", "0.5": reply(0.9, 0.9), "0.8": "raise"}, "tier1_variance_or_uncertainty"),
  ("raise", "tier1_no_valid_samples"), ("no json", "tier1_no_valid_samples"),
  (reply(float("nan")), "tier1_no_valid_samples"), (reply(True), "tier1_no_valid_samples"),
  (reply([1]), "tier1_no_valid_samples"), (reply("0.5"), "tier1_no_valid_samples"),
  (reply(7.0), "tier1_no_valid_samples"), (reply(0.5, -1), "tier1_no_valid_samples"),
  ("[1]", "tier1_no_valid_samples"), ('{"score": NaN, "uncertainty": 0}', "tier1_no_valid_samples"),
  ({"score": 0.5}, "tier1_no_valid_samples")])
def test_the_arbiter_decides_with_a_reason_and_without_it_there_is_no_verdict(small, reason, mode):
  found, script = judged(small, reply(0.66, 0.1, "arb"), config={"mode": mode})
  part, = found.breakdown["judges"]
  assert found.score == 0.66 and script.count("arbiter") == 1
  assert part["escalated"] and part["escalation_reason"] == reason and "arb" in part["rationale"]
  for large in ("raise", "no json", reply(float("inf"))):
    found, _ = judged(small, large, config={"mode": mode})
    assert found.score is None and found.breakdown["score"] is None
    name, = found.extra["no_verdict"]
    assert found.judge_scores[name] is None and found.extra["no_verdict"][name]


def test_at_the_thresholds_nothing_is_escalated():
  assert not judged(reply(0.9, 0.3))[1].count("arbiter")
  assert not judged({"0.2": reply(0.75), "0.8": reply(0.45)}, config={"temperatures": "0.2,0.8"},
                    )[1].count("arbiter")  # A deviation of 0.15.


def test_an_arbiter_that_fails_may_leave_the_small_model_s_verdict():
  small = {"0.2": reply(0.9), "0.5": reply(0.3, 0.05), "0.8": reply(0.6)}
  kept = {"arbiter_failure": "keep"}
  assert judged(small, "raise", config=kept)[0].score == 0.3
  assert judged(small, "raise", config={**kept, "mode": "session"})[0].score == pytest.approx(0.6)
  assert judged("raise", "raise", config=kept)[0].score is None


def test_numbers_beyond_their_bounds_may_be_clamped():
  found, _ = judged(reply(1.7, -0.5), config={"out_of_range": "clamp"})
  assert found.score == 1.0 and found.extra["statistics"]["best_uncertainty"] == 0.0


def test_a_reply_in_a_block_of_code_counts():
  found, _ = judged('```json\n{"score": 0.5, "uncertainty": 0.1, "rationale": "r", "principles": [], '
                    '"flags": []}\n```')
  assert found.score == 0.5


def test_the_audit_has_as_much_as_is_asked_for():
  brief = judged({"0.2": reply(0.5), "0.5": "raise", "0.8": reply(0.5)})[0].extra
  assert [sorted(entry) for entry in brief["audit"]] == [
    ["judge", "reasoning", "score", "stage", "temperature", "uncertainty"],
    ["error", "judge", "stage", "temperature"],
    ["judge", "reasoning", "score", "stage", "temperature", "uncertainty"]]
  assert brief["failures"] == {"connect": 1} and brief["calls"] == 3
  full = judged(reply(0.5), config={"audit": "full"})[0].extra["audit"]
  assert all("messages" in entry and "raw_response" in entry for entry in full)
  assert judged(reply(0.5), config={"audit": "none"})[0].extra["audit"] == []


def test_temperatures_differ():
  with pytest.raises(ValueError, match="temperatures"):
    TierSettings(temperatures=(0.2, 0.2))
