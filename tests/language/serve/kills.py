"""Kills a real server in the middle of conversations, goes on with them in a new one; kills clients, too.

  python -m tests.language.serve.kills --count=20 --workdir=runs/serve_kills

Some conversations are streamed at the same time, and at a random moment the server is killed with -9. Its
files are then looked at: each state is whole, or it is none. Some are damaged on purpose. A new server goes
on with every conversation: it must know every turn whose last event a client has had, and its answer must
equal, number for number, that of the same ids from another user, for whom nothing is stored. Then clients are
killed in the middle of streams: their slots must be free at once. Prints one JSON object; exits 1 if
something was not so.
"""

import argparse
import asyncio
import collections
import json
import pathlib
import random
import statistics
import sys
import threading
import time

from atlas_jax.files.damage import Damaged
from atlas_jax.language.decoding import state_files
from tests.language.serve import live

CONVERSATIONS = 4
LONGEST_S = 1.5  # Until a server is killed; a turn of all conversations may take less.
PATH = "/v1/completions"
TOLD = ("token_ids", "sampler_logprobs", "full_logprobs", "text",
        "finish_reason")  # Of answers that are compared.


class Talk:
  """A conversation as its client knows it.

  Attributes:
    kept: ids that the server has said it keeps.
    answered: ids of the turn behind them, prompt and answer, if its last event had come; else ().
  """

  def __init__(self, name: str):
    """Begins without a word."""
    self.name = name
    self.kept: list[int] = []
    self.answered: list[int] = []

  def lost(self, tokens: list[int]) -> str:
    """Returns what is wrong with the ids that a server keeps; it may know a turn more than the client."""
    if tokens[:len(self.kept)] != self.kept:
      return f"{self.name}: has lost what was kept"
    behind = tokens[len(self.kept):]
    # Before the first turn stands the id that opens a document.
    if self.answered and behind not in (self.answered, behind[:1] + self.answered):
      return f"{self.name}: has lost the turn whose last event was sent"
    return ""


def stream_turns(server: live.Server, talks: list[Talk], draw: random.Random, turn: int) -> int:
  """Streams a turn of every conversation until all end, or the server does; returns how many were cut off."""
  prompts = [live.prompt(draw, draw.randrange(8, 60)) for _ in talks]
  asked = [{"prompt": prompt, "seed": turn, "max_tokens": 60, "ignore_eos": True, "conversation": talk.name}
           for prompt, talk in zip(prompts, talks)]  # fmt: skip

  async def all_of_them():
    return await asyncio.gather(*(live.streamed(server.port, fields) for fields in asked))

  answers = asyncio.run(all_of_them())
  for talk, prompt, answer in zip(talks, prompts, answers):
    talk.answered = [] if answer.error else [*prompt, *answer.tokens]
  return sum(bool(answer.error) for answer in answers)


def kept(server: live.Server, name: str) -> list[int]:
  """Returns the ids of a conversation; [] if there is none."""
  status, content = server.get(f"/v1/conversations/{name}")
  return json.loads(content)["tokens"] if status == 200 else []


def broken_states(folder: pathlib.Path, damaged: set[pathlib.Path]) -> list[str]:
  """Returns the files of states that are not whole, but for those that were damaged on purpose."""
  found = []
  for file in set(folder.glob("*.state")) - damaged:
    try:
      state_files.read_state(file)
    except (Damaged, ValueError) as error:
      found.append(str(error))
  return found


def damage(folder: pathlib.Path, draw: random.Random) -> list[pathlib.Path]:
  """Cuts a state's file off, and changes a byte of another; returns both."""
  files = sorted(folder.glob("*.state"))
  chosen = draw.sample(files, min(2, len(files)))
  for file, how in zip(chosen, ("cut", "changed")):
    content = bytearray(file.read_bytes())
    at = draw.randrange(len(content))
    if how == "changed":
      content[at] ^= 1 << draw.randrange(8)
    file.write_bytes(content[:at] if how == "cut" else content)
  return chosen


def go_on(server: live.Server, talks: list[Talk], draw: random.Random) -> tuple[list[str], int]:
  """Goes on with every conversation; returns faults, and how many ids came from the store."""
  faults, cached = [], 0
  for talk in talks:
    tokens = kept(server, talk.name)
    faults += [one for one in [talk.lost(tokens)] if one]
    more = live.prompt(draw, 9)
    asked = {"seed": draw.randrange(1_000), "max_tokens": 8, "return_token_ids": True, "logprobs": 2}
    warm = server.post(PATH, prompt=more, conversation=talk.name, **asked)
    cold = server.post(PATH, prompt=warm["choices"][0]["prompt_token_ids"], user=f"nobody {draw.random()}",
                       **asked)
    cached += warm["usage"]["prompt_tokens_details"]["cached_tokens"]
    if cold["usage"]["prompt_tokens_details"]["cached_tokens"]:
      faults.append(f"{talk.name}: the answer to compare with was not cold")
    one, other = ({field: answer["choices"][0][field] for field in TOLD} for answer in (warm, cold))
    if one != other:
      faults.append(f"{talk.name}: goes on with {one}, and from nothing with {other}")
    talk.kept = kept(server, talk.name)
  return faults, cached


def kill_clients(server: live.Server, count: int) -> dict:
  """Leaves streams in their middle; returns seconds and steps until the slot was free."""
  took, steps = [], []
  for number in range(count):
    async def leave(number=number):
      reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
      writer.write(live.posted(PATH, {"prompt": "x", "max_tokens": 4_000, "ignore_eos": True, "stream": True,
                                      "return_token_ids": True, "seed": number}))
      async for line in reader:
        if line.startswith(b"data: "):
          break
      writer.transport.abort()

    asyncio.run(leave())
    left, at_first = time.monotonic(), server.numbers()
    now = at_first
    while now["scheduler_busy_slots"] and time.monotonic() < left + 30:
      now = server.numbers()
    took.append(time.monotonic() - left)
    steps.append(now["scheduler_steps"] - at_first["scheduler_steps"])
  return {"clients": count, "median_s": round(statistics.median(took), 4), "most_s": round(max(took), 4),
          "steps_after": [int(one) for one in sorted(set(steps))]}  # fmt: skip


def run(workdir: pathlib.Path, count: int, clients: int, seed: int) -> dict:
  """Kills servers so many times, and clients; returns what was seen."""
  model = live.leave_run(workdir)
  draw, states = random.Random(seed), workdir / "folder" / "states"
  flags = [*live.SMALL, f"--config.serve.folder={states.parent}"]
  talks = [Talk(f"c{number}") for number in range(CONVERSATIONS)]
  found: collections.Counter = collections.Counter()
  damaged: set[pathlib.Path] = set()
  faults: list[str] = []
  for turn in range(count):
    with live.Server(model, *flags, log=workdir / "log.txt") as server:
      wrong, cached = go_on(server, talks, draw) if turn else ([], 0)
      found["damage_noticed"] += int(server.numbers()["scheduler_disk_damaged"])
      timer = threading.Timer(draw.uniform(0.02, LONGEST_S), server.kill)
      timer.start()
      found["streams_cut"] += stream_turns(server, talks, draw, turn)
      timer.join()
    found["cached_tokens"] += cached
    found["states"] += len(list(states.glob("*.state")))
    faults += [f"kill {turn}: {one}" for one in [*wrong, *broken_states(states, damaged)]]
    if turn % 2:
      damaged |= set(damage(states, draw))
  with live.Server(model, *flags, log=workdir / "log.txt") as server:
    wrong, cached = go_on(server, talks, draw)
    found["cached_tokens"] += cached
    found["damage_noticed"] += int(server.numbers()["scheduler_disk_damaged"])
    killed = kill_clients(server, clients)
  return {"kills": count, **found, "damaged_on_purpose": len(damaged), "killed_clients": killed,
          "faults": faults + wrong}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
  """Runs what the command line asks for; prints one JSON object. Returns 1 if anything was wrong."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--count", type=int, default=20, help="kills of a server")
  parser.add_argument("--clients", type=int, default=10, help="kills of a client")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="made anew for run, folder and log")
  asked = parser.parse_args(argv)
  found = run(asked.workdir, asked.count, asked.clients, asked.seed)
  slow = found["killed_clients"]["most_s"]
  if slow > 1:
    found["faults"].append(f"the slot of a killed client was busy for {slow} s")
  print(json.dumps(found, indent=1))
  return 1 if found["faults"] else 0


if __name__ == "__main__":
  sys.exit(main())
