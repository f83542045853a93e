"""Connections between the processes of a run: lines of JSON, and a relay that outlives its other end."""
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

_BYTES = 2**16
_RETRY_S = 0.2


class Link:
  """A connection that carries one JSON object per line, both ways; any thread may send.

  Args:
    connection: a connected socket; it is closed with the link.
    silent_s: after how many seconds without a byte `messages` raises TimeoutError.
  """

  def __init__(self, connection: socket.socket, *, silent_s: float):
    # Lines are short and waited for; without this one may be held back until the one before has arrived.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(silent_s)
    self._connection = connection
    self._sending = threading.Lock()
    # Kept with the link and not in `messages`: the greeting is read by one call of it and all else by
    # another, and one packet may hold both.
    self._rest = b""

  def silent_after(self, seconds: float) -> None:
    """Sets after how many seconds without a byte `messages` raises TimeoutError."""
    self._connection.settimeout(seconds)

  def send(self, message: dict) -> None:
    """Sends one object; what cannot be sent is lost, and `messages` of this end says why."""
    # The heartbeat, the main thread and the watch all send; without the lock their lines could be mixed.
    with self._sending, contextlib.suppress(OSError):
      self._connection.sendall(json.dumps(message).encode() + b"\n")

  def messages(self) -> Iterator[dict]:
    """Yields what the other end sends until it closes.

    Raises:
      TimeoutError: if nothing came for silent_s.
      OSError: if the connection broke.
      ValueError: if the other end speaks something else.
    """
    while True:
      line, found, rest = self._rest.partition(b"\n")
      if found:
        self._rest = rest
        message = json.loads(line)
        if not isinstance(message, dict):
          raise ValueError("a line holds no object")
        yield message
        continue
      data = self._connection.recv(_BYTES)
      if not data:
        return
      self._rest += data

  def finish_sending(self) -> None:
    """Tells the other end that nothing more comes; what was sent still arrives."""
    with contextlib.suppress(OSError):
      self._connection.shutdown(socket.SHUT_WR)

  def close(self) -> None:
    """Closes the connection."""
    with contextlib.suppress(OSError):
      self._connection.close()


def split_address(address: str) -> tuple[str, int]:
  """Returns host and port of HOST:PORT; ValueError if it is none."""
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise ValueError(f"--coordinator={address} must be HOST:PORT of process 0, such as node1:1234")
  return host.strip("[]"), int(port)


def listen(port: int) -> socket.socket:
  """Opens a port on all addresses of this machine; 0 takes a free one."""
  if socket.has_dualstack_ipv6():
    with contextlib.suppress(OSError):  # The kernel may know IPv6 and forbid it.
      return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(("", port))


def connect(host: str, port: int, *, within_s: float) -> socket.socket:
  """Connects, trying again until the time is over; then raises the last OSError."""
  deadline = time.monotonic() + within_s
  while True:
    try:
      # An attempt may hang while the machine is starting, and the next one go through: five seconds for each.
      rest_s = deadline - time.monotonic()
      return socket.create_connection((host, port), timeout=max(_RETRY_S, min(5, rest_s)))
    except OSError:
      if time.monotonic() + _RETRY_S > deadline:
        raise
    time.sleep(_RETRY_S)


class Relay:
  """Passes connections made to a local port on to another machine, and keeps them open when that one closes.

  JAX's client ends its process with SIGABRT as soon as its connection to the coordination service breaks;
  behind a relay it only waits, and the process can say what happened and leave.

  Args:
    host, port: where connections are passed on to.
    within_s: for how long each is tried.
  """

  def __init__(self, host: str, port: int, *, within_s: float):
    self._there = (host, port)
    self._within_s = within_s
    self._server = socket.create_server(("127.0.0.1", 0))
    self._kept: list[socket.socket] = []  # A socket that nobody holds would be closed.
    self.port = self._server.getsockname()[1]
    threading.Thread(target=self._accept, daemon=True, name="relay").start()

  def _accept(self) -> None:
    while True:
      here, _ = self._server.accept()
      self._kept.append(here)
      threading.Thread(target=self._join, args=(here,), daemon=True, name="relay").start()

  def _join(self, here: socket.socket) -> None:
    try:
      there = connect(*self._there, within_s=self._within_s)
    except OSError:
      return
    # create_connection leaves its timeout on the socket, and a service may be silent for as long as it likes.
    there.settimeout(None)
    threading.Thread(target=_pass_on, args=(here, there), daemon=True, name="relay").start()
    # This is the point of the relay: when the service closes, JAX's client hears nothing of it. The other
    # direction closes as usual.
    _pass_on(there, here, close=False)


def _pass_on(source: socket.socket, target: socket.socket, *, close: bool = True) -> None:
  with contextlib.suppress(OSError):
    while data := source.recv(_BYTES):
      target.sendall(data)
  if close:
    with contextlib.suppress(OSError):
      target.shutdown(socket.SHUT_WR)
