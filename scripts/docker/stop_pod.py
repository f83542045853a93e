"""Stops the RunPod pod that this runs in, after a countdown that a file cancels.

  RUNPOD_POD_ID=... RUNPOD_API_KEY=... python scripts/docker/stop_pod.py --seconds=60 --keep_alive=FILE

Exit code 0: the pod is being stopped; 3: FILE was there, or appeared; 1: it could not be stopped, one line
says why. A stopped pod keeps its volume, and costs storage alone.

RUNPOD_API is where the interface is, https://rest.runpod.io/v1 unless it is set.
Source: RunPod's REST interface, POST /pods/ID/stop with the key as a bearer token.
"""

import argparse
import os
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

API = "https://rest.runpod.io/v1"
ATTEMPTS = 5
CANCELLED = 3
LOOK_S = 1.0  # Between looks for the file.


def say(line: str) -> None:
  """Prints a line at once."""
  print(f"stop_pod: {line}", flush=True)


def is_kept(keep_alive: pathlib.Path, seconds: float) -> bool:
  """Counts down; returns whether the file was there before the end."""
  end = time.monotonic() + seconds
  say(f"the pod stops in {seconds:.0f} s; to keep it: touch {keep_alive}")
  while not keep_alive.exists():
    left_s = end - time.monotonic()
    if left_s <= 0:
      return False
    time.sleep(min(LOOK_S, left_s))
  return True


def stop(environ, *, wait_s: float = 5.0) -> str | None:
  """Asks RunPod to stop the pod; returns why it could not, None if it does."""
  pod = urllib.parse.quote(environ["RUNPOD_POD_ID"], safe="")
  address = f"{(environ.get('RUNPOD_API') or API).rstrip('/')}/pods/{pod}/stop"
  request = urllib.request.Request(address, method="POST", data=b"", headers={
    "Authorization": f"Bearer {environ['RUNPOD_API_KEY']}", "User-Agent": "atlas_jax"})
  why = ""
  for attempt in range(ATTEMPTS):
    if attempt:
      time.sleep(wait_s * attempt)
    try:
      with urllib.request.urlopen(request, timeout=30):
        return None
    except urllib.error.HTTPError as error:
      why = f"{address} answers {error.code}"
      if error.code < 500 and error.code != 429:
        break
    except OSError as error:
      why = f"{address} cannot be reached ({type(error).__name__})"
  # The address and the status alone: an answer may repeat what was sent.
  return f"the pod could not be stopped, {why}; stop it by hand, it costs money as long as it runs"


def main(argv, environ) -> int:
  """Runs the program; see the module."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=60.0)
  parser.add_argument("--keep_alive", type=pathlib.Path, required=True)
  asked = parser.parse_args(argv)
  missing = [name for name in ("RUNPOD_POD_ID", "RUNPOD_API_KEY") if not environ.get(name)]
  if missing:
    say(f"{' and '.join(missing)} must be set; nothing is stopped")
    return 1
  if is_kept(asked.keep_alive, asked.seconds):
    say(f"{asked.keep_alive} is there: the pod goes on")
    return CANCELLED
  why = stop(environ)
  say(why or "RunPod stops the pod")
  return 0 if why is None else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:], os.environ))
