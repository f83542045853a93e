"""Exports are whole or absent, have a manifest, and let through what review approved."""
import datetime
import hashlib
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from atlas_jax.data.traces import export, review
from atlas_jax.data.traces.jsonl import TraceReader
from atlas_jax.data.traces.query import Cursor, SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from tests import stores

CASES = stores.read_json("export_cases.json")
NEWEST = SessionQuery(newest_first=True)
ALL = NEWEST.changed(review_statuses=None)
REVIEWS = st.lists(st.sampled_from(["approved", "pending", "quarantined"]), min_size=1, max_size=4)


@pytest.fixture
def filled(store_url):
  with open_store(store_url, writable=True, create=True) as opened:
    opened.write_all(stores.exported())
    yield opened


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def ids(path):
  return [line["session_metadata"]["session_id"] for line in lines(path)]


def manifest(path):
  return json.loads(path.with_name(path.name + export.MANIFEST).read_text())


def test_the_sdks_form_is_what_the_sdk_writes_to_the_byte(filled, tmp_path):
  export.export(filled, tmp_path / "out.jsonl", ALL, form="sdk")
  assert (tmp_path / "out.jsonl").read_text().splitlines() == stores.export_lines()


def query_of(case):
  """The query of a recorded case with the SDK's names."""
  asked = dict(case["kwargs"])
  gate = None if asked.pop("include_all_review_statuses", False) else tuple(
      asked.pop("review_status_filters", ["approved"]))
  statuses = asked.pop("status_filters", None)
  named = asked.pop("session_ids", None)
  query = NEWEST.changed(review_statuses=gate, limit=asked.pop("limit", None),
                         ids=tuple(named) if named else None, statuses=tuple(statuses) if statuses else None,
                         most_events=asked.pop("trajectory_limit", None))
  assert not asked
  return query


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("form", export.FORMS)
def test_recorded_cases(filled, tmp_path, name, form):
  case = CASES[name]
  out = tmp_path / "out.jsonl"
  summary = export.export(filled, out, query_of(case), form=form)
  if name == "limit_2_scans_rows" and form != "sdk":
    # The limit counts what is written: the original looks at two sessions, and writes none.
    assert summary.sessions == 1 and case["sessions"] == 0
    return
  assert (summary.sessions, summary.steps) == (case["sessions"], case["steps"])
  if form != "compact" and case["sessions"]:
    assert ids(out) == case["session_ids"]
    events = [line.get("trajectory_events", []) for line in lines(out)]
    assert [[event["id"] for event in listed] for listed in events] == case["event_ids"]


@pytest.mark.parametrize("form", export.FORMS)
def test_a_file_is_read_as_traces_that_mean_what_the_store_has(filled, tmp_path, form):
  export.export(filled, tmp_path / "out.jsonl", ALL, form=form)
  found = [one.trace for one in TraceReader(str(tmp_path / "out.jsonl"), strict=True)]
  for one, other in zip(found, stores.exported(), strict=True):
    for name in ("session_id", "reward", "guidance", "review_status", "learning_key", "lane", "status"):
      assert getattr(one, name) == getattr(other, name)


def test_the_manifest_counts_and_hashes(filled, tmp_path):
  out = tmp_path / "deep" / "out.jsonl"
  export.export(filled, out, NEWEST)
  found = manifest(out)
  assert found["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
  assert (found["sessions"], found["steps"], found["bytes"]) == (1, 2, out.stat().st_size)
  assert found["review_statuses"] == {"approved": 1} and found["statuses"] == {"succeeded": 1}
  assert found["withheld"] == {"pending": 2, "quarantined": 1}
  assert found["store"] == filled.name and found["query"]["review_statuses"] == ["approved"]


def test_exports_go_on_where_the_last_one_ended(filled, tmp_path):
  out = tmp_path / "out.jsonl"
  seen = []
  query = ALL.changed(limit=3)
  for _ in range(2):
    export.export(filled, out, query)
    seen += ids(out)
    query = query.changed(cursor=Cursor.parse(manifest(out)["cursor"]))
  assert seen == [4, 3, 2, 1]
  assert export.export(filled, out, query).sessions == 0
  since = datetime.datetime.fromisoformat(manifest(out)["newest"])
  assert since.minute == 1


def test_of_nothing_no_file_is_made_and_an_old_one_stays(filled, tmp_path):
  none = NEWEST.changed(learning_key="none")
  assert export.export(filled, tmp_path / "out.jsonl", none).sessions == 0
  assert list(tmp_path.glob("out*")) == list(tmp_path.glob(".out*")) == []
  (tmp_path / "out.jsonl").write_text("old")
  export.export(filled, tmp_path / "out.jsonl", none)
  assert (tmp_path / "out.jsonl").read_text() == "old"


def test_an_export_that_fails_leaves_the_old_file(filled, tmp_path, monkeypatch):
  out = tmp_path / "out.jsonl"
  out.write_text("old")
  calls = []

  def broken(record):
    calls.append(record)
    if len(calls) == 3:
      raise RuntimeError("the third")
    return record

  monkeypatch.setattr(export.forms, "without_copies", broken)
  with pytest.raises(RuntimeError, match="third"):
    export.export(filled, out, ALL)
  assert out.read_text() == "old" and not list(tmp_path.glob(".out*"))


def test_both_stores_export_the_same_bytes(postgres_server, tmp_path):
  with stores.schema_url(postgres_server) as url:
    for place in (url, f"sqlite:///{tmp_path}/traces.db"):
      with open_store(place, writable=True, create=True) as opened:
        opened.write_all(stores.exported())
        mine = {"bb": 1, "a": {"é": 1e22, "c": 2}}
        opened.write(Trace.from_json({"task": "t", "session_id": 9, "mine": mine,
                                      "created_at": "2025-01-02T12:09:00+02:00"}))
        export.export(opened, tmp_path / place.partition(":")[0], ALL)
  assert (tmp_path / "postgresql").read_bytes() == (tmp_path / "sqlite").read_bytes()


def test_pending_and_quarantined_sessions_are_never_exported_by_default(tmp_path):
  number = 0
  with open_store(f"sqlite:///{tmp_path}/traces.db", writable=True, create=True) as opened:
    @hypothesis.settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @hypothesis.given(REVIEWS, st.sampled_from(export.FORMS), st.booleans(), st.none() | st.integers(1, 3),
                      st.booleans())
    def check(reviews, form, newest_first, limit, by_id):
      nonlocal number
      for status in reviews:
        number += 1
        opened.write(Trace.from_json({"task": f"task {number}", "session_id": number}))
        if status != "pending":
          review.decide(opened, number, status, who="test", note="why")
      named = tuple(range(1, number + 1)) if by_id else None
      query = SessionQuery(newest_first=newest_first, limit=limit, ids=named)
      out = tmp_path / "out.jsonl"
      if export.export(opened, out, query, form=form).sessions:
        for one in TraceReader(str(out), strict=True):
          assert opened.session(one.trace.session_id).review_status == one.trace.review_status == "approved"
    check()
