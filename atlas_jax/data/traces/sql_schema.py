"""Tables of the trace store and their migrations, for PostgreSQL and SQLite: the SQL that defines.

The first migration makes the eight tables of the Atlas SDK with their names and columns, so that its own
exporter reads a store of ours; in a database of the SDK it finds them there. Statements that read and write
are in `sql`. Statements are written for PostgreSQL. SQLite has no types for JSON and for times: both are TEXT
there, times in UTC with six digits of a second, so that their order as text is their order in time.

A migration is never edited once it is released; a change is a new one with the next version.
"""
from typing import NamedTuple


class Migration(NamedTuple):
  """One step of the schema.

  Attributes:
    version: from 1, without gaps.
    name: for people, in the table of migrations.
    postgres: its statements.
    sqlite: the same statements for SQLite.
  """
  version: int
  name: str
  postgres: tuple[str, ...]
  sqlite: tuple[str, ...]


# The table of migrations, made before any of them.
BOOKS = """
CREATE TABLE IF NOT EXISTS schema_migrations (
  version INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  applied_at TEXT NOT NULL
)"""
_SDK = ("""
CREATE TABLE IF NOT EXISTS sessions (
  id SERIAL PRIMARY KEY,
  task TEXT NOT NULL,
  status TEXT NOT NULL DEFAULT 'running',
  metadata JSONB,
  final_answer TEXT,
  reward JSONB,
  reward_stats JSONB,
  reward_audit JSONB,
  student_learning TEXT,
  teacher_learning TEXT,
  review_status TEXT NOT NULL DEFAULT 'pending',
  review_notes TEXT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  completed_at TIMESTAMPTZ
)""", """
CREATE TABLE IF NOT EXISTS plans (
  session_id INTEGER PRIMARY KEY REFERENCES sessions(id) ON DELETE CASCADE,
  plan JSONB NOT NULL
)""", """
CREATE TABLE IF NOT EXISTS step_results (
  session_id INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
  step_id INTEGER NOT NULL,
  trace TEXT,
  output TEXT,
  evaluation JSONB,
  attempts INTEGER,
  metadata JSONB,
  PRIMARY KEY (session_id, step_id)
)""", """
CREATE TABLE IF NOT EXISTS step_attempts (
  session_id INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
  step_id INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  evaluation JSONB,
  PRIMARY KEY (session_id, step_id, attempt)
)""", """
CREATE TABLE IF NOT EXISTS guidance_notes (
  session_id INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
  step_id INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  note TEXT NOT NULL,
  PRIMARY KEY (session_id, step_id, sequence)
)""", """
CREATE TABLE IF NOT EXISTS trajectory_events (
  id SERIAL PRIMARY KEY,
  session_id INTEGER REFERENCES sessions(id) ON DELETE CASCADE,
  event JSONB NOT NULL,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now()
)""", """
CREATE TABLE IF NOT EXISTS discovery_runs (
  id SERIAL PRIMARY KEY,
  project_root TEXT NOT NULL,
  task TEXT,
  source TEXT NOT NULL DEFAULT 'discovery',
  payload JSONB NOT NULL,
  metadata JSONB,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now()
)""", """
CREATE TABLE IF NOT EXISTS learning_registry (
  learning_key TEXT PRIMARY KEY,
  student_learning TEXT,
  teacher_learning TEXT,
  metadata JSONB,
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
)""")
_REVIEW = ("""
CREATE TABLE review_log (
  id SERIAL PRIMARY KEY,
  session_id INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
  from_status TEXT,
  to_status TEXT NOT NULL,
  who TEXT NOT NULL,
  note TEXT,
  at TIMESTAMPTZ NOT NULL
)""", """
CREATE TABLE session_keys (
  session_key TEXT PRIMARY KEY,
  session_id INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE
)""")
# The first two serve pages in order of time, with the gate of review and without it. The SDK has no index on
# the events of a session at all, nor on what it sorts drift baselines by.
_PAGES = (
  "CREATE INDEX sessions_review_page_idx ON sessions (review_status, created_at, id)",
  "CREATE INDEX sessions_page_idx ON sessions (created_at, id)",
  "CREATE INDEX sessions_learning_page_idx ON sessions ((metadata->>'learning_key'), created_at, id)",
  "CREATE INDEX trajectory_events_session_idx ON trajectory_events (session_id, id)",
  "CREATE INDEX review_log_session_idx ON review_log (session_id, id)",
  "CREATE INDEX session_keys_session_idx ON session_keys (session_id)",
)
# Of the runtime: who works at a session and until when, its events by their numbers, lessons, what is served.
_RUNTIME = (
  "ALTER TABLE session_keys ADD COLUMN owner TEXT",
  "ALTER TABLE session_keys ADD COLUMN until TIMESTAMPTZ", """
CREATE TABLE session_events (
  session_id INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
  seq INTEGER NOT NULL,
  event JSONB NOT NULL,
  PRIMARY KEY (session_id, seq)
)""", """
CREATE TABLE playbooks (
  playbook_key TEXT PRIMARY KEY,
  version INTEGER NOT NULL,
  entries JSONB NOT NULL
)""", """
CREATE TABLE playbook_uses (
  session_id INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
  playbook_key TEXT NOT NULL,
  entry_id TEXT NOT NULL,
  shown INTEGER NOT NULL,
  PRIMARY KEY (session_id, playbook_key, entry_id)
)""", """
CREATE TABLE deployments (
  id SERIAL PRIMARY KEY,
  role TEXT NOT NULL,
  version TEXT NOT NULL,
  url TEXT NOT NULL,
  share DOUBLE PRECISION NOT NULL,
  state TEXT NOT NULL,
  metadata JSONB,
  at TIMESTAMPTZ NOT NULL
)""",
  "CREATE INDEX session_keys_until_idx ON session_keys (until)",
  "CREATE INDEX playbook_uses_entry_idx ON playbook_uses (playbook_key, entry_id)",
)
# Scores of a task under a version on trial and under the one before it.
_CANARY = ("""
CREATE TABLE canary_pairs (
  deployment_id INTEGER NOT NULL REFERENCES deployments(id) ON DELETE CASCADE,
  session_id INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
  new_score DOUBLE PRECISION,
  old_score DOUBLE PRECISION,
  is_error INTEGER NOT NULL,
  PRIMARY KEY (deployment_id, session_id)
)""",)
_SQLITE = (
  ("SERIAL PRIMARY KEY", "INTEGER PRIMARY KEY AUTOINCREMENT"),
  ("TIMESTAMPTZ NOT NULL DEFAULT now()",
   "TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now'))"),
  ("TIMESTAMPTZ", "TEXT"),
  ("JSONB", "TEXT"),
  ("DOUBLE PRECISION", "REAL"),
  ("metadata->>'learning_key'", "json_extract(metadata, '$.learning_key')"),
)


def for_sqlite(statement: str) -> str:
  """Returns a statement that defines, with the types of SQLite in place of those of PostgreSQL."""
  for postgres, sqlite in _SQLITE:
    statement = statement.replace(postgres, sqlite)
  return statement


def _migration(version: int, name: str, *statements: str) -> Migration:
  return Migration(version, name, statements, tuple(for_sqlite(each) for each in statements))


MIGRATIONS = (
  _migration(1, "tables of the Atlas SDK", *_SDK),
  _migration(2, "review log, session keys and indices of pages", *_REVIEW, *_PAGES),
  _migration(3, "leases, events, lessons and deployments of the runtime", *_RUNTIME),
  _migration(4, "comparisons of versions on trial", *_CANARY),
)
VERSION = MIGRATIONS[-1].version
