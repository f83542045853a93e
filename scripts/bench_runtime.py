"""The rows of `bench.py runtime`: what sessions of the runtime cost, and how many run at once.

Each row is measured in a process of its own, with agents, teachers and judges that cost nothing, so that what
is left is the runtime's:

  concurrent  so many sessions at once, paired, two attempts each: `ended` with the right answer, `stored`,
              the most `connections` of the store at a time, `transactions`, and `statements` of a session
  session     one two-attempt session alone: its `statements`, BEGIN and COMMIT not counted, and the `bytes`
              of all its rows
  messages    characters of the messages, as JSON, that a student and a teacher are sent for the task "2+2"
  cpu         CPU-milliseconds of an auto session that is graded and stored, and of one that is judged by
              three calls of an endpoint, which runs in the same process and is counted with it
  tokens      fraction of the tokens of an endpoint that the results of sessions count, all roles together

`bar` is what was asked for, and `met` whether it is reached. A row that lost a session has an error, and the
exit status is 1. PostgreSQL is a server started for this, unless --database-url names an empty database.

  python scripts/bench.py runtime --json
  python scripts/bench.py runtime --what=concurrent --sessions=40,130,500 --stores=postgres --json
"""
import argparse
import asyncio
import contextlib
import json
import math
import os
import pathlib
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parents[1]
KINDS = ("runtime",)
WHAT = ("concurrent", "session", "messages", "cpu", "tokens")
STORES = ("sqlite", "postgres")
TABLE = (("what", 10), ("store", 8), ("judge_calls", 11), ("sessions", 8), ("ended", 6), ("stored", 6),
         ("connections", 11), ("statements", 10), ("bytes", 6), ("student_chars", 13), ("teacher_chars", 13),
         ("cpu_ms", 7), ("tokens_counted", 14), ("bar", 24), ("met", 5))
BARS = {"connections": 10, "statements": 8, "bytes": 9_000, "student_chars": 500, "teacher_chars": 900}
CPU_MS = {0: 5.0, 3: 30.0}  # By calls of judges.
CPU_SESSIONS = 300
POLL_S = 0.02


def add_flags(kinds, one_of, positive) -> list[argparse.ArgumentParser]:
  """Adds the measurement; gives its parser, without --repeats and --json."""
  made = kinds.add_parser("runtime", help="sessions of agents", description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
  flag = made.add_argument
  flag("--what", type=one_of(WHAT), default=list(WHAT), help="rows, by default all")
  flag("--stores", type=one_of(STORES), default=list(STORES))
  flag("--sessions", type=lambda text: [positive(part) for part in text.split(",")], default=[40, 130, 500],
       help="at once, for each row of `concurrent`")
  flag("--database-url", help="an empty PostgreSQL database, in place of a server that is started")
  return [made]


def specs(args) -> list[dict]:
  """Returns what is measured: each row by itself."""
  base = {"side": "runtime", "url": args.database_url, "repeats": args.repeats}
  made = []
  for what in args.what:
    stores = args.stores if what in ("concurrent", "cpu") else ["sqlite"]
    for store in stores:
      varied = ([{"sessions": count} for count in args.sessions] if what == "concurrent" else
                [{"judge_calls": count} for count in CPU_MS if not count or store == "sqlite"]
                if what == "cpu" else [{}])
      made += [{**base, "what": what, "store": store, **one} for one in varied]
  return made


def measure(spec: dict) -> list[dict]:
  """Measures one row, in a process of its own."""
  import bench_child

  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  done = subprocess.run([sys.executable, __file__, json.dumps(spec)], capture_output=True, text=True,
                        cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
  row = {"name": "runtime", **dict.fromkeys([name for name, _ in TABLE]),
         **{name: spec.get(name) for name in ("what", "store", "sessions", "judge_calls", "repeats")},
         "device": bench_child.processor(), "versions": versions(spec),
         "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
         "load_average": round(os.getloadavg()[0], 1)}
  if done.returncode or not done.stdout.strip():
    last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    return [{**row, "error": last}]
  return [judged({**row, **json.loads(done.stdout.splitlines()[-1])})]


def versions(spec: dict) -> dict[str, str]:
  """Returns the versions of what a row depends on."""
  found = {"python": sys.version.split()[0], "sqlite": sqlite3.sqlite_version}
  if spec["store"] == "postgres":
    found = {"python": found["python"], "psycopg": metadata.version("psycopg")}
  return found


def judged(row: dict) -> dict:
  """Adds the bar of a row, and whether it is reached."""
  bars: dict[str, float] = {name: most for name, most in BARS.items() if row[name] is not None}
  if row["cpu_ms"] is not None:
    bars["cpu_ms"] = CPU_MS[row["judge_calls"]]
  said = [f"{name} <= {most:g}" for name, most in bars.items()]
  met = all(row[name] <= most for name, most in bars.items())
  if row["ended"] is not None:
    said.append(f"ended = stored = {row['sessions']}")
    if not row["ended"] == row["stored"] == row["sessions"]:
      row["error"] = f"of {row['sessions']} sessions {row['ended']} ended and {row['stored']} are stored"
  if row["tokens_counted"] is not None:
    said.append("tokens_counted = 1")
    met = row["tokens_counted"] == 1
  return {**row, "bar": ", ".join(said), "met": met and "error" not in row}


# ---------------------------------------------------------------------------------- in a process of its own


def student(messages: list[dict]) -> str:
  """Answers wrongly until it is guided."""
  return "4" if len(messages) > 1 else "3"


def teacher(messages: list[dict]) -> str:
  """Judges by the last character of what it is shown."""
  valid = messages[-1]["content"].rstrip().endswith("4")
  return json.dumps({"valid": valid, "guidance": None if valid else "Carry the one."})


def parts(student_model, teacher_model=None, *, lane="paired", judges=None):
  """Returns who works at sessions; answers are graded unless there are judges."""
  from atlas_jax.rollout import rewards
  from atlas_jax.runtime.agents.python import PythonAgent
  from atlas_jax.runtime.chat_models import FunctionModel
  from atlas_jax.runtime.scoring import GraderAndJudges
  from atlas_jax.runtime.session import FixedLane, SessionParts
  from atlas_jax.runtime.supervision import Supervisor

  agent = student_model if hasattr(student_model, "idempotent") else PythonAgent(student_model, name="bench")
  model = FunctionModel(teacher_model) if callable(teacher_model) else teacher_model
  supervisor = None if model is None else Supervisor(model)
  grader = rewards.load("correct") if judges is None else None
  return SessionParts(agent, supervisor, FixedLane(lane), GraderAndJudges(grader, judges))


@contextlib.asynccontextmanager
async def opened(spec: dict, folder: str, given):
  """Yields a pool and its store."""
  from atlas_jax.runtime.pool import PoolSettings, SessionPool
  from atlas_jax.runtime.store import RuntimeStore, StoreSettings

  store = RuntimeStore(StoreSettings(url=spec["store_url"], spool=f"{folder}/spool"))
  await store.open(create=True)
  pool = SessionPool(given, store, settings=PoolSettings(sessions=512, tenant=512))
  yield pool, store
  await pool.close()
  await store.close()


async def ran(pool, count: int, name: str = "s") -> list:
  """Runs so many sessions at once; returns their results."""
  from atlas_jax.runtime.session import SessionSpec

  submitted = [pool.submit(SessionSpec(f"{name}{number}", "2+2", ground_truth="4"))
               for number in range(count)]
  return [await one.result() for one in submitted]


async def concurrent(spec: dict, folder: str) -> dict:
  """Runs sessions at once."""
  async def agent(messages):
    return student(messages)

  async with opened(spec, folder, parts(agent, teacher)) as (pool, store):
    with counting(spec) as seen:
      wall = time.perf_counter()
      results = await ran(pool, spec["sessions"])
      wall = time.perf_counter() - wall
    statements, transactions = store.statements, store.transactions
    kept = [await store.load(one.session_key) for one in results]
  right = sum(one.status == "succeeded" and one.answer == "4" and one.verified is True for one in results)
  return {"ended": right, "stored": sum(one is not None and one.status == "succeeded" for one in kept),
          "wall_s": round(wall, 2), "connections": max(seen, default=None), "transactions": transactions,
          "statements": round(statements / spec["sessions"], 2)}


@contextlib.contextmanager
def counting(spec: dict) -> Iterator[list[int]]:
  """Yields a list to which the connections of this process to its store are added, again and again."""
  seen: list[int] = []
  over = threading.Event()

  def sqlite() -> None:
    held = 0
    for one in pathlib.Path("/proc/self/fd").iterdir():
      with contextlib.suppress(OSError):
        held += re.search(r"/bench\.db$", os.readlink(one)) is not None
    seen.append(held)

  def watch() -> None:
    if spec["store"] == "sqlite":
      while not over.wait(POLL_S):
        sqlite()
      return
    import psycopg

    with psycopg.connect(spec["store_url"], autocommit=True, application_name="watch") as connection:
      while not over.wait(POLL_S):
        [(count,)] = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = "
                                        "'atlas_jax'").fetchall()
        seen.append(count)

  thread = threading.Thread(target=watch)
  thread.start()
  try:
    yield seen
  finally:
    over.set()
    thread.join()


async def session(spec: dict, folder: str) -> dict:
  """Runs one session, and looks at what it left."""
  async def agent(messages):
    return student(messages)

  async with opened(spec, folder, parts(agent, teacher)) as (pool, store):
    await ran(pool, 1)
    statements = store.statements
  with sqlite3.connect(f"{folder}/bench.db") as connection:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
              if name not in ("schema_migrations", "sqlite_sequence")]
    size = sum(len(cell.encode()) if isinstance(cell, str) else 8 for name in tables
               for row in connection.execute(f"SELECT * FROM {name}") for cell in row if cell is not None)
  return {"statements": statements, "bytes": size}


async def messages(spec: dict, folder: str) -> dict:
  """Keeps what student and teacher are sent."""
  del spec, folder
  asked: dict[str, list[int]] = {"student": [], "teacher": []}

  async def agent(messages):
    asked["student"].append(len(json.dumps(messages, ensure_ascii=False)))
    return student(messages)

  def watched(messages):
    asked["teacher"].append(len(json.dumps(messages, ensure_ascii=False)))
    return teacher(messages)

  from atlas_jax.runtime.pool import SessionPool

  await ran(SessionPool(parts(agent, watched)), 1)
  # The first of each: later ones hold what the first were answered with.
  return {"student_chars": asked["student"][0], "teacher_chars": asked["teacher"][0]}


async def cpu(spec: dict, folder: str) -> dict:
  """Runs auto sessions; returns the CPU-time of one."""
  async def agent(messages):
    del messages
    return "4"

  async with contextlib.AsyncExitStack() as stack:
    judges = None
    if spec["judge_calls"]:
      from atlas_jax.rollout.judges.rim import RIMReward

      endpoint = await stack.enter_async_context(Endpoint.running())
      judges = RIMReward({"endpoint": {"url": endpoint.url}, "models": {"small_model": "bench"},
                          "backend": "endpoint", "canary": {"on": False},
                          "active_judges": {"accuracy": True, "diagnostic": False, "helpfulness": False,
                                            "process": False}})
    given = parts(agent, lane="auto", judges=judges)
    pool, _ = await stack.enter_async_context(opened(spec, folder, given))
    await ran(pool, 20, "warm")
    best = math.inf
    count = CPU_SESSIONS // (3 if judges else 1)
    for repeat in range(spec["repeats"]):
      before = time.process_time()
      results = await ran(pool, count, f"{repeat} ")
      best = min(best, (time.process_time() - before) / count)
      assert all(one.reward == 1.0 for one in results), results[0]
    calls = endpoint.calls / (20 + count * spec["repeats"]) if judges else 0
  assert calls == spec["judge_calls"], calls
  return {"sessions": count, "cpu_ms": round(best * 1e3, 2)}


async def tokens(spec: dict, folder: str) -> dict:
  """Counts tokens of an endpoint that is student, teacher and judge, beside those of the results."""
  from atlas_jax.rollout.endpoint import Endpoint as Client
  from atlas_jax.rollout.endpoint import EndpointSettings
  from atlas_jax.rollout.judges.rim import RIMReward
  from atlas_jax.runtime.agents.openai import OpenAIAgent, OpenAIAgentSettings

  async with Endpoint.running() as endpoint:
    client = Client(EndpointSettings(url=endpoint.url, model="bench"))
    judges = RIMReward({"endpoint": {"url": endpoint.url}, "models": {"small_model": "bench"},
                        "backend": "endpoint", "canary": {"on": False}})
    given = parts(OpenAIAgent(OpenAIAgentSettings(url=endpoint.url, model="bench")), client, judges=judges)
    async with opened(spec, folder, given) as (pool, _):
      results = await ran(pool, 10)
  counted = sum(one["prompt"] + one["completion"] for each in results for one in each.tokens.values())
  return {"sessions": len(results), "tokens_counted": counted / endpoint.tokens}


class Endpoint:
  """A chat endpoint in this process that answers as student, teacher and judge.

  Attributes:
    url: of its routes.
    calls: so far.
    tokens: of all prompts and replies.
  """

  def __init__(self) -> None:
    """Starts with nothing asked."""
    self.url = ""
    self.calls = 0
    self.tokens = 0

  @classmethod
  @contextlib.asynccontextmanager
  async def running(cls):
    """Yields one that listens at a free port of the loopback."""
    made = cls()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield made
    server.close()

  async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the requests of one connection."""
    # Until the client has closed it, or the loop has ended.
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
      while True:
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head.lower())
        body = json.loads(await reader.readexactly(int(size[1]) if size else 0))
        content = json.dumps(self.answer(body)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
                     + str(len(content)).encode() + b"\r\n\r\n" + content)
        await writer.drain()

  def answer(self, body: dict) -> dict:
    """Returns a completion."""
    wanted = json.dumps(body.get("response_format") or {})
    if "uncertainty" in wanted:
      text = json.dumps({"principles": [], "rationale": "right", "score": 1.0, "uncertainty": 0.1,
                         "flags": []})
    else:
      text = teacher(body["messages"]) if "valid" in wanted else student(body["messages"])
    self.calls += 1
    self.tokens += 7 + 3
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


@contextlib.contextmanager
def place(spec: dict, folder: str) -> Iterator[str]:
  """Yields the URL of an empty store."""
  import bench_store

  with bench_store.place(spec["store"], spec["url"], folder) as url:
    yield url


def main(spec: dict) -> None:
  """Measures one row, and prints it."""
  known = {"concurrent": concurrent, "session": session, "messages": messages, "cpu": cpu, "tokens": tokens}
  with tempfile.TemporaryDirectory() as folder, place(spec, folder) as url:
    print(json.dumps(asyncio.run(known[spec["what"]]({**spec, "store_url": url}, folder))))


if __name__ == "__main__":
  main(json.loads(sys.argv[1]))
