"""Trust: the code of one's own that the config of a run may name when it is read from its workdir.

A config that a user gives with --config is the user's own. The `config.json` of a workdir may be anybody's: a
run that was fetched to be evaluated, exported or started from must not choose what is imported and executed
here, nor which server is sent rows of files here. So a config that names such code is signed when it is
written, by a key that lies outside all workdirs, in the user's own folder ($XDG_CONFIG_HOME or ~/.config,
atlas_jax/key): what carries no such signature came from elsewhere, and is used only with --trust. The
signature is of the code that is named alone: anything else in a config decides what is computed, not what is
executed.

Where the key cannot be kept, as in a container without a home, nothing is signed and --trust is needed.
"""
import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from absl import logging

from atlas_jax.files import write

SIGNATURE = "signature"  # The field of a config.json that has it.
KEY_BYTES = 32
# With dots they are modules of one's own.
MODULES = ("recipe", "data.source", "model.memory.rule", "sampler.kind", "teacher.sampler", "traces.lesson")
# Names with weights, of functions in files or modules.
REWARDS = ("rewards", "eval.grader", "teacher.rewards", "teacher.grader", "rim.script")
# Addresses that rows are sent to, and variables of the environment whose values go with them.
SERVERS = ("vllm.command", "vllm.arguments", "vllm.url", "server.url", "server.token_variable",
           "server.weights_folder", "teacher.endpoint.url", "teacher.endpoint.key_variable",
           "rim.endpoint.url", "rim.endpoint.key_variable", "rim.large_endpoint.url",
           "rim.large_endpoint.key_variable")

# The user's word for this process, given once on its command line. Runs read other runs, which they start
# from or are taught by: it holds for all of them, so that passing it through their readers would say no more.
_given: list[bool] = []


def give() -> None:
  """Trusts every run that this process reads, as --trust does."""
  _given.append(True)


def code_of(flat: Mapping[str, Any]) -> dict[str, str]:
  """Returns the fields of a config that name what to import, to execute or to send rows to."""
  found = {name: flat.get(name) for name in MODULES if isinstance(flat.get(name), str) and "." in flat[name]}
  found |= {name: flat.get(name) for name in SERVERS if flat.get(name)}
  for field in REWARDS:
    rewards = flat.get(field)
    if isinstance(rewards, str):
      # name=weight, and names of this package have neither a dot (a module) nor a colon (a file).
      mine = [name for part in rewards.split(",") if {".", ":"} & set(name := part.partition("=")[0].strip())]
      found |= {field: ",".join(mine)} if mine else {}
  return {name: str(value) for name, value in found.items()}


def sign(flat: Mapping[str, Any]) -> str | None:
  """Returns the signature of the code that a config names; None if it names none, or there is no key."""
  code = code_of(flat)
  key = _key(make=True) if code else None
  return None if key is None else _signature(code, key)


def check(flat: Mapping[str, Any], signature: Any, file, *, given: Collection[str] = ()) -> None:
  """Refuses the config of a run that came from elsewhere and names code.

  Args:
    flat: the config's fields by their dotted names, as they were written.
    signature: that it carries; None if it carries none.
    file: that it was read from, for the message.
    given: names of fields that the user gives anew.

  Raises:
    ValueError: names the fields and what to do.
  """
  code = code_of(flat)
  open_to_all = {name: value for name, value in code.items() if name not in given}
  if not open_to_all or _given:
    return
  key = _key(make=False)
  # Compared in constant time, and as bytes: a signature from a file may hold characters for which
  # compare_digest refuses text.
  if key is not None and isinstance(signature, str) and hmac.compare_digest(
      signature.encode("utf-8", "replace"), _signature(code, key).encode()):
    return
  what = ", ".join(f"config.{name}={value!r}" for name, value in open_to_all.items())
  raise ValueError(f"{file} was not written by this user here, and names what would be run or asked: {what}; "
                   "look at it, and add --trust if you trust it (in Python: atlas_jax.trust.give())")


def _signature(code: Mapping[str, str], key: bytes) -> str:
  placed = {name: _placed(value) if name in REWARDS else value for name, value in code.items()}
  return hmac.new(key, json.dumps(placed, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _placed(rewards: str) -> list[str]:
  """Returns rewards with the whole paths of their files, which a name alone leaves open."""
  found = []
  for name in rewards.split(","):
    # rewards.py:score means another file in another folder; a signature must hold for the one it was made
    # for.
    place, colon, function = name.rpartition(":")
    is_file = bool(colon) and place.endswith(".py")
    found.append(f"{pathlib.Path(place).expanduser().resolve()}:{function}" if is_file else name)
  return found


def _make_key(file: pathlib.Path) -> None:
  """Draws a key; of several processes that do so at once, the first one's stays."""
  file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
  # Processes that start together each draw a key, finish it under a name of their own, and link it: the first
  # link stands, the others fail, and `_key` reads the one that stands. Renaming would exchange a key that
  # another process has signed with already.
  part = file.with_name(f".{file.name}.{secrets.token_hex(4)}{write.PART}")
  try:
    with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
      out.write(secrets.token_bytes(KEY_BYTES))
    write.sync(part)
    with contextlib.suppress(FileExistsError):
      os.link(part, file)
  finally:
    part.unlink(missing_ok=True)


def _key(*, make: bool) -> bytes | None:
  home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
  file = pathlib.Path(home).expanduser() / "atlas_jax" / "key"
  try:
    if make and not file.exists():
      _make_key(file)
    key = file.read_bytes()
  except (OSError, RuntimeError) as error:  # The second where there is no home at all.
    if make:
      logging.warning("this run names code of one's own and cannot be signed (%s): using it later needs "
                      "--trust", error)
    return None
  # A key that was cut short would be easier to guess: it counts as none.
  return key if len(key) == KEY_BYTES else None
