"""One owner for each run directory: a lock file with a heartbeat, on local and on shared file systems.

`workdir/owner.json` names the process that writes there. It appears with all of its contents at once, by a
hard link of a finished file, so that of several starts one gets it. A process on this machine is known to
live or not by its number and its start; of any other only the heartbeat tells, which is the file's time of
change, compared with that of a file written just now: clocks of two machines need not agree.
"""
import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from absl import logging

from atlas_jax.files import json_file, write
from atlas_jax.workdir import OWNER

BEAT_S = 5.0  # Between heartbeats.
# After so long without one, a process that cannot be seen from here counts as dead. Six beats: one that is
# late, as on a slow file server, is no death.
SILENT_S = 30.0


class LockError(RuntimeError):
  """The run directory belongs to another process."""


class Lock:
  """The lock of one run directory.

  Args:
    workdir: an existing directory.
    beat_s: seconds between heartbeats.
    silent_s: after so many without a heartbeat, an owner on another machine counts as dead.
    on_beat: called at every heartbeat, in a thread of its own.
  """

  def __init__(self, workdir, *, beat_s: float = BEAT_S, silent_s: float = SILENT_S,
               on_beat: Callable[[], None] | None = None):
    self.workdir = pathlib.Path(workdir)
    self.path = self.workdir / OWNER
    self.on_beat = on_beat
    self._beat_s = beat_s
    self._silent_s = silent_s
    # The token is of this object and not of the process: a process number comes back, a token never does, and
    # a second lock of the same process is another owner.
    self._me = {**identity(), "token": uuid.uuid4().hex,
                "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    self._end = threading.Event()
    self._thread: threading.Thread | None = None

  def acquire(self) -> None:
    """Takes the lock, over from a dead owner if need be, and starts the heartbeat.

    An owner that cannot be seen from here is watched until its next heartbeat, or until it counts as dead.

    Raises:
      LockError: if another process owns the directory; nothing in it was changed.
    """
    # The file is finished under a name of its own and linked to the name of the lock. A link fails where the
    # name is taken, so of several starts one wins, and nobody reads half a lock. Renaming would replace the
    # lock of another.
    mine = self.workdir / f".{OWNER}.{self._me['token']}"
    with _one_at_a_time(self.workdir):
      write.json(mine, self._me)
      try:
        while not _place(mine, self.path):
          self._take_over(mine)
      finally:
        mine.unlink(missing_ok=True)
    self._end.clear()
    self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises LockError if the lock is no longer this process's."""
    found = _read(self.path)
    if found is None or found.get("token") != self._me["token"]:
      by = "removed" if found is None else f"taken over by {_named(found)}"
      raise LockError(f"{self.path} was {by} while this process ran, which writes nothing more; a process "
                      f"counts as dead when it is silent for {self._silent_s:.0f} s")

  def release(self) -> None:
    """Ends the heartbeat and gives the lock up; calling it twice does nothing more."""
    # The heartbeat ends before the file goes: a beat in between could touch the lock of the next owner. And
    # only a lock with this token is removed, since another process may have taken the directory over.
    self._end.set()
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    found = _read(self.path)
    if found is not None and found.get("token") == self._me["token"]:
      self.path.unlink(missing_ok=True)

  def _beat(self) -> None:
    while not self._end.wait(self._beat_s):
      with contextlib.suppress(OSError):  # Shared file systems fail now and then; `check` tells what is lost.
        found = _read(self.path)
        if found is None or found.get("token") != self._me["token"]:
          return
        # Only the time changes: a file written anew would replace a lock that another start has placed
        # meanwhile.
        os.utime(self.path)
      if self.on_beat is not None:
        with contextlib.suppress(OSError):  # What it writes is written again at the next beat.
          self.on_beat()

  def _take_over(self, mine: pathlib.Path) -> None:
    """Removes the lock of a dead owner; returns also if it is gone already.

    Raises:
      LockError: if the owner lives.
    """
    holder = _read(self.path)
    if holder is None:
      return
    why = self._death(holder, mine)
    # A race: between the reading above and the renaming below another start may have removed the dead lock
    # and placed its own, which is then what is moved. Its token tells, and it goes back. If a third start has
    # placed a lock meanwhile, that one stays, and the second start finds out when it next calls `check`.
    aside = self.workdir / f".{OWNER}.{self._me['token']}.dead"
    try:
      self.path.rename(aside)
    except FileNotFoundError:
      return
    moved = _read(aside) or {}
    if moved.get("token") != holder.get("token"):  # Another start was faster; its lock goes back.
      _place(aside, self.path)
      aside.unlink(missing_ok=True)
      raise LockError(_refusal(self.path, moved))
    aside.unlink(missing_ok=True)
    logging.warning("%s was of %s, %s; this process takes the run over", self.path, _named(holder), why)

  def _death(self, holder: dict, mine: pathlib.Path) -> str:
    """Returns how a dead owner is known to be dead, after watching one that cannot be seen from here.

    Raises:
      LockError: if it lives.
    """
    alive = lives(holder)
    if alive:
      raise LockError(_refusal(self.path, holder))
    if alive is False:
      return "which has ended"
    # Both times are set by the file system that holds the files, so their difference does not depend on this
    # machine's clock. A beat that is too old already ends the watch at once.
    beat = _changed(self.path)
    while beat is not None:
      os.utime(mine)
      silent_s = (_changed(mine) or 0.0) - beat
      if silent_s > self._silent_s:
        return f"silent for {silent_s:.0f} s"
      logging.info("%s is of %s; waiting for a sign of life, up to %.0f s", self.path, _named(holder),
                   self._silent_s - silent_s)
      time.sleep(min(self._beat_s, max(0.1, self._silent_s - silent_s + 0.1)))
      if _changed(self.path) not in (beat, None):
        raise LockError(_refusal(self.path, holder))
      beat = _changed(self.path)
    return "which has just given it back"


# Locks of this process. The program owns the directory before it reads data, and `train.run` owns it again,
# since it can be called alone: the inner block must get the same lock, or the process would refuse itself.
_held: dict[pathlib.Path, Lock] = {}


@contextlib.contextmanager
def held(workdir, *, on_beat: Callable[[], None] | None = None) -> Iterator[Lock]:
  """Owns a run directory while the block runs; a block inside such a block gets the same lock.

  Raises:
    LockError: if another process owns it.
  """
  place = pathlib.Path(workdir).resolve()
  if place in _held:
    lock = _held[place]
    lock.on_beat = on_beat or lock.on_beat
    yield lock
    return
  lock = Lock(place, on_beat=on_beat)
  lock.acquire()
  _held[place] = lock
  try:
    yield lock
  finally:
    del _held[place]
    lock.release()


def release_all() -> None:
  """Releases every lock of this process, before an end without clean-up."""
  # The blocks of `held` do not end: os._exit runs no `finally`. A lock that is left behind makes a start on
  # another machine wait for SILENT_S.
  for lock in list(_held.values()):
    with contextlib.suppress(OSError):
      lock.release()


def identity() -> dict:
  """Describes this process; `sees` is equal for processes that see each other's numbers."""
  # A process number means something in one boot of a machine and in one PID namespace: two containers of a
  # host have numbers of their own.
  return {"host": socket.gethostname(), "pid": os.getpid(), "process": _started(os.getpid()),
          "sees": f"{socket.gethostname()} {_first_line('/proc/sys/kernel/random/boot_id')} "
                  f"{_link('/proc/self/ns/pid')}",
          "command": " ".join(sys.argv)[:500]}


def lives(holder: dict) -> bool | None:
  """Returns whether the process that a lock names lives; None if it cannot be seen from here."""
  if holder.get("sees") != identity()["sees"] or not isinstance(holder.get("pid"), int):
    return None
  return _started(holder["pid"]) == holder.get("process")


def _started(pid: int) -> str | None:
  """Returns what tells a process from a later one of the same number; None if there is no such process."""
  try:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
      # The name, in parentheses, may hold spaces and parentheses: fields are counted behind the last one. The
      # first is the state, of which Z and X are ended; the twentieth is the start, in clock ticks.
      after_name = stream.read().rpartition(")")[2].split()
    return None if after_name[0] in "ZX" else after_name[19]
  except OSError:
    pass
  if pathlib.Path("/proc/self/stat").exists():
    return None
  try:  # No /proc, as on macOS: the number alone tells, and "alive" stands for every start.
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except OSError:
    pass
  return "alive"


def _first_line(path: str) -> str:
  with contextlib.suppress(OSError):
    return pathlib.Path(path).read_text().strip()
  return ""


def _link(path: str) -> str:
  with contextlib.suppress(OSError):
    return os.readlink(path)
  return ""


def _read(path: pathlib.Path) -> dict | None:
  """Reads a lock; {} if it is damaged, None if there is none."""
  try:
    return json_file.read(path)
  except FileNotFoundError:
    return None
  except ValueError:
    return {}


def _place(mine: pathlib.Path, lock: pathlib.Path) -> bool:
  """Makes a finished file the lock; False if there is one already."""
  try:
    os.link(mine, lock)
  except FileExistsError:
    return False
  except OSError:  # No hard links here. Half a file is read as {}, an unknown owner that is watched.
    try:
      with lock.open("x", encoding="utf-8") as stream:
        stream.write(mine.read_text(encoding="utf-8"))
    except FileExistsError:
      return False
  return True


@contextlib.contextmanager
def _one_at_a_time(workdir: pathlib.Path) -> Iterator[None]:
  """Lets one start of this machine at a time look at a lock, where the file system can."""
  # It saves starts the race of `_take_over`, and is not what decides: flock may fail, or hold on one machine
  # alone, on a shared file system.
  handle = os.open(workdir, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(handle, fcntl.LOCK_EX)
    yield
  finally:
    os.close(handle)


def _changed(path: pathlib.Path) -> float | None:
  try:
    return path.stat().st_mtime
  except FileNotFoundError:
    return None


def _named(holder: dict) -> str:
  if not {"pid", "host", "since"} <= holder.keys():
    return "an unknown process (the file is damaged)"
  return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _refusal(path: pathlib.Path, holder: dict) -> str:
  return (f"--workdir={path.parent} is in use by {_named(holder)}, and nothing was changed; wait for it, "
          "stop it, or choose another --workdir")
