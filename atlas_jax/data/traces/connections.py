"""Connections to SQLite files and PostgreSQL servers, behind one interface.

A database gives transactions: one that reads sees one state of the data throughout, one that writes happens
whole or not at all. Statements come from `sql`. A PostgreSQL database keeps one pool for the process, an
SQLite file one connection for each thread; after a fork both are made anew.
"""
import contextlib
import datetime
import json
import os
import pathlib
import re
import sqlite3
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atlas_jax.data.traces import sql, storable
from atlas_jax.files.damage import one_line

CONNECT_S = 10
STATEMENT_S = 30
MOST_CONNECTIONS = 10
OLDEST_SQLITE = (3, 35, 0)  # RETURNING
# Texts, which are passed over, and floats with an exponent.
_LARGE = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?e\+\d+')


class StoreError(Exception):
  """A store that does not do what it was asked; one line, without any password."""


class UnreachableStore(StoreError):
  """A store that cannot be opened or does not answer."""


class StoreConflict(StoreError):
  """A transaction that another one crossed; it may be tried again."""


class Transaction:
  """Runs statements of one transaction.

  Attributes:
    statements: that were run.
  """

  def __init__(self, cursor: Any, dialect: str):
    """Takes a cursor of either driver."""
    self.statements = 0
    self._cursor = cursor
    self._dialect = dialect

  def rows(self, statement: sql.Statement, **values: Any) -> list[tuple]:
    """Returns the rows of a statement."""
    self.statements += 1
    self._cursor.execute(getattr(statement, self._dialect), self._adapted(values))
    return self._cursor.fetchall()

  def run(self, statement: sql.Statement, **values: Any) -> int:
    """Runs a statement; returns how many rows it changed."""
    self.statements += 1
    self._cursor.execute(getattr(statement, self._dialect), self._adapted(values))
    return self._cursor.rowcount

  def run_many(self, statement: sql.Statement, rows: Sequence[Mapping[str, Any]]) -> None:
    """Runs a statement once for each row of values, as one call; of no rows, not at all."""
    if rows:
      self.statements += len(rows)
      self._cursor.executemany(getattr(statement, self._dialect), [self._adapted(row) for row in rows])

  def json(self, value: Any) -> str | None:
    """Returns a value for a column of JSON."""
    if value is None:
      return None
    # Keys as PostgreSQL orders them, so that both stores export the same bytes.
    text = storable.dumps(_ordered(value) if self._dialect == "sqlite" else value)
    return _LARGE.sub(_all_digits, text) if "e+" in text else text

  def _adapted(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
    if self._dialect == "postgres":
      return values
    return {name: _for_sqlite(value) if isinstance(value, list | datetime.datetime) else value
            for name, value in values.items()}


def _all_digits(found: re.Match) -> str:
  """Returns a float without an exponent, which PostgreSQL keeps no more than that it was a float."""
  return f"{float(found[0]):.1f}" if found[0][0] != '"' else found[0]


def _for_sqlite(value: list | datetime.datetime) -> str:
  # Six digits always, so that times are ordered as texts.
  return json.dumps(value) if isinstance(value, list) else value.isoformat(timespec="microseconds")


def _ordered(value: Any) -> Any:
  """Returns a JSON value with the keys of its objects by length in bytes, then by bytes."""
  if isinstance(value, dict):
    names = sorted(value, key=lambda name: (len(encoded := name.encode()), encoded))
    return {name: _ordered(value[name]) for name in names}
  return [_ordered(one) for one in value] if isinstance(value, list) else value


class SqliteDatabase:
  """An SQLite file."""
  dialect = "sqlite"

  def __init__(self, path: str, *, create: bool):
    """Takes the file's path; it is made, with its folder, only if `create` is true.

    Raises:
      UnreachableStore: if it is not there, or is no database.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
      needed = ".".join(map(str, OLDEST_SQLITE))
      raise UnreachableStore(f"SQLite {sqlite3.sqlite_version} is too old; {needed} is needed")
    self.name = f"sqlite:///{path}"
    self._path = pathlib.Path(path)
    self._create = create
    self._local = threading.local()
    if create:
      self._path.parent.mkdir(parents=True, exist_ok=True)
    elif not self._path.is_file():
      raise UnreachableStore(f"{self.name}: there is no such file")
    with self.reading():
      pass

  @contextlib.contextmanager
  def reading(self) -> Iterator[Transaction]:
    """Yields a transaction that changes nothing."""
    with self._transaction(sql.BEGIN_READ) as transaction:
      yield transaction

  @contextlib.contextmanager
  def writing(self, *, patient: bool = False) -> Iterator[Transaction]:
    """Yields a transaction that is committed at the end of the block, and undone if that raises."""
    del patient  # SQLite has no time limit for a statement.
    with self._transaction(sql.BEGIN_WRITE) as transaction:
      yield transaction

  def close(self) -> None:
    """Closes the connection of this thread."""
    opened = getattr(self._local, "connection", None)
    if opened is not None and self._local.process == os.getpid():
      opened.close()
    self._local.connection = None

  def _connection(self) -> sqlite3.Connection:
    if getattr(self._local, "connection", None) is None or self._local.process != os.getpid():
      # Kept, not closed: closing what a fork has copied would undo locks of the parent process.
      self._local.inherited = getattr(self._local, "connection", None)
      mode = "rwc" if self._create else "rw"
      where = f"file:{urllib.parse.quote(str(self._path))}?mode={mode}"
      opened = sqlite3.connect(where, uri=True, isolation_level=None, timeout=CONNECT_S * 2)
      # The file remembers the first; it is not written to by whoever reads.
      for statement in ((sql.SQLITE_WAL,) if self._create else ()) + sql.SQLITE_SETUP:
        opened.execute(statement)
      self._local.connection = opened
      self._local.process = os.getpid()
    return self._local.connection

  @contextlib.contextmanager
  def _transaction(self, begin: str) -> Iterator[Transaction]:
    with self._errors():
      connection = self._connection()
      connection.execute(begin)
      try:
        yield Transaction(connection.cursor(), self.dialect)
        connection.execute(sql.COMMIT)
      except BaseException:
        if connection.in_transaction:
          connection.execute(sql.ROLLBACK)
        raise

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    try:
      yield
    except sqlite3.IntegrityError as error:
      raise StoreConflict(f"{self.name}: {one_line(error)}") from error
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError) as error:
      raise StoreError(f"{self.name}: {one_line(error)}") from error
    except sqlite3.Error as error:
      raise UnreachableStore(f"{self.name}: {one_line(error)}") from error


class PostgresDatabase:
  """A database of a PostgreSQL server."""
  dialect = "postgres"

  def __init__(self, url: str):
    """Takes a URL, postgresql://user:password@host:port/name?options.

    Raises:
      UnreachableStore: if nobody answers there, within CONNECT_S seconds.
    """
    try:
      import psycopg
      import psycopg_pool
    except ImportError as error:
      raise UnreachableStore(
          f"PostgreSQL needs psycopg, which is not installed ({one_line(error)}); "
          "install atlas_jax[postgres], or take sqlite:///PATH") from error
    self._psycopg = psycopg
    self._pools = psycopg_pool
    self.name = without_password(url)
    self._url = url
    self._pool: Any = None
    self._process: int | None = None
    self._lock = threading.Lock()
    with self._errors():
      given = psycopg.conninfo.conninfo_to_dict(url)
      limit = f"-c statement_timeout={STATEMENT_S * 1000}"
      options = f"{given['options']} {limit}" if given.get("options") else limit
      self._conninfo = psycopg.conninfo.make_conninfo(
          url, options=options, connect_timeout=given.get("connect_timeout", CONNECT_S),
          application_name=given.get("application_name", "atlas_jax"))
      # The pool tries again in the background and says why only in a log: one connection first.
      psycopg.connect(self._conninfo).close()

  @contextlib.contextmanager
  def reading(self) -> Iterator[Transaction]:
    """Yields a transaction that sees one state of the data and changes nothing."""
    with self._errors(), self._opened().connection() as connection, connection.cursor() as cursor:
      transaction = Transaction(cursor, self.dialect)
      transaction.run(sql.SNAPSHOT)
      yield transaction

  @contextlib.contextmanager
  def writing(self, *, patient: bool = False) -> Iterator[Transaction]:
    """Yields a transaction that is committed at the end of the block, and undone if that raises.

    With `patient` a statement may take as long as it needs, such as one that makes an index.
    """
    with self._errors(), self._opened().connection() as connection, connection.cursor() as cursor:
      transaction = Transaction(cursor, self.dialect)
      if patient:
        transaction.run(sql.NO_TIME_LIMIT)
      yield transaction

  def close(self) -> None:
    """Closes the pool."""
    with self._lock:
      if self._pool is not None and self._process == os.getpid():
        self._pool.close()
      self._pool = None

  def _opened(self) -> Any:
    with self._lock:
      if self._pool is None or self._process != os.getpid():  # Sockets are not shared with a parent process,
        self._inherited = self._pool                          # nor closed for it.
        # Plans that are kept fit the values of the first calls: each statement is planned for its own.
        self._pool = self._pools.ConnectionPool(
            self._conninfo, min_size=1, max_size=MOST_CONNECTIONS, timeout=STATEMENT_S, open=True,
            # A connection that the server has closed meanwhile is replaced, not given out.
            check=self._pools.ConnectionPool.check_connection, kwargs={"prepare_threshold": None})
        self._process = os.getpid()
      return self._pool

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    errors = self._psycopg.errors
    try:
      yield
    except (errors.UniqueViolation, errors.SerializationFailure, errors.DeadlockDetected) as error:
      raise StoreConflict(f"{self.name}: {one_line(error)}") from error
    except errors.ProgramLimitExceeded as error:  # Such as a value that is too long for an index.
      raise StoreError(f"{self.name}: {self._said(error)}") from error
    except (self._psycopg.OperationalError, self._pools.PoolTimeout) as error:
      raise UnreachableStore(f"{self.name}: {self._said(error)}") from error
    except self._psycopg.Error as error:
      raise StoreError(f"{self.name}: {self._said(error)}") from error

  def _said(self, error: Exception) -> str:
    password = urllib.parse.urlsplit(self._url).password
    said = one_line(error)
    for secret in filter(None, (password, urllib.parse.unquote(password or ""))):
      said = said.replace(secret, "...")
    return said


Database = SqliteDatabase | PostgresDatabase


def without_password(url: str) -> str:
  """Returns a URL for messages: without user and password, and without parameters, which may have one too."""
  parts = urllib.parse.urlsplit(url)
  host = parts.hostname or ""
  try:
    port = f":{parts.port}" if parts.port else ""
  except ValueError:
    port = ""
  return f"{parts.scheme}://{host}{port}{parts.path}"


def connect(url: str, *, create: bool = False) -> Database:
  """Opens a database.

  Args:
    url: sqlite:///PATH, the path relative, or sqlite:////PATH, absolute; postgresql://... as of libpq.
    create: whether an SQLite file that is not there is made.

  Raises:
    ValueError: for another URL.
    UnreachableStore: if it cannot be opened.
  """
  scheme, _, rest = url.partition("://")
  if scheme == "sqlite":
    path = urllib.parse.unquote(rest.removeprefix("/"))
    if not rest.startswith("/") or path in ("", ":memory:"):
      raise ValueError(f"the URL {url!r} names no file; write sqlite:///PATH")
    return SqliteDatabase(path, create=create)
  if scheme in ("postgresql", "postgres"):
    _check_password(rest)
    return PostgresDatabase(url)
  # Its beginning alone: what stands behind it may be a password wherever it stands.
  raise ValueError(f"the URL {re.split('[:/?@#]', url)[0]!r}... is of no store; write sqlite:///PATH or "
                   "postgresql://USER@HOST:PORT/NAME")


def _check_password(rest: str) -> None:
  """Refuses a password whose signs would make it a part of the host or path, which messages name.

  Args:
    rest: of a URL, behind "://".
  """
  user, _, behind = rest.partition(":")
  is_port = re.search("[@/?#]", user) or re.fullmatch(r"\d*([/,][^@?]*)?(\?.*)?", behind)
  if not is_port and re.search("[@/?#]", behind.rpartition("@")[0]):
    raise ValueError("the URL of the store has one of @ / ? # before its last @; write them as %40 %2F %3F "
                     "%23 in a user's name or password")
