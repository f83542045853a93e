"""A server of a run in a process of its own, and clients beside it that cost little; needs no package.

For measurements, and for checks that kill a server, wear it out or send it what is no request.
"""
import asyncio
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
PREFIX = "atlas_jax_"
NUMBER = re.compile(rf"^{PREFIX}(\w+)(?:\{{[^}}]*\}})? ([-+.\deE]+)$", re.MULTILINE)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MIB = 2**20


class Server:
  """A process of --mode=serve on a port of its own.

  Attributes:
    port: where it listens.
    pid: of the process.
    log: file of what it says on standard error.
  """

  def __init__(self, workdir, *flags: str, env: dict | None = None, log: pathlib.Path | None = None):
    """Starts it and waits until it serves.

    Args:
      workdir: of the run.
      flags: such as "--config.serve.slots=4".
      env: variables of its environment besides this process's.
      log: file that its words are added to; None: one that ends with this object.

    Raises:
      RuntimeError: if it does not come up; with its last words.
    """
    self._held = tempfile.NamedTemporaryFile() if log is None else None
    self.log = pathlib.Path(self._held.name) if self._held is not None else pathlib.Path(log)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "atlas_jax.main", "--mode=serve", f"--workdir={workdir}", "--port=0"]
    with self.log.open("ab") as out:
      self._process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=out, text=True,
                                       cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **(env or {})})
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      self._process.wait()
      last = " | ".join(self.log.read_text().strip().splitlines()[-3:])
      raise RuntimeError(f"the server ended with {self._process.returncode} before it served: {last}")
    self.port = int(json.loads(line)["url"].rpartition(":")[2])
    self.pid = self._process.pid

  def __enter__(self) -> "Server":
    """Returns itself."""
    return self

  def __exit__(self, *exception) -> None:
    """Ends the process, if nobody has."""
    if self._process.poll() is None:
      self._process.kill()
    self._process.communicate()
    if self._held is not None:
      self._held.close()

  def kill(self) -> None:
    """Kills the process, which has no time to do anything, and waits until it is gone."""
    self._process.send_signal(signal.SIGKILL)
    self._process.wait()

  def stop(self, timeout_s: float = 60.0) -> int:
    """Ends it by SIGTERM; returns its exit status."""
    self._process.send_signal(signal.SIGTERM)
    return self._process.wait(timeout_s)

  def get(self, path: str, method: str = "GET", body: dict | None = None) -> tuple[int, bytes]:
    """Returns status and content of one request."""
    link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
    with contextlib.closing(link):
      kind = {} if body is None else {"Content-Type": "application/json"}
      link.request(method, path, None if body is None else json.dumps(body), kind)
      answer = link.getresponse()
      return answer.status, answer.read()

  def post(self, path: str, **fields) -> dict:
    """Returns the JSON of an answer.

    Raises:
      RuntimeError: if it is an error.
    """
    status, content = self.get(path, "POST", fields)
    if status != 200:
      raise RuntimeError(f"{path} answers {status}: {content.decode()[:300]}")
    return json.loads(content)

  def numbers(self) -> dict[str, float]:
    """Returns the metrics by name, without those of several labels."""
    return {name: float(value) for name, value in NUMBER.findall(self.get("/metrics")[1].decode())}

  def cpu_s(self) -> float:
    """Returns how many CPU-seconds the process has used."""
    # Behind the name in brackets, which may hold spaces: fields 14 and 15, counted from 1.
    fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

  def resident_mib(self) -> float:
    """Returns how much memory the process has in use."""
    status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Answer(NamedTuple):
  """One completion as its client has seen it."""

  status: int  # 0: the connection ended before all was there
  tokens: tuple[int, ...] = ()
  text: str = ""
  first_s: float = 0.0  # from before the connection to the first id
  whole_s: float = 0.0
  error: str = ""


def posted(path: str, fields: dict) -> bytes:
  """Returns a request as it is sent, on a connection of its own."""
  body = json.dumps(fields).encode()
  head = (f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
          f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n")
  return head.encode() + body


async def streamed(port: int, fields: dict, path: str = "/v1/completions") -> Answer:
  """Asks for one completion as a stream, with its ids."""
  asked = {**fields, "stream": True, "return_token_ids": True}
  begun = time.perf_counter()
  tokens: list[int] = []
  text, first_s, status, ended = "", 0.0, 0, False
  try:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
      writer.write(posted(path, asked))
      status = int((await reader.readline()).split()[1])
      if status != 200:
        return Answer(status, error=(await reader.read()).decode(errors="replace")[-500:])
      # Lines of chunk sizes are between those of events, and begin otherwise.
      async for line in reader:
        if not line.startswith(b"data: "):
          continue
        first_s = first_s or time.perf_counter() - begun
        if line.startswith(b"data: [DONE]"):
          ended = True
          break
        event = json.loads(line[6:])
        if "error" in event:
          return Answer(status, error=event["error"]["message"])
        for choice in event["choices"]:
          tokens += choice["token_ids"]
          text += choice["text"]
  except (OSError, IndexError) as error:
    return Answer(0, error=f"{type(error).__name__}: {error}")
  whole_s = time.perf_counter() - begun
  return Answer(status if ended else 0, tuple(tokens), text, first_s, whole_s,
                "" if ended else "the stream has no end")


class Load(NamedTuple):
  """What came of many requests."""

  answers: list[Answer]  # in the order of the requests
  wall_s: float
  cpu_s: float  # of the server

  @property
  def tokens(self) -> int:
    """Returns how many ids were written."""
    return sum(len(one.tokens) for one in self.answers)

  @property
  def lost(self) -> int:
    """Returns how many requests had no whole answer."""
    return sum(one.status != 200 or bool(one.error) for one in self.answers)

  def first_s(self, fraction: float) -> float:
    """Returns the time to the first id that so many of the answers had at most."""
    return quantile([one.first_s for one in self.answers], fraction)


def quantile(values: list[float], fraction: float) -> float:
  """Returns the least value that a fraction of all are at most."""
  ordered = sorted(values)
  return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def load(server: Server, requests: list[dict], clients: int) -> Load:
  """Sends requests by so many clients at once, each of which waits for its answer before its next request."""
  answers: list[Answer] = [Answer(0)] * len(requests)

  async def all_clients() -> None:
    left = iter(enumerate(requests))

    async def client() -> None:
      for number, fields in left:  # Shared: each request has one client.
        answers[number] = await streamed(server.port, fields)

    await asyncio.gather(*(client() for _ in range(clients)))

  cpu_s, begun = server.cpu_s(), time.perf_counter()
  asyncio.run(all_clients())
  return Load(answers, time.perf_counter() - begun, server.cpu_s() - cpu_s)


def median(loads: list[Load], value) -> float:
  """Returns the median of a figure of loads."""
  return statistics.median(value(one) for one in loads)
