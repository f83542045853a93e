"""Traces as the data of recipes: config.data.name="traces", with config.data.files and config.traces.

config.data.files names files of traces, see `jsonl`, or a store: a URL, sqlite:///PATH or postgresql://...,
or env:NAME, the environment's variable that holds one. A URL with a password is refused here, for the config
is written to the run's folder. A store is opened by `open_store(url)` of `atlas_jax.data.traces.store`.

Every source goes through `selected`, so that the gate of review holds for all of them.
"""
import copy
import dataclasses
import os
import pathlib
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from absl import logging

from atlas_jax import modules
from atlas_jax.data import problems, responses, stepped
from atlas_jax.data.problems import Problem
from atlas_jax.data.responses import AnswerGroup
from atlas_jax.data.traces import conversation, filters, pairs, served_tokens, split
from atlas_jax.data.traces.conversation import TraceConversation
from atlas_jax.data.traces.filters import Filters
from atlas_jax.data.traces.jsonl import FoundTrace, TraceReader
from atlas_jax.data.traces.provenance import DataHash
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.rejects import ReadReport, Reject, RejectLog
from atlas_jax.data.traces.served_tokens import ServedAnswer

NAME = "traces"
STORE = "atlas_jax.data.traces.store"
ENVIRONMENT = "env:"
MOST_NAMED = 5  # Of what is left out, in a warning.
LEARNING = ("sft", "gkd")  # Recipes that learn a recorded text; others have problems answered.


class TraceStore(Protocol):
  """A store, as `open_store` returns it; it is closed with `with`."""

  # The sessions that filters let through, or more; on_reject(where, why) is called for one that is no trace.
  def traces(self, filters: Filters, *, on_reject: Callable[[str, str], None]) -> Iterable[FoundTrace]: ...


@dataclasses.dataclass
class Selection:
  """Counts of the traces of a source by what became of them, added up while they are read.

  Attributes:
    report: of the lines of files, or of a store's sessions; None before they are read.
    dropped: how many traces the filters left out, by reason.
    refused: how many sessions, steps or attempts gave nothing to learn, by reason.
    kept: hash and counts of those that the filters let through.
    filters: what was asked for.
  """

  filters: Filters
  report: ReadReport | None = None
  dropped: Counter = dataclasses.field(default_factory=Counter)
  refused: Counter = dataclasses.field(default_factory=Counter)
  kept: DataHash = dataclasses.field(default_factory=DataHash)

  def to_json(self) -> dict[str, Any]:
    """Returns what a manifest keeps of it."""
    return {"data": self.kept.to_json(), "filters": self.filters.to_json(), "dropped": dict(self.dropped),
            "refused": dict(self.refused), "lines": self.report.to_json() if self.report else None}

  def __str__(self) -> str:
    counts = [f"{count} {name} ({_MEANINGS[name]})" for name, count in
              [*self.dropped.most_common(), *self.refused.most_common()]]
    rejected = self.report.rejected if self.report else 0
    return ", ".join(counts + ([f"{rejected} lines rejected"] if rejected else [])) or "none"


_MEANINGS = {**filters.REASONS, **conversation.REASONS, **pairs.REASONS, **served_tokens.REASONS}


def is_store(files: str) -> bool:
  """Returns whether config.data.files names a store."""
  return "://" in files or files.startswith(ENVIRONMENT)


def url_of(files: str) -> str:
  """Returns the URL of a store.

  Raises:
    ValueError: if the environment has none, or if a password stands in the config.
  """
  if not files.startswith(ENVIRONMENT):
    if urllib.parse.urlsplit(files).password:
      raise ValueError("config.data.files has a URL with a password, and the config is written to the run's "
                       f"folder; put the URL into an environment variable and name it, {ENVIRONMENT}NAME")
    return files
  name = files.removeprefix(ENVIRONMENT)
  found = os.environ.get(name)
  if not found:
    raise ValueError(f"config.data.files={files!r}: the environment has no variable {name}; set it to the "
                     "URL of the store")
  return found


def selected(files: str, fields, selection: Selection) -> Iterator[FoundTrace]:
  """Yields the traces of files or of a store that the filters let through, and counts the others.

  Args:
    files: see the module.
    fields: config.traces.
    selection: counts, added to; its filters decide.
  """
  # All processes read the traces; one writes what is wrong with them.
  first = stepped.this_process()["process_index"] == 0
  rejects_file = pathlib.Path(fields.rejects_file) if fields.rejects_file and first else None
  how = {"strict": fields.strict, "max_reject_frac": fields.max_reject_frac}
  if is_store(files):
    found = _of_store(files, RejectLog(**how, file=rejects_file), selection)
  else:
    found = _of_files(TraceReader(files, **how, rejects_file=rejects_file), selection)
  # Filters of ours also behind a store's own: one gate for all, whatever a query lets through.
  scrub = _scrub_of(fields.scrub)
  for one in filters.chosen(found, selection.filters, selection.dropped):
    scrubbed = scrub(one)
    selection.kept.add(scrubbed.trace)
    yield scrubbed


def _scrub_of(name: str | None) -> Callable[[FoundTrace], FoundTrace]:
  """Returns how personal data are taken out: the function `scrub` of a module, record -> record."""
  if name is None:
    return lambda one: one
  scrub = modules.attribute(name, "scrub", field="traces.scrub")

  def scrubbed(one: FoundTrace) -> FoundTrace:
    try:
      # A copy: the function may change what it is given.
      found = Trace.from_json(scrub(copy.deepcopy(one.trace.to_json())))
    except ValueError as error:
      raise ValueError(f"{one.where}: what `scrub` of config.traces.scrub={name!r} returns is no trace: it "
                       f"{error}") from error
    if found.identity != one.trace.identity:
      raise ValueError(f"{one.where}: `scrub` of config.traces.scrub={name!r} changes the session's id, by "
                       "which lines that contradict one another are found; keep it")
    return FoundTrace(one.where, found)

  return scrubbed


def _of_files(reader: TraceReader, selection: Selection) -> Iterator[FoundTrace]:
  for one in reader:
    selection.report = reader.report
    yield one
  selection.report = reader.report


def _of_store(files: str, log: RejectLog, selection: Selection) -> Iterator[FoundTrace]:
  open_store = modules.attribute(STORE, "open_store", field="data.files")

  def on_reject(where: str, why: str) -> None:
    log.report.lines += 1
    log.add(Reject(where, None, "field", why))

  with open_store(url_of(files)) as store, log.reading():
    selection.report = log.report
    for one in store.traces(selection.filters, on_reject=on_reject):
      log.report.lines += 1
      log.report.traces += 1
      log.report.sanitized += one.trace.sanitized
      yield one


def read(files: str, fields, make: Callable[[FoundTrace, Counter], Iterable[Any]]
         ) -> tuple[list[tuple[float, Any]], Selection]:
  """Returns what is made of the traces that the filters let through, each with its place in the split.

  Args:
    files: see the module.
    fields: config.traces.
    make: (trace, refused) -> what it gives.

  Returns:
    (place in [0, 1), item) of each item, and the counts.

  Raises:
    ValueError: for files that cannot be read, filters that cannot be, and if nothing is left.
  """
  selection = Selection(filters.of_config(fields))
  found = []
  for one in selected(files, fields, selection):
    at = split.place(one.trace, by=fields.split_by, seed=fields.split_seed)
    found += [(one.trace.identity, at, item) for item in make(one, selection.refused)]
  conflicts = selection.report.conflicts if selection.report else {}
  kept = [(at, item) for identity, at, item in found if identity not in conflicts]
  selection.kept.leave_out(conflicts)
  if conflicts:
    # Of two copies one may have been quarantined since: which one counts is not for a reader to say.
    logging.warning("%s: %d sessions have lines that contradict one another, and are left out: %s", files,
                    len(conflicts), "; ".join(list(conflicts.values())[:5]))
  if not kept:
    raise ValueError(f"config.data.files={files!r}: no trace is left to use. Left out: {selection}; change "
                     "config.traces, or review the sessions")
  return kept, selection


def load(files: str | None, fields, *, target: str, split_name: str, held_out_frac: float) -> list[Problem]:
  """Returns the problems of a split of traces.

  Args:
    files: see the module.
    fields: config.traces.
    target: whose text is learnt, one of `conversation.TARGETS`.
    split_name: "train" or "held_out".
    held_out_frac: fraction of the groups of sessions that is held out, see `split`.

  Raises:
    ValueError: for settings that cannot be, and if nothing is left.
  """
  files = _needed(files)
  how = TraceConversation(target, fields.prompt, fields.shown, fields.verified_reward,
                          _lesson_of(fields.lesson))
  found, selection = read(files, fields, lambda one, refused: how.problems(*one, refused))
  problems.check_split(split_name, held_out_frac)
  held_out = split.sides([at for at, _ in found], held_out_frac)
  kept = [item for (_, item), is_out in zip(found, held_out, strict=True)
          if is_out == (split_name == "held_out")]
  logging.info("%s of %s: %d problems; left out: %s", split_name, files, len(kept), selection)
  return kept


def load_groups(files: str | None, fields, *, held_out_frac: float
                ) -> tuple[list[AnswerGroup], list[AnswerGroup]]:
  """Returns (training, held-out) groups of graded attempts; see `pairs`, and `load` for the rest."""
  files = _needed(files)
  found, selection = read(files, fields, lambda one, refused: pairs.groups([one], refused,
                                                                           prompt=fields.prompt))
  held_out = split.sides([at for at, _ in found], held_out_frac)
  logging.info("%s: %d groups of attempts; left out: %s", files, len(found), selection)
  responses.warn([item for _, item in found])
  sides = [[item for (_, item), is_out in zip(found, held_out, strict=True) if is_out == wanted]
           for wanted in (False, True)]
  return sides[0], sides[1]


def load_served(files: str | None, fields, *, held_out_frac: float) -> list[ServedAnswer]:
  """Returns the answers of the training split that have the ids of the server that wrote them.

  Answers without are left out, and named in a warning; see `served_tokens` and `load`.

  Raises:
    ValueError: for settings that cannot be, and if nothing is left.
  """
  files = _needed(files)
  without_ids: list[str] = []
  try:
    found, selection = read(files, fields,
                            lambda one, refused: served_tokens.answers(one.trace, refused, without_ids))
  finally:
    if without_ids:
      more = f" and {len(without_ids) - MOST_NAMED} more" if len(without_ids) > MOST_NAMED else ""
      logging.warning("%s: %d answers have no token ids of the server that wrote them, and are not learnt "
                      "from: %s%s", files, len(without_ids), "; ".join(without_ids[:MOST_NAMED]), more)
  held_out = split.sides([at for at, _ in found], held_out_frac)
  kept = [item for (_, item), is_out in zip(found, held_out, strict=True) if not is_out]
  logging.info("%s: %d answers by their own ids; left out: %s", files, len(kept), selection)
  return kept


def target_of(config) -> str:
  """Returns whose text a config's recipe learns of traces: config.traces.target, or "none"."""
  return config.traces.target if config.recipe in LEARNING else "none"


def _needed(files: str | None) -> str:
  if not files:
    raise ValueError(f"config.data.name={NAME!r} needs config.data.files, files of traces or a store's URL")
  return files


def _lesson_of(name: str):
  """Returns how a teacher is asked: "plain", or the function `lesson` of a module."""
  return conversation.plain_lesson if name == "plain" else modules.attribute(name, "lesson",
                                                                             field="traces.lesson")
