"""A chat endpoint on the loopback that answers as a test says: also slowly, wrongly, or never."""
import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Answer(NamedTuple):
  """An answer of the server."""

  body: bytes | str | dict = ""
  status: int = 200
  headers: dict = {}
  wait_s: float = 0.0  # before anything is sent
  pieces: int = 1  # the body is sent in so many
  piece_s: float = 0.0  # seconds before each of them
  drop: bool = False  # whether the connection is closed without an answer


def said(text: Any, *, prompt_tokens: int | None = 7, completion_tokens: int = 3) -> dict:
  """Returns a chat completion of a text, or of a value as JSON."""
  content = text if isinstance(text, str) else json.dumps(text)
  usage = {} if prompt_tokens is None else {
    "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}
  return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}], **usage}


class ChatServer:
  """A server; `script` may be exchanged while it runs.

  Attributes:
    url: of its routes.
    script: (number of the request, its body) -> Answer, or a text that is said.
    asked: bodies of requests.
    headers: of requests.
  """

  def __init__(self):
    """Listens at any free port."""
    self.script: Callable[[int, dict], Any] = lambda number, body: "hello"
    self.asked: list[dict] = []
    self.headers: list[dict] = []
    self.released = threading.Event()
    self._lock = threading.Lock()
    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
    threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

  def use(self, script) -> "ChatServer":
    """Starts anew with another script: a function, or a list of answers of which the last one stays."""
    self.asked.clear()
    self.headers.clear()
    if isinstance(script, list):
      self.script = lambda number, body: script[min(number, len(script) - 1)]
    else:
      self.script = script
    return self

  def close(self) -> None:
    """Stops."""
    self.released.set()
    self._server.shutdown()
    self._server.server_close()

  def _handler(self):
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server._lock:
          number = len(server.asked)
          server.asked.append(body)
          server.headers.append(dict(self.headers))
        given = server.script(number, body)
        answer = given if isinstance(given, Answer) else Answer(said(given))
        if answer.wait_s:
          server.released.wait(answer.wait_s)
        if answer.drop:
          self.close_connection = True
          return
        content = json.dumps(answer.body) if isinstance(answer.body, dict) else answer.body
        content = content.encode() if isinstance(content, str) else content
        # A client that has given up is no failure of the server.
        with contextlib.suppress(ConnectionError):
          self.send_response(answer.status)
          for name, value in answer.headers.items():
            self.send_header(name, value)
          self.send_header("Content-Length", str(len(content)))
          self.end_headers()
          size = max(1, -(-len(content) // answer.pieces))
          for at in range(0, len(content), size):
            if answer.piece_s:
              server.released.wait(answer.piece_s)
            self.wfile.write(content[at:at + size])
            self.wfile.flush()

      def do_GET(self):
        content = b'{"object": "list", "data": [{"id": "m"}]}'  # Of /v1/models; /health reads none of it.
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

      def log_message(self, *arguments):
        del arguments

    return Handler


@contextlib.contextmanager
def running() -> Iterator[ChatServer]:
  """Runs a server for a block."""
  server = ChatServer()
  try:
    yield server
  finally:
    server.close()
