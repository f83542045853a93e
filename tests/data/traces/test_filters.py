"""Filters: every trace that is left out is left out for one reason, which is counted."""

import datetime
from collections import Counter

import pytest

from atlas_jax import config as configs
from atlas_jax.data.traces import filters
from atlas_jax.data.traces.filters import Filters
from atlas_jax.data.traces.jsonl import FoundTrace
from atlas_jax.data.traces.record import Trace
from tests.data.traces import sessions

NOW = datetime.datetime(2026, 1, 10, tzinfo=datetime.UTC)
GOOD = sessions.session(learning_key="k", versions={"student": 3, "protocol": "1"})


@pytest.mark.parametrize("row, wanted, why", [
    (GOOD, {}, None),
    ({**GOOD, "review_status": "pending"}, {}, "review_status"),
    ({**GOOD, "review_status": None}, {}, "review_status"),
    ({**GOOD, "review_status": "Approved "}, {}, None),
    ({**GOOD, "review_status": "pending"}, {"review_status": ("approved", "pending")}, None),
    (sessions.with_metadata(GOOD, status="running"), {}, "running"),
    (sessions.with_metadata({**GOOD, "review_status": "pending"}, status="running"), {}, "running"),
    (sessions.with_metadata({**GOOD, "status": "succeeded"}, status="Running"), {}, "running"),
    (sessions.with_metadata(GOOD, review_status=" Quarantined"), {}, "review_status"),
    (sessions.with_metadata(GOOD, review_status="quarantined"),
     {"review_status": ("approved", "quarantined")}, None),
    (sessions.with_metadata(GOOD, review_status="pending"), {}, None),
    (sessions.with_metadata(GOOD, status="failed"), {}, "status"),
    (sessions.with_metadata(GOOD, status=None), {}, "status"),
    (sessions.with_metadata(GOOD, status="failed"), {"status": ("succeeded", "failed")}, None),
    ({**GOOD, "task": " "}, {}, "task"),
    (GOOD, {"learning_key": ("k", "j")}, None),
    (GOOD, {"learning_key": ("j",)}, "learning_key"),
    (GOOD, {"lane": ("auto",)}, "lane"),
    (GOOD, {"lane": ("paired",), "verified": True, "guidance": True}, None),
    (GOOD, {"verified": False}, "verified"),
    ({**GOOD, "verified": None}, {"verified": True}, "verified"),
    (GOOD, {"guidance": False}, "guidance"),
    (GOOD, {"versions": {"student": "3", "protocol": "1"}}, None),
    (GOOD, {"versions": {"student": "4"}}, "versions"),
    (sessions.session(), {"versions": {"student": "3"}}, "versions"),
    (GOOD, {"max_age_days": 8.0}, None),
    (GOOD, {"max_age_days": 7.0}, "age"),
    (sessions.with_metadata(GOOD, created_at=None), {"max_age_days": 8.0}, "date"),
    (sessions.with_metadata(GOOD, ground_truth=None), {"require_ground_truth": True}, "ground_truth"),
    (GOOD, {"min_reward": 0.9}, None),
    (GOOD, {"min_reward": 0.91}, "min_reward"),
    ({**GOOD, "session_reward": None}, {"min_reward": 0.0}, "no_verdict"),
])
def test_a_trace_is_used_or_left_out_for_a_reason(row, wanted, why):
  assert filters.reason(Trace.from_json(row), Filters(**wanted), now=NOW) == why
  assert why is None or why in filters.REASONS


def test_reasons_are_counted():
  rows = [GOOD, {**GOOD, "review_status": "pending"}, {**GOOD, "review_status": "quarantined"},
          sessions.with_metadata(GOOD, status="failed")]
  dropped = Counter()
  found = [FoundTrace(f"f:{number}", Trace.from_json(row)) for number, row in enumerate(rows)]
  assert list(filters.chosen(found, Filters(), dropped)) == found[:1]
  assert dropped == {"review_status": 2, "status": 1}


def test_the_config_says_what_is_used():
  fields = configs.default().traces
  assert filters.of_config(fields) == Filters()
  fields.update(review_status="approved, Pending", status="succeeded,failed", learning_key="K,j", lane="auto",
                verified=True, versions="student=3, protocol=1", max_age_days=2.0, min_reward=0.5)
  assert filters.of_config(fields) == Filters(
      ("approved", "pending"), ("succeeded", "failed"), 0.5, ("K", "j"), ("auto",), True, None,
      {"student": "3", "protocol": "1"}, 2.0)
  assert filters.of_config(fields).to_json()["lane"] == ["auto"]


@pytest.mark.parametrize("changes, words", [
    ({"status": "succeeded,running"}, "config.traces.status='succeeded,running'"),
    ({"status": ""}, "config.traces.status=''"),
    ({"review_status": "aproved"}, "must be of pending, approved, quarantined"),
    ({"review_status": " "}, "config.traces.review_status"),
    ({"lane": "fast"}, "config.traces.lane='fast'"),
    ({"versions": "student"}, "must be NAME=VERSION"),
    ({"max_age_days": 1e300}, "max_age_days=1e"), ({"max_age_days": float("nan")}, "max_age_days=nan"),
])
def test_words_that_do_not_exist_are_refused(changes, words):
  fields = configs.default().traces
  fields.update(changes)
  with pytest.raises(ValueError, match=words):
    filters.of_config(fields)
