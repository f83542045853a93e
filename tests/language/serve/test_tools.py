"""Calls of tools: read from text however it is cut, and demanded by a grammar."""
import json

import pytest

from atlas_jax.language.serve import tools
from atlas_jax.language.serve.api_error import ApiError
from atlas_jax.language.serve.json_fields import JsonFields
from tests.language.serve import scripted

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
          "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def use(choice="auto", *, tagged=True, **fields):
  given = {"tools": [TOOL], "tool_choice": choice} | fields
  return tools.read(JsonFields(given), "tools <tool_call>" if tagged else "tools", nested=True)


def by_pieces(text, size, asked):
  reader = tools.CallReader(asked)
  said, calls = "", []
  for at in range(0, len(text), size):
    piece, more = reader.push(text[at:at + size])
    said, calls = said + piece, calls + more
  piece, more = reader.flush()
  return said + piece, [(call.name, json.loads(call.arguments)) for call in calls + more]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_are_read_however_the_text_is_cut(size):
  text = f"I add.{CALL}\n{CALL.replace('1', '2')}"
  assert by_pieces(text, size, use()) == ("I add.", [("add", {"a": 1}), ("add", {"a": 2})])
  # The closing tag is missing where it stopped the completion.
  assert by_pieces(CALL.removesuffix("</tool_call>"), size, use()) == ("", [("add", {"a": 1})])


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_only_looks_like_a_call_is_text(size):
  for text in ("a < b <tool", "<tool_call>{no json}</tool_call> on",
               '<tool_call>{"name": "other", "arguments": {}}</tool_call>', "<tool_call>"):
    assert by_pieces(text, size, use()) == (text, [])
  assert by_pieces(CALL, size, tools.NOTHING) == (CALL, [])


def test_a_bare_object_is_a_call_where_the_template_has_no_tags():
  bare = use(tagged=False)
  assert by_pieces('{"name": "add", "parameters": {"a": 1}}', 3, bare) == ("", [("add", {"a": 1})])
  for text in ('{"a": 1}', "no call", "a {", ""):
    assert by_pieces(text, 3, bare) == (text, [])


def test_tools_that_cannot_be_are_refused_by_name():
  twice = {"tools": [TOOL, TOOL]}
  cases = [
    (dict(tools=[{"type": "web_search"}]), "tools[0].type"), (twice, "tools"),
    (dict(tools=[{"type": "function"}]), "tools[0].function"),
    (dict(tools=[{**TOOL, "extra": 1}]), "tools[0].extra"),
    (dict(choice={"type": "function", "function": {"name": "no"}}), "tool_choice"),
    (dict(tools=[], choice="required"), "tool_choice"),
  ]  # fmt: skip
  for fields, param in cases:
    with pytest.raises(ApiError) as caught:
      use(**fields)
    assert caught.value.param == param
  with pytest.raises(ApiError, match="shows no tools"):
    tools.read(JsonFields({"tools": [TOOL]}), scripted.PLAIN.replace("tools", ""), nested=True)


def test_one_call_only_ends_at_its_tag():
  assert use(parallel_tool_calls=False).stop_strings == ("</tool_call>",)
  assert use().stop_strings == use("none", parallel_tool_calls=False).stop_strings == ()


def test_a_demanded_call_has_a_grammar():
  assert tools.grammar(use()) is tools.grammar(use("none")) is None
  assert "tool_call" in tools.grammar(use("required"))
  assert "tool_call" not in tools.grammar(use("required", tagged=False))
