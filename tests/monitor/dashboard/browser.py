"""A served dashboard and a browser that looks at it."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).parents[3]
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome")
                 if (path := shutil.which(name))),
                None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")


@contextlib.contextmanager
def served(runs, *flags):
  """Starts the dashboard in the folder above the runs, as a user does; yields its address."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "atlas_jax.monitor.dashboard", f"--runs={runs.name}", f"--port={port}",
             *flags]
  paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
  with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=runs.parent,
                        env={**os.environ, "PYTHONPATH": paths}) as server:
    try:
      yield _when_healthy(server, f"http://127.0.0.1:{port}")
    finally:
      server.terminate()


def _when_healthy(server, address: str) -> str:
  ends = time.monotonic() + 60
  while time.monotonic() < ends:
    assert server.poll() is None, server.stderr.read().decode()
    with contextlib.suppress(OSError):
      urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
      return address
    time.sleep(0.1)
  raise TimeoutError(f"{address} did not answer within a minute")


@contextlib.contextmanager
def browser():
  """Yields a headless Chromium."""
  from playwright.sync_api import sync_playwright

  with sync_playwright() as play:
    opened = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
    try:
      yield opened
    finally:
      opened.close()


def open_page(opened, address: str, *, width=1280, height=900, dark=False, **choices):
  """Opens a page of the dashboard and waits until it is drawn; choices are those in the address."""
  page = opened.new_page(viewport={"width": width, "height": height},
                         color_scheme="dark" if dark else "light")
  page.set_default_timeout(60_000)
  query = "&".join(f"{name}={value}" for name, value in choices.items())
  page.goto(f"{address}/?{query}")
  page.wait_for_selector(", ".join(f"[data-testid={name}]" for name in (
    "stMain] [data-testid=stPlotlyChart", "stDataFrame", "stAlert")))
  settle(page)
  return page


CALM = """() => {
  const count = query => document.querySelectorAll(query).length;
  const now = [count("[data-testid=stElementContainer]"), count(".js-plotly-plot .main-svg"),
               document.querySelector("[data-testid=stMain]").scrollHeight].join();
  const rests = document.querySelector("[data-testid=stApp]").dataset.testScriptState === "notRunning";
  const drawn = count("[data-testid=stPlotlyChart]") === count(".js-plotly-plot .main-svg:first-child")
      && count("[data-testid=stSkeleton]") === 0;
  window.calm = drawn && window.seen === now ? (window.calm || 0) + 1 : 0;
  window.seen = now;
  return rests && window.calm >= 3;
}"""


def settle(page):
  """Waits until the script rests, all is drawn, and nothing has changed for half a second."""
  page.wait_for_function(CALM, polling=250)


def content_height(page) -> int:
  """Returns how high the page is with all that is on it; Streamlit scrolls inside of a container."""
  return page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
