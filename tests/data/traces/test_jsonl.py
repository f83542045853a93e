"""Files of traces: every line is a trace or a reject with a reason, and none stops the others."""

import gzip
import json

import pytest

from atlas_jax.data.traces import jsonl
from atlas_jax.data.traces.jsonl import TraceReader
from atlas_jax.data.traces.rejects import RejectedError
from tests.data.traces import fuzz, sessions

CASES = json.loads((sessions.FIXTURES / "ingest_edge_cases.json").read_text())
# Cases of the original that are rejected line by line here, with their kind; all others are read.
REJECTED = {
    "truncated json aborts whole load": {2: "json"}, "json array line": {1: "object"},
    "json null line": {1: "object"}, "missing everything": {1: "field"}, "step is a string": {1: "field"},
    "reward list": {1: "field"}, "context list dropped": {1: "field"}, "metadata not a dict": {1: "field"},
    "session_metadata list breaks later": {1: "field"},
}


def rows_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_an_edge_case_is_read_line_by_line_and_strict_mode_lists_its_errors(case, tmp_path):
  file = tmp_path / "case.jsonl"
  file.write_text(case["jsonl"])
  rejects = tmp_path / "rejects.jsonl"
  reader = TraceReader(str(file), max_reject_frac=1.0, rejects_file=rejects)
  found = list(reader)
  wanted = REJECTED.get(case["name"], {})
  assert {row["line"]: row["kind"] for row in rows_of(rejects)} == wanted
  lines = sum(bool(line.strip()) for line in case["jsonl"].splitlines())
  assert len(found) + len(wanted) + reader.report.duplicates == reader.report.lines == lines
  if not case["result"]["ok"]:
    assert wanted or case["name"] in ("tool_params json list",)  # JSON text of no object is no parameters.
  strict = TraceReader(str(file), strict=True)
  if not wanted:
    assert [one.trace for one in strict] == [one.trace for one in found]
    return
  with pytest.raises(RejectedError) as error:
    list(strict)
  assert all(f"case.jsonl:{line}: {kind}: " in str(error.value) for line, kind in wanted.items())


def test_a_case_that_the_original_reads_has_the_same_texts_here(tmp_path):
  for case in CASES:
    if not case["result"]["ok"] or case["name"] in REJECTED or case["name"] == "duplicates kept":
      continue
    file = tmp_path / "case.jsonl"
    file.write_text(case["jsonl"])
    for one, expected in zip(TraceReader(str(file)), case["result"]["sessions"], strict=True):
      trace = one.trace
      assert (trace.task, trace.final_answer) == (expected["task"], expected["final_answer"]), case["name"]
      assert [dict(step.context) for step in trace.steps] == [step["context"] for step in expected["steps"]]
      assert [step.tool for step in trace.steps] == [step["tool"] for step in expected["steps"]]
      assert [list(step.guidance) for step in trace.steps] == [step["guidance"] for step in expected["steps"]]


def test_five_thousand_damaged_lines_load_or_are_rejected_with_line_and_reason(tmp_path):
  made = fuzz.lines(5000, seed=18)
  file = sessions.write(tmp_path / "fuzz.jsonl", [line for line, _ in made])
  rejects = tmp_path / "rejects.jsonl"
  reader = TraceReader(file, max_reject_frac=1.0, rejects_file=rejects)
  loaded = {int(one.where.rpartition(":")[2]) for one in reader}
  rows = rows_of(rejects)
  assert {row["line"]: row["kind"] for row in rows} == {
      number: kind for number, (_, kind) in enumerate(made, start=1) if kind is not None}
  assert loaded == {number for number, (_, kind) in enumerate(made, start=1) if kind is None}
  assert all(row["reason"] and row["file"] == file for row in rows)
  assert reader.report.traces == len(loaded) and reader.report.rejected == len(rows) > 3000
  with pytest.raises(RejectedError) as error:  # None passes in strict mode: each is listed.
    list(TraceReader(file, strict=True))
  listed = str(error.value).splitlines()[1:]
  assert listed == [f"{row['file']}:{row['line']}: {row['kind']}: {row['reason']}" for row in rows]


def test_too_many_rejects_are_an_error_that_says_of_what_kind(tmp_path):
  good = [sessions.session(number) for number in range(19)]
  file = sessions.write(tmp_path / "few.jsonl", [*good, "{"])
  assert len(list(TraceReader(file))) == 19
  file = sessions.write(tmp_path / "many.jsonl", [*good[:18], "{", "[]"])
  rejects = tmp_path / "rejects.jsonl"
  with pytest.raises(RejectedError, match=r"2 of 20 lines .* config.traces.max_reject_frac=0.05: 1 json"):
    list(TraceReader(file, rejects_file=rejects))
  assert [row["line"] for row in rows_of(rejects)] == [19, 20]


def test_a_line_that_stands_twice_counts_once_and_a_session_that_contradicts_itself_is_told(tmp_path):
  first = sessions.session(1)
  file = sessions.write(tmp_path / "a.jsonl", [
      first, sessions.session(2), first, {**first, "review_status": "quarantined"}, {"task": "a"},
      {"task": "a"}])
  reader = TraceReader(file, max_reject_frac=0.5)
  found = list(reader)
  assert [one.trace.session_id for one in found] == [1, 2, None]
  assert reader.report.duplicates == 2 and list(reader.report.conflicts) == ["1"]
  assert reader.report.rejects == {"conflict": 1}
  assert f"{file}:1 and {file}:4" in reader.report.conflicts["1"]


def test_packed_files_folders_and_a_mark_of_the_order_of_bytes_are_read(tmp_path):
  with gzip.open(tmp_path / "b.jsonl.gz", "wt") as out:
    out.write("\ufeff" + json.dumps(sessions.session(1)) + "\n")
  sessions.write(tmp_path / "a.jsonl", [sessions.session(2)])
  found = list(TraceReader(str(tmp_path), strict=True))
  assert [one.trace.session_id for one in found] == [2, 1]
  assert [one.where for one in found] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.jsonl.gz:1"]


def test_a_packed_file_that_ends_in_the_middle_gives_what_it_has(tmp_path):
  rows = "".join(json.dumps(sessions.session(number)) + "\n" for number in range(200))
  whole = gzip.compress(rows.encode())
  (tmp_path / "a.jsonl.gz").write_bytes(whole[:len(whole) // 2])
  reader = TraceReader(str(tmp_path / "a.jsonl.gz"), max_reject_frac=1.0)
  found = list(reader)
  assert found and reader.report.rejects["damaged"] == 1


def test_a_line_without_end_is_passed_over(tmp_path, monkeypatch):
  monkeypatch.setattr(jsonl, "MOST_LINE_BYTES", 5000)
  file = sessions.write(tmp_path / "a.jsonl", [
      sessions.session(1), {"task": "x" * 20_000}, sessions.session(2), {"task": "x" * 5000}])
  reader = TraceReader(file, max_reject_frac=1.0)
  assert [one.trace.session_id for one in reader] == [1, 2] and reader.report.rejects == {"long": 2}


def test_a_first_line_that_nests_too_deep_is_a_reject(tmp_path):
  deep = '{"task": "a", "x": ' + "[" * 50_000 + "]" * 50_000 + "}"
  reader = TraceReader(sessions.write(tmp_path / "a.jsonl", [deep, sessions.session(2)]), max_reject_frac=1.0)
  assert [one.trace.session_id for one in reader] == [2] and reader.report.rejects == {"json": 1}


def test_a_file_of_another_kind_is_refused(tmp_path):
  (tmp_path / "a.csv").write_text("task\n")
  with pytest.raises(ValueError, match="is no file of traces"):
    TraceReader(str(tmp_path / "a.csv"))
