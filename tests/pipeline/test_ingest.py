"""Sessions that a pipeline lets in: the same from files and stores, in any order, with others counted."""

import json

import pytest

from atlas_jax.data.traces import review
from atlas_jax.data.traces.jsonl import TraceReader
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from atlas_jax.pipeline import ingest, places, plan
from tests.pipeline import sums
from tests.program import ROOT


@pytest.fixture(autouse=True)
def _here(monkeypatch):
  monkeypatch.chdir(ROOT)


def ingested(source, output, **settings):
  """Runs the stage; returns its report and the records that it kept."""
  url = str(source) if "://" in str(source) else None
  asked = plan.PipelineSettings(None if url else str(source), url, str(output), "configs/teacher_rcl.py:cpu",
                                **settings)  # fmt: skip
  resolved = plan.resolve(asked)
  resolved.output.mkdir()
  report = ingest.run(resolved)
  return report, [one.trace for one in TraceReader(str(output / places.TRACES))]


def ids_of(traces):
  return sorted(trace.session_id for trace in traces)


def test_a_store_gives_what_the_file_gives(tmp_path):
  file = sums.write(tmp_path / "traces.jsonl", 6)
  rows = [json.loads(line) for line in file.read_text().splitlines()[:-1]]
  url = f"sqlite:///{tmp_path}/traces.db"
  with open_store(url, writable=True, create=True) as store:
    for row in rows:
      store.write(Trace.from_json(row))
  of_file, kept = ingested(file, tmp_path / "a", overrides={"traces.max_reject_frac": "0.5"})
  of_store, stored = ingested(url, tmp_path / "b")
  assert ids_of(kept) == ids_of(stored) == [1, 2, 3, 4, 5, 6]
  assert {trace.review_status for trace in stored} == {"approved"}
  assert of_store["let_in"] == of_file["let_in"] == 6
  assert of_store["questions"] == of_file["questions"] and of_store["with_ground_truth"] == 6
  assert (tmp_path / "b" / places.REJECTS).read_text() == ""
  # What the store's query never read is counted all the same.
  assert of_store["sessions"] == of_file["sessions"] == 9 and of_store["left_out"] == of_file["left_out"]
  every = {"traces.review_status": "approved,pending,quarantined"}
  wide, _ = ingested(url, tmp_path / "c", overrides=every)
  assert (wide["let_in"], wide["sessions"]) == (8, 9)
  with pytest.raises(ValueError, match=r"7 filters \(it is too old"):
    ingested(url, tmp_path / "d", max_age_days=1e-6)


def test_a_sample_is_the_same_in_any_order(tmp_path):
  rows = [sums.session(number) for number in range(12)]
  for name, given in (("a", rows), ("b", rows[::-1])):
    (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in given))
  one, other = (ingested(tmp_path / f"{name}.jsonl", tmp_path / name, max_samples=5) for name in "ab")
  assert one[0]["let_in"] == 5 and ids_of(one[1]) == ids_of(other[1])
  assert one[0]["data"] == other[0]["data"] and one[0]["data"]["records"] == 5
  assert one[0]["left_out"] == {"max_samples": {"sessions": 7, "why": "it was not drawn"}}


def test_sessions_that_contradict_themselves_are_left_out(tmp_path):
  rows = [sums.session(number) for number in range(4)]
  rows.append({**rows[2], "final_answer": "other"})
  (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  report, kept = ingested(tmp_path / "a.jsonl", tmp_path / "out",
                          overrides={"traces.max_reject_frac": "0.5"})  # fmt: skip
  assert ids_of(kept) == [1, 2, 4] and report["let_in"] == report["with_ground_truth"] == 3
  assert report["data"]["records"] == 3 and report["rejected_lines"] == 1


def test_ages_and_other_filters_are_applied_and_named(tmp_path):
  file = sums.write(tmp_path / "traces.jsonl", 3)
  loose = {"traces.max_reject_frac": "1.0"}
  with pytest.raises(ValueError, match=r"3 age \(it is too old\)"):
    ingested(file, tmp_path / "a", max_age_days=1e-6, overrides=loose)
  more = {**loose, "traces.review_status": "approved,pending"}
  report, kept = ingested(file, tmp_path / "b", overrides=more)
  assert {trace.review_status for trace in kept} == {"approved", "pending"} and report["let_in"] == 4


def test_words_of_a_report():
  report = {"let_in": 1, "sessions": 1, "questions": 1, "with_ground_truth": 0, "left_out": {},
            "rejected_lines": 2}  # fmt: skip
  assert ingest.in_words(report) == ("1 of 1 session let in, with 1 question, 0 with a right answer; left "
                                     "out: 2 lines rejected, see rejects.jsonl")  # fmt: skip


def test_a_copy_with_a_session_that_was_quarantined_since_is_not_gone_on_with(tmp_path):
  rows = [sums.session(number) for number in range(4)]
  rows[3]["session_metadata"].pop("session_id")  # Known by its content alone.
  file = tmp_path / "traces.jsonl"
  url = f"sqlite:///{tmp_path}/traces.db"

  def write(*found):
    file.write_text("".join(f"{json.dumps(row)}\n" for row in found))

  write(*rows)
  with open_store(url, writable=True, create=True) as store:
    number = [store.write(Trace.from_json(row)) for row in rows][1]
    plans = [plan.resolve(plan.PipelineSettings(
      str(file) if name == "file" else None, url if name == "store" else None, str(tmp_path / name),
      "configs/teacher_rcl.py:cpu")) for name in ("file", "store")]  # fmt: skip
    for one in plans:
      one.output.mkdir()
      ingest.run(one)
      ingest.check_still_let_in(one)
    write(rows[0], sums.session(7), "no trace")
    ingest.check_still_let_in(plans[0])  # What has gone stays in the copy, what has come is not added.
    for changed, named in (({**rows[1], "review_status": "quarantined"}, ": 2;"),
                           ({**rows[1], "review_status": "pending"}, ": 2;"),
                           ({**rows[3], "review_status": "quarantined", "review_notes": "x"}, ": sha256:")):
      write(rows[0], changed)
      with pytest.raises(ValueError, match=f"1 session that it was begun with .* approved any more{named}"):
        ingest.check_still_let_in(plans[0])
    write(*rows, {**rows[0], "review_status": "quarantined"})  # A line behind the one that was copied.
    with pytest.raises(ValueError, match=": 1;"):
      ingest.check_still_let_in(plans[0])
    review.decide(store, number, "quarantined", who="ada", note="wrong")
    with pytest.raises(ValueError, match=f": {number};"):
      ingest.check_still_let_in(plans[1])


def test_a_store_may_be_named_by_a_variable(tmp_path, monkeypatch):
  url = f"sqlite:///{tmp_path}/traces.db"
  with open_store(url, writable=True, create=True) as store:
    for number in range(3):
      store.write(Trace.from_json(sums.session(number)))
  monkeypatch.setenv("STORE_OF_TEST", url)
  asked = plan.PipelineSettings(None, "env:STORE_OF_TEST", str(tmp_path / "out"),
                                "configs/teacher_rcl.py:cpu")  # fmt: skip
  resolved = plan.resolve(asked)
  resolved.output.mkdir()
  assert ingest.run(resolved)["let_in"] == 3
  ingest.check_still_let_in(resolved)
