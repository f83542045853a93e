"""Replies on disk by a hash of what was asked, and the secret of boundaries beside them."""
import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

from absl import logging

from atlas_jax.files import json_file, write
from atlas_jax.files.damage import Damaged

VERSION = 1
SECRET = "secret"


class ReplyCache:
  """A folder of replies, one file for each.

  Attributes:
    secret: bytes of this folder alone, from which boundaries are made that no text can know beforehand.
  """

  def __init__(self, folder):
    """Opens a folder, making it if it is not there.

    Raises:
      OSError: if it cannot be made or read.
      Damaged: if its secret is cut off.
    """
    self._folder = pathlib.Path(folder).expanduser()
    self._folder.mkdir(parents=True, exist_ok=True)
    self.secret = _secret(self._folder / SECRET)

  def get(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what was saved for a request, None if nothing is; a damaged file is named and passed over."""
    file = self._file(asked)
    try:
      found = json_file.read_sealed(file, remedy="it is asked again", needed=True)
    except FileNotFoundError:
      return None
    except Damaged as error:
      logging.warning("a saved reply cannot be used: %s", error)
      return None
    return found if found.get("version") == VERSION else None

  def put(self, asked: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
    """Saves a reply.

    Raises:
      OSError: of the system, such as a full disk.
    """
    file = self._file(asked)
    file.parent.mkdir(exist_ok=True)
    # Not brought to the disk at once: after a loss of power it is asked again.
    write.json(file, json_file.sealed({"version": VERSION, **reply}), durable=False)

  def _file(self, asked: Mapping[str, Any]) -> pathlib.Path:
    name = key_of(asked)
    return self._folder / name[:2] / f"{name}.json"


def key_of(asked: Mapping[str, Any]) -> str:
  """Returns the hash of a request, whatever the order of its names."""
  text = json.dumps(asked, sort_keys=True, ensure_ascii=True, allow_nan=False)
  return hashlib.sha256(text.encode("ascii")).hexdigest()


def _secret(file: pathlib.Path) -> bytes:
  """Returns the secret in a file, which is made if it is not there; only its owner may read it."""
  if not file.exists():
    part = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "wb") as out:
      out.write(secrets.token_bytes(32))
    try:
      os.link(part, file)  # Whole, and the first of several programs that start at once.
    except FileExistsError:
      logging.info("%s: made by another program meanwhile", file)
    finally:
      part.unlink()
  found = file.read_bytes()
  if len(found) < 32:
    raise Damaged(file, f"has {len(found)} bytes in place of 32",
                  "delete it; replies are then asked again")
  return found
