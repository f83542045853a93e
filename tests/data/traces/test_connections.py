"""Stores that cannot be opened are told of in one line, without a password; a session's text is never SQL."""
import builtins
import sqlite3

import pytest

from atlas_jax.data.traces import connections, sql
from atlas_jax.data.traces.connections import StoreError, UnreachableStore
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store

SECRET = "s3cr3t%2Fword"


@pytest.mark.parametrize("url", ["traces.db", "sqlite://traces.db", "sqlite:///", "sqlite:///:memory:",
                                 "mysql://me:pw@host/db", f"oracle://me:{SECRET}@host/db"])
def test_urls_of_no_store_are_refused(url):
  with pytest.raises(ValueError, match="sqlite:///PATH") as caught:
    connections.connect(url)
  assert SECRET not in str(caught.value)


def test_nobody_there_is_one_line_without_the_password():
  pytest.importorskip("psycopg")
  with pytest.raises(UnreachableStore) as caught:
    connections.connect(f"postgresql://me:{SECRET}@127.0.0.1:9/db?connect_timeout=2")
  said = str(caught.value)
  assert "\n" not in said and "127.0.0.1:9" in said
  assert SECRET not in said and "s3cr3t" not in said


@pytest.mark.parametrize("url", [
  "postgresql://me:s3@cr3t@127.0.0.1:9/db", "postgresql://me:s3/cr3t@127.0.0.1:9/db",
  "postgres://me:12/s3cr3t@127.0.0.1:9/db", "postgresql://:s3?cr3t@h/db", "postgresql://me:s3#cr3t@h/db",
  "mysql://h/db?password=s3cr3t", "postgres:me:s3cr3t@h/db"])
def test_no_part_of_a_password_is_told_that_is_written_wrongly(url):
  with pytest.raises((ValueError, StoreError)) as caught:
    connections.connect(url)
  assert "cr3t" not in str(caught.value)


@pytest.mark.parametrize("rest", ["h:5432/db?user=a@b", "me:pw@h:5432/db", "me@h/db", "h/db?user=a@b:c",
                                  "h,i:5/d", "me:p%40w@[::1]:5432/db", ":@h", "h:1,i:2/db?user=a@b", ""])
def test_a_url_that_is_written_rightly_passes(rest):
  connections._check_password(rest)


def test_a_wrong_part_of_a_url_is_one_line(postgres_server):
  mark = "&" if "?" in postgres_server else "?"
  with pytest.raises(StoreError) as caught:
    connections.connect(f"{postgres_server}{mark}nonsense=1")
  assert "nonsense" in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_driver_the_extra_is_named(monkeypatch):
  original = builtins.__import__

  def without(name, *rest, **more):
    if name == "psycopg":
      raise ImportError("no psycopg here")
    return original(name, *rest, **more)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(UnreachableStore, match=r"atlas_jax\[postgres\]"):
    connections.connect("postgresql://host/db")


def test_a_file_that_is_no_database_is_told(tmp_path):
  (tmp_path / "x.db").write_bytes(b"nothing of the kind, and long enough to be looked at" * 20)
  with pytest.raises(UnreachableStore, match="x.db: .*database"):
    connections.connect(f"sqlite:///{tmp_path}/x.db")
  assert sqlite3.sqlite_version_info >= connections.OLDEST_SQLITE


def test_no_file_is_made_by_reading(tmp_path):
  with pytest.raises(UnreachableStore, match="no such file"):
    connections.connect(f"sqlite:///{tmp_path}/none.db")
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["'; DROP TABLE sessions; --", "%s %(id)s :id ?", '"} OR 1=1', "\\'"])
def test_texts_are_no_sql(store_url, text):
  with open_store(store_url, writable=True, create=True) as opened:
    trace = Trace.from_json({"task": text, "learning_key": text, "session_metadata": {"status": text}})
    number = opened.write(trace, key=text, who=text)
    query = SessionQuery(review_statuses=None, learning_key=text, statuses=(text,))
    assert [one.id for page in opened.pages(query) for one in page] == [number]
    assert list(opened.pages(query.changed(learning_key=f"{text}' OR '1'='1"))) == []
    assert opened.write(trace, key=text) == number


def test_a_statement_that_changes_something_is_refused_while_reading(postgres_server):
  database = connections.connect(postgres_server)
  create = sql.Statement("CREATE TABLE mine (id INTEGER)", "SELECT 1")
  with pytest.raises(StoreError, match="read-only"), database.reading() as transaction:
    transaction.run(create)
  database.close()
