"""Calls of a user's function with the task, the messages, or a prompt and metadata, as its parameters say."""
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.runtime.agents.agent import AgentSession, Tool
from atlas_jax.runtime.agents.replies import prompt_text

INPUTS = ("task", "messages", "prompt")  # One of them is taken.
OTHERS = ("metadata", "tools", "session")
NEEDED = ("it must take one of (task), (messages) or (prompt, metadata), and may take metadata, tools and "
          "session; give every other parameter a default")


class Signature(NamedTuple):
  """Names of the parameters that a function is called with."""

  takes: str                # one of INPUTS
  others: tuple[str, ...]   # of OTHERS
  is_positional: bool       # whether the input is handed over by its place

  def call(self, function: Callable[..., Any], messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool],
           session: AgentSession) -> Callable[[], Any]:
    """Returns the call of a function, with copies of what it may change."""
    given = [dict(one) for one in messages] if self.takes == "messages" else prompt_text(messages)
    other = {"metadata": dict(session.metadata), "tools": tuple(tools), "session": session}
    named = {name: other[name] for name in self.others}
    if self.is_positional:
      return lambda: function(given, **named)
    return lambda: function(**{self.takes: given}, **named)


def read(function: Callable[..., Any], what: str) -> Signature:
  """Returns how a function is called.

  Args:
    function: of the user.
    what: it is, for errors.

  Raises:
    ValueError: if it takes none of the inputs, several, or needs something else.
  """
  try:
    parameters = list(inspect.signature(function).parameters.values())
  except (TypeError, ValueError) as error:
    raise ValueError(f"the parameters of {what} cannot be read ({error}); {NEEDED}") from error
  named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
  inputs = [one for one in named if one.name in INPUTS]
  if len(inputs) != 1:
    shown = ", ".join(one.name for one in named) or "nothing"
    raise ValueError(f"{what} takes {shown}; {NEEDED}")
  others = tuple(one.name for one in named if one.name in OTHERS)
  positional = [one.name for one in named if one.kind is one.POSITIONAL_ONLY]
  if set(positional) - {inputs[0].name}:
    raise ValueError(f"{what} takes {', '.join(positional)} by position alone; remove the '/'")
  unknown = [one.name for one in named if one.name not in (*INPUTS, *OTHERS) and one.default is one.empty]
  if unknown:
    raise ValueError(f"{what} needs {', '.join(unknown)}, which nobody gives it; {NEEDED}")
  return Signature(inputs[0].name, others, bool(positional))
