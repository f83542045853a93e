"""Agents that are Python functions: plain ones in threads, coroutines, generators of either kind."""
import asyncio
import dataclasses
import hashlib
import inspect
import pathlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from atlas_jax.files.damage import one_line
from atlas_jax.rollout import user_functions
from atlas_jax.runtime.agents import signatures
from atlas_jax.runtime.agents.agent import AgentError, AgentReply, AgentSession, Tool
from atlas_jax.runtime.agents.replies import MOST_CHARS, reply_of
from atlas_jax.runtime.agents.threads import AgentThreads, shared

ABOUT = "a Python function"


@dataclasses.dataclass(frozen=True)
class PythonAgentSettings:
  """A Python function as an agent.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  function: str              # "FILE.py:NAME", "package.module:NAME" or "package.module.NAME"
  name: str | None = None    # for people and the learning key; None: the function's
  version: str | None = None  # None: the hash of its source
  idempotent: bool = False   # whether it may be called again for the same step after a crash
  folder: str | None = None  # that its modules are looked for in, behind all others; None: none more

  def __post_init__(self):
    if not self.function:
      raise ValueError("function is missing; name it as FILE.py:NAME or package.module:NAME")


def make(settings: PythonAgentSettings, *, threads: AgentThreads | None = None) -> "PythonAgent":
  """Returns the agent of a function that is named; its file or module is run."""
  if settings.folder is not None:
    folder = pathlib.Path(settings.folder).expanduser().resolve()
    if not folder.is_dir():
      raise ValueError(f"there is no folder={settings.folder!r}: looked for {folder}")
    if str(folder) not in sys.path:
      sys.path.append(str(folder))
  return PythonAgent(user_functions.find(settings.function), name=settings.name, version=settings.version,
                     idempotent=settings.idempotent, threads=threads)


def imports(settings: PythonAgentSettings) -> list[tuple[str, str, str]]:
  """Returns what `make` runs: (field, what is done, name)."""
  return [("function", "imports", settings.function)]


class PythonAgent:
  """A Python function as an agent.

  Attributes:
    name, version, idempotent: see `agent.Agent`.
  """

  def __init__(self, function: Callable[..., Any], *, name: str | None = None, version: str | None = None,
               idempotent: bool = False, threads: AgentThreads | None = None):
    """Looks at the function's parameters; nothing is called yet.

    Args:
      function: takes (task), (messages) or (prompt, metadata), and may take tools and session; returns a
        text, a JSON value or an `AgentReply`, or yields texts that are joined. It may be a coroutine
        function. One that is not runs in a thread.
      name: None: the function's.
      version: None: the hash of its source, or of the file around it where that cannot be read.
      idempotent: whether it may be called again for the same step.
      threads: that plain functions run in; None: those of the process.

    Raises:
      ValueError: for a function that cannot be called so.
    """
    shown = getattr(function, "__qualname__", type(function).__name__)
    if not callable(function):
      raise ValueError(f"the agent {shown} is {type(function).__name__}, which cannot be called")
    if inspect.isclass(function):
      raise ValueError(f"the agent {shown} is a class; name a function, or an object of it")
    self._signature = signatures.read(function, f"the agent {shown}")
    self._function = function
    self.name = name or shown
    self.version = source_hash(function) if version is None else version
    self.idempotent = idempotent
    self._threads = threads or shared()
    inner = _inner(function)
    self._is_async = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)

  async def __call__(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Tool] = (),
                     session: AgentSession) -> AgentReply:
    """Returns the reply of the function, see `agent.Agent`.

    Raises:
      AgentError: if it raises, or returns what is no answer.
    """
    call = self._signature.call(self._function, messages, tools, session)
    try:
      if self._is_async:
        value = call()
      else:
        value = await self._threads.run(_with_generator, call)
      if inspect.isawaitable(value):  # Also of a plain function around a coroutine.
        value = await value
      if isinstance(value, AsyncIterator):
        value = await _joined(value)
    except AgentError:
      raise
    except asyncio.CancelledError as error:
      task = asyncio.current_task()
      if task is None or task.cancelling():
        raise
      raise AgentError("raised", f"the agent {self.name} cancelled itself") from error  # Nobody else did.
    except Exception as error:
      raise AgentError("raised", f"the agent {self.name} raised {type(error).__name__}: {one_line(error)}"
                       ) from error
    except SystemExit as error:
      raise AgentError("raised", f"the agent {self.name} ended the program ({error.code})") from error
    return reply_of(value, tools_offered=bool(tools))


def _inner(function: Callable[..., Any]) -> Any:
  """Returns what is run where an object is called."""
  while hasattr(function, "func"):  # functools.partial
    function = function.func
  is_function = inspect.isfunction(function) or inspect.ismethod(function) or inspect.isbuiltin(function)
  return function if is_function else type(function).__call__


def _with_generator(call: Callable[[], Any]) -> Any:
  value = call()
  return _text_of(value) if isinstance(value, Iterator) else value


def _text_of(parts: Iterator[Any]) -> str:
  found: list[str] = []
  size = 0
  for part in parts:
    size += _size(part)
    if size > MOST_CHARS:
      raise AgentError("reply", f"the agent yielded more than {MOST_CHARS} characters")
    found.append(part)
  return _answer(found)


async def _joined(parts: AsyncIterator[Any]) -> str:
  found: list[str] = []
  size = 0
  try:
    async for part in parts:
      size += _size(part)
      if size > MOST_CHARS:
        raise AgentError("reply", f"the agent yielded more than {MOST_CHARS} characters")
      found.append(part)
  finally:  # A generator that is left in the middle still holds what it opened.
    close = getattr(parts, "aclose", None)
    if close is not None:
      await close()
  return _answer(found)


def _size(part: Any) -> int:
  if not isinstance(part, str):
    raise AgentError("reply", f"the agent yielded {type(part).__name__}; yield texts, which are joined")
  return len(part)


def _answer(parts: list[str]) -> str:
  if not parts:
    raise AgentError("reply", "the agent yielded nothing; yield texts, which are joined")
  return "".join(parts)


def source_hash(function: Callable[..., Any]) -> str | None:
  """Returns a hash of a function's source, of its module's file where that cannot be read, or None.

  Functions that it calls in other files are not in it: name a version where those change.
  """
  inner = _inner(function)
  try:
    source = inspect.getsource(inner)
  except (OSError, TypeError):
    file = getattr(inspect.getmodule(inner), "__file__", None)
    if file is None or not pathlib.Path(file).is_file():
      return None
    return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16]
  return hashlib.sha256(source.encode()).hexdigest()[:16]
