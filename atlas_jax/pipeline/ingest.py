"""The first stage: the sessions that review and filters let in are copied, and all others are accounted for.

The copy is what every later stage reads, so that a run goes on with the same data whatever becomes of the
store or the file that it was started with.
"""
import hashlib
import heapq
import os
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from absl import logging

from atlas_jax import config as configs
from atlas_jax.data.traces import compact, filters, sources, split
from atlas_jax.data.traces.jsonl import FoundTrace, ReadReport, TraceReader
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.store import open_store
from atlas_jax.files import write
from atlas_jax.pipeline import places
from atlas_jax.pipeline.plan import Plan, shown_url

URL_VARIABLE = "ATLAS_PIPELINE_DATABASE_URL"
OTHERS = "filters"  # Of a store's query.
REASONS = {**filters.REASONS, OTHERS: "it is too old, or of another family of tasks"}
FEW = 20  # Questions below which nothing is to be concluded from a measurement.


def run(plan: Plan) -> dict[str, Any]:
  """Copies the sessions and returns what became of all of them.

  Raises:
    ValueError: if the source cannot be read, or nothing is let in; says why and what to do.
  """
  settings = plan.settings
  files = settings.export_path
  if files is None:
    # The URL may have a password, and configs are written to disk.
    os.environ[URL_VARIABLE] = settings.database_url or ""
    files = f"{sources.ENVIRONMENT}{URL_VARIABLE}"
  fields = configs.unfrozen(plan.training.config).traces
  fields.rejects_file = str(plan.output / places.REJECTS)
  fields.max_age_days = settings.max_age_days
  (plan.output / places.TRACES).parent.mkdir(parents=True, exist_ok=True)
  selection = sources.Selection(filters.of_config(fields))
  counts: Counter = Counter()
  groups: set[str] = set()
  held = plan.output / places.TRACES
  found = _sample(sources.selected(files, fields, selection), settings.max_samples)
  written = compact.pack(_counted(found, fields.split_by, counts, groups), held)
  written -= _leave_out(held, selection, fields.split_by, counts, groups)
  if not (plan.output / places.REJECTS).exists():  # A store has no lines.
    write.whole(plan.output / places.REJECTS, b"")
  source = settings.export_path or shown_url(settings.database_url or "")
  if sources.is_store(files):
    _count_withheld(files, selection)
  report = _report(source, selection, written, counts, groups)
  write.json(plan.output / places.INGEST, report)
  logging.info("%s", in_words(report))
  _check(report)
  return report


def _report(source: str, selection: sources.Selection, written: int, counts: Counter, groups: set[str]
            ) -> dict[str, Any]:
  lines = selection.report.to_json() if selection.report else None
  dropped = {name: {"sessions": count, "why": REASONS[name]}
             for name, count in selection.dropped.most_common()}
  seen = sum(selection.dropped.values()) + selection.kept.to_json()["records"]
  return {"source": source, "sessions": seen, "let_in": written, "questions": len(groups),
          "left_out": dropped,
          "rejected_lines": lines["rejected"] if lines else 0, "lines": lines,
          "with_ground_truth": counts["ground_truth"], "with_guidance": counts["guidance"],
          "with_reward": counts["reward"], "filters": selection.filters.to_json(),
          "data": selection.kept.to_json()}


def _count_withheld(files: str, selection: sources.Selection) -> None:
  """Counts what a store's own query has left out, which no trace was read of; see `query.of_filters`."""
  with open_store(sources.url_of(files)) as store:
    found = store.counts(SessionQuery(review_statuses=None))
  read = sum(selection.dropped.values()) + selection.kept.to_json()["records"]
  withheld = sum(count for (review, _), count in found.items() if review not in selection.filters.review_status)
  others = sum(found.values()) - read - withheld
  # The store may have got sessions since they were read, which is told as if they had been left out.
  selection.dropped.update({name: count for name, count in (("review_status", withheld), (OTHERS, others))
                            if count > 0})


def in_words(report: dict[str, Any]) -> str:
  """Says in one sentence how many sessions were let in, and why the others were not."""
  left = [f"{one['sessions']} {name} ({one['why']})" for name, one in report["left_out"].items()]
  if report["rejected_lines"]:
    left.append(f"{report['rejected_lines']} lines rejected, see {places.REJECTS}")
  return (f"{report['let_in']} of {counted(report['sessions'], 'session')} let in, with "
          f"{counted(report['questions'], 'question')}, {report['with_ground_truth']} with a right answer; "
          f"left out: {', '.join(left) or 'none'}")


def counted(number: int, noun: str) -> str:
  """Returns a number of things in words."""
  return f"{number} {noun}{'' if number == 1 else 's'}"


def _check(report: dict[str, Any]) -> None:
  """Refuses data that nothing can be learnt from."""
  if not report["let_in"]:
    raise ValueError(f"{report['source']}: {in_words(report)}. Review the sessions (arc-atlas review "
                     "sessions, arc-atlas review approve ID), or change the filters, such as --override "
                     "traces.review_status=approved,pending")


def _sample(found: Iterator[FoundTrace], most: int | None) -> Iterator[FoundTrace]:
  """Yields all, or so many drawn by a hash of each: the same ones whatever their order."""
  if most is None:
    yield from found
    return
  held: list[tuple[int, int, FoundTrace]] = []
  for number, one in enumerate(found):
    place = int.from_bytes(hashlib.sha256(one.trace.identity.encode()).digest()[:8], "big")
    entry = (-place, -number, one)  # The number decides between equals, so that traces are never compared.
    if len(held) < most:
      heapq.heappush(held, entry)
    else:
      heapq.heappushpop(held, entry)
  yield from (one for _, _, one in sorted(held, key=lambda entry: -entry[1]))


def _counted(found: Iterator[FoundTrace], split_by: str, counts: Counter, groups: set[str]
             ) -> Iterator[dict[str, Any]]:
  for one in found:
    trace = one.trace
    facts = {"ground_truth": trace.ground_truth is not None, "guidance": trace.has_guidance,
             "reward": trace.reward.has_verdict}
    counts.update(name for name, holds in facts.items() if holds)
    groups.add(split.key(trace, split_by))
    yield trace.to_json()


def _leave_out(held: pathlib.Path, selection: sources.Selection, split_by: str, counts: Counter,
               groups: set[str]) -> int:
  """Takes out sessions whose lines contradict one another, which is known at the end; returns how many."""
  report: ReadReport | None = selection.report
  conflicts = report.conflicts if report else {}
  if not conflicts:
    return 0
  logging.warning("%d sessions have lines that contradict one another, and are left out: %s", len(conflicts),
                  "; ".join(list(conflicts.values())[:5]))
  selection.kept.leave_out(conflicts)
  counts.clear()
  groups.clear()
  before = 0

  def kept() -> Iterator[FoundTrace]:
    nonlocal before
    for one in TraceReader(str(held)):
      before += 1
      if one.trace.identity not in conflicts:
        yield one

  after = compact.pack(_counted(kept(), split_by, counts, groups), held)
  return before - after
