"""Run directories on object stores: a local copy to work in, brought up to date there and back.

A run with --workdir=gs://BUCKET/RUN works in a folder of the user's cache and is uploaded as it goes: every
finished checkpoint whole, its inventory last, so that what was cut off is never taken for one, and all other
files as they change. A start, here or on another machine, first fetches what is there. For one process alone:
with several, Orbax needs a file system that all of them see.

Source of the interface: `etils.epath`, which Orbax writes with too.
"""
import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from absl import logging

from atlas_jax import lock
from atlas_jax.files import json_file
from atlas_jax.workdir import CHECKPOINTS, INVENTORY, OWNER, REMOTE_OWNER

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}  # What epath needs to reach a store.
EVERY_S = 15.0  # Between uploads of what has changed; each is also the heartbeat of the owner.
SILENT_S = 60.0  # After so long without one, an owner counts as dead: four beats.
_LOCAL = (OWNER, REMOTE_OWNER)  # Of this machine alone.


class RemoteError(OSError):
  """An object store that cannot be reached, or a run there that belongs to another process."""


def scheme_of(workdir: str) -> str | None:
  """Returns "gs" of gs://BUCKET/RUN, None of a local path."""
  found = re.match(r"(\w+)://", workdir)
  return found[1] if found else None


def check(workdir: str, *, processes: int | None) -> None:
  """Refuses a remote run directory that cannot be used here.

  Raises:
    ValueError: says why, and what to do.
  """
  scheme = scheme_of(workdir)
  if scheme is None:
    return
  if scheme not in LIBRARIES:
    raise ValueError(f"--workdir={workdir}: {scheme}:// is no store that runs can lie on; known are "
                     f"{', '.join(f'{name}://' for name in LIBRARIES)}, and local or shared directories")
  if not re.match(r"\w+://[^/]+/[^/]", workdir):
    raise ValueError(f"--workdir={workdir} needs a bucket and a path in it, such as {scheme}://BUCKET/RUN")
  if importlib.util.find_spec(LIBRARIES[scheme]) is None:
    raise ValueError(f"--workdir={workdir} needs the library {LIBRARIES[scheme]}; pip install "
                     f"{LIBRARIES[scheme]}, or give a local or shared directory")
  if processes is not None and processes > 1:
    raise ValueError(f"--workdir={workdir} is for runs of one process; with --num_processes={processes} give "
                     "a directory that all of them see, such as a mounted bucket")


def store_of(workdir: str):
  """Returns a remote run directory as an `epath.Path`."""
  from etils import epath  # Here, so that local runs do not pay for the import.
  return epath.Path(workdir)


def cache_of(workdir: str) -> pathlib.Path:
  """Returns the local folder in which a remote run is worked on."""
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  # The name is for people who look into the cache; the digest parts runs whose names end alike.
  name = re.sub(r"\W+", "_", workdir.partition("://")[2])[-60:]
  digest = hashlib.sha256(workdir.encode()).hexdigest()[:12]
  return pathlib.Path(home) / "atlas_jax" / "remote" / f"{name}-{digest}"


@contextlib.contextmanager
def local(workdir: str, *, writes: bool) -> Iterator[str]:
  """Yields a local directory for a run directory: itself, or the copy of a remote one.

  Args:
    workdir: as the user gave it; see `check`.
    writes: whether what changes is brought back, while the block runs and at its end.

  Raises:
    RemoteError: if the store cannot be reached, or another process trains there.
  """
  if scheme_of(workdir) is None:
    yield workdir
    return
  mirror = Mirror(store_of(workdir), cache_of(workdir))
  # The claim comes before the fetching: what is fetched behind it is changed by nobody else.
  with mirror.at_work() if writes else contextlib.nullcontext():
    mirror.pull()
    if not writes:
      logging.info("%s is read from its copy in %s; files that are left there are not brought back", workdir,
                   mirror.here)
      yield str(mirror.here)
      return
    with mirror.pushing():
      yield str(mirror.here)


class Mirror:
  """A local copy of a remote run directory.

  Args:
    there: the remote directory, an `epath.Path`.
    here: the local one.
  """

  def __init__(self, there: Any, here: pathlib.Path):
    self.there = there
    self.here = here
    self._known: dict[str, tuple[int, int]] = {}  # size and time of what both sides have
    self._token = uuid.uuid4().hex
    self._guard = threading.Lock()

  def pull(self) -> None:
    """Fetches what is there, and drops what is here alone: the remote side is the run.

    Raises:
      RemoteError: if the store cannot be read.
    """
    with _reaching(self.there):
      remote = self._remote_files()
    self.here.mkdir(parents=True, exist_ok=True)
    # A file that is here alone was left by a start that never uploaded it. It may be of a step that the run
    # never reached there, and would be taken for a part of it.
    for name, file in self._local_files().items():
      if name not in remote:
        file.unlink()
    for name in remote:
      file = self.here / name
      with _reaching(self.there):
        _fetch(self.there / name, file)
      self._known[name] = _stamp(file)
    # From the deepest up. An empty checkpoints/STEP would count as the newest checkpoint, a damaged one, and
    # the run would be refused.
    for folder in sorted(self.here.rglob("*"), reverse=True):
      if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()

  def push(self) -> None:
    """Uploads what has changed, then removes what is gone here.

    Raises:
      RemoteError: if the store cannot be written.
    """
    with self._guard, _reaching(self.there):
      files = self._local_files()
      # A checkpoint counts by its inventory, which is sent behind all its files and removed before them: a
      # kill at any moment leaves a whole checkpoint there, or files that `_belongs` passes over.
      for name in sorted(files, key=lambda name: (name.endswith(f"/{INVENTORY}"), name)):
        with contextlib.suppress(FileNotFoundError):  # Replaced or removed meanwhile: the next time tells.
          # Before the sending: a file that changes meanwhile has another stamp, and is sent again.
          stamp = _stamp(files[name])
          if self._known.get(name) != stamp:
            _send(files[name], self.there / name)
            self._known[name] = stamp
      gone = [name for name in self._known if name not in files]
      for name in sorted(gone, key=lambda name: (not name.endswith(f"/{INVENTORY}"), name)):
        (self.there / name).unlink(missing_ok=True)
        del self._known[name]

  @contextlib.contextmanager
  def at_work(self) -> Iterator[None]:
    """Claims the remote run for this process while the block runs.

    Object stores cannot create a file only if there is none: two claims within a moment see each other when
    they look again.

    Raises:
      RemoteError: if another process has claimed it, and shows life.
    """
    with _reaching(self.there):
      self.there.mkdir(parents=True, exist_ok=True)
      self._await_other()
      self._beat()
      # Both of two claims write, wait, and look: the file holds the later one, and the earlier one sees that
      # it is not its own.
      time.sleep(1.0)
      self._refuse_other()
    try:
      yield
    finally:
      with _reaching(self.there):
        # Not if another process has taken the run over: the file is its claim by then.
        if self._owner().get("token") == self._token:
          (self.there / REMOTE_OWNER).unlink(missing_ok=True)

  @contextlib.contextmanager
  def pushing(self) -> Iterator[None]:
    """Uploads every EVERY_S seconds while the block runs, and at its end."""
    ended, pushed = threading.Event(), threading.Event()

    # A thread of its own: a checkpoint may take longer to send than an owner may be silent.
    def keep_beating() -> None:
      while not pushed.wait(EVERY_S):
        try:
          with _reaching(self.there):
            self._refuse_other()
            self._beat()
        except RemoteError as error:
          logging.warning("%s", error)

    def keep_pushing() -> None:
      while not ended.wait(EVERY_S):
        try:
          with _reaching(self.there):
            self._refuse_other()
          self.push()
        # Also where another process has taken the run over: then nothing is sent. The end of the block tries
        # again, and fails if that fails.
        except RemoteError as error:
          logging.warning("%s", error)

    beating = threading.Thread(target=keep_beating, name="beat", daemon=True)
    pushing = threading.Thread(target=keep_pushing, name="push", daemon=True)
    beating.start()
    pushing.start()
    try:
      yield
    finally:
      ended.set()
      pushing.join()
      try:
        with _reaching(self.there):
          self._refuse_other()
        self.push()
      finally:
        pushed.set()
        beating.join()

  def _owner(self) -> dict:
    file = self.there / REMOTE_OWNER
    with contextlib.suppress(FileNotFoundError, ValueError):
      return json_file.parse(file, file.read_bytes())
    return {}

  def _beat(self) -> None:
    beat = {**lock.identity(), "token": self._token, "beat_s": time.time()}
    (self.there / REMOTE_OWNER).write_text(json.dumps(beat) + "\n")

  def _await_other(self) -> None:
    """Watches an owner for a sign of life, as long as it may be silent.

    Raises:
      RemoteError: if it shows one.
    """
    owner = self._owner()
    began = time.monotonic()
    if "token" not in owner or lock.lives(owner) is False:
      return
    # Every beat writes another time, so a file that has changed is a sign of life. The time in it is never
    # compared with this machine's clock.
    while time.monotonic() - began < SILENT_S:
      logging.info("%s is of process %s on %s; waiting for a sign of life, up to %.0f s", self.there,
                   owner.get("pid"), owner.get("host"), SILENT_S - (time.monotonic() - began))
      time.sleep(EVERY_S / 3)
      if (now := self._owner()) != owner:
        if "token" not in now:
          return
        raise RemoteError(self._refusal(now))
    logging.warning("%s was of process %s on %s, silent for %.0f s; this process takes the run over",
                    self.there, owner.get("pid"), owner.get("host"), SILENT_S)

  def _refuse_other(self) -> None:
    """Raises RemoteError if the run is no longer this process's."""
    owner = self._owner()
    # A file that is missing is no claim of another.
    if owner.get("token", self._token) != self._token:
      raise RemoteError(self._refusal(owner))

  def _refusal(self, owner: dict) -> str:
    return (f"--workdir={self.there} is in use by process {owner.get('pid')} on {owner.get('host')}; wait "
            "for it, stop it, or choose another --workdir")

  def _remote_files(self) -> list[str]:
    """Lists the remote files that belong to the run, by name."""
    found = []
    if self.there.exists():
      found = [file.relative_to(self.there).as_posix() for file in _walk(self.there)]
    # Steps with an inventory; what is left of any other was cut off while it was sent or removed.
    whole = {name.split("/")[1] for name in found if name.startswith(f"{CHECKPOINTS}/") and name.endswith(
        f"/{INVENTORY}")}
    return [name for name in found if _belongs(name, whole)]

  def _local_files(self) -> dict[str, pathlib.Path]:
    files = {file.relative_to(self.here).as_posix(): file for file in self.here.rglob("*") if file.is_file()}
    steps = self.here / CHECKPOINTS
    whole = {entry.name for entry in steps.iterdir() if entry.name.isdecimal()} if steps.is_dir() else set()
    return {name: file for name, file in files.items() if _belongs(name, whole)}


def _walk(folder) -> Iterator[Any]:
  for entry in folder.iterdir():
    if entry.is_dir():
      yield from _walk(entry)
    else:
      yield entry


def _belongs(name: str, whole: set[str]) -> bool:
  """Returns whether a file is the run's: not of this machine alone, half-written, or of half a checkpoint."""
  parts = name.split("/")
  if name in _LOCAL or any(part.startswith(".") for part in parts) or parts[-1].endswith(".part"):
    return False
  return parts[0] != CHECKPOINTS or len(parts) > 2 and parts[1] in whole


@contextlib.contextmanager
def _reaching(there) -> Iterator[None]:
  """Names the store in whatever its library raises."""
  try:
    yield
  except RemoteError:
    raise
  except Exception as error:  # Libraries of stores raise many kinds.
    words = " ".join(str(error).split())[:300]
    raise RemoteError(f"{there} cannot be read or written ({type(error).__name__}: {words}); check the name, "
                      "the network and your credentials") from error


def _fetch(source, target: pathlib.Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  # The name begins with a dot, so that what is left of a kill is never sent back, see `_belongs`.
  part = target.with_name(f".{target.name}.fetched")
  with source.open("rb") as old, part.open("wb") as new:
    shutil.copyfileobj(old, new, 2**22)
  part.replace(target)


def _send(source: pathlib.Path, target) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  with source.open("rb") as old, target.open("wb") as new:
    shutil.copyfileobj(old, new, 2**22)


def _stamp(file: pathlib.Path) -> tuple[int, int]:
  found = file.stat()
  return found.st_size, found.st_mtime_ns
