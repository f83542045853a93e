"""Constrained decoding: what is written follows the schema, whatever the model would write."""
import json

import numpy as np
import pytest

from atlas_jax.language.serve import tools
from atlas_jax.language.serve.api_error import ApiError
from atlas_jax.language.serve.constrained import GrammarTokens
from tests.language.serve import scripted
from tests.language.serve.test_tools import use

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}},
          "required": ["a", "b"], "additionalProperties": False}


@pytest.fixture(scope="module")
def tokens():
  return GrammarTokens(scripted.text_of())


def drawn(allowed, draw):
  """Writes ids at random among those that are allowed."""
  ids = []
  while True:
    allowed_V = allowed(tuple(ids))
    assert allowed_V.any()
    ids.append(int(draw.choice(np.flatnonzero(allowed_V))))
    if ids[-1] in (256, 260):
      return bytes(ids[:-1]).decode()


def test_random_ids_follow_a_schema(tokens):
  draw = np.random.default_rng(0)
  allowed = tokens.of_schema(SCHEMA, "response_format")
  for _ in range(5):  # Completions of one request share what is allowed.
    found = json.loads(drawn(allowed, draw))
    assert isinstance(found["a"], int)
    assert found["b"] in ("x", "yy")


def test_a_completion_is_known_by_its_ids_alone(tokens):
  allowed = tokens.of_schema(SCHEMA, "response_format")
  one, other = tuple(b'{"a": 1'), tuple(b'{"a": 22, "b": "x"')
  for ids in (one, other, one, other[:-1], ()):
    again = tokens.of_schema(SCHEMA, "response_format")
    np.testing.assert_array_equal(allowed(ids), again(ids))
  with pytest.raises(ValueError, match="left its grammar"):
    allowed(tuple(b'{"c'))


def test_a_demanded_call_is_one_of_a_tool(tokens):
  text = drawn(tokens.of_grammar(tools.grammar(use("required")), "tools"), np.random.default_rng(1))
  reader = tools.CallReader(use())
  reader.push(text)
  assert [call.name for call in reader.calls] == ["add"]
  assert set(json.loads(reader.calls[0].arguments)) == {"a"}


def test_a_schema_that_cannot_be_followed_is_refused(tokens):
  for schema in ({"type": "frob"}, {"not": {"type": "object"}}, {"$ref": "http://example.com/x"}):
    with pytest.raises(ApiError, match="constrained decoding") as caught:
      tokens.of_schema(schema, "response_format")
    assert caught.value.status == 400
