"""The original's loader: its recorded results, faults included."""

import json

import pytest

from atlas_jax.data.traces import legacy
from tests.data.traces import sessions

CASES = json.loads((sessions.FIXTURES / "ingest_edge_cases.json").read_text())
EXPECTED = json.loads((sessions.FIXTURES / "core_ingest_expected.json").read_text())


def outcome(text):
  try:
    found = legacy.load(text.splitlines())
    count = sum(len(legacy.records(one)) for one in found)
  except (json.JSONDecodeError, AttributeError) as error:
    return {"ok": False, "error": type(error).__name__}
  return {"ok": True, "sessions": found, "n_rl_records": count}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_an_edge_case_ends_as_recorded(case):
  # As JSON texts: NaN is not equal to itself.
  assert json.dumps(outcome(case["jsonl"]), sort_keys=True) == json.dumps(case["result"], sort_keys=True)


def test_the_exported_sessions_are_read_as_recorded():
  found = legacy.load((sessions.FIXTURES / "export_all.jsonl").read_text().splitlines())
  records = [one for each in found for one in legacy.records(each, system="<DEFAULT_EXECUTOR_PROMPT>")]
  assert found == EXPECTED["sessions"]
  assert records == EXPECTED["rl_records"]
  assert [one for each in found for one in legacy.flat(each)] == EXPECTED["flat_records"]
  assert [one["reward_score"] for one in records] == EXPECTED["reward_scores"]
  assert [{name: value for name, value in legacy.accessors(each).items() if name in expected}
          for each, expected in zip(found, EXPECTED["accessors"], strict=True)] == EXPECTED["accessors"]
