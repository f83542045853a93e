"""Uploading a run: by --mode=upload, and behind a training, which it never fails.

Behind a training it is the same command, in a process of its own: without the accelerator that the training
still holds, alone where the training has several processes, and ended after config.upload.time_limit_s. How
it ended stands in UPLOAD of the workdir, for both.
"""
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import logging

from atlas_jax import config as configs
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.command import override
from atlas_jax.files import json_file, write
from atlas_jax.handover import hub, package, place
from atlas_jax.language import handed_over
from atlas_jax.monitor.alerts import live
from atlas_jax.parallel import hosts
from atlas_jax.workdir import CHECKPOINTS, UPLOAD

# Variables by which a cluster names the other processes of a training: an upload is one process alone.
_OF_CLUSTERS = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "TPU_", "JOB_COMPLETION_INDEX", "MASTER_ADDR",
                "WORLD_SIZE")
_PART = ".upload-"  # The folder that is sent, in the workdir while it is.


def config_of(workdir: str, overrides) -> Any:
  """Reads the config of a run to upload it; only config.upload may be changed.

  Raises:
    ValueError: if there is no run, or a field would not be used.
  """
  # Trusted: nothing that it names is imported or asked.
  config = configs.unfrozen(configs.load(workdir, trusted=True))
  for name, text in overrides.items():
    if not name.startswith("upload.") or name in ("upload.when", "upload.time_limit_s"):
      raise ValueError(f"--config.{name}={text} is not read by --mode=upload, which sends a run as it is; "
                       "leave it out")
    override(config, name, text)
  return configs.resolve(config)


def run(config, workdir: str) -> dict:
  """Uploads the newest parameters of a run and records how it ended.

  Returns:
    What is recorded: repo, url, commit, private, step, files, bytes, seconds.

  Raises:
    HubError: if the Hub refused or failed; the same call goes on from there.
    ValueError: if there is nothing to send, no token, or a file that must not be sent.
    CheckpointError: if the newest checkpoint is damaged.
  """
  began_s = time.time()
  repo = place.repo_of(config)
  try:
    token = place.needed("--mode=upload")
    if not handed_over.is_run(workdir):
      raise ValueError(f"--workdir={workdir} has no checkpoint to upload; train first")
    repo = hub.named(repo, token=token, attempts=config.upload.attempts)
    # In the workdir's own file system, where there is room for checkpoints, and links are possible.
    with tempfile.TemporaryDirectory(prefix=_PART, dir=_room(workdir)) as room:
      # By the run's own name, which stands in the picture of its curves: the same run gives the same bytes.
      folder = pathlib.Path(room) / (pathlib.Path(workdir).resolve().name or "run")
      folder.mkdir()
      made = package.make(config, workdir, folder, repo)
      logging.info("sending step %d of %s to %s: %d files, %.1f MiB", made.step, workdir, repo, made.files,
                   made.size / 2**20)
      sent = hub.send(folder, repo, token=token, private=config.upload.private,
                      attempts=config.upload.attempts, message=f"atlas_jax: step {made.step}",
                      replaced=CHECKPOINTS if config.upload.with_optimizer else None)
  except Exception as error:  # Recorded, and raised again: whoever called says it.
    _record(workdir, {"state": "failed", "repo": repo, "error": _words(error)}, began_s)
    raise
  return _record(workdir, {"state": "done", "repo": sent.repo, "url": sent.url, "commit": sent.commit,
                           "private": sent.private, "step": made.step, "files": made.files,
                           "bytes": made.size}, began_s)


def after_training(config, workdir, *, finished: bool) -> None:
  """Uploads a run behind its training if config.upload.when says so; says in one line how it ended.

  Process 0 alone does so. Whatever goes wrong, nothing is raised.

  Args:
    config: of the run.
    workdir: of the run.
    finished: whether the training came to its end.
  """
  when = config.upload.when
  if when == "never" or when == "end" and not finished:
    return
  if hosts.is_main():
    _upload(config, workdir)
  if finished:
    hosts.meet("upload")  # The others would count this process as stopped if they ended meanwhile.


def _upload(config, workdir) -> None:
  step = Checkpoints(workdir, read_only=True).latest_step()
  if step is None:
    logging.warning("nothing is uploaded: %s has no checkpoint", workdir)
    return
  if _arrived(config, workdir):
    logging.info("the run was uploaded before, to %s, and has not changed since", place.repo_of(config))
    return
  began_s = time.time()
  command = _command(config, workdir)
  why = _failure(command, _limit_s(config), workdir)
  if why is None:
    sent = json_file.read(pathlib.Path(workdir) / UPLOAD)
    logging.info("uploaded to %s", sent["url"])
    _tell(config, workdir, sent["step"], f"uploaded to {sent['url']}")
    return
  why = place.redacted(why)
  retry = shlex.join(["python", *command[1:]])
  logging.error("the upload failed, which changes nothing else: %s; to try again: %s", why, retry)
  try:
    found = {"state": "failed", "repo": place.repo_of(config), "error": why, "retry": retry}
    _record(workdir, found, began_s)
  except OSError as error:  # A full disk may be what failed before.
    logging.error("%s cannot be written: %s", pathlib.Path(workdir) / UPLOAD, _words(error))
  _tell(config, workdir, step, f"the upload failed: {why}; to try again: {retry}", severity="warning")


def _tell(config, workdir, step: int, text: str, severity: str | None = None) -> None:
  """Tells the alerts how an upload ended; what they cannot write fails no training."""
  try:
    live.tell_once(config, workdir, "upload", step, text, severity=severity)
  except OSError as error:
    logging.error("the result of the upload is not in the alerts of %s: %s", workdir, _words(error))


def _failure(command: list[str], limit_s: float, workdir) -> str | None:
  """Runs an upload in a process of its own; returns why it failed, None if it did not."""
  environ = {name: value for name, value in os.environ.items() if not name.startswith(_OF_CLUSTERS)}
  try:
    # Captured: standard output is the training's own, one JSON object with its summary.
    done = subprocess.run(command, env=environ, capture_output=True, text=True, errors="replace",
                          timeout=limit_s)
  except subprocess.TimeoutExpired:
    return f"it took longer than {limit_s:g} s (config.upload.time_limit_s)"
  except OSError as error:
    return _words(error)
  finally:
    for left in pathlib.Path(workdir).glob(f"{_PART}*"):  # Of an upload that was ended.
      shutil.rmtree(left, ignore_errors=True)
  if done.returncode == 0:
    return None
  said = [line for line in done.stderr.splitlines() if line.startswith("atlas_jax: ")]
  return said[-1].removeprefix("atlas_jax: ") if said else f"it ended with exit code {done.returncode}"


def _limit_s(config) -> float:
  limit_s = float(config.upload.time_limit_s)
  # The other processes of a training wait so long where all meet.
  return min(limit_s, 0.9 * config.hosts.wait_s) if hosts.joined() else limit_s


def _command(config, workdir) -> list[str]:
  """Returns the command that uploads a run by hand, with what the training's flags have changed."""
  flags = []
  for name in ("repo", "private", "with_optimizer", "attempts"):
    flags.append(f"--config.upload.{name}={config.upload[name]}")
  return [sys.executable, "-m", "atlas_jax.main", "--mode=upload", f"--workdir={workdir}",
          "--num_processes=1", *flags]


def _arrived(config, workdir) -> bool:
  """Returns whether the last upload sent this very step to this very place."""
  file = pathlib.Path(workdir) / UPLOAD
  if not file.is_file():
    return False
  try:
    last = json_file.read(file)
  except ValueError as error:  # Only what is known of the Hub is lost, and the Hub itself is asked again.
    logging.warning("%s", error)
    return False
  repo = place.repo_of(config)
  same_place = str(last.get("repo")) == repo or "/" not in repo and str(last.get("repo")).endswith(f"/{repo}")
  return bool(last.get("state") == "done" and same_place
              and last.get("step") == Checkpoints(workdir, read_only=True).latest_step())


def _room(workdir) -> str | None:
  return str(workdir) if os.access(workdir, os.W_OK) else None


def _words(error: BaseException) -> str:
  return place.redacted(" ".join(str(error).split())[:500] or type(error).__name__)


def _record(workdir, found: dict, began_s: float) -> dict:
  recorded = {**found, "time": round(time.time(), 3), "seconds": round(time.time() - began_s, 1)}
  file = pathlib.Path(workdir) / UPLOAD
  if os.access(file.parent, os.W_OK):  # A run that only may be read is sent all the same.
    write.json(file, recorded)
  return recorded
