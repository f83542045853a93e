"""Says whether the container does what it is there for; for Docker's HEALTHCHECK.

  python scripts/docker/health.py          exit code 0: healthy; 1: not, with the reason in one line

While a run is trained it is the trainer's heartbeat that counts: the time of change of owner.json in the
run's directory, which a training touches every 5 s from its start to the end of its upload. A dashboard alone
is asked for its own health. Needs the standard library alone, and starts in a moment.

Reads: ATLAS_STATE, the file in which scripts/docker/entry.sh says what it does; HEALTH_SILENT_S, seconds
without a heartbeat after which a training counts as hung (90).
"""

import os
import pathlib
import sys
import time
import urllib.request

STATE = "/tmp/atlas_jax_entry.state"
SILENT_S = 90.0


def main(environ) -> tuple[int, str]:
  """Returns (exit code, why)."""
  state = pathlib.Path(environ.get("ATLAS_STATE") or STATE)
  try:
    # What is done, the run's directory, the port of the dashboard or nothing.
    doing, workdir, port = state.read_text(encoding="utf-8").splitlines()
  except FileNotFoundError:
    return 1, f"{state} does not exist: the entry script has not begun"
  except ValueError:
    return 1, f"{state} is damaged"
  if doing == "train":
    return heartbeat(pathlib.Path(workdir) / "owner.json", float(environ.get("HEALTH_SILENT_S") or SILENT_S))
  if doing == "dashboard" and port:
    return dashboard(port)
  return 0, f"nothing is trained: {doing}"


def heartbeat(owner: pathlib.Path, silent_s: float) -> tuple[int, str]:
  """Judges a training by the age of its owner.json."""
  try:
    age_s = time.time() - owner.stat().st_mtime
  except FileNotFoundError:
    return 1, f"{owner} does not exist: the training has not begun, or has ended"
  if age_s > silent_s:
    return 1, f"no heartbeat of the training for {age_s:.0f} s ({owner})"
  return 0, f"heartbeat {max(age_s, 0.0):.0f} s ago"


def dashboard(port: str) -> tuple[int, str]:
  """Asks the dashboard."""
  address = f"http://127.0.0.1:{port}/_stcore/health"
  try:
    with urllib.request.urlopen(address, timeout=5) as answer:
      return 0, f"the dashboard answers {answer.status}"
  except OSError as error:  # Also what the library makes of HTTP errors.
    return 1, f"the dashboard at {address} does not answer: {error}"


if __name__ == "__main__":
  code, why = main(os.environ)
  print(why)
  sys.exit(code)
