"""A real server on a real socket: clients of others, slow ones, too many, and an end that loses nothing."""
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import httpx
import pytest

from atlas_jax.language.serve import http_server
from tests.language.serve import scripted
from tests.language.serve.test_tools import CALL, TOOL


@contextlib.contextmanager
def serving(made, *, most_connections=50, headers_s=0.3, stall_s=20.0):
  """Yields the port of a server that runs in a thread."""
  with running(made, most_connections=most_connections, headers_s=headers_s, stall_s=stall_s) as (port, _):
    yield port


@contextlib.contextmanager
def running(made, *, most_connections, headers_s, stall_s):
  """Yields the port of a server that runs in a thread, and the server."""
  with contextlib.closing(http_server.bound("127.0.0.1", 0)) as listener:
    server = http_server.server(made, most_connections=most_connections, drain_s=5, headers_s=headers_s,
                                stall_s=stall_s)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
      time.sleep(0.01)
    try:
      yield listener.getsockname()[1], server
    finally:
      server.should_exit = True
      thread.join(10)
      assert not thread.is_alive()


class Watched:
  """A loader that only notes that it was asked for newer weights."""

  def __init__(self):
    self.asked = threading.Event()

  def try_newest(self):
    self.asked.set()


def test_a_signal_asks_for_newer_weights():
  made = scripted.service()
  server = http_server.server(made, most_connections=1, drain_s=1)
  server.handle_reload(signal.SIGHUP, None)  # Nothing to load is no reason to end.
  assert not server.should_exit
  made.loader = Watched()
  with server.capture_signals():
    os.kill(os.getpid(), signal.SIGHUP)
    assert made.loader.asked.wait(5)
  assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
  assert not server.should_exit


def raw(port, data, *, wait_s=3.0):
  """Returns what comes back for some bytes until the server closes."""
  with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as link:
    link.sendall(data)
    found = b""
    while part := link.recv(2**16):
      found += part
    return found


def test_the_openai_client_understands_all_of_it():
  openai = pytest.importorskip("openai")
  hello = [{"role": "user", "content": "hello"}]
  made = scripted.service(lambda text: "hi there" if "hello" in text else CALL, template=scripted.TOOLS)
  with serving(made) as port:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()] == ["base", "adapter"]
    text = client.completions.create(model="base", prompt="hello", n=2, logprobs=1)
    assert [one.text for one in text.choices] == ["hi there"] * 2
    assert text.choices[0].logprobs.token_logprobs[0] == -1.0
    chat = client.chat.completions.create(model="base", messages=hello, logprobs=True, top_logprobs=1)
    assert chat.choices[0].message.content == "hi there"
    assert chat.choices[0].logprobs.content[0].top_logprobs[0].logprob == -1.0
    streamed = client.chat.completions.create(model="base", messages=hello, stream=True,
                                              stream_options={"include_usage": True})
    chunks = list(streamed)
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == "hi there"
    assert chunks[-1].usage.completion_tokens == 9
    called = client.chat.completions.create(model="base", messages=[{"role": "user", "content": "add"}],
                                            tools=[TOOL])
    assert called.choices[0].message.tool_calls[0].function.name == "add"
    assert client.responses.create(model="base", input="hello").output_text == "hi there"
    with client.responses.stream(model="base", input="hello") as stream:
      for _ in stream:
        pass
      assert stream.get_final_response().output_text == "hi there"
    with pytest.raises(openai.NotFoundError, match="there is no model"):
      client.completions.create(model="none", prompt="x")
    with pytest.raises(openai.BadRequestError) as caught:
      client.chat.completions.create(model="base", messages=[])
    assert caught.value.param == "messages"


def test_slow_large_and_broken_requests_are_answered_and_closed():
  with serving(scripted.service()) as port:
    began = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    cases = {
      b"": b"408", b"GET / HT": b"408", b"\x16\x03\x01\x02\x00": b"400", b"nonsense\r\n\r\n": b"400",
      b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n": b"431",
      b"GET / HTTP/1.1\r\n\r\n": b"400", began + b"Content-Length: 10\r\n\r\n{": b"408",
      began + b"Content-Length: 999999999999\r\n\r\n": b"413", began + b"Content-Length: -1\r\n\r\n": b"400",
      began + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n": b"400",
      began + b"Transfer-Encoding: gzip\r\n\r\n": b"400",
    }  # fmt: skip
    for data, status in cases.items():
      found = raw(port, data)
      assert found.split(b" ")[1] == status, (data[:60], found)
      assert b'"error"' in found
      assert b"close" in found.lower()
    assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_who_sends_more_than_is_read_can_read_why():
  began = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
  with serving(scripted.service()) as port:
    for _ in range(5):  # Closed at once, what the client still sends would undo the answer, now and then.
      for kind, status in ((b"application/json", b"413"), (b"text/plain", b"415")):
        found = raw(port, began % (b"/tokenize", kind, 5_000_000) + b"a" * 5_000_000)
        assert found.split(b" ")[1] == status
        assert b"connection: close" in found.lower()


def test_a_body_that_comes_drop_by_drop_behind_its_answer_holds_no_connection():
  with serving(scripted.service(), stall_s=0.3) as port:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
      link.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n")
      assert b" 404 " in link.recv(2**16)
      with contextlib.suppress(OSError):
        while time.monotonic() < began + 5:
          link.sendall(b"x")
          time.sleep(0.02)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_takes_nothing_of_its_answer_is_left(stream, caplog):
  scheduler = scripted.ScriptedScheduler(lambda text: "a" * 8_000)
  made = scripted.service(scheduler=scheduler, max_tokens=8_000)
  with running(made, most_connections=9, headers_s=1, stall_s=0.3) as (port, server):
    body = json.dumps({"prompt": "x", "max_tokens": 8_000, "logprobs": 20, "stream": stream}).encode()
    with socket.socket() as link:
      link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
      link.connect(("127.0.0.1", port))
      link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                   b"Content-Length: %d\r\n\r\n" % len(body) + body)
      until = time.monotonic() + 60
      while (not scheduler.asked or server.server_state.connections) and time.monotonic() < until:
        time.sleep(0.05)
      assert scheduler.asked and not server.server_state.connections
  assert not scheduler.streams
  assert "Traceback" not in caplog.text


def test_headers_that_come_drop_by_drop_have_no_more_time():
  with serving(scripted.service()) as port:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link, contextlib.suppress(OSError):
      for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\n" * 20:
        link.sendall(bytes([byte]))
        time.sleep(0.02)
    assert time.monotonic() - began < 3


def test_what_is_no_request_in_the_middle_of_one_is_answered_once_and_quietly(caplog):
  chunks = [b"zz\r\n", b"2\r\n{}x\r\n", b"-1\r\n"]
  with serving(scripted.service()) as port:
    for path, chunk in itertools.product((b"/nothing", b"/tokenize", b"/v1/completions"), chunks):
      head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % path
      for data in (head + chunk, head + b"1\r\n{\r\n" + chunk):
        assert raw(port, data).split(b" ")[1] in (b"400", b"404", b"415")
  assert "Traceback" not in caplog.text


def test_one_connection_too_many_is_told_to_come_later():
  with serving(scripted.service(), most_connections=2, headers_s=5) as port:
    with contextlib.ExitStack() as stack:
      for _ in range(2):
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
      time.sleep(0.1)
      assert b" 503 " in raw(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    time.sleep(0.1)
    assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_a_killed_client_frees_its_slot():
  scheduler = scripted.ScriptedScheduler(lambda text: "abc" * 30)
  with serving(scripted.service(scheduler=scheduler)) as port:
    scheduler.may_write.clear()
    body = b'{"prompt": "x", "stream": true}'
    with socket.create_connection(("127.0.0.1", port)) as link:
      link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                   b"Content-Length: %d\r\n\r\n" % len(body) + body)
      while not scheduler.streams:
        time.sleep(0.01)
    until = time.monotonic() + 5
    while scheduler.streams and time.monotonic() < until:
      time.sleep(0.01)
    assert len(scheduler.cancelled) == 1


PROGRAM = """
import sys, threading, time
from atlas_jax.language.serve import http_server
from tests.language.serve import scripted

scheduler = scripted.ScriptedScheduler(lambda text: "abc")
scheduler.may_write.clear()
listener = http_server.bound("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
made = scripted.service(scheduler=scheduler)
server = http_server.server(made, most_connections=9, drain_s=float(sys.argv[1]))

def write_when_the_end_is_asked_for():
  while scheduler.open:
    time.sleep(0.01)
  time.sleep(0.3)
  if sys.argv[2] == "writes":
    scheduler.may_write.set()

threading.Thread(target=write_when_the_end_is_asked_for, daemon=True).start()
server.run(sockets=[listener])
print("closed", flush=True)
"""


@pytest.mark.parametrize(("writes", "statuses"), [("writes", {200}), ("never", {503})])
def test_a_signal_lets_requests_in_flight_come_to_their_end(writes, statuses):
  command = [sys.executable, "-c", textwrap.dedent(PROGRAM), "1.5", writes]
  environment = {**os.environ, "PYTHONPATH": os.getcwd()}
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
    url = f"http://127.0.0.1:{int(program.stdout.readline())}"
    found = []

    def ask():
      while True:
        with contextlib.suppress(httpx.ConnectError):
          found.append(httpx.post(f"{url}/v1/completions", json={"prompt": "x"}, timeout=30))
          return
        time.sleep(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(1.5)
    program.send_signal(signal.SIGTERM)
    thread.join(20)
    assert program.wait(20) == 0
    assert program.stdout.read().strip() == "closed"
  assert {one.status_code for one in found} == statuses, [one.text for one in found]
  if 200 in statuses:
    assert json.loads(found[0].text)["choices"][0]["text"] == "abc"


def test_a_port_that_is_taken_is_said_at_once():
  with contextlib.closing(http_server.bound("127.0.0.1", 0)) as taken:
    taken.listen()
    with pytest.raises(ValueError, match="config.serve.port"):
      http_server.bound("127.0.0.1", taken.getsockname()[1])
