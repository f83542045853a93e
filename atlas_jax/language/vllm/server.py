"""A server as a child process: started, waited for, watched and stopped, with all that it started itself.

Run as a script, this file is what stands between: it starts the command given and stops it when its standard
input is closed, which the system does when the run is no more, however it ended. Then it takes away a folder.
"""
import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

STOP_S = 20.0  # For a server to end by itself once it is asked to.
GONE_S = 5.0  # For what is left of it to be gone once it is killed.
LOOK_EVERY_S = 0.1
SHOWN_CHARS = 300  # Of the log's last lines in an error.


class Server:
  """A process that was started here."""

  def __init__(self, command: Sequence[str], log: pathlib.Path, *, environment: Mapping[str, str],
               temporary: pathlib.Path | None = None):
    """Starts a command; what it prints goes to the end of a file.

    Args:
      command: program and arguments.
      log: the file.
      environment: of the process.
      temporary: a folder that is taken away when the process has ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    self.log = log
    watcher = [sys.executable, str(pathlib.Path(__file__).resolve()), str(temporary or ""), *command]
    with log.open("ab") as out:
      out.write(f"{shlex.join(command)}\n".encode())
      out.flush()
      # A session of its own: Ctrl-C is for the run, which saves and then stops the server.
      self._process = subprocess.Popen(watcher, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
                                       env=dict(environment), start_new_session=True)
    self._owner = os.getpid()

  def death(self) -> str | None:
    """Says that the process has ended and what it said last, or None while it runs."""
    code = self._process.poll()
    if code is None:
      return None
    return f"the server has ended (exit code {code}); the end of {self.log}: {last_words(self.log)}"

  def stop(self) -> None:
    """Ends the process and all that it started; does nothing the second time, or in a forked process."""
    if self._owner != os.getpid() or self._process.stdin is None or self._process.stdin.closed:
      return
    with contextlib.suppress(OSError):  # It may have ended before.
      self._process.stdin.close()
    self._process.terminate()  # Where forked workers hold the other end of its input, that stays open.
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(STOP_S + 5)
    deadline = time.monotonic() + GONE_S
    with contextlib.suppress(ProcessLookupError):  # When none of the group is left.
      while time.monotonic() < deadline:
        # Again until the group is empty: a worker may be starting another while it is killed.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.poll()
        time.sleep(LOOK_EVERY_S)


def last_words(log: pathlib.Path) -> str:
  """Returns the last error that a log tells of, or its last line."""
  lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
  lines = [line for line in lines[-200:] if line]
  # Threads and workers write lines behind an error, so the last line alone would often say nothing of it.
  errors = [line for line in lines if "Error" in line] or lines
  return errors[-1][-SHOWN_CHARS:].rstrip(".") if errors else "nothing"


def program(command: str | None, missing: str) -> list[str]:
  """Cuts a command into words.

  Args:
    command: as on a command line.
    missing: what to do if there is no such program.

  Raises:
    ValueError: if its first word is no program.
  """
  words = shlex.split(command or "")
  if not words or shutil.which(words[0]) is None:
    raise ValueError(f"config.vllm.command={command!r} does not start with a program that is here; {missing}")
  return words


def free_port(port: int | None) -> int:
  """Returns a port of the loopback that nobody listens on: the one asked for, or any.

  Raises:
    ValueError: if the one asked for is taken, since its owner would answer in place of the new server.
  """
  with socket.socket() as probe:
    # As servers do: a port whose last owner has just ended is free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(("127.0.0.1", port or 0))
    except OSError as error:
      raise ValueError(f"config.vllm.port={port} is taken by another program ({error.strerror}); choose "
                       "another, None for any, or set config.vllm.url to use the server there") from error
    return probe.getsockname()[1]


def watch(command: Sequence[str]) -> int:
  """Runs a command until it ends or standard input does; then ends what it started. Gives its exit code."""
  try:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
  except OSError as error:
    print(f"Error: {command[0]} cannot be started: {error}", flush=True)
    return 127
  # Without a handler a signal for the whole group would end this process before the others.
  signal.signal(signal.SIGTERM, lambda *_: child.terminate())
  threading.Thread(target=_stop_when_left, args=(child,), daemon=True).start()
  code = child.wait()
  os.killpg(0, signal.SIGTERM)
  return code if code >= 0 else 128 - code


def _stop_when_left(child: subprocess.Popen) -> None:
  while os.read(sys.stdin.fileno(), 4096):  # Not by its buffer, whose lock would outlive the interpreter.
    pass
  child.terminate()
  deadline = time.monotonic() + STOP_S
  while child.poll() is None and time.monotonic() < deadline:
    time.sleep(LOOK_EVERY_S)
  if child.poll() is None:
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
  try:
    sys.exit(watch(sys.argv[2:]))
  finally:
    if sys.argv[1]:
      shutil.rmtree(sys.argv[1], ignore_errors=True)
