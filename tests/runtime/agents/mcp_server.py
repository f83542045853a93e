"""A server of tools that a test starts as a program; it speaks over its standard streams."""
import os
import sys
import time

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("numbers")


@server.tool()
def add(a: int, b: int) -> str:
  """Adds two numbers."""
  return str(a + b)


@server.tool()
def fail(why: str) -> str:
  """Fails."""
  raise ToolError(why)


@server.tool()
def variables() -> str:
  """Names the variables of the environment."""
  return " ".join(sorted(os.environ))


@server.tool()
def wait() -> str:
  """Takes long."""
  time.sleep(30)
  return "late"


@server.tool()
def leave() -> str:
  """Ends the server."""
  os._exit(3)


if __name__ == "__main__":
  if sys.argv[1:] == ["silent"]:
    time.sleep(30)
  server.run(transport="stdio")
