"""What is read of a store: the gate of review, filters and cursors."""
import datetime

import pytest

from atlas_jax.data.traces import query
from atlas_jax.data.traces.filters import Filters
from atlas_jax.data.traces.query import Cursor, SessionQuery, review_gate
from tests import stores

CASES = stores.read_json("sdk_runtime_rules.json")["review_filters"]
NOW = datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_sdks_gate_is_that_of_legacy(case):
  found = review_gate(case["include_status"], case["include_all"], case["env"], legacy=True)
  assert (None if found is None else list(found)) == case["filters"]
  assert (found is None) == case["all"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_status_that_is_asked_for_restricts(case):
  found = review_gate(case["include_status"], case["include_all"], case["env"])
  if case["include_status"] and not case["include_all"]:
    assert found == tuple(status.lower() for status in case["include_status"])
  else:
    assert (None if found is None else list(found)) == case["filters"]


def test_the_gate_is_closed_by_default():
  assert SessionQuery().clauses() == (("review_status",), {"review_status": "approved"})
  assert review_gate(None, False, {}) == ("approved",)
  assert review_gate([" "], False, {}) == ("approved",)


def test_a_cursor_is_read_as_it_is_written():
  cursor = Cursor(NOW, 17)
  assert Cursor.parse(str(cursor)) == cursor
  for wrong in ("", "17", "2026-01-31", "soon/17", "2026-01-31/x"):
    with pytest.raises(ValueError, match="cursor"):
      Cursor.parse(wrong)


def test_filters_of_traces_become_a_query_that_lets_no_less_through():
  found = query.of_filters(Filters(learning_key=("a",), max_age_days=1.0, min_reward=0.5), now=NOW)
  assert found == SessionQuery(learning_key="a", since=NOW - datetime.timedelta(days=1))
  both = query.of_filters(Filters(review_status=("approved", "pending"), learning_key=("a", "b")))
  assert both == SessionQuery(review_statuses=("approved", "pending"))
