"""Hashes of data: the same records have the same hash in any order, and other ones have another."""

import hashlib

from atlas_jax.data.traces import provenance
from atlas_jax.data.traces.provenance import DataHash
from atlas_jax.data.traces.record import Trace
from tests.data.traces import sessions


def test_the_hash_is_of_the_records_in_any_order():
  found = [Trace.from_json(sessions.session(number)) for number in range(4)]
  again = [Trace.from_json(dict(reversed(one.to_json().items()))) for one in reversed(found)]
  assert provenance.data_hash(found) == provenance.data_hash(again)
  assert provenance.data_hash(found) != provenance.data_hash(found[:3])
  assert provenance.data_hash(found) != provenance.data_hash([*found[:3], found[3].changed(task="x")])


def test_sessions_that_are_left_out_count_no_longer():
  found = DataHash()
  for one in map(Trace.from_json, sessions.exported()):
    found.add(one)
  assert found.to_json()["review_status"] == {"pending": 2, "quarantined": 1, "approved": 1}
  found.leave_out({"2", "3", "4"})
  assert found.to_json() == {
      "sha256": provenance.data_hash([Trace.from_json(sessions.exported()[3])]), "records": 1,
      "review_status": {"approved": 1}, "status": {"succeeded": 1}, "schema_version": {"1": 1}}


def test_files_are_named_with_their_hashes(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b"x\n")
  assert provenance.file_hashes([tmp_path / "a.jsonl"]) == [
      {"name": "a.jsonl", "bytes": 2, "sha256": hashlib.sha256(b"x\n").hexdigest()}]
