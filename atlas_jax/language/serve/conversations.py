"""Conversations that go on from request to request, and where a folder is given over restarts.

A conversation is kept as the ids that were read and written, to the last one, so that the next request finds
the state that stands behind them; and as its messages, which are shown anew where a template needs that.
"""
import collections
import contextlib
import dataclasses
import hashlib
import pathlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from atlas_jax.files import json_file, write
from atlas_jax.files.damage import Damaged
from atlas_jax.language.decoding.requests import EndEvent
from atlas_jax.language.serve.api_error import ApiError, invalid
from atlas_jax.language.serve.json_fields import JsonFields

FORM = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TEXT, CHAT = "text", "chat"
FIELD = "conversation"
TAKEN = "conversation_taken"  # Code of the error where a branch would be written over another one.


@dataclasses.dataclass
class Conversation:
  """A conversation as it stands between two requests.

  Attributes:
    id: that clients call it by.
    kind: TEXT or CHAT; None before its first request.
    tokens: that were read and written.
    messages: of a chat, the assistant's answers among them.
    written: the last answer as the model wrote it, tools and all; None where its ids do not stand for it, as
      behind a stop string.
  """

  id: str
  kind: str | None = None
  tokens: tuple[int, ...] = ()
  messages: tuple[Mapping, ...] = ()
  written: str | None = None

  def need_kind(self, kind: str) -> None:
    """Refuses a request of another kind than the conversation.

    Raises:
      ApiError: names both.
    """
    if self.kind not in (None, kind):
      raise invalid(f"the conversation {self.id!r} is one of {self.kind}s; go on with it by the route that "
                    "began it, or take another id", FIELD)

  def after(self, kind: str, prompt: Sequence[int], drawn: Sequence[int], end: EndEvent, written: str,
            messages: Sequence[Mapping]) -> "Conversation":
    """Returns the conversation with one answer more.

    Args:
      kind: TEXT or CHAT.
      prompt: ids that were read.
      drawn: ids of the answer, the one that stopped it included.
      end: how it ended.
      written: text of the answer.
      messages: of a chat, with the answer.
    """
    # The id that ends a turn is written by the template where the chat goes on.
    kept = list(drawn[:-1] if end.reason == "stop_token" else drawn)
    exact = end.reason != "stop_string"
    return Conversation(self.id, kind, (*prompt, *kept), tuple(messages), written if exact else None)


class Conversations:
  """All conversations by tenant and id; the oldest are forgotten where there are too many.

  Files hold what was said, so the folder is as private as the conversations are.
  """

  def __init__(self, folder: pathlib.Path | None, most: int):
    """Opens the folder.

    Args:
      folder: of their files; None: they end with the program.
      most: conversations that are kept.
    """
    self._folder = folder
    self._most = most
    self._held: collections.OrderedDict[str, Conversation] = collections.OrderedDict()
    self._busy: set[str] = set()
    self._lock = threading.Lock()
    if folder is not None:
      folder.mkdir(parents=True, exist_ok=True, mode=0o700)

  @contextlib.contextmanager
  def claimed(self, tenant: str, name: str) -> Iterator[Conversation]:
    """Yields a conversation, new if there was none, which no other request has meanwhile.

    Raises:
      ApiError: status 409 if a request has it, 400 for a name that cannot be.
    """
    key = _key(tenant, check_name(name))
    with self._lock:
      if key in self._busy:
        raise ApiError(409, f"another request of the conversation {name!r} is being answered; wait for it, "
                       "or take another id", param=FIELD)
      self._busy.add(key)
    try:
      yield self._load(key) or Conversation(name)
    finally:
      with self._lock:
        self._busy.discard(key)

  def find(self, tenant: str, name: str) -> Conversation:
    """Returns a conversation.

    Raises:
      ApiError: status 404 if there is none.
    """
    found = self._load(_key(tenant, check_name(name)))
    if found is None:
      raise _unknown(name)
    return found

  def keep(self, tenant: str, conversation: Conversation) -> None:
    """Keeps a conversation as it stands now; on the disk when this returns."""
    key = _key(tenant, conversation.id)
    if self._folder is None:
      with self._lock:
        self._held[key] = conversation
        self._held.move_to_end(key)
        while len(self._held) > self._most:
          self._held.popitem(last=False)
      return
    write.json(self._file(key), json_file.sealed(_plain(conversation)), indent=None)
    self._forget_oldest()

  def branch(self, tenant: str, name: str, to: str) -> Conversation:
    """Begins a conversation as a copy of another one, which stays as it is.

    Raises:
      ApiError: status 404 if there is none to copy, 409 if there is one by the new id already.
    """
    found = self.find(tenant, name)
    with self.claimed(tenant, to) as there:
      if there.kind is not None:
        raise ApiError(409, f"there is a conversation {to!r} already; go on with it, delete it, or take "
                       "another id", param="id", code=TAKEN)
      made = dataclasses.replace(found, id=to)
      self.keep(tenant, made)
    return made

  def forget(self, tenant: str, name: str) -> None:
    """Deletes a conversation.

    Raises:
      ApiError: status 404 if there is none.
    """
    key = _key(tenant, check_name(name))
    if self._folder is None:
      with self._lock:
        found = self._held.pop(key, None) is not None
    else:
      # Without reading it: a damaged one can be deleted as well.
      file = self._file(key)
      found = file.is_file()
      file.unlink(missing_ok=True)
    if not found:
      raise _unknown(name)

  def _load(self, key: str) -> Conversation | None:
    if self._folder is None:
      return self._held.get(key)
    file = self._file(key)
    if not file.is_file():
      return None
    try:
      saved = json_file.read_sealed(file)
      return Conversation(saved["id"], saved["kind"], tuple(saved["tokens"]), tuple(saved["messages"]),
                          saved["written"])
    except (Damaged, KeyError, TypeError) as error:
      logging.error("a conversation cannot be read: %s", error)
      raise ApiError(500, "the file of the conversation is damaged; the server's log names it. Delete the "
                     "conversation, or take another id", param=FIELD) from error

  def _file(self, key: str) -> pathlib.Path:
    assert self._folder is not None
    return self._folder / f"{key}.json"

  def _forget_oldest(self) -> None:
    assert self._folder is not None
    files = list(self._folder.glob("*.json"))
    if len(files) > self._most:
      for file in sorted(files, key=_written_s)[:len(files) - self._most]:
        file.unlink(missing_ok=True)


def read_name(fields: JsonFields) -> str | None:
  """Takes the field of a conversation: its id, or an object with it.

  Raises:
    ApiError: for other values.
  """
  value = fields.take(FIELD, object)
  if isinstance(value, Mapping):
    inner = JsonFields(value, FIELD)
    value = inner.need("id", str)
    inner.done()
  return None if value is None else check_name(value)


def check_name(name: Any) -> str:
  """Returns the id of a conversation; ApiError if it cannot be one."""
  if not isinstance(name, str) or not FORM.fullmatch(name):
    raise invalid("conversation must be an id of 1 to 128 letters, digits and . _ : -", FIELD)
  return name


def _unknown(name: str) -> ApiError:
  return ApiError(404, f"there is no conversation {name!r}", param=FIELD)


def _key(tenant: str, name: str) -> str:
  """Returns a file's name that tells neither, and that no two pairs share."""
  return hashlib.sha256(f"{tenant}\0{name}".encode()).hexdigest()


def _plain(conversation: Conversation) -> dict[str, Any]:
  return {**dataclasses.asdict(conversation), "tokens": list(conversation.tokens),
          "messages": [dict(one) for one in conversation.messages]}


def _written_s(file: pathlib.Path) -> float:
  try:
    return file.stat().st_mtime
  except FileNotFoundError:  # Another request has just deleted it.
    return 0.0
