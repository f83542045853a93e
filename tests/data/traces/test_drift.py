"""The drift guard finds what the Atlas SDK's finds, against a baseline without the session itself."""
import pytest

from atlas_jax.data.traces import drift
from atlas_jax.data.traces.drift import DriftSettings
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from tests import stores

CASES = stores.read_json("sdk_runtime_rules.json")["drift"]
OUTAGE = {"score": 0.0, "sample_count": 1, "uncertainty_mean": 1.0}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_recorded_cases(case):
  assert drift.detect(case["current"], case["baseline"], DriftSettings(), "k") == case["out"]


def session(number, score, *, review="approved", stats=None):
  stats = stats or {"score": score, "sample_count": 3, "uncertainty_mean": 0.1}
  metadata = {"session_id": number, "created_at": f"2025-01-02T12:{number:02d}:00+00:00"}
  return Trace.from_json({"task": f"task {number}", "review_status": review, "learning_key": "k",
                          "session_metadata": metadata, "reward_stats": stats})


@pytest.fixture
def store(tmp_path):
  with open_store(f"sqlite:///{tmp_path}/traces.db", writable=True, create=True) as opened:
    yield opened


def found(store, number, **settings):
  return drift.guard(store, store.session(number), DriftSettings(**settings))


def test_a_session_is_no_part_of_its_own_baseline(store):
  for number, score in enumerate([0.8, 0.82, 0.78, 0.81, 0.79, 0.1], start=1):
    store.write(session(number, score))
  ours = found(store, 6)
  assert (ours["baseline"]["sample_count"], ours["alert"], ours["reason"]) == (5, True, "score_z")
  legacy = found(store, 6, legacy=True)
  assert legacy["baseline"]["sample_count"] == 6
  assert legacy["score_delta"] > ours["score_delta"]


def test_sessions_that_came_later_or_were_not_approved_are_no_baseline(store):
  for number in range(1, 9):
    store.write(session(number, 0.8, review="approved" if number % 2 else "quarantined"))
  assert found(store, 6)["baseline"]["sample_count"] == 3
  assert found(store, 6, legacy=True)["baseline"]["sample_count"] == 8


def test_an_outage_of_the_judges_is_no_score(store):
  store.write(session(1, 0.8))
  store.write(session(2, None, stats=OUTAGE))
  store.write(session(3, 0.8))
  assert found(store, 2) is None
  assert found(store, 3)["baseline"]["sample_count"] == 1


def test_a_finding_is_kept_with_a_note_and_moves_no_review(store):
  for number, score in enumerate([0.8, 0.82, 0.78, 0.81, 0.79], start=1):
    store.write(session(number, score))
  store.write(session(6, 0.1, review="pending"))
  finding = found(store, 6)
  store.keep_drift(6, finding, drift.note_of(finding))
  record = store.session(6).record()
  assert record["drift"] == finding and record["drift_alert"] is True
  assert record["review_status"] == "pending" and "score_z" in record["review_notes"]


def test_without_a_key_or_statistics_there_is_nothing_to_compare(store):
  store.write(Trace.from_json({"task": "t", "session_id": 1, "reward_stats": {"score": 1}}))
  assert found(store, 1) is None
  assert drift.note_of(drift.detect({"score": 0.1}, [], DriftSettings())) is None
