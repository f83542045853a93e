"""Sends hostile requests to a real server, and asks between them what it has answered before.

  python -m tests.language.serve.attack --count=10000 --workdir=runs/attack
  python -m tests.language.serve.attack --seed=0 --first=4711 --count=1 --workdir=runs/attack

Attacks are those of `attacks`, by seed and number; the second form sends a single one again. Every attack
must end with the answer that it expects, in the API's own shape of an error, within some seconds. The valid
requests between them must have the answers of before, the log no traceback, and at the end no request may be
left. Prints one JSON object, and the first faults; exits 1 if there is one.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import pathlib
import re
import sys
import time
from typing import NamedTuple

from tests.language.serve import attacks, live
from tests.language.serve.attacks import Attack

AT_ONCE = 24
LIMIT_S = 30.0  # Of one attack; the server's own limits are shorter.
VALID_EVERY = 50
SHOWN_FAULTS = 20
# Lines of the log that tell of a fault: a traceback, or an error of absl or of asyncio.
LOG_FAULT = re.compile(r"Traceback|^E\d{4} |^ERROR|exception", re.MULTILINE | re.IGNORECASE)


class Seen(NamedTuple):
  """What came back for an attack."""

  statuses: tuple[int, ...]
  problem: str  # "" if nothing is wrong with the form of the answers
  lasted_s: float


async def send(port: int, attack: Attack) -> Seen:
  """Sends an attack and reads its answers."""
  begun = time.monotonic()
  statuses: list[int] = []
  problem = ""
  writer = None
  try:
    async with asyncio.timeout(LIMIT_S):
      reader, writer = await asyncio.open_connection("127.0.0.1", port)
      sending = asyncio.ensure_future(_write(writer, attack))
      try:
        for _ in range(attack.answers):
          status, problem = await _answer(reader)
          statuses += [status] if status else []
          if problem or not status:
            break
        if not attack.answers:
          await sending
      finally:
        sending.cancel()
        with contextlib.suppress(OSError, asyncio.CancelledError):
          await sending
  except TimeoutError:
    problem = f"no end within {LIMIT_S:g} s"
  except OSError as error:
    # What the server has answered and closed may be unread where the attacker sends on.
    problem = "" if statuses else f"no answer: {type(error).__name__}"
  finally:
    if writer is not None:
      writer.transport.abort()
  return Seen(tuple(statuses), problem, time.monotonic() - begun)


async def _write(writer: asyncio.StreamWriter, attack: Attack) -> None:
  for part in attack.parts:
    if isinstance(part, bytes):
      writer.write(part)
      with contextlib.suppress(OSError):  # It was refused in the middle.
        await writer.drain()
    else:
      await asyncio.sleep(part)
  if attack.closes:
    writer.write_eof()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, str]:
  """Returns the status of the next answer, 0 if there is none, and what is wrong with its form."""
  status = 100
  while status == 100:
    try:
      head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as error:
      return 0, f"half an answer: {error.partial[:80]!r}" if error.partial else ""
    status = int(head.split()[1])
  size = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
  if size is None:
    body = await reader.readuntil(b"0\r\n\r\n")
  else:
    body = await reader.readexactly(int(size[1]))
  return status, "" if status < 400 or _is_error(body) else f"no error of the API: {body[:200]!r}"


def _is_error(body: bytes) -> bool:
  try:
    error = json.loads(body)["error"]
  except (ValueError, KeyError, TypeError):
    return False
  return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


def fault(attack: Attack, seen: Seen) -> str:
  """Returns what is wrong with the answers to an attack; "" if nothing is."""
  if seen.problem and not (attack.expects == attacks.NOTHING and seen.problem.startswith("no answer")):
    return seen.problem
  if any(status >= 500 for status in seen.statuses):
    return f"answers {seen.statuses}"
  if attack.expects == attacks.REFUSED:
    if not seen.statuses or any(not 400 <= status < 500 for status in seen.statuses):
      return f"answers {seen.statuses or 'nothing'} where {attack.expects} is due"
  if attack.expects == attacks.BELOW_500 and not seen.statuses:
    return "answers nothing"
  return ""


class Report(NamedTuple):
  """What came of many attacks."""

  faults: list[str]
  statuses: collections.Counter
  longest_s: float
  valid: int  # requests between them that were answered as before


async def run(port: int, seed: int, first: int, count: int, valid: list[dict]) -> Report:
  """Sends attacks, many at once, and valid requests between them.

  Args:
    port: of the server.
    seed, first, count: which attacks.
    valid: requests for completions with a seed; each must always be answered alike.
  """
  numbers = iter(range(first, first + count))
  faults, statuses, expected = [], collections.Counter(), {}
  longest_s, answered = 0.0, 0

  async def ask(number: int) -> None:
    nonlocal answered
    at = number % len(valid)
    answer = await live.streamed(port, valid[at])
    told = (answer.status, answer.tokens, answer.text)
    if answer.status != 200 or answer.error or expected.setdefault(at, told) != told:
      faults.append(f"a valid request beside attack {number}: {answer}")
    answered += 1

  async def attacker() -> None:
    nonlocal longest_s
    for number in numbers:
      attack = attacks.attack(seed, number)
      seen = await send(port, attack)
      statuses.update(seen.statuses or ["none"])
      longest_s = max(longest_s, seen.lasted_s)
      wrong = fault(attack, seen)
      if wrong:
        faults.append(f"attack {number} of seed {seed}, {attack.name}: {wrong}")
      if number % VALID_EVERY == 0:
        await ask(number)

  for at in range(len(valid)):
    await ask(at)
  await asyncio.gather(*(attacker() for _ in range(AT_ONCE)))
  return Report(faults, statuses, longest_s, answered)


def left_over(server: live.Server) -> list[str]:
  """Returns what a server has not ended or not survived, some time after the last attack."""
  until = time.monotonic() + LIMIT_S
  while True:
    numbers = server.numbers()
    # The request that asks is one itself.
    left = {name: numbers[name] for name in ("scheduler_busy_slots", "scheduler_waiting", "scheduler_reading")
            if numbers[name]} | ({"in_flight": numbers["requests_in_flight"]}
                                 if numbers["requests_in_flight"] > 1 else {})
    if not left or time.monotonic() > until:
      break
    time.sleep(0.1)
  found = [f"is left: {left}"] if left else []
  log = server.log.read_text(errors="replace")
  return found + [f"the log says: {log[max(0, at.start() - 100):at.end() + 300]!r}"
                  for at in list(LOG_FAULT.finditer(log))[:3]]


def main(argv: list[str] | None = None) -> int:
  """Runs what the command line asks for; prints one JSON object. Returns 1 if anything was wrong."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--count", type=int, default=10_000, help="attacks")
  parser.add_argument("--first", type=int, default=0, help="number of the first attack")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="made anew for the run and its log")
  asked = parser.parse_args(argv)
  run_folder = live.leave_run(asked.workdir)
  with live.Server(run_folder, *live.SMALL, log=asked.workdir / "log.txt") as server:
    begun_mib, begun = server.resident_mib(), time.monotonic()
    report = asyncio.run(run(server.port, asked.seed, asked.first, asked.count, live.valid_requests()))
    faults = report.faults + left_over(server)
    found = {"attacks": asked.count, "seed": asked.seed, "valid": report.valid,
             "statuses": {str(name): count for name, count in sorted(report.statuses.items(), key=str)},
             "longest_s": round(report.longest_s, 1), "wall_s": round(time.monotonic() - begun, 1),
             "cpu_s": round(server.cpu_s(), 1),
             "resident_mib": [round(begun_mib, 1), round(server.resident_mib(), 1)],
             "faults": len(faults), "first_faults": faults[:SHOWN_FAULTS]}  # fmt: skip
    if server.stop():
      found["faults"] += 1
  print(json.dumps(found, indent=1))
  return 1 if found["faults"] else 0


if __name__ == "__main__":
  sys.exit(main())
