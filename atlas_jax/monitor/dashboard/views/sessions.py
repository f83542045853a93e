"""Sessions: lanes, verified answers, tokens by role and rewards of the runtime, and the queue of review."""
import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.data.traces import review
from atlas_jax.data.traces.connections import StoreError
from atlas_jax.data.traces.query import APPROVED, QUARANTINED, SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from atlas_jax.files import json_lines
from atlas_jax.files.damage import Damaged
from atlas_jax.monitor.dashboard import charts
from atlas_jax.monitor.dashboard.charts import BarChart, Grid, Missing, Part, Tile, Tiles, Words
from atlas_jax.monitor.dashboard.views import View

TITLE, ORDER = "Sessions", 8
STORE, EVENTS = "atlas.db", "events.jsonl"  # In the folder of a process of sessions.
MOST = 500  # Newest sessions that are read,
QUEUE = 20  # and pending ones that are listed at a time.
CHARS = 300
LANES = ("auto", "paired", "coach", "escalate")


class Found(NamedTuple):
  """A session of the store."""

  id: int
  trace: Trace


def parts(view: View) -> list[Part]:
  """Returns the page of the store in the run's folder, without what reviews."""
  url = default_url(view)
  if url is None:
    return [_none()]
  try:
    return page(view, read(url))
  except (StoreError, ValueError) as error:
    return [Missing("The store cannot be read.", str(error))]


def show(view: View, draw) -> None:
  """Draws the page, with a form that approves or quarantines a pending session."""
  import streamlit as st
  url = st.text_input("Store", default_url(view) or "", key="sessions_store",
                      placeholder="sqlite:///.atlas/atlas.db").strip()
  if not url:
    draw([_none()])
    return
  try:
    found = read(url)
  except (StoreError, ValueError) as error:
    draw([Missing("The store cannot be read.", str(error))])
    return
  pending = [one for one in found if one.trace.review_status not in (APPROVED, QUARANTINED)]
  if pending:
    with st.form("sessions_review"):
      names = {one.id: f"{one.id}: {review.shown(one.trace.task)[:80]}" for one in pending[:QUEUE]}
      number = st.selectbox("Session to review", list(names), format_func=names.__getitem__)
      who = st.text_input("Reviewer", key="sessions_reviewer", max_chars=80)
      note = st.text_input("Note", key="sessions_note", max_chars=500)
      approve = st.form_submit_button("Approve")
      quarantine = st.form_submit_button("Quarantine")
    if approve or quarantine:
      try:
        said = decide(url, number, APPROVED if approve else QUARANTINED, who=who, note=note)
      except (StoreError, ValueError) as error:
        st.error(str(error))
      else:
        st.success(said)
        found = read(url)
  draw(page(view, found))


def default_url(view: View) -> str | None:
  """Returns the store in the run's folder, None if there is none."""
  file = None if view.run is None else pathlib.Path(view.run.path) / STORE
  return f"sqlite:///{file.absolute()}" if file is not None and file.exists() else None


def read(url: str) -> list[Found]:
  """Returns the newest sessions of a store, whatever their review.

  Raises:
    StoreError: if it cannot be read.
  """
  query = SessionQuery(review_statuses=None, newest_first=True, limit=MOST, most_events=0)
  with open_store(url) as store:
    return [Found(one.id, Trace.from_json(one.record())) for some in store.pages(query) for one in some]


def decide(url: str, number: int, to_status: str, *, who: str, note: str = "") -> str:
  """Moves a session in review; returns what was done.

  Raises:
    ValueError: without a reviewer's name, or if the move is refused.
  """
  if not who.strip():
    raise ValueError("write the reviewer's name: the log of reviews says who decided")
  with open_store(url, writable=True) as store:
    made = review.decide(store, number, to_status, who=who.strip(), note=note.strip() or None)
  return f"Session {number} is {to_status}, it was {made.before}."


def page(view: View, found: Sequence[Found]) -> list[Part]:
  """Returns the page of sessions, newest first."""
  if not found:
    return [Missing("The store has no session.", "The page follows.")]
  traces = [one.trace for one in found]
  answered = [one for one in traces if one.final_answer]
  rewards = [one.reward.value for one in traces if one.reward.value is not None]
  drifting = [one for one in found if one.trace.session_metadata.get("drift_alert") is True]
  pending = [one for one in found if one.trace.review_status not in (APPROVED, QUARANTINED)]
  verified = sum(one.verified is True for one in answered)
  tiles = [Tile("Sessions", f"{len(found):,}", "", f"the newest, {MOST} at most"),
           Tile("Verified", f"{verified / len(answered):.0%}" if answered else "none", "",
                "of those with an answer"),
           Tile("Mean reward", f"{np.mean(rewards):.3g}" if rewards else "none", "",
                f"of {len(rewards)} that have one"),
           Tile("Drift", str(len(drifting)), "", "sessions whose reward is far from its baseline"),
           Tile("Pending review", str(len(pending)))]
  run = view.run
  over_time = [] if run is None else [
      charts.lines(run, "Shares over time", {"runtime/verified_share": "verified",
                                             "runtime/lane_auto_share": "in lane auto",
                                             "runtime/no_verdict_share": "without a verdict"}, view.axis),
      charts.lines(run, "Accuracy of graded answers", {"runtime/accuracy": "mean grade"}, view.axis)]
  return charts.present(
      Tiles(tiles), _bars("Lanes", collections.Counter(one.lane or "none" for one in traces), "sessions",
                           LANES),
      _bars("Tokens by role", tokens(traces), "tokens"), *over_time,
      _table("Review queue", pending[:QUEUE]),
      _table("Drift", drifting[:QUEUE]) if drifting else None, *_events(view))


def tokens(traces: Sequence[Trace]) -> collections.Counter:
  """Returns the tokens of sessions by role, prompts and replies."""
  found: collections.Counter[str] = collections.Counter()
  for trace in traces:
    for role, said in (trace.data.get("tokens") or {}).items():
      found[role] += sum(said.get(name, 0) for name in ("prompt", "completion"))
  return found


def _bars(title: str, counts: Mapping[str, int], unit: str, first: Sequence[str] = ()) -> BarChart | None:
  names = [*(name for name in first if name in counts), *sorted({*counts} - {*first})]
  values = np.array([counts[name] for name in names], float)
  return BarChart(title, names, values, y_label=unit) if names else None


def _table(title: str, found: Sequence[Found]) -> Grid:
  columns: dict[str, list[Any]] = {
      "id": [one.id for one in found], "task": [review.shown(one.trace.task)[:CHARS] for one in found],
      "answer": [review.shown(one.trace.final_answer)[:CHARS] for one in found],
      "lane": [one.trace.lane or "" for one in found],
      "verified": [{True: "yes", False: "no", None: "not checked"}[one.trace.verified] for one in found],
      "reward": [one.trace.reward.value for one in found],
      "status": [one.trace.status or "" for one in found],
      "created": [one.trace.created_at or "" for one in found]}
  return Grid(title, columns, "Only approved sessions reach training, lessons and baselines.")


def _events(view: View) -> list[Part]:
  """Returns how often each event happened, of events.jsonl in the run's folder."""
  file = None if view.run is None else pathlib.Path(view.run.path) / EVENTS
  if file is None or not file.exists():
    return []
  counts: collections.Counter[str] = collections.Counter()
  try:
    counts.update(str(row.get("name")) for row in json_lines.read(file, torn="drop")
                  if row.get("kind") in ("START", "POINT"))
  except Damaged as error:
    return [Words(str(error), "warning")]
  return charts.present(_bars("Events", counts, "events"))


def _none() -> Missing:
  return Missing("No store of sessions is chosen.",
                 f"`atlas run` writes {STORE} to its folder; or name its URL.")
