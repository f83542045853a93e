"""The runtime in Python: `run` for one task, `Runtime` for many.

  from atlas_jax.runtime import Runtime, run

  result = run("12+34=", "configs/runtime.py:arithmetic")

  async with Runtime("configs/runtime.py:arithmetic") as runtime:
    results = await asyncio.gather(*(runtime.run(task) for task in tasks))
"""
import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atlas_jax.runtime import pool as pools
from atlas_jax.runtime import settings as runtime_settings
from atlas_jax.runtime.assembly import Assembly
from atlas_jax.runtime.events import Event
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.settings import RuntimeSettings
from atlas_jax.runtime.sinks import Console
from atlas_jax.runtime.telemetry import Callback, EventSink

Config = Any  # "FILE.py:ARGUMENT", a ConfigDict of the runtime, or its settings.


class Runtime:
  """Agents supervised by a config, an async context; the store's tables are made where there are none."""

  def __init__(self, config: Config, *, sinks: Sequence[EventSink] = (),
               overrides: Mapping[str, str] | None = None):
    """Loads what the config names.

    Args:
      config: "FILE.py:ARGUMENT", or a ConfigDict of `atlas_jax.runtime.settings`.
      sinks: get every event, redacted.
      overrides: dotted field of the config -> value as text, where it is a file.

    Raises:
      ValueError: for a config that cannot be.
    """
    self._assembly = Assembly(settings_of(config, overrides), sinks=sinks, create=True)

  async def __aenter__(self) -> "Runtime":
    """Opens the store, and begins."""
    await self._assembly.__aenter__()
    return self

  async def __aexit__(self, *error: Any) -> None:
    """Ends what runs, and closes the store."""
    await self._assembly.__aexit__(*error)

  async def run(self, task: str, *, key: str | None = None, metadata: Mapping[str, Any] | None = None,
                ground_truth: str | None = None, tags: Sequence[str] = (), lane: str | None = None
                ) -> SessionResult:
    """Runs a session to its end.

    Args:
      task: for the agent.
      key: of the session; the same key is the same session. None: a new one.
      metadata: of the caller.
      ground_truth: the right answer, for graders and judges.
      tags: of the family of tasks.
      lane: fixed one; None: as the config has it.
    """
    settings = self._assembly.settings
    spec = SessionSpec(key or pools.new_key(), task, {**settings.metadata, **(metadata or {})},
                       ground_truth=ground_truth, tags=tuple(tags), tenant=settings.tenant, lane=lane)
    return await self._assembly.run(spec)

  async def resume(self) -> list[SessionResult]:
    """Takes up sessions whose process is gone."""
    return await self._assembly.resume()


async def arun(task: str, config: Config, session_metadata: Mapping[str, Any] | None = None,
               stream_progress: bool | None = None, publisher: Callable[[Event], Any] | None = None
               ) -> SessionResult:
  """Runs one session.

  Args:
    task: for the agent.
    config: see `Runtime`.
    session_metadata: of the caller.
    stream_progress: whether events are printed on the error stream.
    publisher: is called with every event; one that raises is detached.
  """
  sinks: list[EventSink] = [Console(sys.stderr)] if stream_progress else []
  if publisher is not None:
    sinks.append(Callback(publisher))
  async with Runtime(config, sinks=sinks) as runtime:
    return await runtime.run(task, metadata=session_metadata)


def run(task: str, config: Config, session_metadata: Mapping[str, Any] | None = None,
        stream_progress: bool | None = None, publisher: Callable[[Event], Any] | None = None
        ) -> SessionResult:
  """Runs one session, outside of an event loop; see `arun`.

  Raises:
    RuntimeError: in an event loop, such as that of a notebook, where `arun` is to be awaited.
  """
  try:
    asyncio.get_running_loop()
  except RuntimeError:  # As nearly always.
    return asyncio.run(arun(task, config, session_metadata, stream_progress, publisher))
  raise RuntimeError("run() was called in an event loop, which would wait for itself; write "
                     "await arun(...) there, as in notebooks")


def settings_of(config: Config, overrides: Mapping[str, str] | None = None) -> RuntimeSettings:
  """Returns the settings of a config, in any of its forms.

  Raises:
    ValueError: for a config that cannot be.
  """
  if isinstance(config, RuntimeSettings):
    return config
  if isinstance(config, str):
    return runtime_settings.load(config, overrides)
  if overrides:
    raise ValueError("overrides are for a config that is a file; change the fields of this one")
  return runtime_settings.of_config(config)
