"""Tables are made by an explicit call alone, and a database of the Atlas SDK is read, then taken over."""
import concurrent.futures
import contextlib

import pytest

from atlas_jax.data.traces import connections, review, sql, sql_schema
from atlas_jax.data.traces.connections import StoreError
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.store import SqlStore, WrongVersion, open_store
from tests import stores

ALL = SessionQuery(review_statuses=None)


@pytest.fixture
def store(store_url):
  with open_store(store_url, writable=True, create=True) as opened:
    yield opened


def test_a_place_without_tables_names_the_command(store_url):
  with pytest.raises(StoreError, match="arc-atlas init|no such file"):
    open_store(store_url)


def test_migrating_twice_and_at_once_applies_each_version_once(store_url):
  def migrate(_):
    with contextlib.closing(SqlStore(connections.connect(store_url, create=True))) as opened:
      return opened.migrate()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    applied = list(pool.map(migrate, range(4)))
  assert sorted(applied) == [[], [], [], [one.version for one in sql_schema.MIGRATIONS]]


@pytest.mark.parametrize("version, said", [(99, "install a newer"), (-1, "run arc-atlas init")])
def test_tables_of_another_version_are_refused(store, store_url, version, said):
  with store.database.writing() as transaction:
    if version < 0:
      transaction.run(sql.Statement(*["DELETE FROM schema_migrations"] * 2))
      transaction.run(sql.APPLIED, version=1, name="old", at="then")
    else:
      transaction.run(sql.APPLIED, version=version, name="new", at="then")
  with pytest.raises(WrongVersion, match=said):
    open_store(store_url)


def test_tables_columns_and_defaults_are_those_of_the_sdk(postgres_server):
  import psycopg

  wanted = stores.read_json("postgres_schema.json")
  asked = ("SELECT table_name, column_name, data_type, is_nullable, column_default "
           "FROM information_schema.columns WHERE table_schema = current_schema()")
  with stores.schema_url(postgres_server) as url, open_store(url, create=True):
    with psycopg.connect(url) as connection:
      found = connection.execute(asked).fetchall()
  known = {(row["table_name"], row["column_name"]): row for row in wanted["columns"]}
  ours = {(table, column): (kind, null, default) for table, column, kind, null, default in found}
  assert set(known) <= set(ours)
  for place, row in known.items():
    kind, null, default = ours[place]
    assert (kind, null) == (row["data_type"], row["is_nullable"])
    assert default == row["column_default"] or "nextval" in default
  assert {table for table, _ in ours} - {table for table, _ in known} == {
    "review_log", "session_keys", "schema_migrations", "session_events", "playbooks", "playbook_uses",
    "deployments", "canary_pairs"}


def sdk_database(url):
  """Makes the tables that the SDK makes, with its four sessions in them."""
  import psycopg
  from psycopg.types.json import Jsonb

  def insert(connection, table, row):
    values = [Jsonb(value) if isinstance(value, dict | list) else value for value in row.values()]
    places = ", ".join(["%s"] * len(row))
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", values)

  with psycopg.connect(url) as connection:
    for statement in sql_schema.MIGRATIONS[0].postgres:
      connection.execute(statement)
    for session, steps, events in stores.sdk_rows():
      plan = session["plan"]
      insert(connection, "sessions", {name: value for name, value in session.items() if name != "plan"})
      if plan:
        insert(connection, "plans", {"session_id": session["id"], "plan": plan})
      for step in steps:
        key = {"session_id": session["id"], "step_id": step["step_id"]}
        insert(connection, "step_results", key | {name: step[name] for name in (
          "trace", "output", "evaluation", "attempts", "metadata")})
        for one in step["attempt_details"]:
          insert(connection, "step_attempts", key | one)
        for place, note in enumerate(step["guidance_notes"], start=1):
          insert(connection, "guidance_notes", key | {"sequence": place, "note": note})
      for event in events:
        insert(connection, "trajectory_events", event | {"session_id": session["id"]})


def test_a_database_of_the_sdk_is_read_as_it_is_and_taken_over(postgres_server):
  with stores.schema_url(postgres_server) as url:
    sdk_database(url)
    with open_store(url) as opened:
      assert opened.version() == 0
      found = [one.trace for one in opened.traces(ALL.changed(newest_first=True))]
      assert [one.data for one in found] == [one.data for one in stores.exported()]
    with pytest.raises(WrongVersion, match="version 0"):
      open_store(url, writable=True)
    with open_store(url, writable=True, create=True) as opened:
      assert [one.trace.session_id for one in opened.traces()] == [1]
      review.decide(opened, 2, "approved", who="ada")
      opened.write(stores.exported()[2])
      assert [one.trace.session_id for one in opened.traces()] == [1, 2]
