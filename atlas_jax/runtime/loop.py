"""Rounds of the loop: run, review, export, learn, train, deploy, evaluate; each stage is done once, whatever
is killed.

A stage leaves a record when it has ended, and everything before it can be done again without harm: tasks that
were done are not done again, reviews and deployments that stand are left alone, the pipeline goes on by
stages.
"""
import argparse
import asyncio
import collections
import dataclasses
import hashlib
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from atlas_jax.data.traces import export, review
from atlas_jax.data.traces.query import APPROVED, PENDING, SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import SqlStore, open_store
from atlas_jax.files import json_file, write
from atlas_jax.runtime import cli_deploy, cli_run, evidence, lessons, made_parts, task_eval, task_file
from atlas_jax.runtime.cli_codes import FAILED, OK
from atlas_jax.runtime.settings import ConfigError, RuntimeSettings
from atlas_jax.runtime.settings_groups import ModelSettings
from atlas_jax.runtime.store import RuntimeStore

# Lessons are learnt behind the export, which waits until somebody has approved sessions.
STAGES = ("run", "review", "export", "learn", "train", "deploy", "evaluate")
TRACES, RESULTS = "traces.jsonl", "teacher"  # In the folder of a round.


class StageFailed(RuntimeError):
  """A stage that cannot be done; the same command tries it again."""


def command(asked: argparse.Namespace, settings: RuntimeSettings) -> int:
  """Does rounds; returns the exit code."""
  if asked.rounds < 1:
    raise ConfigError(f"--rounds={asked.rounds} must be at least 1")
  for name in ("tasks", "held_out"):
    if getattr(settings.loop, name) is None:
      raise ConfigError(f"config.loop.{name}=None: `atlas loop` needs a file of tasks there")
  folder = pathlib.Path(settings.loop.folder)
  folder.mkdir(parents=True, exist_ok=True)
  try:
    before = done(folder, "before", lambda: evaluated(settings, "before"), settings)
    print(json.dumps({"round": 0, **before}), flush=True)
    for number in range(1, asked.rounds + 1):
      found = one_round(folder, number, settings)
      print(json.dumps({"round": number, **found["evaluate"]}), flush=True)
  except StageFailed as error:
    print(f"atlas: {error}", file=sys.stderr)
    return FAILED
  return OK


def one_round(folder: pathlib.Path, number: int, settings: RuntimeSettings) -> dict[str, Any]:
  """Does the stages of a round that are not done; returns what each came to."""
  place = folder / f"round_{number}"
  place.mkdir(exist_ok=True)
  works: dict[str, Callable[[], dict[str, Any]]] = {
      "run": lambda: ran(settings, f"loop-{number}"), "review": lambda: reviewed(settings),
      "export": lambda: exported(settings, place), "learn": lambda: learnt(settings, place),
      "train": lambda: trained(settings, place),
      "deploy": lambda: put_to_work(settings, place), "evaluate": lambda: evaluated(settings,
                                                                                    f"loop-{number}")}
  return {name: done(place, name, works[name], settings) for name in STAGES}


def done(place: pathlib.Path, name: str, work: Callable[[], dict[str, Any]], settings: RuntimeSettings
         ) -> dict[str, Any]:
  """Does a stage unless its record is there.

  Raises:
    StageFailed: if the record is of other settings.
  """
  file = place / f"{name}.json"
  of = _sha(settings)
  if file.is_file():
    record = json_file.read(file)
    if record["settings"] != of:
      raise StageFailed(f"{file} is of another config or other tasks; give --config.loop.folder=FOLDER")
    return record["found"]
  found = work()
  write.json(file, {"stage": name, "settings": of, "found": found})
  return found


def _sha(settings: RuntimeSettings) -> str:
  files = [pathlib.Path(name).read_bytes() for name in (settings.loop.tasks, settings.loop.held_out) if name]
  said = json.dumps(dataclasses.asdict(settings), sort_keys=True, default=str).encode()
  return hashlib.sha256(b"\0".join([said, *files])).hexdigest()


# Stages.


def ran(settings: RuntimeSettings, name: str) -> dict[str, Any]:
  """Has the tasks done."""
  return _through(settings, settings.loop.tasks, f"{name}-run", with_ids=True)


def evaluated(settings: RuntimeSettings, name: str) -> dict[str, Any]:
  """Has the held-out tasks done; a version on trial is measured as what it will be.

  Nothing is learnt of them: no learner is asked, and the loop neither reviews nor exports their sessions.
  """
  given = dataclasses.replace(settings, learner=ModelSettings("none"))
  return _through(given, settings.loop.held_out, f"{name}-evaluate", before=task_eval.PREFIX)


def _through(settings: RuntimeSettings, tasks: str | None, name: str, *,
             before: str = "", with_ids: bool = False) -> dict[str, Any]:
  assert tasks is not None
  given = cli_run.bounded(settings, settings.loop.concurrency)
  run_name = before + task_file.name_of(tasks, name)
  found = asyncio.run(cli_run.through(given, task_file.read(tasks), run_name=run_name))
  scores = [one.result.reward for one in found if one.result.reward is not None]
  teachers = sorted({str(one.result.versions.get("teacher")) for one in found})
  if failed := [one.result.session_key for one in found if one.result.status == "failed"]:
    raise StageFailed(f"{len(failed)} of {len(found)} sessions failed, {failed[0]} first")
  ids = {"ids": [one.result.session_id for one in found if one.result.session_id is not None]}
  return {"sessions": len(found), "graded": len(scores), "teachers": teachers,
          "accuracy": sum(scores) / len(scores) if scores else None, **(ids if with_ids else {})}


def reviewed(settings: RuntimeSettings) -> dict[str, Any]:
  """Reviews by the policy: "graded" approves what a program graded, unless drift was found; "none"
  nothing."""
  if settings.loop.review == "none":
    return {"approved": 0}
  with open_store(settings.store.url, writable=True) as opened:
    query = SessionQuery(review_statuses=(PENDING,), most_events=0)
    ids = [number for number, trace in _to_learn_of(opened, query) if _is_sound(trace)]
    moved = [review.decide(opened, one, APPROVED, who=settings.loop.reviewer, note="graded by a program")
             for one in ids]
  return {"approved": sum(one.moved for one in moved)}


def _to_learn_of(opened: SqlStore, query: SessionQuery) -> Iterator[tuple[int, Trace]]:
  """Yields the sessions of a query, without those of evaluations: what was held out must stay so."""
  for page in opened.pages(query):
    for one in page:
      trace = Trace.from_json(one.record())
      if not task_eval.is_of_evaluation(trace):
        yield one.id, trace


def _is_sound(trace: Trace) -> bool:
  flagged = trace.data.get("drift_alert") is True or trace.session_metadata.get("drift_alert") is True
  return evidence.passes_gate(trace) and not flagged


def exported(settings: RuntimeSettings, place: pathlib.Path) -> dict[str, Any]:
  """Writes the approved sessions to the file that is trained on."""
  query = SessionQuery(review_statuses=(APPROVED,), is_ended=True)
  with open_store(settings.store.url) as opened:
    withheld = opened.withheld(query)
    ids = tuple(number for number, _ in _to_learn_of(opened, query.changed(most_events=0)))
    summary = export.export(opened, str(place / TRACES), query.changed(ids=ids)) if ids else None
  if summary is None or not summary.sessions:
    raise StageFailed(f"no session is approved (held back: {dict(withheld)}); review them by "
                      f"`arc-atlas "
                      "review sessions`, and start the loop again")
  return {"sessions": summary.sessions}


def learnt(settings: RuntimeSettings, place: pathlib.Path) -> dict[str, Any]:
  """Learns lessons from the round's sessions, as they are reviewed now; those that gave some are not asked
  again."""
  if not settings.loop.learn:
    return {"on": False}
  ids = json_file.read(place / "run.json")["found"]["ids"]

  async def main() -> lessons.LearntFrom:
    store = RuntimeStore(settings.store)
    await store.open()
    try:
      assert settings.lessons is not None  # With loop.learn, see `settings`.
      return await lessons.learn_from_approved(store, ids, learner=made_parts.learner_of(settings),
                                               settings=settings.lessons)
    finally:
      await store.close()

  found = asyncio.run(main())
  why = collections.Counter(found.skipped.values())
  return {"on": True, "sessions": found.sessions, "added": sum(map(len, found.added.values())),
          "skipped": dict(why), "refused": list(found.refused), "problems": list(found.problems)}


def trained(settings: RuntimeSettings, place: pathlib.Path) -> dict[str, Any]:
  """Runs the pipeline, which goes on where it was stopped."""
  words = [f"--export-path={place / TRACES}", f"--output-dir={place / RESULTS}",
           *shlex.split(settings.loop.train)]
  trainer = settings.loop.trainer
  code = (cli_deploy.train(words, settings) if trainer is None else
          subprocess.run([*shlex.split(trainer), *words], check=False).returncode)
  if code:
    raise StageFailed(f"the training ended with {code}; the same command goes on")
  return {"folder": str(place / RESULTS)}


def put_to_work(settings: RuntimeSettings, place: pathlib.Path) -> dict[str, Any]:
  """Deploys what was trained, for all sessions of the evaluation, where it is compared with the one
  before."""
  one = asyncio.run(cli_deploy.deployed(settings, str(place / RESULTS), fraction=1.0, url=settings.loop.url))
  return {"deployment": one.id, "version": one.version, "state": one.state}

