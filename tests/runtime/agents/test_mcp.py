"""Servers of tools over standard streams, with a real one that is started; it needs the package mcp."""
import asyncio
import pathlib
import sys

import pytest

from atlas_jax.runtime.agents.mcp import McpServer, McpServerSettings
from atlas_jax.runtime.agents.tool_box import ToolBox
from atlas_jax.runtime.agents.tool_loop import ToolLoop, ToolLoopSettings
from tests.runtime.agents.agents import MESSAGES, SESSION
from tests.runtime.agents.test_tool_loop import AgentReply, asks, scripted

SERVER = str(pathlib.Path(__file__).parent / "mcp_server.py")
GIVEN = {"kind": "mcp", "command": sys.executable, "arguments": [SERVER]}


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "mcp", None)
  with pytest.raises(ModuleNotFoundError, match=r"atlas_jax\[mcp\]"):
    McpServer(McpServerSettings("x"))


def test_settings_are_checked(monkeypatch):
  with pytest.raises(ValueError, match="start_s=0"):
    McpServerSettings("x", start_s=0)


def test_tools_of_a_server_are_called_and_it_gets_no_secrets(monkeypatch):
  pytest.importorskip("mcp")
  import mcp
  monkeypatch.setenv("PLANTED_KEY", "secret")
  monkeypatch.setenv("GIVEN_ON", "yes")
  path = str(pathlib.Path(mcp.__file__).parent.parent)
  monkeypatch.setenv("PYTHONPATH", path)
  given = {**GIVEN, "variables": ["GIVEN_ON", "PYTHONPATH"], "prefix": "n_"}
  agent, _ = scripted(
    asks(("n_add", {"a": 2, "b": 2}), ("n_add", {"a": "x", "b": 1}), ("n_fail", {"why": "because"}),
         ("n_variables", {}), ("n_wait", {})), asks(("n_leave", {})), asks(("n_add", {"a": 1, "b": 1})),
    AgentReply("4"))

  async def run():
    box = ToolBox([given])
    tools = await box.open()
    loop = ToolLoop(agent, tools, settings=ToolLoopSettings(call_s=1))
    try:
      reply = await loop.answer(MESSAGES, session=SESSION)
    finally:
      await box.close()
    return tools, loop, reply, box.tools

  tools, loop, reply, after = asyncio.run(run())
  assert [tool.name for tool in tools] == ["n_add", "n_fail", "n_variables", "n_wait", "n_leave"]
  assert tools[0].description == "Adds two numbers." and after == ()
  statuses = [one.status for one in loop.calls]
  assert statuses == ["ok", "refused", "error", "ok", "timed_out", "error", "error"], loop.calls
  assert loop.calls[0].text == "4" and "because" in loop.calls[2].text
  assert "GIVEN_ON" in loop.calls[3].text and "PLANTED_KEY" not in loop.calls[3].text
  assert reply.text == "4"


@pytest.mark.parametrize("given, said", [
  ({"command": "no-such-program-here"}, r"tools\[0\]: command='no-such-program-here' is no server"),
  ({"command": sys.executable, "arguments": ["-c", "print('hello')"]}, "is no server|did not say"),
  ({"command": sys.executable, "arguments": [SERVER], "only": ["add", "sub"]}, "'sub', which"),
  ({"command": sys.executable, "arguments": ["-c", "import sys; sys.stdin.read()"], "start_s": 0.3},
   "within 0.3 seconds"),
  ({"command": sys.executable, "variables": ["NOT_SET_AT_ALL"]}, "NOT_SET_AT_ALL, which is not set"),
])
def test_servers_that_do_not_start_are_refused(given, said, monkeypatch):
  mcp = pytest.importorskip("mcp")
  monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(mcp.__file__).parent.parent))
  given = {"start_s": 10.0, **given}
  given.setdefault("variables", ["PYTHONPATH"])

  async def run():
    box = ToolBox([{"kind": "mcp", **given}])
    await box.open()

  with pytest.raises(ValueError, match=said):
    asyncio.run(run())
