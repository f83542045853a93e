"""Sends many small requests to a real server whose store of states is full, and looks at its memory.

  python -m tests.language.serve.endurance --count=10000 --workdir=runs/endurance

Each request has a prompt of its own and a user of its own; some go on with a conversation. What the process
holds after a tenth of them is compared with what it holds at the end: it may have grown by --most_mib. The
store must have forgotten states and stayed within its bytes, in memory and on the disk, whenever it was
looked at. Prints one JSON object; exits 1 if something was not so.
"""

import argparse
import json
import pathlib
import random
import sys
import time

from tests.language.serve import live

CLIENTS = 8
LOOKS = 40  # At memory and store, over the whole run.
STORE_BYTES, FOLDER_BYTES = 2**20, 2**21
CONVERSATIONS = 50  # That are kept; there are more.


def requests(seed: int, count: int) -> list[dict]:
  """Returns small requests, of which no two are alike."""
  draw = random.Random(seed)
  made = []
  for number in range(count):
    fields = {"prompt": live.prompt(draw, draw.randrange(1, 50)), "seed": number,
              "max_tokens": draw.randrange(1, 4), "user": f"user {number}"}
    if draw.randrange(10) == 0:
      fields["conversation"] = f"c{draw.choice([number, draw.randrange(200)])}"
    made.append(fields)
  return made


def measure(server: live.Server, folder: pathlib.Path, count: int, seed: int) -> dict:
  """Sends the requests; returns what was seen."""
  sent, size = requests(seed, count), max(1, count // LOOKS)
  looks, busy = [], 0
  for at in range(0, count, size):
    answers = live.load(server, sent[at:at + size], CLIENTS).answers
    # Two clients may have drawn the same conversation at the same time.
    busy += sum(one.status == 409 for one in answers)
    lost = [one for one in answers if one.status != 409 and (one.status != 200 or one.error)]
    assert not lost, lost[0]
    numbers = server.numbers()
    files = [file for file in folder.rglob("*") if file.is_file()]
    looks.append({
      "requests": at + size, "resident_mib": server.resident_mib(),
      "store_bytes": numbers["scheduler_store_bytes"], "disk_bytes": numbers["scheduler_disk_bytes"],
      "evicted": numbers["scheduler_store_evicted"],
      "folder_bytes": sum(_size(file) for file in files if file.suffix == ".state"),
      "conversations": sum(file.suffix == ".json" for file in files),
    })  # fmt: skip
  return {"looks": looks, "busy": busy}


def _size(file: pathlib.Path) -> int:
  try:
    return file.stat().st_size
  except FileNotFoundError:  # It has made room meanwhile.
    return 0


def faults_of(looks: list[dict], most_mib: float) -> list[str]:
  """Returns what was not as it must be."""
  early, last = looks[len(looks) // 10], looks[-1]
  grown = last["resident_mib"] - early["resident_mib"]
  found = []
  if grown > most_mib:
    found.append(f"memory grew by {grown:.1f} MiB from request {early['requests']} to {last['requests']}")
  if not early["evicted"]:
    found.append(f"no state had made room at request {early['requests']}: the store was not full")
  for name, most in (("store_bytes", STORE_BYTES), ("disk_bytes", FOLDER_BYTES), ("conversations",
                                                                                  CONVERSATIONS)):
    highest = max(look[name] for look in looks)
    if highest > most:
      found.append(f"{name} was {highest:.0f}, and may be {most}")
  return found


def main(argv: list[str] | None = None) -> int:
  """Runs what the command line asks for; prints one JSON object. Returns 1 if anything was wrong."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--count", type=int, default=10_000, help="requests")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--most_mib", type=float, default=16.0,
                      help="that memory may grow behind the first tenth")
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="made anew for the run and its log")
  asked = parser.parse_args(argv)
  run = live.leave_run(asked.workdir)
  folder = asked.workdir / "folder"
  flags = {"store_gib": STORE_BYTES / 2**30, "folder_gib": FOLDER_BYTES / 2**30, "folder": folder,
           "conversations": CONVERSATIONS}  # fmt: skip
  given = [f"--config.serve.{name}={value}" for name, value in flags.items()]
  begun = time.monotonic()
  with live.Server(run, *live.SMALL, *given, log=asked.workdir / "log.txt") as server:
    seen = measure(server, folder, asked.count, asked.seed)
    cpu_s = server.cpu_s()
  looks = seen["looks"]
  faults = faults_of(looks, asked.most_mib)
  print(json.dumps({
    "requests": asked.count, "busy": seen["busy"], "wall_s": round(time.monotonic() - begun, 1),
    "cpu_s": round(cpu_s, 1), "resident_mib": [round(look["resident_mib"], 1) for look in looks[::4]],
    "resident_mib_last": round(looks[-1]["resident_mib"], 1), "last": looks[-1], "faults": faults,
  }, indent=1))  # fmt: skip
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
