"""Tools of a config: functions and their schemas, refusals, imports that are only listed."""
import asyncio
import pathlib
import typing

import pytest

from atlas_jax.runtime.agents import tool_box
from atlas_jax.runtime.agents.tool_box import ToolBox

ME = f"{pathlib.Path(__file__)}:"


def search(query: str, limit: int = 3, kinds: list[str] | None = None, how: typing.Literal["a", "b"] = "a",
           more=None) -> str:
  """Searches the web.

  Long.
  """
  return f"{query} {limit} {kinds} {how} {more}"


def odd(*args: int) -> int:
  return sum(args)


def object_taker(a: object) -> int:
  return 1


def test_a_function_is_a_tool_by_its_annotations():
  tool, = ToolBox([{"kind": "python", "function": f"{ME}search"}]).tools
  assert (tool.name, tool.description) == ("search", "Searches the web.")
  assert tool.schema.pop("properties") == {
    "query": {"type": "string"}, "limit": {"type": "integer"}, "how": {"enum": ["a", "b"]}, "more": {},
    "kinds": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}}
  assert tool.schema == {"type": "object", "required": ["query"], "additionalProperties": False}
  assert tool.run(query="x") == "x 3 None a None"


def test_names_and_schemas_may_be_given_and_the_hash_is_of_them():
  given = [{"kind": "python", "function": f"{ME}search"},
           {"kind": "python", "function": f"{ME}odd", "name": "sum", "description": "d", "schema": {}}]
  box = ToolBox(given)
  assert [tool.name for tool in box.tools] == ["search", "sum"]
  assert tool_box.schema_sha(box.tools) == tool_box.schema_sha(box.tools[::-1])
  assert tool_box.schema_sha(box.tools) != tool_box.schema_sha(box.tools[:1])
  assert asyncio.run(box.open()) == box.tools
  asyncio.run(box.close())


@pytest.mark.parametrize("given, said", [
  ([{"kind": "pyton"}], r"tools\[0\]\.kind='pyton' .* did you mean 'python'"),
  ([3], r"tools\[0\]\.kind=None"), ({"kind": "python"}, "tools is dict"),
  ([{"kind": "python"}], r"tools\[0\]\.function is missing"),
  ([{"kind": "python", "function": f"{ME}serch"}], r"tools\[0\]: .*did you mean 'search'"),
  ([{"kind": "python", "function": f"{ME}ME"}], "cannot be called"),
  ([{"kind": "python", "function": f"{ME}odd"}], "not given by name"),
  ([{"kind": "python", "function": f"{ME}object_taker"}], "JSON has not"),
  ([{"kind": "python", "function": f"{ME}search", "schema": {"pattern": "x"}}], "keyword 'pattern'"),
  ([{"kind": "python", "function": f"{ME}search"}] * 2, "two tools of the name 'search'"),
  ([{"kind": "mcp", "command": ""}], "command is missing"),
])
def test_errors_name_the_tool(given, said):
  with pytest.raises(ValueError, match=said):
    ToolBox(given)


def test_imports_and_programs_are_listed():
  given = [{"kind": "python", "function": "no.such:thing"},
           {"kind": "mcp", "command": "npx", "arguments": ["-y", "server"]}]
  assert [str(one) for one in tool_box.imports(given, field="t")] == [
    "t[0].function imports no.such:thing", "t[1].command starts npx -y server"]
