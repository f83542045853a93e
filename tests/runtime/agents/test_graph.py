"""Objects with ainvoke as agents, by the shapes of LangChain's and LangGraph's messages."""
import types

import pytest

from atlas_jax.runtime.agents import load
from atlas_jax.runtime.agents.agent import Agent, AgentError, CallTokens
from atlas_jax.runtime.agents.graph import GraphAgent
from tests.runtime.agents.agents import MESSAGES, call
from tests.runtime.agents.test_openai import ADD

ME = f"{__file__}:"


def ai(content, *, tool_calls=(), usage=(5, 2)):
  """A message as langchain_core's AIMessage has its fields."""
  tokens = usage and {"input_tokens": usage[0], "output_tokens": usage[1], "total_tokens": sum(usage)}
  return types.SimpleNamespace(type="ai", content=content, tool_calls=list(tool_calls), usage_metadata=tokens)


class Graph:
  """A compiled graph: its state has messages, those that it was given too."""

  name = "LangGraph"
  nodes = {"agent": None}

  def __init__(self):
    self.asked = []

  async def ainvoke(self, input, config=None, **kwargs):
    self.asked.append((input, config))
    tool = types.SimpleNamespace(type="tool", content="4", usage_metadata=None)
    asks = ai("", tool_calls=[{"name": "add", "args": {}, "id": "1"}])
    answer = ai([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "it is "}, "4"])
    return {"messages": [*input["messages"], asks, tool, answer]}


class Model:
  """A chat model that tools are bound to."""

  def __init__(self, tools=()):
    self.tools = tools

  def bind_tools(self, tools):
    return Model(tools)

  async def ainvoke(self, input):
    assert input[0]["role"] == "user"
    calls = [{"name": one["function"]["name"], "args": {"a": 1}, "id": "c"} for one in self.tools]
    return ai("hi", tool_calls=calls, usage=None)


class Executor:
  def __init__(self, value):
    self.value = value

  async def ainvoke(self, input):
    if isinstance(self.value, Exception):
      raise self.value
    return self.value


def make_graph():
  return Graph()


graph = Graph()


def broken():
  raise ValueError("no graph today")


def test_a_graph_is_given_a_state_and_its_last_message_is_the_answer():
  inner = Graph()
  agent = GraphAgent(inner)
  reply = call(agent)
  assert isinstance(agent, Agent) and agent.name == "LangGraph"
  assert reply.text == "it is 4" and reply.tokens == CallTokens(10, 4, 2) and reply.tool_calls == ()
  given, config = inner.asked[0]
  assert given == {"messages": list(MESSAGES)} and config["metadata"] == {"who": "a test"}
  call(agent, [*MESSAGES, {"role": "assistant", "content": "5"}])
  first, second = (config["configurable"]["thread_id"] for _, config in inner.asked)
  assert first.startswith("k1/") and first != second


def test_a_model_is_given_messages_and_tools():
  assert call(GraphAgent(Model())).text == "hi"
  reply = call(GraphAgent(Model()), tools=[ADD])
  assert reply.tool_calls[0][:3] == ("c", "add", {"a": 1}) and reply.tokens is None
  with pytest.raises(AgentError, match="has no bind_tools") as raised:
    call(GraphAgent(Graph()), tools=[ADD])
  assert raised.value.kind == "tools"


@pytest.mark.parametrize("value, text", [
  ({"output": "out"}, "out"), ("words", "words"), ({"a": 1}, '{"a":1}'), ([1], "[1]"),
  (ai("x\x00"), "x\ufffd"),
  ({"messages": [{"role": "assistant", "content": "a dict"}]}, "a dict"),
], ids=["executor", "text", "object", "list", "nul", "dicts"])
def test_replies_of_other_shapes(value, text):
  assert call(GraphAgent(Executor(value), takes="text")).text == text


@pytest.mark.parametrize("value, kind", [(None, "reply"), (ValueError("x"), "raised"), ({"b": 1}, "reply"),
                                         (ai({"no": "text"}), "reply")],
                         ids=["none", "raises", "key", "content"])
def test_failures_are_errors_of_the_agent(value, kind):
  with pytest.raises(AgentError) as raised:
    call(GraphAgent(Executor(value), result_key="a" if isinstance(value, dict) else None))
  assert raised.value.kind == kind


def test_a_graph_is_loaded_by_name_or_from_what_makes_it():
  made = load.load({"kind": "graph", "object": f"{ME}make_graph"})
  named = load.load({"kind": "graph", "object": f"{ME}graph", "version": "3"})
  assert call(made).text == call(named).text == "it is 4"
  assert made.version and named.version == "3"
  assert load.load({"kind": "graph", "object": f"{ME}graph", "result_key": "messages"})
  assert load.imports({"kind": "graph", "object": "no.such:graph"}) == [
    ("agent.object", "imports", "no.such:graph")]


@pytest.mark.parametrize("given, said", [
  ({"object": f"{ME}broken"}, "agent: object=.*raised ValueError: no graph today"),
  ({"object": f"{ME}ME"}, "no coroutine function ainvoke"), ({"object": ""}, "object is missing"),
  ({"object": f"{ME}graph", "takes": "msgs"}, "takes='msgs' must be one of"),
])
def test_errors_name_the_field(given, said):
  with pytest.raises(ValueError, match=said):
    load.load({"kind": "graph", **given})


def test_a_graph_of_langgraph_itself_and_a_model_of_langchain():
  messages = pytest.importorskip("langchain_core.messages")
  models = pytest.importorskip("langchain_core.language_models.fake_chat_models")
  graphs = pytest.importorskip("langgraph.graph")
  memory = pytest.importorskip("langgraph.checkpoint.memory")
  asked = []

  async def node(state):
    asked.append([(one.type, one.content, one.name) for one in state["messages"]])
    usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    return {"messages": [messages.AIMessage("it is 4", usage_metadata=usage)]}

  builder = graphs.StateGraph(graphs.MessagesState)
  builder.add_node("only", node)
  builder.add_edge(graphs.START, "only")
  builder.add_edge("only", graphs.END)
  agent = GraphAgent(builder.compile(checkpointer=memory.InMemorySaver()))
  given = [*MESSAGES, {"role": "assistant", "content": "5"},
           {"role": "user", "name": "guidance", "content": "Again."}]
  for _ in range(2):  # It remembers nothing of the call before.
    reply = call(agent, given)
    assert (reply.text, reply.tokens) == ("it is 4", CallTokens(5, 2))
  assert asked == [[("human", "2+2", None), ("ai", "5", None), ("human", "Again.", "guidance")]] * 2
  model = models.GenericFakeChatModel(messages=iter([messages.AIMessage("hi")]))
  assert call(GraphAgent(model)).text == "hi"
