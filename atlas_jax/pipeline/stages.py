"""Runs the stages of a plan, each once: a stage whose record is there, of the same inputs, is not done again.

A record is written when a stage has written all of its output. A kill in any stage therefore loses what that
stage has not saved, and nothing before it; a training goes on from its newest checkpoint.
"""
import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from atlas_jax import lock, modes
from atlas_jax.data.traces import provenance
from atlas_jax.files import json_file, write
from atlas_jax.pipeline import checkpoint, evaluation, ingest, places, report
from atlas_jax.pipeline.plan import LEAST_GROUPS, Plan, Training, held_out_frac, without_held_out
from atlas_jax.workdir import METRICS, SUMMARY, TRACKERS

REMEDY = "delete it: the stage is then done again"


class StageStopped(Exception):
  """A signal stopped a training; the same command goes on with it."""


def run(plan: Plan) -> dict[str, Any]:
  """Runs all stages and returns what came of them.

  Raises:
    StageStopped: if a training was stopped.
    ValueError: for data or settings that cannot be, and for an output folder of another pipeline.
    LockError: if another pipeline is at work in the output folder.
  """
  _environment(plan)
  plan.output.mkdir(parents=True, exist_ok=True)
  with lock.held(plan.output):
    return _run(plan)


def _run(plan: Plan) -> dict[str, Any]:
  was_begun = (plan.output / places.STAGES / "ingest.json").is_file()
  data = _stage(plan, "ingest", _inputs_of_ingest(plan), lambda: ingest.run(plan),
                outputs=(places.TRACES, places.INGEST))
  if was_begun:
    ingest.check_still_let_in(plan)
  plan = _fitted(plan, data)
  write.json(plan.output / places.CONFIG_USED, plan.to_json())
  inputs = {"data": data["data"]["sha256"], "sft": None if plan.sft is None else _settings_of(plan.sft)}
  measured = {"before": _before(plan, inputs)}
  if plan.sft is not None:
    _trained(plan, plan.sft, inputs)
    measured["after_sft"] = _evaluated(plan, "after_sft", plan.training, inputs)
  summary = _trained(plan, plan.training, inputs)
  measured["after"] = evaluation.of_summary(summary)
  write.copy(plan.training.workdir / METRICS, plan.output / places.METRICS)
  # Reports are made anew at every start: they cost little, and tell of what is there.
  found = report.make(plan, data, measured)
  manifest = _stage(plan, "checkpoint", {**inputs, **_settings_of(plan.training)},
                    lambda: checkpoint.make(plan, data, measured, summary),
                    outputs=(pathlib.Path(places.CHECKPOINT) / places.MANIFEST,))
  return {"output_dir": str(plan.output), "checkpoint": str(plan.output / places.CHECKPOINT),
          "version": manifest["version"], "let_in": data["let_in"], "sessions": data["sessions"],
          "held_out": held_out_frac(plan.training.config) > 0, "change": found["change"],
          "warnings": found["warnings"]}


def _fitted(plan: Plan, data: Mapping[str, Any]) -> Plan:
  """Returns a plan that the data allow: without held-out questions where there are too few to hold any out.

  Raises:
    ValueError: if there are too few, and nobody has allowed that.
  """
  if held_out_frac(plan.training.config) == 0 or data["questions"] >= LEAST_GROUPS:
    return plan
  said = (f"{ingest.in_words(dict(data))}. {ingest.counted(data['questions'], 'question')} cannot be "
          "divided into some to train on and some to hold out")
  if not (plan.is_demo or plan.settings.allow_few):
    raise ValueError(f"{said}; review more sessions, or give --allow-few (or --eval-ratio=0) to train on "
                     "what there is, without any evaluation")
  logging.warning("%s: it is trained on, nothing is held out, and no evaluation is made%s", said,
                  ", because the config is a demonstration" if plan.is_demo else "")
  return plan._replace(training=without_held_out(plan.training),
                       sft=None if plan.sft is None else without_held_out(plan.sft))


def _before(plan: Plan, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
  """Measures the model that all training starts from, also where that is a supervised tuning."""
  if plan.sft is None:
    return _evaluated(plan, "before", plan.training, inputs)
  folder = plan.output / ".before_model"
  training = evaluation.from_model(plan.training, folder)

  def start() -> None:
    evaluation.leave_start(plan.sft.config, folder)  # type: ignore[union-attr]

  try:
    return _evaluated(plan, "before", training, inputs, prepare=start)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _evaluated(plan: Plan, name: str, training: Training, inputs: Mapping[str, Any], *,
               prepare: Callable[[], None] = lambda: None) -> dict[str, Any] | None:
  """Measures what a training starts from, once `prepare` has made it; None if nothing is held out."""
  if not held_out_frac(training.config):
    return None
  file = pathlib.Path(places.EVALUATIONS) / f"{name}.json"

  def measure() -> dict[str, Any]:
    with _quiet():
      prepare()
      found = evaluation.of_start(training, plan.output / f".{name}")
    (plan.output / file).parent.mkdir(exist_ok=True)
    write.json(plan.output / file, found)
    return found

  return _stage(plan, name, {**inputs, **_settings_of(training)}, measure, outputs=(file,))


def _trained(plan: Plan, training: Training, inputs: Mapping[str, Any]) -> dict[str, Any]:
  """Trains, or goes on with a training, and returns its summary."""
  workdir = training.workdir

  def train() -> dict[str, Any]:
    _name_run(plan, training)
    with _quiet():
      if not modes.run_train(training.config, str(workdir)):
        raise StageStopped(training.name)
    return json_file.read(workdir / SUMMARY)

  return _stage(plan, training.name, {**inputs, **_settings_of(training)}, train,
                outputs=((workdir / SUMMARY).relative_to(plan.output),))


def _stage(plan: Plan, name: str, inputs: Mapping[str, Any], work: Callable[[], dict[str, Any]], *,
           outputs: tuple[pathlib.Path, ...]) -> dict[str, Any]:
  """Does a stage, or reads the result of one that is done.

  Raises:
    ValueError: if it was done with other settings or data.
  """
  record = plan.output / places.STAGES / f"{name}.json"
  digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
  if record.is_file():
    done = json_file.read_sealed(record, remedy=REMEDY, needed=True)
    if done["inputs_sha256"] != digest:
      differ = sorted(key for key in {*inputs, *done["inputs"]} if inputs.get(key) != done["inputs"].get(key))
      raise ValueError(f"--output-dir={plan.output}: the stage {name} was done with other settings or data "
                       f"({', '.join(differ)}); choose another --output-dir, or delete {record} to do the "
                       "stage again")
    if _hashes(plan, outputs) == done["outputs"]:
      logging.info("%s: done before", name)
      return done["result"]
    logging.warning("%s: its output has changed or is gone, so it is done again", name)
  logging.info("stage %s", name)
  result = json.loads(json.dumps(work()))
  record.parent.mkdir(exist_ok=True)
  write.json(record, json_file.sealed({
      "inputs": json.loads(json.dumps(dict(inputs), default=str)), "inputs_sha256": digest,
      "outputs": _hashes(plan, outputs), "result": result}))
  return result


def _hashes(plan: Plan, outputs: tuple[pathlib.Path, ...]) -> dict[str, str]:
  there = [file for file in outputs if (plan.output / file).is_file()]
  found = provenance.file_hashes(plan.output / file for file in there)
  return {str(file): one["sha256"] for file, one in zip(there, found, strict=True)}


def _settings_of(training: Training) -> dict[str, Any]:
  return {"config": training.spec, "overrides": dict(training.overrides)}


def _inputs_of_ingest(plan: Plan) -> dict[str, Any]:
  asked = plan.settings
  shown = plan.to_json()
  # Not the content: the copy is what counts, also where a store has more sessions by now.
  return {"source": shown["source"], "max_samples": asked.max_samples, "filters": shown["filters"],
          "split_by": plan.training.config.traces.split_by}


def _environment(plan: Plan) -> None:
  if plan.settings.wandb_project is not None:
    os.environ["WANDB_PROJECT"] = plan.settings.wandb_project


def _name_run(plan: Plan, training: Training) -> None:
  """Names a run for trackers, if it has no name yet."""
  name, file = plan.settings.wandb_run_name, training.workdir / TRACKERS
  if name is not None and not file.exists():
    training.workdir.mkdir(parents=True, exist_ok=True)
    # Trackers know a run by it, so it must be nobody else's.
    write.json(file, {"run": f"{name}-{training.name}-{secrets.token_hex(3)}"})


@contextlib.contextmanager
def _quiet():
  """Sends what stages print to standard error: standard output is for the pipeline's own result."""
  with contextlib.redirect_stdout(sys.stderr):
    yield

