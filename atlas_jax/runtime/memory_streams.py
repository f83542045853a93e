"""Memory that is the model's own: sessions of a family go on in one stream of a memory model.

Where student or teacher is a memory model behind our server, what it read and wrote in a session is a
conversation there, which the server keeps, over restarts too. A later session of the same family begins with
a branch of one, so that the model's memory holds what happened before. Streams are reviewed as lessons are: a
session reads a stream only if every session that wrote to it is approved, now. They are off unless asked for.

A stream belongs to a learning key, hence to a tenant, and to the versions that wrote it. Its id at the server
cannot be chosen or guessed by a caller.
"""
import asyncio
import dataclasses
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from absl import logging

from atlas_jax.data.traces.query import APPROVED
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.runtime_rows import StoredRun
from atlas_jax.files.damage import one_line
from atlas_jax.rollout.chat_form import AskOptions, EndpointReply
from atlas_jax.rollout.endpoint import Endpoint, EndpointError
from atlas_jax.runtime.session import SessionSpec

ROLES = ("student", "teacher")
TAKEN = "conversation_taken"  # Code of the server's error for a branch that is there already.
FIELD = "conversation"
WRITES = 20  # Tries of a write against other writers.


@dataclasses.dataclass(frozen=True)
class StreamSettings:
  """Memory streams.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  on: bool = False
  role: str = "student"       # whose streams they are: "student" or "teacher"
  most_tokens: int = 16_384   # of a stream that is read; a longer one is left, and a new one begun
  most_streams: int = 64      # that are kept of a learning key; the oldest are deleted, at the server too

  def __post_init__(self):
    if self.role not in ROLES:
      raise ValueError(f"streams.role={self.role!r} must be one of {', '.join(ROLES)}")
    for name in ("most_tokens", "most_streams"):
      if getattr(self, name) < 1:
        raise ValueError(f"streams.{name}={getattr(self, name)} must be at least 1")


class StreamStore(Protocol):
  """The interface of the store of streams; see `runtime.store.RuntimeStore`."""

  async def read_playbook(self, key: str) -> tuple[int, list[Any]]:
    """Returns version and entries."""

  async def write_playbook(self, key: str, version: int, entries: Sequence[Any]) -> bool:
    """Replaces the entries if the version is still the one that was read."""

  async def load(self, key: str) -> StoredRun | None:
    """Returns a session."""

  async def record(self, number: int) -> Trace | None:
    """Returns the record of a session."""


class StreamUse(NamedTuple):
  """The stream of a session."""

  id: str                          # of the conversation at the server
  parent: str | None               # that it was branched from; None: it begins empty
  lineage: tuple[str, ...]         # keys of all sessions that wrote to it, this one the last
  versions: Mapping[str, Any]      # that write to it


class MemoryStreams:
  """The streams of a model.

  Attributes:
    settings: as given.
    counts: of "begun", "branched" and "resumed" streams, and of those "unread" by reason.
  """

  def __init__(self, store: StreamStore, endpoint: Endpoint, settings: StreamSettings | None = None):
    """Takes where streams are listed, and the endpoint of the model."""
    self.settings = settings or StreamSettings()
    self.counts: dict[str, int] = {}
    self._store = store
    self._endpoint = endpoint

  def endpoint_of(self, spec: SessionSpec, version: str | None) -> "Endpoint | StreamEndpoint":
    """Returns what a session asks the model through: with its stream, or as it is where streams are off.

    Args:
      spec: of the session.
      version: of the agent or teacher, as traces have it.

    Raises:
      ValueError: if the session's learning key is of another tenant, or there is none.
    """
    if not self.settings.on:
      return self._endpoint
    list_key(spec, self.settings.role)
    return StreamEndpoint(self._endpoint, self, spec, version)

  async def opened(self, spec: SessionSpec, version: str | None) -> StreamUse:
    """Begins the stream of a session: a branch of the newest one that may be read, else an empty one.

    Raises:
      EndpointError: if the server does not answer, or the model has no memory.
    """
    versions = {"version": version, **await self._served()}
    mine = stream_id(spec, self.settings.role)
    _, entries = await self._store.read_playbook(list_key(spec, self.settings.role))
    for entry in reversed(entries):
      if entry["id"] == mine:  # Of this session, which was cut off.
        self._count("resumed")
        return StreamUse(mine, entry["parent"], tuple(entry["lineage"]), versions)
      why = await self._unreadable(entry, versions)
      if why is not None:
        self._count(f"unread: {why}")
      elif await self._branched(entry["id"], mine):
        self._count("branched")
        return StreamUse(mine, entry["id"], (*entry["lineage"], spec.key), versions)
    await self.delete([mine])  # What a crash before the first listing has left.
    self._count("begun")
    return StreamUse(mine, None, (spec.key,), versions)

  async def written(self, spec: SessionSpec, use: StreamUse, tokens: int | None) -> None:
    """Lists the stream of a session after an answer; its review is that of its sessions.

    Args:
      spec: of the session.
      use: its stream.
      tokens: that it holds now; None: not known, and then it is never read by others.
    """
    run = await self._store.load(spec.key)
    entry = {"id": use.id, "parent": use.parent, "lineage": list(use.lineage), "versions": dict(use.versions),
             "url": self._endpoint.settings.url, "tokens": tokens,
             "at": datetime.datetime.now(datetime.UTC).isoformat(),
             "provenance": {"session_key": spec.key, "session_id": None if run is None else run.id}}
    key = list_key(spec, self.settings.role)
    for _ in range(WRITES):
      version, entries = await self._store.read_playbook(key)
      listed = [*(one for one in entries if one["id"] != use.id), entry]
      kept = listed[-self.settings.most_streams:]
      if await self._store.write_playbook(key, version, kept):
        await self.delete([one["id"] for one in listed[:len(listed) - len(kept)]])
        return
      await asyncio.sleep(0)
    logging.error("the stream of session %s is not listed: %d other writers came first", spec.key, WRITES)

  async def delete(self, ids: Sequence[str]) -> None:
    """Deletes streams at the server; what cannot be deleted is logged."""
    for one in ids:
      if (why := await deleted(self._endpoint, one)) is not None:
        logging.warning("stream %s is not deleted: %s", one, why)

  async def check(self) -> Mapping[str, Any]:
    """Returns the model and weights that streams are of.

    Raises:
      EndpointError: if the server does not answer, or the model has no memory.
    """
    return await self._served()

  async def ids_of(self, learning_key: str) -> list[str]:
    """Returns the ids of all streams of a key, such as to delete them with their sessions."""
    found = await asyncio.gather(*(self._store.read_playbook(f"{learning_key}~{role}") for role in ROLES))
    return [entry["id"] for _, entries in found for entry in entries]

  async def _unreadable(self, entry: Mapping[str, Any], versions: Mapping[str, Any]) -> str | None:
    """Returns why a stream may not be read."""
    if entry["versions"] != dict(versions):
      return "versions"
    if entry["tokens"] is None or entry["tokens"] > self.settings.most_tokens:
      return "size"
    for key in entry["lineage"]:
      run = await self._store.load(key)
      trace = None if run is None else await self._store.record(run.id)
      if trace is None or trace.review_status != APPROVED:
        return "review"
    return None

  async def _branched(self, parent: str, mine: str) -> bool:
    status, found = await self._endpoint.call("POST", f"conversations/{parent}/branch", {"id": mine})
    if status == 200:
      return True
    code = (found.get("error") or {}).get("code") if isinstance(found, dict) else None
    if status == 409 and code == TAKEN:
      # Of this session before a crash, not listed yet: nobody knows what stands in it.
      await self.delete([mine])
      status, _ = await self._endpoint.call("POST", f"conversations/{parent}/branch", {"id": mine})
      return status == 200
    if status != 404:  # The server forgets the oldest ones by itself.
      logging.warning("stream %s cannot be branched: status %d", parent, status)
    self._count("unread: gone")
    return False

  async def _served(self) -> dict[str, Any]:
    model = self._endpoint.settings.model
    status, found = await self._endpoint.call("GET", f"models/{model}")
    if status != 200:
      raise EndpointError("status", status, 1, f"the server does not know the model {model!r}")
    if not isinstance(found, dict) or found.get("memory") is not True:
      raise EndpointError("reply", status, 1, f"the model {model!r} has no memory, and streams need one; "
                          "serve a memory model, or switch streams off")
    return {"model": model, "weights": found.get("version")}

  def _count(self, name: str) -> None:
    self.counts[name] = self.counts.get(name, 0) + 1


class StreamEndpoint:
  """A model asked in the stream of one session; stands in the place of an `Endpoint`.

  Messages that the stream holds already are not sent again. Replies are neither cached nor repaired, since
  both would leave the stream as the session does not know it.

  Attributes:
    settings, usage: of the endpoint.
    use: the stream; None before the first request.
  """

  def __init__(self, endpoint: Endpoint, streams: MemoryStreams, spec: SessionSpec, version: str | None):
    """Takes the session; its stream begins with the first request."""
    self.settings = endpoint.settings
    self.usage = endpoint.usage
    self.use: StreamUse | None = None
    self._endpoint = endpoint
    self._streams = streams
    self._spec = spec
    self._version = version
    self._sent: list[Mapping[str, Any]] = []
    self._turn = asyncio.Lock()

  async def ask(self, messages: Sequence[Mapping[str, Any]], *,
                options: AskOptions | Mapping[str, Any] | None = None) -> EndpointReply:
    """Returns the reply to messages; see `Endpoint.ask`.

    Raises:
      EndpointError: also if the stream cannot be begun.
    """
    how = options if isinstance(options, AskOptions) else AskOptions(**(options or {}))
    async with self._turn:  # A stream has one request at a time.
      if self.use is None:
        self.use = await self._streams.opened(self._spec, self._version)
      extra = {**how.extra, FIELD: self.use.id}
      asked = dataclasses.replace(how, extra=extra, cached=False, repair=False)
      reply = await self._endpoint.ask(self._unsent(messages), options=asked)
      self._sent = [*messages]
      counts = reply.usage
      tokens = None if None in counts else sum(counts)  # type: ignore[arg-type]
      await self._streams.written(self._spec, self.use, tokens)
    return reply

  async def close(self) -> None:
    """Closes nothing: the endpoint is shared."""

  def _unsent(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    size = len(self._sent)
    if not size or [dict(one) for one in messages[:size]] != [dict(one) for one in self._sent]:
      return list(messages)
    rest = list(messages[size:])
    if rest and rest[0].get("role") == "assistant":  # The stream's own last answer.
      rest = rest[1:]
    return rest or list(messages)


async def deleted(endpoint: Endpoint, one: str) -> str | None:
  """Deletes a stream at its server; returns why it is not deleted, None where it is, or was not there."""
  try:
    status, _ = await endpoint.call("DELETE", f"conversations/{one}")
  except EndpointError as error:
    return one_line(error)
  return None if status in (200, 404) else f"status {status}"


def list_key(spec: SessionSpec, role: str) -> str:
  """Returns the key under which the streams of a session's family are listed.

  Raises:
    ValueError: if the session has no learning key, or one of another tenant.
  """
  if not spec.learning_key or not spec.learning_key.startswith(f"{spec.tenant}/"):
    raise ValueError(f"learning_key={spec.learning_key!r} of session {spec.key!r} is not of its tenant "
                     f"{spec.tenant!r}; streams need the key that the runtime derives")
  return f"{spec.learning_key}~{role}"


def stream_id(spec: SessionSpec, role: str) -> str:
  """Returns the id of a session's stream at the server, which depends on its tenant too."""
  text = "\0".join([spec.tenant, role, spec.key])
  return f"stream-{hashlib.sha256(text.encode()).hexdigest()[:40]}"
