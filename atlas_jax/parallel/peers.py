"""The processes of a run watch each other: who is there, who is alike, who is slow, and who is gone.

Every process keeps a connection to process 0, beside those of JAX: there they meet, and along it go signs of
life and last words. A process that closes without a word was killed; one that is silent hangs or is stopped;
one that is late is waited for.
"""
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from atlas_jax.parallel import agree
from atlas_jax.parallel.wire import Link, connect, listen, split_address

_GREETING_S = 10  # For a stranger on the port to say who it is.
_AFTER_DEATH_S = 3  # For the main thread to notice a loss by itself, before the watch ends the process.
_AFTER_ERROR_S = 10  # The same where the other one left with an error, which may be common to all.
_ADVICE = "the same command goes on from the newest checkpoint, or starts anew if there is none"


class Limits(NamedTuple):
  """Limits of waiting for other processes; the fields of config.hosts."""

  join_s: float = 300.0  # for all to have started
  silent_s: float = 60.0  # without a sign of life
  wait_s: float = 3_600.0  # for the slowest, where all meet


class PeerError(RuntimeError):
  """The processes of a run do not find each other, differ, or wait too long; says which, and what to do."""


class GoneError(PeerError):
  """Another process of the run has ended, while this one waited for it."""


class Peers:
  """The other processes of a run, as one of them sees them.

  Args:
    process: which one this is.
    count: how many there are.
    limits: how long they wait for each other.
  """

  def __init__(self, process: int, count: int, limits: Limits):
    self.process = process
    self.count = count
    self.limits = limits
    self.port = 0  # Of JAX's coordination service, on the machine of process 0.
    self.advice: Callable[[], str] = lambda: _ADVICE
    self._links: dict[int, Link] = {}
    self._hosts = {process: socket.gethostname()}
    self._changed = threading.Condition()
    self._fate: str | None = None  # Why the run cannot go on.
    self._meetings = 0
    # Of process 0: who came to which meeting, with its name and facts.
    self._present: dict[int, dict[int, tuple[str, Mapping[str, str]]]] = {}
    self._verdicts: dict[int, tuple[str | None, bool]] = {}  # what process 0 said, and whether one is gone
    self._gone: set[int] = set()  # Who said goodbye.
    self._over = False
    self._spoken = threading.Lock()

  # ---------------------------------------------------------------------------------------- coming together

  def gather(self, address: str, facts: Mapping[str, str]) -> None:
    """Waits until all processes are there, compares their facts, and starts to watch them.

    Args:
      address: HOST:PORT of process 0.
      facts: what all must have alike, by name.

    Raises:
      PeerError: says who is missing or cannot be reached, or what differs, and where.
    """
    host, port = split_address(address)
    if self.process == 0:
      self._welcome(port, facts)
    else:
      self._greet(host, port, address, facts)
    # Only now is silence a sign: during the gathering, a process may wait for the slowest to start.
    for process, link in self._links.items():
      link.silent_after(self.limits.silent_s)
      threading.Thread(target=self._listen, args=(process, link), daemon=True, name="peer").start()
    threading.Thread(target=self._beat, daemon=True, name="beat").start()

  def _welcome(self, port: int, facts: Mapping[str, str]) -> None:
    try:
      server = listen(port)
    except OSError as error:
      raise PeerError(f"process 0 cannot listen on port {port} of --coordinator ({error.strerror}); another "
                      "run, or another process 0 of this one, may hold it: choose another port") from error
    with server:
      refusal = self._admit(server, known := {0: facts})
    if refusal is None and (differ := agree.differences(known)) is not None:
      refusal = f"the processes of this run differ: {differ}; start all with the same command and code"
    # A port that is free now and closed again: JAX's service is started behind this, and opens it. Another
    # program could take it in between, and the start would fail with its message.
    with listen(0) as free:
      self.port = free.getsockname()[1]
    for link in self._links.values():
      link.send({"refusal": refusal, "port": self.port})
    if refusal is not None:
      raise PeerError(refusal)

  def _admit(self, server: socket.socket, known: dict[int, Mapping[str, str]]) -> str | None:
    """Takes in the others and puts their facts into `known`; says what is wrong, if anything is."""
    deadline = time.monotonic() + self.limits.join_s
    while len(known) < self.count:
      server.settimeout(max(0.01, deadline - time.monotonic()))
      try:
        link = Link(server.accept()[0], silent_s=_GREETING_S)
        hello = next(link.messages())
        process, count, host, facts = (hello[name] for name in ("process", "count", "host", "facts"))
      except TimeoutError:
        if time.monotonic() < deadline:
          continue
        missing = agree.numbers([one for one in range(self.count) if one not in known])
        return (f"{missing} of {self.count} did not come within {self.limits.join_s:g} s (config.hosts."
                "join_s); see what stopped them, or start them all with the address of process 0 as "
                "--coordinator")
      except (OSError, ValueError, KeyError, StopIteration):
        continue  # No process of ours.
      if count != self.count:
        self._links[-1] = link  # Under no number: it is only told the refusal.
        return (f"--num_processes={self.count} in process 0 and {count} in process {process} ({host}); start "
                "all with the same number")
      if process in known:
        self._links[-1] = link
        return (f"--process_id={process} is given to two processes (on {self._hosts[process]} and {host}); "
                f"number them from 0 to {self.count - 1}")
      known[process], self._links[process], self._hosts[process] = facts, link, host
    return None

  def _greet(self, host: str, port: int, address: str, facts: Mapping[str, str]) -> None:
    limit = self.limits.join_s
    try:
      connection = connect(host, port, within_s=limit)
    except OSError as error:
      raise PeerError(
          f"process {self.process} did not reach process 0 at --coordinator={address} within {limit:g} s "
          f"(config.hosts.join_s; {error.strerror or error}); start all {self.count} processes with the "
          "address of process 0") from error
    link = self._links[0] = Link(connection, silent_s=limit + _GREETING_S)
    link.send({"process": self.process, "count": self.count, "host": self._hosts[self.process],
               "facts": dict(facts)})
    try:
      answer = next(link.messages())
      refusal = answer["refusal"]
      self.port = int(answer["port"])
    except (OSError, ValueError, KeyError, StopIteration) as error:
      why = str(error) or "it closed the connection"
      raise PeerError(f"process 0 at --coordinator={address} did not let process {self.process} join "
                      f"({why}); see what stopped it, or whether something else listens there") from error
    if refusal is not None:
      raise PeerError(refusal)

  # ------------------------------------------------------------------------------------------------ meeting

  def meet(self, name: str, facts: Mapping[str, str] | None = None) -> None:
    """Waits until all processes are at the same place, and compares facts; all call it in the same order.

    Raises:
      PeerError: if one does not come within limits.wait_s, is elsewhere, or has other facts.
      GoneError: if one has ended.
    """
    facts = facts or {}
    with self._changed:
      number = self._meetings
      self._meetings += 1
      if self.process == 0:
        # Meetings are counted, not named: who comes to meeting 3 by another name is at another place, which
        # `_judge` finds out.
        self._present.setdefault(number, {})[0] = name, facts

        def done():
          return len(self._present[number]) == self.count or self._fate is not None

        self._changed.wait_for(done, self.limits.wait_s)
        gone = self._fate is not None
        verdict = self._fate if gone else self._judge(name, self._present.pop(number))
      else:
        self._links[0].send({"meeting": number, "name": name, "facts": dict(facts)})

        def done():
          return number in self._verdicts or self._fate is not None

        self._changed.wait_for(done, self.limits.wait_s + _AFTER_ERROR_S)
        late = (f"process 0, or one it waits for, did not come to {name!r} within config.hosts.wait_s="
                f"{self.limits.wait_s:g} s")
        # Who is refused with the others hears of it before it hears that they ended.
        verdict, gone = self._verdicts.pop(number, (self._fate or late, self._fate is not None))
    if self.process == 0:
      for link in self._links.values():
        link.send({"verdict": number, "line": verdict, "gone": gone})
    if verdict is not None:
      raise (GoneError if gone else PeerError)(verdict)

  def _judge(self, name: str, present: Mapping[int, tuple[str, Mapping[str, str]]]) -> str | None:
    missing = [one for one in range(self.count) if one not in present]
    if missing:
      return (f"{agree.numbers(missing)} of this run lives, and did not come to {name!r} within "
              f"{self.limits.wait_s:g} s; raise config.hosts.wait_s if it is only slow")
    elsewhere = {one: {"the place they are at": place} for one, (place, _) in present.items()}
    facts = {one: facts for one, (_, facts) in present.items()}
    differ = agree.differences(elsewhere) or agree.differences(facts)
    return None if differ is None else (
        f"the processes of this run differ: {differ}; start all with the same command, code and data")

  # ----------------------------------------------------------------------------------------------- watching

  def _beat(self) -> None:
    while not self._over:
      time.sleep(min(5.0, self.limits.silent_s / 4))
      for link in list(self._links.values()):
        link.send({})

  def _listen(self, process: int, link: Link) -> None:
    why = "ended without a word: it was killed, ran out of memory, or its machine is gone"
    try:
      for message in link.messages():
        self._heard(process, message)
    except TimeoutError:
      why = (f"was silent for {self.limits.silent_s:g} s (config.hosts.silent_s): it is stopped or hangs, or "
             "its machine or network does")
    except (OSError, ValueError) as error:
      why += f" ({getattr(error, 'strerror', None) or error})"
    if process not in self._gone:
      self._lose(f"{self._named(process)} {why}", _AFTER_DEATH_S)

  def _heard(self, process: int, message: Mapping) -> None:
    if "left" in message:
      self._gone.add(process)
      self._lose(f"{self._named(process)} ended: {message['left']}", _AFTER_ERROR_S)
    elif "fate" in message:
      self._lose(message["fate"], message["after_s"])
    with self._changed:
      if "meeting" in message:
        self._present.setdefault(message["meeting"], {})[process] = message["name"], message["facts"]
      elif "verdict" in message:
        self._verdicts[message["verdict"]] = message["line"], message["gone"]
      elif "bye" in message:
        self._gone.add(process)
      self._changed.notify_all()

  def _named(self, process: int) -> str:
    host = self._hosts.get(process)
    return f"process {process} of {self.count}{f' ({host})' if host else ''}"

  def _lose(self, fate: str, after_s: float) -> None:
    """Notes why the run cannot go on, tells the others, and ends this process if it does not end itself."""
    with self._changed:
      # The first reason counts: the deaths behind it are mostly its consequences.
      if self._fate is not None or self._over:
        return
      self._fate = fate
      self._changed.notify_all()
    if self.process == 0:
      for link in self._links.values():
        link.send({"fate": fate, "after_s": after_s})
    threading.Thread(target=self._end, args=(after_s,), daemon=True, name="end").start()

  def _end(self, after_s: float) -> None:
    time.sleep(after_s)
    if not self._over and self.may_speak():
      print(f"atlas_jax: {self.fate()}; {self.advice()}", file=sys.stderr, flush=True)
      self.leave(f"{self.fate()}")
      os._exit(1)

  # ------------------------------------------------------------------------------------------------ the end

  def fate(self, within_s: float = 0.0) -> str | None:
    """Returns why the run cannot go on, None if nothing is known within the time."""
    with self._changed:
      self._changed.wait_for(lambda: self._fate is not None, within_s)
      return self._fate

  def may_speak(self) -> bool:
    """Returns whether the caller is the first that says how this process ends."""
    return self._spoken.acquire(blocking=False)

  def leave(self, line: str) -> None:
    """Tells the others with which line this process ends."""
    self._over = True
    for link in self._links.values():
      link.send({"left": line})
      link.finish_sending()
    time.sleep(0.3)  # A connection that closes with unread signs of life could take the line along.

  def finish(self, within_s: float | None = None) -> None:
    """Says goodbye and waits until all others have; from then on nobody is missed."""
    with self._changed:
      if self._over or self._fate is not None:
        return
      self._gone.add(self.process)
    if self.process:
      self._links[0].send({"bye": True})

    def all_gone():
      return self._fate is not None or len(self._gone) == (self.count if self.process == 0 else 2)

    with self._changed:
      self._changed.wait_for(all_gone, self.limits.wait_s if within_s is None else within_s)
      self._over = self._fate is None
    if self.process == 0:
      for link in self._links.values():
        link.send({"bye": True})
