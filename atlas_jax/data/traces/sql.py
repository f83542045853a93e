"""All SQL that reads and writes traces; what defines tables is in `sql_schema`, and SQL stands nowhere else.

Statements are written for PostgreSQL and translated for SQLite when this module is imported; where the two
have no common form, both are given. Values are parameters, always: what is put together here are clauses of
this file, chosen by name, never anything that a caller has.
"""
import functools
import re
from typing import NamedTuple

from atlas_jax.data.traces import sql_schema


class Statement(NamedTuple):
  """One statement in both dialects; its parameters have names."""
  postgres: str
  sqlite: str


_LIST = re.compile(r"= ANY\(%\((\w+)\)s\)")
_VALUE = re.compile(r"%\((\w+)\)s")
_KEY = re.compile(r"((?:\w+\.)?\w+)->>'(\w+)'")


_CELL = re.compile(r"CAST\(value->>(\d) AS \w+\)")
_ROWS = "jsonb_array_elements(CAST(%(rows)s AS JSONB))"


def _both(text: str) -> Statement:
  """Returns a statement of PostgreSQL and its translation."""
  lite = _LIST.sub(r"IN (SELECT value FROM json_each(:\1))", text)
  lite = _KEY.sub(r"json_extract(\1, '$.\2')", _VALUE.sub(r":\1", lite))
  return Statement(text, lite.replace(" FOR UPDATE", ""))


def _many(text: str) -> Statement:
  """Returns a statement that puts many rows into a table, and its translation; JSON comes as a text.

  Its parameter `rows` is a JSON list of lists.
  """
  lite = _CELL.sub(r"json_extract(value, '$[\1]')", text)
  # Without a WHERE, SQLite takes ON for the beginning of a join.
  return Statement(text, lite.replace(_ROWS, "json_each(:rows) WHERE TRUE"))


BOOKS = _both(sql_schema.BOOKS)
VERSION = _both("SELECT COALESCE(MAX(version), 0) FROM schema_migrations")
APPLIED = _both("INSERT INTO schema_migrations (version, name, applied_at) "
                "VALUES (%(version)s, %(name)s, %(at)s)")
HAS_TABLE = Statement("SELECT CASE WHEN to_regclass(%(name)s) IS NULL THEN 0 ELSE 1 END",
                      "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = :name")
# One number for all stores: programs that migrate one database take turns. BEGIN IMMEDIATE does it in SQLite.
MIGRATION_LOCK = Statement("SELECT pg_advisory_xact_lock(7230141, 18)", "SELECT 1")
MIGRATIONS = tuple((one.version, one.name, tuple(Statement(*pair) for pair in zip(one.postgres, one.sqlite)))
                   for one in sql_schema.MIGRATIONS)
SNAPSHOT = Statement("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY", "SELECT 1")
NO_TIME_LIMIT = Statement("SET LOCAL statement_timeout = 0", "SELECT 1")
BEGIN_READ, BEGIN_WRITE, COMMIT, ROLLBACK = "BEGIN", "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"  # Of SQLite.
SQLITE_WAL = "PRAGMA journal_mode = WAL"
# What is deleted is overwritten: whoever asks to be forgotten is.
SQLITE_SETUP = ("PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON", "PRAGMA busy_timeout = 20000",
                "PRAGMA secure_delete = ON")

# JSON as text from both, so that one parser decodes it.
_SESSION = """
SELECT s.id, s.task, s.status, CAST(s.metadata AS TEXT), s.final_answer, CAST(s.reward AS TEXT),
  CAST(s.reward_stats AS TEXT), CAST(s.reward_audit AS TEXT), s.student_learning, s.teacher_learning,
  s.review_status, s.review_notes, s.created_at, s.completed_at,
  (SELECT CAST(p.plan AS TEXT) FROM plans p WHERE p.session_id = s.id)
FROM sessions s
"""
SESSION_COLUMNS = (
  "id", "task", "status", "metadata", "final_answer", "reward", "reward_stats", "reward_audit",
  "student_learning", "teacher_learning", "review_status", "review_notes", "created_at", "completed_at",
  "plan")
# A score that is no number has no order; PostgreSQL would refuse to cast it.
_SCORE = Statement(
    "(CASE WHEN jsonb_typeof(s.reward_stats->'score') = 'number' "
    "THEN CAST(s.reward_stats->>'score' AS double precision) END) >= %(min_reward)s",
    "(CASE WHEN json_type(s.reward_stats, '$.score') IN ('integer', 'real') "
    "THEN json_extract(s.reward_stats, '$.score') END) >= :min_reward")
CLAUSES = {
  # With one status the index gives the rows in their order; with a list they would be sorted.
  "review_status": _both("s.review_status = %(review_status)s"),
  "review_statuses": _both("s.review_status = ANY(%(review_statuses)s)"),
  "statuses": _both("LOWER(s.status) = ANY(%(statuses)s)"),
  "ended": _both("LOWER(TRIM(s.status)) <> 'running'"),
  "ids": _both("s.id = ANY(%(ids)s)"),
  "learning_key": _both("(s.metadata->>'learning_key') = %(learning_key)s"),
  "since": _both("s.created_at >= %(since)s"),
  "min_reward": _SCORE,
  "older_than": _both("(s.created_at, s.id) < (%(at)s, %(at_id)s)"),
  "newer_than": _both("(s.created_at, s.id) > (%(at)s, %(at_id)s)"),
  "rewarded": _both("s.reward_stats IS NOT NULL"),
}
_NEWEST = " ORDER BY s.created_at DESC, s.id DESC"
_OLDEST = " ORDER BY s.created_at, s.id"
_PAGE = _both(" LIMIT %(rows)s OFFSET %(offset)s")


@functools.cache
def _selection(select: str, names: tuple[str, ...], end: str, paged: bool) -> Statement:
  """Puts clauses of this file together."""
  texts = []
  for dialect in Statement._fields:
    clauses = [getattr(CLAUSES[name], dialect) for name in names]
    where = " AND ".join(clauses) if clauses else "TRUE"
    texts.append("".join([select, " WHERE ", where, end, getattr(_PAGE, dialect) if paged else ""]))
  return Statement(*texts)


def page(names: tuple[str, ...], *, newest_first: bool) -> Statement:
  """Returns the statement of a page of sessions, its parameters those of the clauses, `rows` and `offset`."""
  return _selection(_SESSION, names, _NEWEST if newest_first else _OLDEST, True)


def counts(names: tuple[str, ...]) -> Statement:
  """Returns the statement that counts sessions by review status and status."""
  return _selection("SELECT s.review_status, s.status, COUNT(*) FROM sessions s", names,
                    " GROUP BY s.review_status, s.status ORDER BY s.review_status, s.status", False)


def baseline(names: tuple[str, ...]) -> Statement:
  """Returns the statement of the newest statistics of rewards; parameters as of `page`."""
  select = "SELECT CAST(s.reward_stats AS TEXT) FROM sessions s"
  return _selection(select, (*names, "rewarded"), _NEWEST, True)


# Steps, their attempts and the guidance of a page in one query: kind 0, 1, 2.
CHILDREN = _both("""
SELECT session_id, step_id, 0 AS kind, 0 AS place, attempts, trace, output, CAST(evaluation AS TEXT),
  CAST(metadata AS TEXT)
FROM step_results WHERE session_id = ANY(%(ids)s)
UNION ALL
SELECT session_id, step_id, 1, attempt, NULL, NULL, NULL, CAST(evaluation AS TEXT), NULL
FROM step_attempts WHERE session_id = ANY(%(ids)s)
UNION ALL
SELECT session_id, step_id, 2, sequence, NULL, note, NULL, NULL, NULL
FROM guidance_notes WHERE session_id = ANY(%(ids)s)
ORDER BY session_id, step_id, kind, place
""")
EVENTS = _both("""
SELECT session_id, id, created_at, CAST(event AS TEXT) FROM trajectory_events
WHERE session_id = ANY(%(ids)s) ORDER BY session_id, id
""")
NEWEST_EVENTS = _both("""
SELECT session_id, id, created_at, event FROM (
  SELECT session_id, id, created_at, CAST(event AS TEXT) AS event,
    ROW_NUMBER() OVER (PARTITION BY session_id ORDER BY id DESC) AS place
  FROM trajectory_events WHERE session_id = ANY(%(ids)s)
) AS newest WHERE place <= %(most_events)s ORDER BY session_id, id
""")

KEYED = _both("SELECT session_id FROM session_keys WHERE session_key = %(key)s")
ADD_KEY = _both("INSERT INTO session_keys (session_key, session_id) VALUES (%(key)s, %(session_id)s) "
                "ON CONFLICT (session_key) DO NOTHING")
FIND_SESSION = _both("SELECT task, created_at, review_status FROM sessions WHERE id = %(id)s FOR UPDATE")
ADD_SESSION = _both("""
INSERT INTO sessions (task, status, metadata, final_answer, reward, reward_stats, reward_audit,
  student_learning, teacher_learning, review_status, review_notes, created_at, completed_at)
VALUES (%(task)s, %(status)s, %(metadata)s, %(final_answer)s, %(reward)s, %(reward_stats)s, %(reward_audit)s,
  %(student_learning)s, %(teacher_learning)s, %(review_status)s, %(review_notes)s, %(created_at)s,
  %(completed_at)s)
RETURNING id
""")
ADD_NUMBERED_SESSION = _both("""
INSERT INTO sessions (id, task, status, metadata, final_answer, reward, reward_stats, reward_audit,
  student_learning, teacher_learning, review_status, review_notes, created_at, completed_at)
VALUES (%(id)s, %(task)s, %(status)s, %(metadata)s, %(final_answer)s, %(reward)s, %(reward_stats)s,
  %(reward_audit)s, %(student_learning)s, %(teacher_learning)s, %(review_status)s, %(review_notes)s,
  %(created_at)s, %(completed_at)s)
RETURNING id
""")
# What a review has decided stays, whatever a replayed trace says.
CHANGE_SESSION = _both("""
UPDATE sessions SET status = %(status)s, metadata = %(metadata)s, final_answer = %(final_answer)s,
  reward = %(reward)s, reward_stats = %(reward_stats)s, reward_audit = %(reward_audit)s,
  student_learning = %(student_learning)s, teacher_learning = %(teacher_learning)s,
  completed_at = %(completed_at)s
WHERE id = %(id)s
""")
ADD_PLAN = _both("INSERT INTO plans (session_id, plan) VALUES (%(session_id)s, %(plan)s)")
ADD_STEP = _both("""
INSERT INTO step_results (session_id, step_id, trace, output, evaluation, attempts, metadata)
VALUES (%(session_id)s, %(step_id)s, %(trace)s, %(output)s, %(evaluation)s, %(attempts)s, %(metadata)s)
""")
ADD_ATTEMPT = _both("INSERT INTO step_attempts (session_id, step_id, attempt, evaluation) "
                    "VALUES (%(session_id)s, %(step_id)s, %(attempt)s, %(evaluation)s)")
ADD_NOTE = _both("INSERT INTO guidance_notes (session_id, step_id, sequence, note) "
                 "VALUES (%(session_id)s, %(step_id)s, %(sequence)s, %(note)s)")
ADD_EVENT = _both("INSERT INTO trajectory_events (session_id, event, created_at) "
                  "VALUES (%(session_id)s, %(event)s, %(created_at)s)")
ADD_NUMBERED_EVENT = _both("INSERT INTO trajectory_events (id, session_id, event, created_at) "
                           "VALUES (%(id)s, %(session_id)s, %(event)s, %(created_at)s)")
TAKEN_EVENTS = _both("SELECT COUNT(*) FROM trajectory_events WHERE id = ANY(%(ids)s)")
ANALYZE = Statement("ANALYZE sessions, plans, step_results, step_attempts, guidance_notes, trajectory_events",
                    "SELECT 1")
CLEAR_SESSION = tuple(_both(each) for each in (
  "DELETE FROM plans WHERE session_id = %(session_id)s",
  "DELETE FROM step_results WHERE session_id = %(session_id)s",
  "DELETE FROM step_attempts WHERE session_id = %(session_id)s",
  "DELETE FROM guidance_notes WHERE session_id = %(session_id)s",
  "DELETE FROM trajectory_events WHERE session_id = %(session_id)s",
))
# Ids that are given do not move the counter of ids that are allotted; in SQLite they do.
COUNT_SESSIONS_ON = Statement(
    "SELECT setval(pg_get_serial_sequence('sessions', 'id'), GREATEST(nextval(pg_get_serial_sequence("
    "'sessions', 'id')), %(id)s))", "SELECT 1")
COUNT_EVENTS_ON = Statement(
    "SELECT setval(pg_get_serial_sequence('trajectory_events', 'id'), GREATEST(nextval("
    "pg_get_serial_sequence('trajectory_events', 'id')), %(id)s))", "SELECT 1")

REVIEWED = _both("SELECT review_status FROM sessions WHERE id = %(id)s")
MOVE = _both("""
UPDATE sessions SET review_status = %(to_status)s, review_notes = COALESCE(%(note)s, review_notes)
WHERE id = %(id)s AND review_status = %(from_status)s
""")
LOG_MOVE = _both("""
INSERT INTO review_log (session_id, from_status, to_status, who, note, at)
VALUES (%(id)s, %(from_status)s, %(to_status)s, %(who)s, %(note)s, %(at)s)
""")
MOVES = _both("SELECT from_status, to_status, who, note, at FROM review_log "
              "WHERE session_id = %(id)s ORDER BY id")
KEEP_DRIFT = _both("UPDATE sessions SET metadata = %(metadata)s, "
                   "review_notes = COALESCE(%(note)s, review_notes) WHERE id = %(id)s")

# The runtime's. A session that is begun has a lease; one that has ended needs none, so it is left to expire.
BEGIN_SESSION = _both("""
INSERT INTO sessions (task, status, metadata, review_status, created_at)
VALUES (%(task)s, 'running', %(metadata)s, 'pending', %(created_at)s) RETURNING id
""")
BEGIN_KEY = _both("""
INSERT INTO session_keys (session_key, session_id, owner, until)
VALUES (%(key)s, %(session_id)s, %(owner)s, %(until)s) ON CONFLICT (session_key) DO NOTHING
""")
DROP_SESSION = _both("DELETE FROM sessions WHERE id = %(id)s")
PUT_EVENTS = _many("""
INSERT INTO session_events (session_id, seq, event)
SELECT CAST(value->>0 AS INTEGER), CAST(value->>1 AS INTEGER), CAST(value->>2 AS JSONB)
FROM jsonb_array_elements(CAST(%(rows)s AS JSONB)) ON CONFLICT (session_id, seq) DO NOTHING
""")
PUT_PLANS = _many("""
INSERT INTO plans (session_id, plan) SELECT CAST(value->>0 AS INTEGER), CAST(value->>1 AS JSONB)
FROM jsonb_array_elements(CAST(%(rows)s AS JSONB))
ON CONFLICT (session_id) DO UPDATE SET plan = EXCLUDED.plan
""")
PUT_STEPS = _many("""
INSERT INTO step_results (session_id, step_id, trace, output, attempts, evaluation, metadata)
SELECT CAST(value->>0 AS INTEGER), CAST(value->>1 AS INTEGER), CAST(value->>2 AS TEXT),
  CAST(value->>3 AS TEXT), CAST(value->>4 AS INTEGER), CAST(value->>5 AS JSONB), CAST(value->>6 AS JSONB)
FROM jsonb_array_elements(CAST(%(rows)s AS JSONB))
ON CONFLICT (session_id, step_id) DO UPDATE SET trace = EXCLUDED.trace, output = EXCLUDED.output,
  evaluation = EXCLUDED.evaluation, attempts = EXCLUDED.attempts, metadata = EXCLUDED.metadata
""")
PUT_ATTEMPTS = _many("""
INSERT INTO step_attempts (session_id, step_id, attempt, evaluation)
SELECT CAST(value->>0 AS INTEGER), CAST(value->>1 AS INTEGER), CAST(value->>2 AS INTEGER),
  CAST(value->>3 AS JSONB)
FROM jsonb_array_elements(CAST(%(rows)s AS JSONB))
ON CONFLICT (session_id, step_id, attempt) DO UPDATE SET evaluation = EXCLUDED.evaluation
""")
PUT_NOTES = _many("""
INSERT INTO guidance_notes (session_id, step_id, sequence, note)
SELECT CAST(value->>0 AS INTEGER), CAST(value->>1 AS INTEGER), CAST(value->>2 AS INTEGER),
  CAST(value->>3 AS TEXT)
FROM jsonb_array_elements(CAST(%(rows)s AS JSONB))
ON CONFLICT (session_id, step_id, sequence) DO UPDATE SET note = EXCLUDED.note
""")
OF_KEY = _both("SELECT k.session_id, s.status, s.task, CAST(s.metadata AS TEXT), k.owner, k.until "
               "FROM session_keys k JOIN sessions s ON s.id = k.session_id WHERE k.session_key = %(key)s")
EVENTS_OF = _both("SELECT CAST(event AS TEXT) FROM session_events WHERE session_id = %(id)s "
                  "AND seq > %(after)s ORDER BY seq")
RUN_EVENTS = _both("""
SELECT session_id, CAST(event AS TEXT) FROM session_events WHERE session_id = ANY(%(ids)s)
ORDER BY session_id, seq
""")
HEARTBEAT = _both("UPDATE session_keys SET until = %(until)s WHERE owner = %(owner)s AND until IS NOT NULL "
                  "AND session_key = ANY(%(keys)s)")
# Of sessions that have ended the lease says nothing any more.
RELEASE = _both("UPDATE session_keys SET until = NULL WHERE owner = %(owner)s AND until IS NOT NULL AND "
                "EXISTS (SELECT 1 FROM sessions s WHERE s.id = session_keys.session_id "
                "AND s.status <> 'running')")
EXPIRED = Statement(
    "SELECT k.session_key, k.session_id, k.until FROM session_keys k JOIN sessions s ON s.id = k.session_id "
    "WHERE s.status = 'running' AND k.until IS NOT NULL AND k.until < %(now)s ORDER BY k.until "
    "LIMIT %(rows)s FOR UPDATE OF k SKIP LOCKED",
    "SELECT k.session_key, k.session_id, k.until FROM session_keys k JOIN sessions s ON s.id = k.session_id "
    "WHERE s.status = 'running' AND k.until IS NOT NULL AND k.until < :now ORDER BY k.until LIMIT :rows")
CLAIM = _both("UPDATE session_keys SET owner = %(owner)s, until = %(until)s WHERE session_key = %(key)s "
              "AND until < %(now)s")
COUNT_EXPIRED = _both("SELECT COUNT(*) FROM session_keys k JOIN sessions s ON s.id = k.session_id "
                      "WHERE s.status = 'running' AND k.until IS NOT NULL AND k.until < %(now)s")
PLAYBOOK = _both("SELECT version, CAST(entries AS TEXT) FROM playbooks WHERE playbook_key = %(key)s")
ADD_PLAYBOOK = _both("INSERT INTO playbooks (playbook_key, version, entries) "
                     "VALUES (%(key)s, 1, %(entries)s) ON CONFLICT (playbook_key) DO NOTHING")
CHANGE_PLAYBOOK = _both("UPDATE playbooks SET version = version + 1, entries = %(entries)s "
                        "WHERE playbook_key = %(key)s AND version = %(version)s")
PLAYBOOK_KEYS = _both("SELECT playbook_key FROM playbooks ORDER BY playbook_key")
DROP_PLAYBOOK = _both("DELETE FROM playbooks WHERE playbook_key = %(key)s")
PUT_USE = _both("INSERT INTO playbook_uses (session_id, playbook_key, entry_id, shown) "
                "VALUES (%(session_id)s, %(key)s, %(entry_id)s, %(shown)s) "
                "ON CONFLICT (session_id, playbook_key, entry_id) DO NOTHING")
USES = _both("SELECT u.entry_id, u.shown, u.session_id FROM playbook_uses u JOIN sessions s "
             "ON s.id = u.session_id WHERE u.playbook_key = %(key)s ORDER BY u.session_id")
USES_OF = _both("SELECT session_id, shown FROM playbook_uses WHERE playbook_key = %(key)s "
                "AND entry_id = %(entry)s ORDER BY session_id LIMIT %(rows)s")
ADD_DEPLOYMENT = _both("INSERT INTO deployments (role, version, url, share, state, metadata, at) VALUES "
                       "(%(role)s, %(version)s, %(url)s, %(fraction)s, %(state)s, %(metadata)s, %(at)s) "
                       "RETURNING id")
MOVE_DEPLOYMENT = _both("UPDATE deployments SET state = %(to_state)s, share = %(fraction)s, "
                        "metadata = COALESCE(%(metadata)s, metadata) "
                        "WHERE id = %(id)s AND state = %(from_state)s")
DEPLOYMENTS = _both("SELECT id, role, version, url, share, state, CAST(metadata AS TEXT), at "
                    "FROM deployments WHERE role = %(role)s ORDER BY id")
PUT_CANARY_PAIR = _both(
    "INSERT INTO canary_pairs (deployment_id, session_id, new_score, old_score, is_error) VALUES "
    "(%(deployment)s, %(session_id)s, %(new)s, %(old)s, %(is_error)s) "
    "ON CONFLICT (deployment_id, session_id) DO NOTHING")
CANARY_PAIRS = _both("SELECT new_score, old_score, is_error FROM canary_pairs "
                     "WHERE deployment_id = %(deployment)s ORDER BY session_id")
OF_TENANT = _both("SELECT id FROM sessions WHERE metadata->>'tenant_id' = %(tenant)s")
KEYS_OF_TENANT = _both("SELECT k.session_key FROM session_keys k JOIN sessions s ON s.id = k.session_id "
                       "WHERE s.metadata->>'tenant_id' = %(tenant)s ORDER BY k.session_key")
