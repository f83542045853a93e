"""The JSON Schema: it is what the tables say, and it agrees with the record's own check."""

import json

import jsonschema
import pytest

from atlas_jax.data.traces import schema
from atlas_jax.data.traces.record import Trace
from tests.data.traces import fuzz, sessions


@pytest.fixture(scope="module")
def validator():
  return jsonschema.Draft202012Validator(json.loads(schema.FILE.read_text()))


def test_the_file_is_what_the_tables_say(tmp_path):
  schema.main([str(tmp_path / "s.json")])
  assert (tmp_path / "s.json").read_text() == schema.FILE.read_text(), (
      "run python -m atlas_jax.data.traces.schema")


def test_sessions_old_and_new_are_valid(validator):
  jsonschema.Draft202012Validator.check_schema(validator.schema)
  for row in [*sessions.exported(), sessions.session()]:
    validator.validate(row)


def test_the_schema_refuses_what_the_record_refuses(validator):
  seen = set()
  for line, kind in fuzz.lines(300, seed=4):
    if kind not in (None, "field") or b"n\\u0000" in line:
      continue
    row = json.loads(line)
    try:
      Trace.from_json(row)
      accepted = True
    except ValueError:
      accepted = False
    assert validator.is_valid(row) == accepted, line[:300]
    seen.add(accepted)
  assert seen == {True, False}
