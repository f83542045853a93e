"""A store gives back what was written to it, lets what is approved pass, and reads three queries a page."""
import concurrent.futures
import datetime
import json
import pathlib
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from atlas_jax import config
from atlas_jax.data.traces import connections, filters, review, rows, sources, sql
from atlas_jax.data.traces import store as store_module
from atlas_jax.data.traces.connections import StoreError
from atlas_jax.data.traces.filters import Filters
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from tests import stores
from tests.data.traces.test_rows import RECORDS

ROOT = pathlib.Path(__file__).parents[3]
ALL = SessionQuery(review_statuses=None)
READS = stores.read_json("postgres_reads.json")


@pytest.fixture
def store(store_url):
  with open_store(store_url, writable=True, create=True) as opened:
    yield opened


@pytest.fixture
def filled(store):
  """A store with the four sessions of the fixtures."""
  store.write_all(stores.exported())
  return store


def session(number, *, minute=None, review="approved", **fields):
  begun = f"2025-01-02T12:{number if minute is None else minute:02d}:00+00:00"
  return Trace.from_json({"task": f"task {number}", "review_status": review, **fields, "session_metadata": {
    "session_id": number, "status": "succeeded", "created_at": begun}})


def ids(store, query=None):
  return [int(found.where.rpartition("#")[2]) for found in store.traces(query)]


# Writing and reading.


def test_what_a_file_says_a_store_says(filled):
  found = [one.trace for one in filled.traces(ALL.changed(newest_first=True))]
  assert [one.data for one in found] == [one.data for one in stores.exported()]
  assert [one.sha256 for one in found] == [one.sha256 for one in stores.exported()]
  assert list(filled.traces())[0].where == f"{filled.name}#1"


def test_any_trace_comes_back_as_it_was(store):
  @hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
  @hypothesis.given(RECORDS)
  def check(record):
    trace = Trace.from_json({name: value for name, value in record.items() if name != "session_id"})
    found = store.session(store.write(trace)).record()
    if trace.created_at is None:
      del found["session_metadata"]["created_at"]
    del found["session_metadata"]["session_id"]
    wanted = rows.join(rows.split(rows.without_id(trace.to_json())))
    for holder in (wanted, wanted["session_metadata"], found, found["session_metadata"]):
      for name in rows.REVIEW:
        holder.pop(name, None)
    assert Trace.from_json(found).sha256 == Trace.from_json(wanted).sha256
  check()


@pytest.mark.parametrize("value", [1e22, 1.2345678901234567e19, -0.0, 1e-7, 10**30, "\u2028", "é", True, 1.0])
def test_numbers_and_texts_keep_their_values(store, value):
  trace = Trace.from_json({"task": "t", "mine": [value, {"é": value, "a": "1e+22"}]})
  found = Trace.from_json(store.session(store.write(trace)).record())
  assert found.data["mine"] == trace.data["mine"]
  assert type(found.data["mine"][0]) is type(value)


def test_what_no_store_takes_was_replaced_before(store):
  trace = Trace.from_json({"task": "a\x00b\ud800", "mine": float("nan")})
  found = Trace.from_json(store.session(store.write(trace)).record())
  assert found.task == "a\ufffdb\ufffd" and found.data["mine"] is None
  assert found.data["sanitized"] == trace.data["sanitized"] == 3


def test_writing_again_changes_nothing(filled):
  before = [stored.record() for page in filled.pages(ALL) for stored in page]
  filled.write_all(stores.exported())
  assert [stored.record() for page in filled.pages(ALL) for stored in page] == before
  assert len(filled.moves(1)) == 1


def test_a_later_state_replaces_an_earlier_one_but_for_its_review(store):
  first = {"step_id": 1, "output": "a", "attempt_details": [{"attempt": 1, "evaluation": {}}]}
  store.write(session(1, review="pending", steps=[first, {"step_id": 2}]))
  review.decide(store, 1, "quarantined", who="ada", note="wrong")
  store.write(session(1, review="approved", steps=[{"step_id": 1, "output": "b"}], final_answer="b"))
  record = store.session(1).record()
  assert (record["final_answer"], len(record["steps"]), record["steps"][0]["output"]) == ("b", 1, "b")
  assert (record["review_status"], record["review_notes"]) == ("quarantined", "wrong")
  assert ids(store) == []


def test_another_session_under_an_id_is_refused_and_written_under_a_key(store):
  store.write(session(1))
  other = session(1, minute=30)
  with pytest.raises(StoreError, match="session 1 is another one there, 'task 1'"):
    store.write(other)
  number = store.write(other, key="theirs:1")
  assert store.write(other, key="theirs:1") == number != 1
  assert store.session(number).record()["session_metadata"][rows.SOURCE_ID] == 1
  assert store.session(1).record()["session_metadata"]["created_at"].startswith("2025-01-02T12:01")


def test_a_trace_without_an_id_is_written_once(store):
  trace = Trace.from_json({"task": "t", "session_id": "abc"})
  assert store.write(trace) == store.write(trace)
  assert store.write(Trace.from_json({"task": "t"})) != store.write(Trace.from_json({"task": "u"}))
  assert store.counts(ALL) == {("pending", rows.UNKNOWN): 3}


def test_ids_that_the_store_allots_are_free(store):
  store.write(session(7))
  numbers = [store.write(Trace.from_json({"task": text})) for text in "abc"]
  assert len({7, *numbers}) == 4


def test_events_whose_ids_are_taken_keep_them_in_the_record(store):
  event = {"id": 3, "event": {"payload": {}}, "created_at": "2025-01-02T12:00:01+00:00"}
  for number in (1, 2):
    store.write(session(number, trajectory_events=[event, event | {"id": 4}]))
  for number in (1, 2):
    assert [one["id"] for one in store.session(number).record()["trajectory_events"]] == [3, 4]
  assert [one["id"] for one in store.session(2, most_events=1).record()["trajectory_events"]] == [4]


def test_a_finding_undoes_nothing_that_is_written_meanwhile(store, monkeypatch):
  store.write(session(1, note="old"))
  read = store_module.read_page

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    def meanwhile(transaction, query, size):
      found = read(transaction, query, size)
      monkeypatch.setattr(store_module, "read_page", read)
      later.append(pool.submit(store.write, session(1, note="new")))
      concurrent.futures.wait(later, timeout=1)  # It waits for the finding, or is through.
      return found

    later = []
    monkeypatch.setattr(store_module, "read_page", meanwhile)
    store.keep_drift(1, {"alert": False}, None)
    later[0].result()
  assert store.session(1).record()["note"] == "new"


def test_a_failed_transaction_leaves_nothing(store, monkeypatch):
  broken = "INSERT INTO nowhere VALUES (1)"
  monkeypatch.setattr(sql, "ADD_STEP", sql.Statement(broken, broken))
  with pytest.raises(StoreError):
    store.write(session(1, steps=[{"step_id": 1}]))
  assert store.counts(ALL) == {}


def test_writers_at_once_write_each_session_once(store):
  traces = [session(number % 5 + 1, steps=[{"step_id": 1}]) for number in range(20)]
  traces += [Trace.from_json({"task": f"k{number % 3}"}) for number in range(12)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    numbers = list(pool.map(store.write, traces))
  assert len(set(numbers)) == 8 == sum(store.counts(ALL).values())


# The gate.


def test_only_approved_sessions_come_out(store):
  approved, number = set(), 0

  @hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
  @hypothesis.given(st.lists(st.tuples(
      st.sampled_from(["approved", "pending", "quarantined", "Approved ", "odd", None]),
      st.lists(st.sampled_from(["approved", "quarantined", "again"]), max_size=3)), min_size=1, max_size=3))
  def check(sessions):
    nonlocal number
    for first, moves in sessions:
      number += 1
      trace = session(number, minute=number % 60, review=first)
      store.write(trace)
      for move in moves:
        if move == "again":
          store.write(trace)  # As it was at first.
        else:
          review.decide(store, number, move, who="test", note="why")
      is_approved = store.session(number).review_status == "approved"
      decided = [move for move in moves if move != "again"]
      assert is_approved == ((decided or [(first or "").strip().lower()])[-1] == "approved")
      approved.update([number] if is_approved else [])
    assert set(ids(store)) == set(ids(store, Filters())) == approved
  check()


def test_pending_and_quarantined_sessions_come_out_for_whoever_asks(filled):
  assert ids(filled) == [1]
  assert ids(filled, SessionQuery(review_statuses=("pending",))) == [2, 4]
  assert ids(filled, Filters(review_status=("quarantined", "pending"))) == [2, 3, 4]


def test_recipes_read_a_store_like_a_file(filled, store_url, tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(store_module.logging, "info", lambda text, *values: said.append(text % values))
  (tmp_path / "traces.jsonl").write_text("\n".join(stores.export_lines()) + "\n")
  fields = config.default().traces
  found = []
  for files in (store_url, str(tmp_path / "traces.jsonl")):
    selection = sources.Selection(filters.of_config(fields))
    found.append([one.trace for one in sources.selected(files, fields, selection)])
  assert found[0] == found[1] and len(found[0]) == 1
  assert said == [f"{filled.name}: review holds back {{'pending': 2, 'quarantined': 1}}"]


# Pages.


def test_pages_have_every_session_once_in_order_also_with_equal_times(store):
  store.write_all(session(number, minute=number // 4) for number in range(1, 24))
  for newest_first in (False, True):
    for page_rows in (1, 3, 23, 50):
      pages = list(store.pages(ALL.changed(newest_first=newest_first), page_rows=page_rows))
      found = [stored.id for page in pages for stored in page]
      assert found == sorted(range(1, 24), reverse=newest_first)
      assert max(map(len, pages)) <= page_rows


def test_reading_goes_on_at_a_cursor_and_what_comes_meanwhile_moves_no_page(store):
  store.write_all(session(number, minute=5) for number in range(1, 8))
  first = [stored for page in store.pages(ALL.changed(limit=3), page_rows=2) for stored in page]
  store.write(session(9, minute=1))
  rest = [stored.id for page in store.pages(ALL.changed(cursor=first[-1].cursor)) for stored in page]
  assert [stored.id for stored in first] + rest == list(range(1, 8))


def test_the_limit_is_of_sessions_that_pass(store):
  reviews = ("approved", "pending", "quarantined")
  store.write_all(session(number, review=reviews[number % 3]) for number in range(1, 13))
  assert ids(store, SessionQuery(limit=3)) == [3, 6, 9]
  assert ids(store, SessionQuery(limit=2, offset=1, newest_first=True)) == [9, 6]


def test_a_page_takes_three_queries_however_many_sessions_it_has(store, monkeypatch):
  store.write_all(session(number, steps=[{"step_id": 1, "guidance": ["a"]}]) for number in range(1, 40))
  asked = []
  original = connections.Transaction.rows

  def counted(self, statement, **values):
    asked.append(statement)
    return original(self, statement, **values)

  monkeypatch.setattr(connections.Transaction, "rows", counted)
  assert [len(page) for page in store.pages(ALL, page_rows=39)][0] == 39
  assert len(asked) == 3 + 1  # And one that finds the next page empty.


@pytest.mark.parametrize("case", READS["queries"], ids=lambda case: json.dumps(case["kwargs"]))
def test_recorded_reads(filled, case):
  asked = dict(case["kwargs"])
  most_events = None if asked.pop("include_trajectory_events", True) else 0
  asked.pop("include_learning_data", None)
  # The original's default is every review status; ours is approved alone.
  gate = tuple(asked.pop("review_status_filters", ())) or None
  statuses = tuple(asked.pop("status_filters", ())) or None
  query = SessionQuery(review_statuses=gate, statuses=statuses, newest_first=True, most_events=most_events,
                       **asked)
  found = [stored for page in filled.pages(query) for stored in page]
  assert [stored.rows.session["task"] for stored in found] == case["tasks"]
  assert [len(stored.rows.steps) for stored in found] == case["n_steps"]
  assert [len(stored.rows.events) for stored in found] == case["n_events"]
  # Decoded, and oldest first, which the original's are not.
  assert all(isinstance(event["event"], dict) for stored in found for event in stored.rows.events)
  for stored in found:
    assert stored.rows.events == sorted(stored.rows.events, key=lambda event: event["id"])


def test_recorded_traces_have_the_same_values(filled):
  found = [one.trace for one in filled.traces(ALL.changed(newest_first=True))]
  for trace, wanted in zip(found, READS["traces"], strict=True):
    assert (trace.task, trace.final_answer) == (wanted["task"], wanted["final_answer"])
    assert trace.plan == wanted["plan"]
    assert trace.data.get("session_reward") == wanted["session_reward"]
    assert [step.guidance for step in trace.steps] == [tuple(step["guidance"]) for step in wanted["steps"]]
    assert [step.output for step in trace.steps] == [step["output"] for step in wanted["steps"]]
    assert trace.session_metadata.items() >= wanted["session_metadata"].items()


def test_time_and_score_select(filled):
  since = datetime.datetime(2025, 1, 2, 12, 2, tzinfo=datetime.UTC)
  assert ids(filled, ALL.changed(since=since)) == [2, 3, 4]
  filled.write(session(9, reward_stats={"score": "high"}))  # No number, and no error.
  assert ids(filled, ALL.changed(min_reward=0.5)) == [1, 2]


def test_a_row_that_is_no_trace_is_named(filled):
  with filled.database.writing() as transaction:
    transaction.run(sql.CHANGE_SESSION, id=1, status="succeeded", metadata='{"learning_key": 5}',
                    final_answer=None, reward=None, reward_stats=None, reward_audit='{"no": "list"}',
                    student_learning=None, teacher_learning=None, completed_at=None)
  with pytest.raises(ValueError, match=r"#1: .*; mend that row"):
    list(filled.traces())
  refused = []
  assert list(filled.traces(on_reject=lambda where, why: refused.append(where))) == []
  assert refused == [f"{filled.name}#1"]


# Programs.


FORK = """
import os, sys
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.store import open_store
everything = SessionQuery(review_statuses=None)
store = open_store(sys.argv[1])
count = lambda: sum(store.counts(everything).values())
assert count() == 4
child = os.fork()
if not child:
  os._exit(0 if count() == 4 else 1)
assert os.waitpid(child, 0)[1] == 0
assert count() == 4
print("alive")
"""


def test_a_forked_process_opens_connections_of_its_own(filled, store_url):
  # In a program of its own, without the threads of JAX, which no fork survives for certain.
  call = [sys.executable, "-c", FORK, store_url]
  done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, timeout=120)
  assert done.stdout == "alive\n" and done.returncode == 0 and done.stderr == ""


def test_the_bench_measures_what_passes_the_gate(store_url, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "scripts")
  import bench_store

  with open_store(store_url, writable=True, create=True) as opened:
    assert bench_store.written(opened, 20)["sessions"] == 20
  for what in ("read", "export"):
    row = bench_store.child(what, store_url, 20)
    assert row["sessions"] == 18 and row["sessions_per_cpu_s"] > 0 and row["peak_mib"] >= row["tenth_mib"] > 0
