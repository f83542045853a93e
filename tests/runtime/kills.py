"""A program of `test_kills.py`: processes that end by kill -9 at a random event of their sessions.

  python -m tests.runtime.kills URL SPOOL ANSWERS KILLS SEED

It imports once and forks for each kill. Answers that were given go to the file ANSWERS, a line each.
"""
import asyncio
import os
import random
import signal
import sys

from atlas_jax.runtime.pool import Pool
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from tests.runtime.parts import Script, parts, verdict

SESSIONS = 6  # Of each process, two at a time.
EVENTS = 110  # That they have, about.


def student(messages):
  return "4" if len(messages) > 1 else "3"


def teacher(messages):
  return verdict(messages[-1]["content"].rstrip().endswith("4"), "Carry.")


async def waiting_student(messages):
  await asyncio.sleep(0.002)  # So that its events come in several transactions.
  return student(messages)


def given():
  """Who works at sessions, before the kill and after it."""
  return parts(Script(waiting_student), Script(teacher))


async def victim(url, spool, answers, number, last):
  """Runs sessions, and ends at an event."""
  store = RuntimeStore(StoreSettings(url=url, spool=spool, lease_s=0.2, heartbeat_s=0.1, batch_s=0.002))
  await store.open()
  seen = 0

  def sink(event):
    nonlocal seen
    seen += 1
    if seen > last:
      os.kill(os.getpid(), signal.SIGKILL)

  pool = Pool(given(), store, sinks=[sink])

  async def one(key):
    submitted = pool.submit(SessionSpec(key, "2+2", ground_truth="4"))
    found = await submitted.answer()
    os.write(answers, f"{key} {found.answer}\n".encode())
    await submitted.result()

  async def some(first):
    for place in range(first, SESSIONS, 2):
      await one(f"{number}-{place}")

  await asyncio.gather(some(0), some(1))


def main(url, spool, path, kills, seed):
  """Makes so many processes, one after another."""
  draw = random.Random(int(seed))
  answers = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  for number in range(int(kills)):
    last = draw.randrange(EVENTS)
    child = os.fork()
    if not child:
      try:
        asyncio.run(victim(url, spool, answers, number, last))
      finally:
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
  main(*sys.argv[1:])
