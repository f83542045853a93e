"""Asking a server over HTTP: time-outs, tries that are bounded, and errors that say what to do."""
import http.client
import json
import selectors
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

from atlas_jax.files import json_text

MAY_PASS = (429, 500, 502, 503, 504)  # Statuses after which the same question may be answered.
SHOWN_CHARS = 400  # Of a server's own words in an error.
LOOK_EVERY_S = 5.0  # Between looks at a server that has not answered yet.
LOOK_TIMEOUT_S = 10.0
MOST_WAIT_S = 60.0  # Before another try, also where a server asks for more.
HEALTH = "/health"


class ServerError(ConnectionError):
  """A server that is dead or silent, or that answers what it must not; the run can go on with a new one."""


class Answer(NamedTuple):
  """The outcome of one try: a status and the content, or what went wrong."""

  status: int = 0
  content: Any = None
  trouble: str | None = None
  passes: bool = True  # Whether the trouble may have passed at the next try.
  wait_s: float = 0.0  # That the server asks for before the next try.


class Client:
  """Asks one server, from any thread; every question has a connection of its own.

  Attributes:
    url: scheme, host and port, and the path in front of all routes if there is one.
    death: () -> why the server is known to be dead, or None; asked before another try is made.
  """

  def __init__(self, url: str, *, timeout_s: float, retries: int, backoff_s: float,
               death: Callable[[], str | None] = lambda: None, group: str = "config.vllm",
               bearer: str | None = None):
    """Takes the server's URL; connects to nothing yet.

    Args:
      url: such as "http://127.0.0.1:8000"; a "/v1" at its end is taken off.
      timeout_s: for an answer.
      retries: how often a question is asked again after a failure that may pass.
      backoff_s: how long to wait before the first of them; twice as long before each further one.
      death: see the class.
      group: of the config that these are fields of, for errors.
      bearer: a token that every question carries; it stands in no error.

    Raises:
      ValueError: if the URL has no host, or another scheme than http and https, or a name and password.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ValueError(f"{group}.url={url!r} is not the address of a server; it needs scheme, host and "
                       "port, such as 'http://127.0.0.1:8000'")
    # It would stand in logs and errors, and in the config that the run keeps.
    if parts.username is not None or parts.password is not None:
      raise ValueError(f"{group}.url has a name or password in front of {parts.hostname!r}; leave it out, a "
                       "token comes from the environment")
    self._group = group
    self._headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    self._prefix = parts.path.rstrip("/").removesuffix("/v1")
    self.url = f"{parts.scheme}://{parts.netloc}{self._prefix}"
    self._address = (parts.hostname, parts.port)
    self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    self._timeout_s = timeout_s
    self._retries = retries
    self._backoff_s = backoff_s
    self.death = death

  def ask(self, route: str, body: dict | None = None, *, optional: bool = False) -> Any:
    """Asks a question, again if it fails in a way that may pass.

    Args:
      route: path and query.
      body: what is posted, as JSON; None reads the route instead.
      optional: whether the server may be one without this route.

    Returns:
      The answer: parsed JSON, text if it is none, or None where an optional route is missing.

    Raises:
      ServerError: if there is no answer, or a status of 500 or above; names URL, route and what to do.
      ValueError: if the server refuses the question, with its reason.
    """
    answer = Answer()
    for attempt in range(self._retries + 1):
      if attempt:
        time.sleep(min(max(self._backoff_s * 2 ** (attempt - 1), answer.wait_s), MOST_WAIT_S))
      answer = self.once(route, body)
      failed = answer.trouble is not None or answer.status in MAY_PASS
      # A dead server answers no further try, and a question that timed out would only time out again.
      if not failed or not answer.passes or self.death() is not None:
        break
    if failed:
      raise ServerError(self._failure(route, answer, attempt + 1))
    if answer.status == 404 and optional:
      return None
    if answer.status != 200:
      raise ValueError(f"{self.url}{route} refuses what it was asked (status {answer.status}): "
                       f"{words(answer.content)}")
    return answer.content

  def once(self, route: str, body: dict | None = None, *, timeout_s: float | None = None) -> Answer:
    """Asks once and returns what came, whatever it is; arguments as of `ask`."""
    connection = self._connection(*self._address, timeout=timeout_s or self._timeout_s)
    try:
      sent = None if body is None else json.dumps(body)
      headers = self._headers | ({} if body is None else {"Content-Type": "application/json"})
      connection.request("GET" if body is None else "POST", self._prefix + route, sent, headers)
      # Not for /health itself, which `_waited` asks.
      if route != HEALTH and not self._waited(connection.sock, timeout_s or self._timeout_s):
        return Answer(trouble=f"lets wait for an answer, and {HEALTH} fails by now")
      response = connection.getresponse()
      return Answer(response.status, _content(response.read()), wait_s=_seconds(response))
    # Before OSError, of which it is a kind.
    except TimeoutError:
      return Answer(trouble=f"gave no answer within {timeout_s or self._timeout_s:g} s ({self._group}."
                    "timeout_s)", passes=False)
    except (OSError, http.client.HTTPException) as error:
      # Not the system's own words: in a run of several processes those mean that one of them is lost.
      return Answer(trouble=f"does not answer ({type(error).__name__})")
    finally:
      connection.close()

  def _waited(self, sock, timeout_s: float) -> bool:
    """Waits until an answer begins; False if the server dies meanwhile, which need not end a connection."""
    deadline = time.monotonic() + timeout_s
    ill = 0
    with selectors.DefaultSelector() as selector:
      selector.register(sock, selectors.EVENT_READ)
      # The socket is readable once an answer begins; until then the server is looked at now and then, because
      # a process behind it may die and leave the connection open.
      while not selector.select(min(LOOK_EVERY_S, max(0.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
          raise TimeoutError
        answer = self.once(HEALTH, timeout_s=LOOK_TIMEOUT_S)
        # One that is only slow to say so is at work.
        ill = ill + 1 if answer.status != 200 and answer.passes else 0
        # One failed look may be chance.
        if ill == 2 or self.death() is not None:
          return False
    return True

  def _failure(self, route: str, answer: Answer, tries: int) -> str:
    what = answer.trouble or f"failed (status {answer.status}): {words(answer.content)}"
    again = f" in {tries} tries" if tries > 1 else ""
    dead = self.death()
    remedy = dead if dead is not None else "look at the server's log"
    return (f"{self.url}{route} {what}{again}; {remedy}. Nothing of this step was taken: the same command "
            "goes on from the newest checkpoint, once there is a server")


def words(content) -> str:
  """Returns what a server says of an error, on one line and not too long."""
  if isinstance(content, dict):
    inner = content.get("error", content.get("detail", content))
    content = inner.get("message", inner) if isinstance(inner, dict) else inner
  return " ".join(str(content).split())[:SHOWN_CHARS]


def _content(data: bytes):
  text = data.decode("utf-8", errors="replace")
  try:
    return json_text.parse(text, nan=True)
  except ValueError:
    return text


def _seconds(response: http.client.HTTPResponse) -> float:
  """Returns how long a server asks to wait; 0 where it says nothing, or a date."""
  delay = response.headers.get("Retry-After", "")
  return float(delay) if delay.isascii() and delay.isdecimal() and len(delay) < 9 else 0.0
