"""The first stage: the sessions that review and filters let in are copied, and all others are accounted for.

The copy is what every later stage reads, so that a run goes on with the same data whatever the store or the
file that it was started with has got or lost since. A session that was quarantined since stops it.
"""
import hashlib
import heapq
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from absl import logging

from atlas_jax import config as configs
from atlas_jax.data.traces import compact, filters, sources, split
from atlas_jax.data.traces.jsonl import FoundTrace, ReadReport, TraceReader
from atlas_jax.data.traces.provenance import DataHash
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from atlas_jax.files import write
from atlas_jax.files.damage import clipped
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
  if files is None and (settings.database_url or "").startswith(sources.ENVIRONMENT):
    files = settings.database_url or ""
  elif files is None:
    # The URL may have a password, and configs are written to disk.
    os.environ[URL_VARIABLE] = settings.database_url or ""
    files = f"{sources.ENVIRONMENT}{URL_VARIABLE}"
  fields = configs.unfrozen(plan.training.config).traces
  fields.rejects_file = str(plan.output / places.REJECTS)
  fields.max_age_days = settings.max_age_days
  (plan.output / places.TRACES).parent.mkdir(parents=True, exist_ok=True)
  selection = sources.Selection(filters.of_config(fields))
  kept = _Kept()
  held = plan.output / places.TRACES
  found = _sample(sources.selected(files, fields, selection), settings.max_samples)
  compact.pack(kept.counted(found, fields.split_by), held)
  kept = _without_conflicts(held, selection, fields.split_by) or kept
  if not (plan.output / places.REJECTS).exists():  # A store has no lines.
    write.whole(plan.output / places.REJECTS, b"")
  source = settings.export_path or shown_url(settings.database_url or "")
  if sources.is_store(files):
    _count_withheld(files, selection)
  report = _report(source, selection, kept)
  write.json(plan.output / places.INGEST, report)
  logging.info("%s", in_words(report))
  _check(report)
  return report


def check_still_let_in(plan: Plan) -> None:
  """Refuses to go on with a copy that has sessions which the source does not let in any more.

  What the source no longer has at all stays in the copy, and what it has got since is not added.

  Raises:
    ValueError: naming sessions that were quarantined, set back or contradicted since they were copied.
  """
  settings = plan.settings
  gate = filters.of_config(plan.training.config.traces)
  files = settings.export_path or settings.database_url or ""
  barred = _barred_of_store(files, gate) if sources.is_store(files) else _barred_of_files(files, gate)
  found = sorted(_name(one.trace) for one in TraceReader(str(plan.output / places.TRACES))
                 if _name(one.trace) in barred)
  if found:
    raise ValueError(f"--output-dir={plan.output}: {counted(len(found), 'session')} that it was begun with "
                     f"were quarantined, or are not approved any more: {clipped(', '.join(found), 100)}; "
                     "choose another --output-dir, which begins without them")


def _barred_of_files(files: str, gate: filters.Filters) -> set[str]:
  reader = TraceReader(files, max_reject_frac=1.0)  # What cannot be read was counted when it was copied.
  barred = {_name(one.trace) for one in reader if filters.barred(one.trace, gate)}
  return barred | set(reader.report.conflicts)


def _barred_of_store(files: str, gate: filters.Filters) -> set[str]:
  barred = set()
  with open_store(sources.url_of(files) if files.startswith(sources.ENVIRONMENT) else files) as store:
    for page in store.pages(SessionQuery(review_statuses=None, most_events=0)):
      barred |= {str(one.id) for one in page
                 if one.review_status not in gate.review_status or one.is_running}
  return barred


def _name(trace: Trace) -> str:
  """Returns what tells sessions apart whatever their review says."""
  if trace.session_id is not None:
    return trace.identity
  return trace.changed(review_status=None, review_notes=None).identity


class _Kept:
  """The sessions that were copied, as they are counted on their way.

  Attributes:
    facts: how many have what.
    groups: keys of their questions, see `split`.
    data: their hash.
  """

  def __init__(self) -> None:
    """Starts without any."""
    self.facts: Counter = Counter()
    self.groups: set[str] = set()
    self.data = DataHash()

  def counted(self, found: Iterable[FoundTrace], split_by: str) -> Iterator[dict[str, Any]]:
    """Yields the records of traces, counting them."""
    for one in found:
      trace = one.trace
      facts = {"sessions": True, "ground_truth": trace.ground_truth is not None,
               "guidance": trace.has_guidance, "reward": trace.reward.has_verdict}
      self.facts.update(name for name, holds in facts.items() if holds)
      self.groups.add(split.key(trace, split_by))
      self.data.add(trace)
      yield trace.to_json()


def _report(source: str, selection: sources.Selection, kept: _Kept) -> dict[str, Any]:
  lines = selection.report.to_json() if selection.report else None
  written = kept.facts["sessions"]
  let_in = selection.kept.to_json()["records"]
  dropped = {name: {"sessions": count, "why": REASONS[name]}
             for name, count in selection.dropped.most_common()}
  if let_in > written:
    dropped["max_samples"] = {"sessions": let_in - written, "why": "it was not drawn"}
  seen = sum(selection.dropped.values()) + let_in
  return {"source": source, "sessions": seen, "let_in": written, "questions": len(kept.groups),
          "left_out": dropped,
          "rejected_lines": lines["rejected"] if lines else 0, "lines": lines,
          "with_ground_truth": kept.facts["ground_truth"], "with_guidance": kept.facts["guidance"],
          "with_reward": kept.facts["reward"], "filters": selection.filters.to_json(),
          "data": kept.data.to_json()}


def _count_withheld(files: str, selection: sources.Selection) -> None:
  """Counts what a store's own query has left out, which no trace was read of; see `query.of_filters`."""
  with open_store(sources.url_of(files)) as store:
    found = store.counts(SessionQuery(review_statuses=None))
  read = sum(selection.dropped.values()) + selection.kept.to_json()["records"]
  gate = selection.filters.review_status
  withheld = sum(count for (review, _), count in found.items() if review not in gate)
  others = sum(found.values()) - read - withheld
  # The store may have got sessions since they were read, which is told as if they had been left out.
  selection.dropped.update({name: count for name, count in (("review_status", withheld), (OTHERS, others))
                            if count > 0})


def in_words(report: dict[str, Any]) -> str:
  """Says in one sentence how many sessions were let in, and why the others were not."""
  left = [f"{one['sessions']} {name} ({one['why']})" for name, one in report["left_out"].items()]
  if report["rejected_lines"]:
    left.append(f"{counted(report['rejected_lines'], 'line')} rejected, see {places.REJECTS}")
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


def _without_conflicts(held: pathlib.Path, selection: sources.Selection, split_by: str) -> _Kept | None:
  """Takes out sessions whose lines contradict one another, known at the end alone; None: there are none."""
  report: ReadReport | None = selection.report
  conflicts = report.conflicts if report else {}
  if not conflicts:
    return None
  logging.warning("%d sessions have lines that contradict one another, and are left out: %s", len(conflicts),
                  "; ".join(list(conflicts.values())[:5]))
  selection.kept.leave_out(conflicts)
  kept = _Kept()
  found = (one for one in TraceReader(str(held)) if one.trace.identity not in conflicts)
  compact.pack(kept.counted(found, split_by), held)
  return kept
