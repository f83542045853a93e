"""Commands on a store of traces: `arc-atlas`, the same as `python scripts/traces.py`.

  arc-atlas init --database-url=sqlite:///traces.db
  arc-atlas import --database-url=sqlite:///traces.db --input=traces.jsonl
  arc-atlas review sessions --status pending
  arc-atlas review show 17
  arc-atlas review approve 17 18 --reviewer=ada --note="checked"
  arc-atlas review quarantine --where learning_key=pumps --reviewer=ada --note="wrong log"
  arc-atlas review drift 17
  arc-atlas export --output=out.jsonl --since=2026-01-01

`export` may be left out, and so may `review` before approve, quarantine and show. A store is named by
--database-url, or by STORAGE__DATABASE_URL or DATABASE_URL.

Exit codes: 0 done; 1 nothing was written, no such session, or a decision that was refused; 2 a wrong flag;
4 a store that is not reached, or has other tables; 130 interrupted.
"""
import argparse
import collections
import difflib
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atlas_jax.data.traces import connections, drift, export, query, record_fields, review, rows, store
from atlas_jax.data.traces.jsonl import TraceReader
from atlas_jax.files import closed_pipe

URLS = ("STORAGE__DATABASE_URL", "DATABASE_URL")
REVIEWER = "ATLAS_REVIEWER"
UNNAMED = "unnamed"
COMMANDS = ("export", "review", "init", "import")
OF_REVIEW = ("approve", "quarantine", "show")  # Also without "review" before them.
DONE, NOTHING, USAGE, STORE, INTERRUPTED = 0, 1, 2, 4, 130


@closed_pipe.quiet
def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
  """Runs a command; returns its exit code.

  Args:
    argv: the flags; None: those of the process.
    environment: variables; None: those of the process.
  """
  given = list(sys.argv[1:] if argv is None else argv)
  if given and given[0] in OF_REVIEW:
    given.insert(0, "review")
  if not given or given[0] not in (*COMMANDS, "-h", "--help"):
    given.insert(0, "export")
  variables = os.environ if environment is None else environment
  try:
    arguments = parser(variables).parse_args(given)
  except SystemExit as exit_:
    return int(exit_.code or 0)
  try:
    return arguments.run(arguments, variables)
  except review.ReviewRefused as error:
    return _failed(NOTHING, error)
  except connections.StoreError as error:
    return _failed(NOTHING if isinstance(error, connections.StoreConflict) else STORE, error)
  except ValueError as error:
    return _failed(USAGE, error)
  except OSError as error:
    if closed_pipe.is_of_output(error):
      raise
    return _failed(NOTHING, error)
  except KeyboardInterrupt:
    return _failed(INTERRUPTED, "interrupted")


def _failed(code: int, why: object) -> int:
  print(f"arc-atlas: {' '.join(str(why).split())}", file=sys.stderr)
  return code


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
  """Returns the parser of all commands."""
  top = argparse.ArgumentParser(prog="arc-atlas", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  commands = top.add_subparsers(dest="command", required=True)
  _add_export(commands, environment)
  init = _command(commands, "init", _init, environment, "make a store's tables, or bring them up to date")
  init.add_argument("--quiet", action="store_true", help="print no line")
  fill = _command(commands, "import", _import, environment, "write the records of a JSONL file to a store")
  fill.add_argument("--input", required=True, help="files, folders or globs, with commas between them")
  fill.add_argument("--strict", action="store_true", help="any line that is no trace is an error")
  fill.add_argument("--rejects", help="a JSONL file for the lines that are no traces, with reasons")
  fill.add_argument("--quiet", action="store_true", help="print no line")
  reviews = commands.add_parser("review", help="look at sessions, approve and quarantine them",
                                allow_abbrev=False).add_subparsers(dest="review", required=True)
  _add_reviews(reviews, environment)
  return top


def _command(commands, name: str, run: Callable, environment: Mapping[str, str],
             text: str) -> argparse.ArgumentParser:
  made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
  url = next((environment[each] for each in URLS if environment.get(each)), None)
  made.add_argument("--database-url", default=url, required=url is None,
                    help=f"sqlite:///PATH or postgresql://...; by default that of {' or '.join(URLS)}")
  made.set_defaults(run=run)
  return made


def _add_export(commands, environment: Mapping[str, str]) -> None:
  made = _command(commands, "export", _export, environment, "write sessions to a JSONL file")
  made.add_argument("--output", required=True, help="the file; a manifest is written beside it")
  made.add_argument("--config", help="refused: the statuses come from --include-status or the environment")
  made.add_argument("--session-id", action="append", type=_positive, help="this session; may be repeated")
  made.add_argument("--limit", type=_positive, help="sessions that are written at most")
  made.add_argument("--offset", type=_count, default=0, help="sessions that are skipped at the beginning")
  made.add_argument("--status", action="append", help="sessions of this status alone; may be repeated; "
                    "by default all that have ended")
  made.add_argument("--trajectory-event-limit", type=_count, default=200,
                    help="the newest so many events of each session")
  made.add_argument("--batch-size", type=_positive, default=query.PAGE_ROWS, help="sessions read at once")
  made.add_argument("--include-status", action="append",
                    help="sessions of this review status, in place of approved ones; may be repeated")
  made.add_argument("--include-all-statuses", action="store_true", help="whatever their review says")
  made.add_argument("--since", type=_instant, help="sessions that began then or later, such as 2026-01-31")
  made.add_argument("--cursor", help="go on behind this place, taken from the manifest of an export")
  made.add_argument("--oldest-first", action="store_true", help="in place of the newest")
  made.add_argument("--learning-key", help="sessions of this family of tasks alone")
  made.add_argument("--min-reward", type=float, help="least score of the reward")
  made.add_argument("--scrub", metavar="MODULE",
                    help="write what its function scrub(record) returns, such as without names of persons")
  form = made.add_mutually_exclusive_group()
  form.add_argument("--compact", action="store_true", help="lines that refer to values of lines before them")
  form.add_argument("--legacy", action="store_true",
                    help="form and filters of the Atlas SDK: statuses come on top of approved, the limit "
                    "counts sessions that are looked at")
  made.add_argument("--quiet", action="store_true", help="print no line")


def _add_reviews(reviews, environment: Mapping[str, str]) -> None:
  listed = _command(reviews, "sessions", _sessions, environment, "list sessions by review status")
  listed.add_argument("--status", action="append", help="review status; by default pending and quarantined")
  listed.add_argument("--limit", type=_positive, default=20, help="sessions of each status at most")
  listed.add_argument("--offset", type=_count, default=0, help="sessions of each status that are skipped")
  listed.add_argument("--quiet", action="store_true", help="ids alone")
  shown = _command(reviews, "show", _show, environment, "print a session, and who moved it")
  shown.add_argument("session_id", type=_positive)
  shown.add_argument("--quiet", action="store_true", help="the record alone")
  for name, status in (("approve", query.APPROVED), ("quarantine", query.QUARANTINED)):
    made = _command(reviews, name, _decide, environment, f"move sessions to {status}")
    made.add_argument("session_id", type=_positive, nargs="*")
    made.add_argument("--where", action="append", default=[], metavar="NAME=VALUE",
                      help=f"pending sessions that fit, by {', '.join(review.WHERE)}; may be repeated")
    made.add_argument("--note", help="why")
    made.add_argument("--reviewer", default=environment.get(REVIEWER) or UNNAMED,
                      help=f"your name, for the log; by default that of {REVIEWER}")
    made.add_argument("--quiet", action="store_true", help="print no line")
    made.set_defaults(to_status=status)
  found = _command(reviews, "drift", _drift, environment, "compare a session's reward with earlier ones")
  found.add_argument("session_id", type=_positive)
  found.add_argument("--keep", action="store_true", help="write the finding to the session")
  found.add_argument("--legacy", action="store_true",
                     help="the Atlas SDK's baseline, which has the session itself")
  found.add_argument("--quiet", action="store_true", help="print no line")


def _positive(text: str) -> int:
  if not text.isdecimal() or not rows.fits(int(text[:20])):
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {rows.MOST_ID}")
  return int(text)


def _count(text: str) -> int:
  return 0 if text == "0" else _positive(text)


def _instant(text: str):
  found = rows.instant(text)
  if found is None:
    raise argparse.ArgumentTypeError(f"{text!r} is no time, such as 2026-01-31 or 2026-01-31T12:00:00+01:00")
  return found


def _say(arguments, line: str) -> None:
  if not arguments.quiet:
    print(line)


def _init(arguments, _: Mapping[str, str]) -> int:
  with store.SqlStore(connections.connect(arguments.database_url, create=True)) as opened:
    applied = opened.migrate()
    done = f"applied {', '.join(map(str, applied))}" if applied else "up to date"
    _say(arguments, f"{opened.name}: tables of version {opened.version()}, {done}")
  return DONE


def _export(arguments, environment: Mapping[str, str]) -> int:
  if arguments.config is not None:
    raise ValueError("--config is not read; give statuses by --include-status, or "
                     f"{query.DEFAULT_STATUSES} and {query.REQUIRE_APPROVAL} in the environment")
  gate = query.review_gate(arguments.include_status, arguments.include_all_statuses, environment,
                               legacy=arguments.legacy)
  wanted = query.SessionQuery(
      review_statuses=gate, statuses=tuple(arguments.status) if arguments.status else None,
      is_ended=not (arguments.legacy or arguments.status or arguments.include_all_statuses),
      ids=tuple(arguments.session_id) if arguments.session_id else None, learning_key=arguments.learning_key,
      since=arguments.since, min_reward=arguments.min_reward, newest_first=not arguments.oldest_first,
      cursor=query.Cursor.parse(arguments.cursor) if arguments.cursor else None, offset=arguments.offset,
      limit=arguments.limit, most_events=arguments.trajectory_event_limit)
  with store.open_store(arguments.database_url) as opened:
    if wanted.ids:
      for number in export.missing(opened, wanted.ids):
        print(f"arc-atlas: {opened.name} has no session {number}", file=sys.stderr)
    form = "sdk" if arguments.legacy else "compact" if arguments.compact else "plain"
    summary = export.export(opened, arguments.output, wanted, form=form, page_rows=arguments.batch_size,
                            scrub=_scrub(arguments.scrub) if arguments.scrub else None)
    withheld = ", ".join(f"{count} {status}" for status, count in summary.withheld.items())
    if not summary.sessions:
      return _failed(NOTHING, f"{opened.name} has no session to export"
                     + (f"; the review gate holds back {withheld}" if withheld else ""))
  _say(arguments, f"Exported {summary.sessions} sessions ({summary.steps} steps) to {arguments.output}"
       + (f"; held back by review: {withheld}" if withheld else ""))
  return DONE


def _scrub(name: str) -> Callable[[dict], dict]:
  """Returns the function `scrub` of a module."""
  try:
    module = importlib.import_module(name)
  except ImportError as error:
    raise ValueError(f"--scrub {name}: {error}; name a module that can be imported") from error
  if not callable(vars(module).get("scrub")):
    raise ValueError(f"--scrub {name}: that module defines no function scrub(record)")
  return vars(module)["scrub"]


def _import(arguments, _: Mapping[str, str]) -> int:
  unread: collections.Counter[str] = collections.Counter()

  def traces(reader):
    for found in reader:
      unread.update(name for name in found.trace.data if name not in record_fields.TRACE)
      yield found.trace

  with store.open_store(arguments.database_url, writable=True) as opened:
    if arguments.strict:  # Looked through first: nothing is written of a file with a line that is no trace.
      collections.deque(TraceReader(arguments.input, strict=True, rejects_file=arguments.rejects), maxlen=0)
    reader = TraceReader(arguments.input, strict=arguments.strict, rejects_file=arguments.rejects)
    total = opened.write_all(traces(reader), who="import")
    report = reader.report
  for reject in report.shown:
    print(f"arc-atlas: {reject}", file=sys.stderr)
  for name, count in sorted(unread.items()):
    close = difflib.get_close_matches(name, record_fields.TRACE, n=1)
    print(f"arc-atlas: the key {name!r} (sessions with it: {count}) is kept, and nothing reads it"
          f"{f'; did you mean {close[0]!r}?' if close else ''}", file=sys.stderr)
  _say(arguments, f"Wrote {total} sessions to {opened.name}; {report.rejected} lines are no traces, "
       f"{report.duplicates} stood there before")
  return DONE if total else NOTHING


def _sessions(arguments, _: Mapping[str, str]) -> int:
  statuses = arguments.status or [query.PENDING, query.QUARANTINED]
  with store.open_store(arguments.database_url) as opened:
    for status in statuses:
      wanted = query.SessionQuery(review_statuses=(status.strip().lower(),), newest_first=True,
                                   limit=arguments.limit, offset=arguments.offset, most_events=0)
      found = [one for page in opened.pages(wanted) for one in page]
      if arguments.quiet:
        for one in found:
          print(one.id)
        continue
      total = sum(opened.counts(wanted).values())
      print(f"Status: {status} ({len(found)} of {total} sessions)")
      for line in [line for one in found for line in review.lines(one)] or ["  (none)"]:
        print(line)
  return DONE


def _show(arguments, _: Mapping[str, str]) -> int:
  with store.open_store(arguments.database_url) as opened:
    found = opened.session(arguments.session_id)
    if found is None:
      return _failed(NOTHING, f"{opened.name} has no session {arguments.session_id}")
    moves = [] if arguments.quiet or opened.version() == 0 else opened.moves(found.id)
  print(json.dumps(found.record(), ensure_ascii=False, indent=2))
  for move in moves:
    print(f"{move['at']}  {move['from'] or '(written)'} -> {move['to']}  by {review.shown(move['who'])}"
          + (f": {review.shown(move['note'])}" if move["note"] else ""))
  return DONE


def _decide(arguments, _: Mapping[str, str]) -> int:
  if bool(arguments.session_id) == bool(arguments.where):
    raise ValueError("name sessions by id, or by --where, and not by both")
  with store.open_store(arguments.database_url, writable=True) as opened:
    ids = arguments.session_id or list(review.matching(opened, _where(arguments.where)))
    if not ids:
      return _failed(NOTHING, f"{opened.name} has no pending session of that kind")
    for number in ids:
      done = review.decide(opened, number, arguments.to_status, who=arguments.reviewer, note=arguments.note)
      _say(arguments, f"Session {number}: {done.before} -> {arguments.to_status}" if done.moved
           else f"Session {number} is {done.before} already")
  return DONE


def _where(texts: Sequence[str]) -> query.SessionQuery:
  """Returns the pending sessions that fit NAME=VALUE texts."""
  found = query.SessionQuery(review_statuses=(query.PENDING,))
  for text in texts:
    name, is_given, value = text.partition("=")
    if not is_given or name not in review.WHERE:
      raise ValueError(f"--where {text}: write NAME=VALUE, with one of {', '.join(review.WHERE)}")
    if name == "status":
      found = found.changed(statuses=(value,))
    elif name == "since":
      found = found.changed(since=_of_where(_instant, text, value))
    else:
      found = found.changed(**{name: _of_where(float, text, value) if name == "min_reward" else value})
  return found


def _of_where(read: Callable[[str], Any], text: str, value: str) -> Any:
  """Returns a value of --where; ValueError that names the flag."""
  try:
    return read(value)
  except (argparse.ArgumentTypeError, ValueError) as error:
    raise ValueError(f"--where {text}: {error}") from error


def _drift(arguments, _: Mapping[str, str]) -> int:
  with store.open_store(arguments.database_url, writable=arguments.keep) as opened:
    found = opened.session(arguments.session_id, most_events=0)
    if found is None:
      return _failed(NOTHING, f"{opened.name} has no session {arguments.session_id}")
    finding = drift.guard(opened, found, drift.DriftSettings(legacy=arguments.legacy))
    if finding is None:
      return _failed(NOTHING, f"session {found.id} has no learning key, or no score to compare")
    note = drift.note_of(finding)
    if arguments.keep:
      opened.keep_drift(found.id, finding, note)
  _say(arguments, note or f"no drift ({finding['reason'] or 'within the threshold'})")
  return DONE
