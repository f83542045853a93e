"""Exchanges of a proxy as sessions of the store.

A request belongs to the session that its header names; without one, to that whose conversation it continues:
its first messages are those of an earlier exchange with the reply that this had. Conversations of different
clients are never joined.
"""
import asyncio
import collections
import dataclasses
import datetime
import hashlib
import json
import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from atlas_jax.data.traces import served_tokens
from atlas_jax.data.traces.record import Trace
from atlas_jax.runtime import proxy_replies
from atlas_jax.runtime.events import EventLog, SessionEvent
from atlas_jax.runtime.records import SCHEMA_VERSION
from atlas_jax.runtime.redaction import Redactor
from atlas_jax.runtime.store import RuntimeStore

SOURCE = "proxy"
MOST_KEY = 200  # Letters of a session's name.
REMEMBERED = 65_536  # Ends of conversations that may be continued.


class SessionTaken(ValueError):
  """A name of a session that is not this proxy's to write to."""


class Exchange(NamedTuple):
  """One request and what came back."""

  route: str                         # such as "chat/completions"
  body: Mapping[str, Any]            # of the request, as the client sent it
  status: int | None                 # of HTTP; None: the upstream was not reached
  reply: Mapping[str, Any] | None    # whole, a stream put together; None: there is none that can be read
  streamed: bool
  problem: str | None                # why it is not whole
  seconds: float


@dataclasses.dataclass
class ProxySession:
  """A session that is open."""

  key: str
  log: EventLog
  span: int
  task: str
  client: str
  began: float
  used: float
  pending: int = 0                   # exchanges at work
  steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  asked: dict[int, list[str]] = dataclasses.field(default_factory=dict)  # step -> hashes of its messages
  number: int = 0                    # of the last step that began
  tokens: collections.Counter = dataclasses.field(default_factory=collections.Counter)


class Opened(NamedTuple):
  """A place for an exchange in a session."""

  session: ProxySession
  step: int
  follows: int | None  # the step whose messages its messages begin with
  span: int


class ProxySessions:
  """The sessions of one proxy.

  Attributes:
    unrecorded: exchanges whose record failed.
  """

  def __init__(self, store: RuntimeStore, *, redactor: Redactor,
               sinks: Sequence[Callable[[SessionEvent], None]] = (), tenant: str = "default",
               idle_s: float = 300.0, most: int = 1_024):
    """Takes the store, and when a session ends of itself."""
    self._store = store
    self._redactor = redactor
    self._sinks = sinks
    self._tenant = tenant
    self._idle_s = idle_s
    self._most = most
    self._open: collections.OrderedDict[str, ProxySession] = collections.OrderedDict()
    # Hash of a conversation's end -> its session and step.
    self._ends: collections.OrderedDict[str, tuple[str, int]] = collections.OrderedDict()
    self._salt = secrets.token_hex(16)
    self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
    self.unrecorded = 0

  async def begin(self, route: str, body: Mapping[str, Any], *, named: str | None, credential: str) -> Opened:
    """Finds or begins the session of a request, and begins its exchange.

    Raises:
      SessionTaken: if the name cannot be one, or is that of another's session.
      StoreFull: if neither store nor spool takes it.
    """
    client = hashlib.sha256(f"{self._salt}{credential}".encode()).hexdigest()
    messages = messages_of(body)
    key, follows = (named, None) if named else self._continued(client, messages)
    key = key or uuid.uuid4().hex
    if len(key) > MOST_KEY or not key.isprintable():
      raise SessionTaken(f"a session's name may have {MOST_KEY} letters that can be printed")
    async with self._locks[key]:
      try:
        session = self._open.get(key) or await self._begun(key, client, body)
      finally:
        self._locks.pop(key, None)
    if session.client != client:
      raise SessionTaken(f"session {key!r} is another client's; take another name")
    session.pending += 1
    session.number += 1
    session.used = time.monotonic()
    self._open.move_to_end(key)
    hashes = [_hash(one) for one in messages]
    session.asked[session.number] = hashes
    if follows is None and named:
      follows = session.number - 1
    before = session.asked.get(follows) if follows is not None else None
    if not before or hashes[:len(before)] != before:
      follows = None
    span = session.log.span()
    session.log.emit("agent_call", "START", actor="student", span=span, parent=session.span,
                     step=session.number, attempt=1, data={"route": route})
    return Opened(session, session.number, follows, span)

  def ended(self, opened: Opened, exchange: Exchange) -> None:
    """Records an exchange; what fails in it is counted, and takes nothing from the client."""
    session = opened.session
    session.pending -= 1
    session.used = time.monotonic()
    try:
      self._record(opened, exchange)
    except Exception as error:  # The reply is the client's, whatever becomes of its record.
      self.unrecorded += 1
      logging.exception("an exchange of session %s is not recorded: %s", session.key, error)

  async def finish(self, key: str) -> bool:
    """Ends a session; returns whether there was one that nothing is at work in."""
    session = self._open.get(key)
    if session is None or session.pending:
      return False
    del self._open[key]
    last = session.steps[-1]["exchange"] if session.steps else {}
    status = "succeeded" if last and last["status"] == 200 and not last.get("problem") else "failed"
    answer = session.steps[-1]["output"] if session.steps else ""
    if status == "succeeded":
      session.log.emit("answered", "POINT", span=session.span,
                       data={"answer": answer, "verified": None, "status": status})
    session.log.emit("session", "END", span=session.span, data={"status": status})
    await self._store.finish(key, self._trace(session, status, answer))
    return True

  async def sweep(self) -> int:
    """Ends the sessions that nobody went on with for long, and the oldest if too many are open."""
    now = time.monotonic()
    idle = [one.key for one in self._open.values() if not one.pending and now - one.used >= self._idle_s]
    over = [one.key for one in self._open.values() if not one.pending][:max(0, len(self._open) - self._most)]
    return sum([await self.finish(key) for key in dict.fromkeys([*idle, *over])])

  async def close(self) -> None:
    """Ends all sessions that nothing is at work in."""
    for key in list(self._open):
      if not await self.finish(key):
        logging.warning("session %s is cut off while an exchange is at work", key)

  async def _begun(self, key: str, client: str, body: Mapping[str, Any]) -> ProxySession:
    prompt = body.get("prompt")
    asked = [text for one in messages_of(body) if isinstance(one, Mapping) and one.get("role") == "user"
             and (text := text_of(one))]
    task = self._redactor.text(next(iter(asked), prompt if isinstance(prompt, str) else ""))
    metadata = {"session_key": key, "tenant_id": self._tenant, "source": SOURCE, "status": "running"}
    _, new = await self._store.begin(key, task, metadata)
    if not new:
      raise SessionTaken(f"session {key!r} is in the store already; take another name")
    log = EventLog(key, self._sink)
    session = ProxySession(key, log, log.span(), task, client, time.time(), time.monotonic())
    log.emit("session", "START", span=session.span, data={"task": task, "source": SOURCE})
    self._open[key] = session
    return session

  def _sink(self, event: SessionEvent) -> None:
    self._store.append(event)
    for one in self._sinks:
      one(event)

  def _continued(self, client: str, messages: Sequence[Any]) -> tuple[str | None, int | None]:
    """Returns the session and step whose conversation the messages continue, by the longest beginning."""
    found: tuple[str | None, int | None] = (None, None)
    end = client
    for one in messages:
      end = _chained(end, one)
      place = self._ends.get(end)
      if place is not None and place[0] in self._open:
        found = place
    return found

  def _record(self, opened: Opened, exchange: Exchange) -> None:
    session, step = opened.session, opened.step
    recorded = self._recorded(opened, exchange)
    said = proxy_replies.texts(exchange.reply)
    output = self._redactor.text(said[0]) if said else ""
    status = "unverified" if exchange.status == 200 and exchange.problem is None else "errored"
    used = proxy_replies.usage(exchange.reply)
    session.tokens.update(used)
    session.steps.append({
        "step_id": step, "description": self._redactor.text(_last_text(messages_of(exchange.body))),
        "output": output, "attempts": 1, "exchange": recorded,
        "attempt_details": [{"attempt": 1, "status": status, "answer": output, "score": None,
                             "score_source": None, "tokens": {"student": used}}]})
    # The exchange is in the events too: a process that is killed loses what only its memory has.
    session.log.emit("agent_call", "END", actor="student", span=opened.span, parent=session.span, step=step,
                     attempt=1, usage={"student": used},
                     data={"answer": output, "status": status, "exchange": recorded})
    end = session.client
    for one in messages_of(exchange.body):
      end = _chained(end, one)
    for one in proxy_replies.choices(exchange.reply):
      self._ends[_chained(end, proxy_replies.message(one))] = (session.key, step)
    while len(self._ends) > REMEMBERED:
      self._ends.popitem(last=False)

  def _recorded(self, opened: Opened, exchange: Exchange) -> dict[str, Any]:
    messages = list(messages_of(exchange.body))
    kept = len(opened.session.asked[opened.follows]) if opened.follows is not None else 0
    # As text: schemas of tools may be deeper than records are.
    rest = {name: value for name, value in exchange.body.items() if name != "messages"}
    asked = self._redactor.redacted({"request": rest, "messages": messages[kept:]})
    reply = self._redactor.redacted(exchange.reply)
    value = reply.value
    if (asked.count or reply.count) and value is not None:
      value = proxy_replies.without_ids(value)
    is_whole = exchange.status == 200 and exchange.problem is None
    return {"route": exchange.route, "request": json.dumps(asked.value["request"]),
            "messages": asked.value["messages"], "follows": opened.follows, "response": value,
            "status": exchange.status, "streamed": exchange.streamed,
            "problem": self._redactor.text(exchange.problem) if exchange.problem else None,
            "redacted": asked.count + reply.count, "seconds": round(exchange.seconds, 3),
            "token_source": served_tokens.token_source(value) if is_whole else None}

  def _trace(self, session: ProxySession, status: str, answer: str) -> Trace:
    sources = {one["exchange"]["token_source"] for one in session.steps}
    metadata = {"session_key": session.key, "tenant_id": self._tenant, "source": SOURCE, "status": status,
                "created_at": _iso(session.began), "completed_at": _iso(time.time()),
                "token_source": served_tokens.SERVER if sources == {served_tokens.SERVER} else None,
                "reward_reason": "a proxy records, and scores nothing"}
    return Trace.from_json({
        "schema_version": SCHEMA_VERSION, "task": session.task, "final_answer": answer, "verified": None,
        "steps": sorted(session.steps, key=lambda one: one["step_id"]), "session_metadata": metadata,
        "versions": {}, "reward_status": "skipped", "tokens": {"student": dict(session.tokens)}})


def requests(trace: Trace) -> list[dict[str, Any]]:
  """Returns the requests of a session as they came, each whole."""
  whole: dict[Any, list[Any]] = {}
  found = []
  for step in trace.steps:
    exchange = step.data["exchange"]
    body = json.loads(exchange["request"])
    messages = [*whole.get(exchange["follows"], ()), *exchange["messages"]]
    whole[step.step_id] = messages
    found.append({**body, "messages": messages} if exchange["route"] == "chat/completions" else body)
  return found


def messages_of(body: Mapping[str, Any]) -> Sequence[Any]:
  """Returns the messages of a request; a prompt is none, and has no conversation."""
  found = body.get("messages")
  return found if isinstance(found, list) else []


def text_of(message: Mapping[str, Any]) -> str:
  """Returns the text of a message, its parts joined."""
  content = message.get("content")
  if isinstance(content, list):
    return "\n".join(one["text"] for one in content if isinstance(one, Mapping)
                     and isinstance(one.get("text"), str))
  return content if isinstance(content, str) else ""


def _last_text(messages: Sequence[Any]) -> str:
  return text_of(messages[-1]) if messages and isinstance(messages[-1], Mapping) else ""


def _hash(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _chained(end: str, message: Any) -> str:
  """Returns the hash of a conversation with one more message, in whatever form a client sends it."""
  if isinstance(message, Mapping):
    given = [one for one in message.get("tool_calls") or () if isinstance(one, Mapping)]
    calls = [[one.get("id"), *(dict(one.get("function") or {}).get(name) for name in ("name", "arguments"))]
             for one in given]
    message = [message.get("role"), message.get("content") or "", calls, message.get("tool_call_id")]
  return _hash([end, message])


def _iso(seconds: float) -> str:
  return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
