"""Functions that tests use as agents and tools, and calls of agents in a loop of their own."""
import asyncio

from atlas_jax.runtime.agents.agent import AgentReply, AgentSession

SESSION = AgentSession("k1", "2+2", {"who": "a test"})
MESSAGES = ({"role": "user", "content": "2+2"},)


def call(agent, messages=MESSAGES, *, tools=(), session=SESSION, within_s=5.0) -> AgentReply:
  """Returns the reply of an agent."""
  async def called():
    async with asyncio.timeout(within_s):
      return await agent(messages, tools=tools, session=session)
  return asyncio.run(called())


def echo(task):
  """Returns the task."""
  return f"echo {task}"


async def slow(task):
  """Waits for ever."""
  del task
  await asyncio.Event().wait()
