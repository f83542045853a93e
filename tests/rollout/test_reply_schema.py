"""Replies against JSON Schemas: what fits, what does not and where, and schemas that cannot be checked."""
import pytest

from atlas_jax.rollout import reply_schema

PERSON = {
  "type": "object", "required": ["name"], "additionalProperties": False,
  "properties": {
    "name": {"type": "string", "minLength": 1, "maxLength": 5},
    "age": {"type": ["integer", "null"], "minimum": 0},
    "tags": {"type": "array", "items": {"enum": ["a", "b", 1]}, "maxItems": 2},
    "weight": {"type": "number", "maximum": 10}, "kind": {"const": "x"},
    "more": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "either": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1}]}}}


@pytest.mark.parametrize("value", [
  {"name": "a"}, {"name": "a", "age": 3.0, "tags": ["a", "b"]}, {"name": "a", "age": None, "weight": 10},
  {"name": "a", "kind": "x", "more": {"z": True}, "either": [1]}, {"name": "a", "either": ""}])
def test_what_fits(value):
  assert reply_schema.mismatch(value, PERSON) is None


@pytest.mark.parametrize("value, where", [
  ([], "$ is"), ({}, "lacks 'name'"), ({"name": ""}, "$.name"), ({"name": "abcdef"}, "maxLength"),
  ({"name": "a", "age": 3.5}, "$.age"), ({"name": "a", "age": -1}, "minimum"),
  ({"name": "a", "age": True}, "$.age"),
  ({"name": "a", "tags": ["a", True]}, "$.tags[1]"), ({"name": "a", "tags": ["a", "a", "a"]}, "maxItems"),
  ({"name": "a", "weight": 11}, "maximum"), ({"name": "a", "kind": "y"}, "must be 'x'"),
  ({"name": "a", "more": {"z": 1}}, "$.more.z"), ({"name": "a", "either": []}, "anyOf"),
  ({"name": "a", "x" * 500: 1}, "may have only")])
def test_what_does_not_fit_is_said_with_its_place(value, where):
  problem = reply_schema.mismatch(value, PERSON)
  assert where in problem and len(problem) < 400


@pytest.mark.parametrize("text", [
  '{"name": "a"}', ' {"name": "a"}\n', '```json\n{"name": "a"}\n```', '```\n{"name": "a"}```'])
def test_a_reply_may_stand_in_one_block_of_code(text):
  assert reply_schema.read(text, PERSON) == {"name": "a"}


@pytest.mark.parametrize("text, why", [
  ("", "not JSON"), ('Sure: {"name": "a"}', "not JSON"), ('{"name": "a", "name": "b"}', "twice"),
  ('{"name": NaN}', "NaN"), ("[" * 5000, "brackets"), ('{"name": 1}', "$.name"), ("9" * 5000, "digits"),
  ("x" * 1_000_001, "characters")])
def test_a_reply_that_is_none_is_refused(text, why):
  with pytest.raises(ValueError) as raised:
    reply_schema.read(text, PERSON)
  assert why in str(raised.value)


@pytest.mark.parametrize("schema, named", [
  ({"pattern": "x"}, "pattern"), ({"type": "date"}, "date"), ([], "list"),
  ({"properties": {"a": {"format": "x"}}}, "schema.properties.a"), ({"items": {"oneOf": []}}, "schema.items"),
  ({"anyOf": [{"not": {}}]}, "schema.anyOf.0"),
  ({"additionalProperties": {"$ref": "x"}}, "additionalProperties")])
def test_a_schema_that_cannot_be_checked_is_refused(schema, named):
  reply_schema.check_schema(PERSON)
  with pytest.raises(ValueError) as raised:
    reply_schema.check_schema(schema)
  assert named in str(raised.value)
