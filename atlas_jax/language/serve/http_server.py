"""The server's process: a port, signals, and an end at which what was begun is written to its end."""
import asyncio
import contextlib
import json
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from absl import logging

from atlas_jax.language import runs
from atlas_jax.language.decoding.scheduler_settings import STATS
from atlas_jax.language.serve import app, policy_weights, served_run
from atlas_jax.language.serve.access import Access
from atlas_jax.language.serve.answering import Service
from atlas_jax.language.serve.http_protocol import HEADERS_S, MOST_HEADER_BYTES, STALL_S, protocol
from atlas_jax.language.serve.server_metrics import ServerMetrics

SIGNALS = (signal.SIGTERM, signal.SIGINT)
RELOAD = signal.SIGHUP  # Newer weights, see `loading`.
CLOSE_S = 10  # Behind the drain, for answers to reach their clients.
BACKLOG = 128


def run(config, workdir, *, port: int) -> None:
  """Serves a run until a signal ends it.

  Args:
    config: of the run; resolved.
    workdir: of the run.
    port: to listen at; 0: any free one.

  Raises:
    ValueError: if the port cannot be had, other machines could ask without a token, or see `served_run`.
  """
  serve = config.serve
  access = Access.from_environment(serve.host, takes_weights=serve.weights_folder is not None)
  # Before the weights are read: what is wrong with the port is said at once.
  with contextlib.closing(bound(serve.host, port)) as listener:
    with served_run.opened(config, workdir, mode="serve") as served:
      metrics = ServerMetrics(served.scheduler.stats, STATS)
      service = Service(served.scheduler, served.text, served_run.request_limits(config, served.text), access,
                        served_run.open_conversations(config), metrics, served.trace, served.loader)
      service.policy = policy_weights.of(config, served.scheduler, served.name, served.trace)
      service.tensor_parallel_size = runs.mesh_here(config).shape["tensor"]
      # Told once clients can connect: who reads the line may ask at once.
      listener.listen(BACKLOG)
      shown = f"[{serve.host}]" if ":" in serve.host else serve.host
      print(json.dumps({"url": f"http://{shown}:{listener.getsockname()[1]}", "model": served.name,
                        "step": served.step, "needs_token": access.needs_token}), flush=True)
      made = server(service, most_connections=serve.connections, drain_s=serve.drain_s)
      made.run(sockets=[listener])


def bound(host: str, port: int) -> socket.socket:
  """Returns a socket that has an address and does not listen yet.

  Raises:
    ValueError: if the address cannot be had.
  """
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  made = socket.socket(family, socket.SOCK_STREAM)
  made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    made.bind((host, port))
  except OSError as error:
    made.close()
    raise ValueError(f"config.serve.host={host!r} with config.serve.port={port} cannot be had: "
                     f"{error.strerror}; take another port, or 0 for any that is free") from error
  return made


def server(service: Service, *, most_connections: int, drain_s: float,
           headers_s: float = HEADERS_S, stall_s: float = STALL_S) -> "HttpServer":
  """Returns the server of a service; `run` runs it in this thread.

  Args:
    service: what it serves.
    most_connections: at the same time.
    drain_s: for completions that are being written when the end is asked for.
    headers_s: see `http_protocol.HEADERS_S`.
    stall_s: see `http_protocol.STALL_S`.
  """
  config = uvicorn.Config(
      app.make(service), http=protocol(most_connections, headers_s, stall_s), ws="none", lifespan="off",
      log_config=None, log_level="error", access_log=False, server_header=False, proxy_headers=False,
      backlog=BACKLOG, h11_max_incomplete_event_size=MOST_HEADER_BYTES,
      timeout_graceful_shutdown=round(drain_s) + CLOSE_S)
  return HttpServer(config, service, drain_s)


class HttpServer(uvicorn.Server):
  """Ends in three steps: no new requests; those in flight end by themselves; what lasts too long is ended."""

  def __init__(self, config: uvicorn.Config, service: Service, drain_s: float):
    """Takes what it serves."""
    super().__init__(config)
    self._service = service
    self._drain_s = drain_s

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """Obeys signals while it runs; unlike uvicorn it does not raise them again, so that files are closed."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
    before[RELOAD] = signal.signal(RELOAD, self.handle_reload)
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def handle_exit(self, sig: int, frame: Any) -> None:
    """Begins the end; a second signal ends at once what is being written."""
    del frame
    if self.should_exit:
      self.force_exit = True
      # In a thread: it waits for the scheduler, and a handler must not.
      threading.Thread(target=self._service.scheduler.close, daemon=True).start()
      return
    logging.info("%s: the server ends when what is being written is written, in %g s at most; a second "
                 "signal ends it at once", signal.Signals(sig).name, self._drain_s)
    self.should_exit = True

  def handle_reload(self, sig: int, frame: Any) -> None:
    """Takes newer weights, in a thread: a handler must not wait, and requests go on meanwhile."""
    del sig, frame
    loader = self._service.loader
    if loader is None:
      logging.warning("SIGHUP: this server has nothing to load")
      return
    threading.Thread(target=loader.try_newest, daemon=True).start()

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    """Drains the scheduler while connections end."""
    self._service.draining = True
    drained = asyncio.ensure_future(asyncio.to_thread(self._service.scheduler.drain, self._drain_s))
    await super().shutdown(sockets)
    if not await drained:
      logging.warning("completions were ended before their own end, after config.serve.drain_s=%g",
                      self._drain_s)
