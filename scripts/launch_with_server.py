"""Trains a policy beside a generation server of its own: started, waited for, given weights, and stopped.

  bash scripts/launch_with_server.sh N_SERVER N_TRAIN CONFIG key=value ...
  bash scripts/launch_with_server.sh 1 1 configs/grpo_arithmetic.py:cpu workdir=runs/grpo_server
  bash scripts/launch_with_server.sh 2 6 configs/grpo.py model.path=FOLDER --server=vllm

N_SERVER is the number of GPUs of the server, N_TRAIN that of the processes that train, each on a GPU of its
own. On the CPU the server is one process (N_SERVER=1). Keys are those of launch.sh. --server=atlas, the
default, is --mode=serve of this project; --server=vllm has the run start vLLM, on the server's GPUs.
--start_timeout_s=600 bounds the wait for the server.

The server listens on the loopback at a free port, takes weights by a token that is drawn for this run, and
logs to WORKDIR/server.log. A signal reaches the training, which saves and stops with exit code 75; the same
command goes on. However the training ends, the server is stopped, by its own process id; no file of a config
is edited.
"""
import argparse
import glob
import json
import os
import pathlib
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import launch_words

from atlas_jax.language import server_sampler
from atlas_jax.language.serve.access import TRAINER_TOKENS
from atlas_jax.language.vllm import engine
from atlas_jax.language.vllm.server import Server, free_port
from atlas_jax.parallel import signals

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOG = "server.log"
LOOK_EVERY_S = 0.2
ROOM_TOKENS = 4_096  # Of a server where nothing is said: of a text, of a completion.
COMPLETIONS = 128  # The same of a request.


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  made = argparse.ArgumentParser(prog="launch_with_server", allow_abbrev=False, description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
  made.add_argument("n_server", type=int, metavar="N_SERVER")
  made.add_argument("n_train", type=int, metavar="N_TRAIN")
  made.add_argument("--server", choices=("atlas", "vllm"), default="atlas")
  made.add_argument("--start_timeout_s", type=float, default=600.0)
  return made


def gpus(env: Mapping[str, str]) -> list[str]:
  """Returns the GPUs that a process of this environment may use, by their names for CUDA_VISIBLE_DEVICES."""
  if "CUDA_VISIBLE_DEVICES" in env:
    return [one.strip() for one in env["CUDA_VISIBLE_DEVICES"].split(",") if one.strip()]
  return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def places(n_server: int, n_train: int, env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
  """Returns what the environments of the server and of the training have besides.

  Raises:
    ValueError: if so many processes cannot be on this machine.
  """
  if n_server < 1 or n_train < 1:
    raise ValueError(f"N_SERVER={n_server} and N_TRAIN={n_train} must be at least 1")
  found = gpus(env)
  platform = env.get("JAX_PLATFORMS", "").split(",")[0] or ("cuda" if found else "cpu")
  if platform == "cpu":
    if n_server > 1:
      raise ValueError(f"N_SERVER={n_server}: on the CPU the server is one process, which has all cores; "
                       f"give 1 (JAX_PLATFORMS={env.get('JAX_PLATFORMS', '')!r}, {len(found)} GPUs)")
    return {"JAX_PLATFORMS": "cpu"}, {"JAX_PLATFORMS": "cpu"}
  if platform not in ("cuda", "gpu"):
    raise ValueError(f"JAX_PLATFORMS={platform}: a process takes all chips of a host, so that a server and a "
                     "training cannot share one; start the server on another host, and train with "
                     "--config.sampler.kind=server, see docs/guides/serving.md")
  if n_server + n_train > len(found):
    raise ValueError(f"N_SERVER={n_server} and N_TRAIN={n_train} need {n_server + n_train} GPUs, and there "
                     f"are {len(found)} here ({','.join(found) or 'none'}); lower them, or set "
                     "JAX_PLATFORMS=cpu to use none")
  def of(ids: Sequence[str]) -> dict[str, str]:
    return {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ",".join(ids)}

  return of(found[:n_server]), of(found[n_server:n_server + n_train])


class Training:
  """The processes that train, by launch_local.sh; signals to this process reach them."""

  def __init__(self, count: int, flags: Sequence[str], environment: Mapping[str, str]):
    """Starts them."""
    # A session of its own: Ctrl-C comes once, by way of `_on_signal`.
    self._process = subprocess.Popen(["bash", str(ROOT / "scripts" / "launch_local.sh"), str(count), *flags],
                                     env=dict(environment), start_new_session=True)

  def wait(self) -> int:
    """Returns the exit code when all have ended."""
    return self._process.wait()

  def signal(self, number: int) -> None:
    """Hands a signal on."""
    if self._process.poll() is None:
      self._process.send_signal(number)


class Launcher:
  """One start of a server with its training."""

  def __init__(self) -> None:
    """Takes signals from here on."""
    self._stop = threading.Event()
    self._training: Training | None = None
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._on_signal)

  def _on_signal(self, number: int, frame: Any) -> None:
    del frame
    self._stop.set()
    if self._training is not None:
      self._training.signal(number)

  def train(self, count: int, flags: Sequence[str], environment: Mapping[str, str]) -> int:
    """Trains to the end and returns the exit code."""
    if self._stop.is_set():
      return signals.STOPPED
    self._training = Training(count, flags, environment)
    if self._stop.is_set():  # It came while they were started.
      self._training.signal(signal.SIGTERM)
    return self._training.wait()

  def wait_for(self, server: Server, url: str, *, within_s: float) -> bool:
    """Waits until a server answers that it is well; returns whether it does, or a signal came before.

    Raises:
      ValueError: if it ends, or is not there in time.
    """
    until = time.monotonic() + within_s
    while not self._stop.wait(LOOK_EVERY_S):
      try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
          if json.load(answer).get("status") == "ok":
            return True
      except (urllib.error.URLError, OSError, ValueError):
        pass  # It does not listen yet: whether it will is looked at below.
      if death := server.death():
        raise ValueError(death)
      if time.monotonic() > until:
        raise ValueError(f"the server does not answer within --start_timeout_s={within_s:g}; {server.log} "
                         "has what it says")
    return False


def served_fields(config: Any) -> dict[str, Any]:
  """Returns the fields of config.serve by which a server has room for what a config asks of it."""
  longest = config.data.max_prompt_tokens + config.sampler.max_tokens
  found: dict[str, Any] = {}
  # Learned positions bound a text by themselves, and a memory needs no room.
  if config.model.kind == "decoder" and longest > ROOM_TOKENS and config.decoder.learned_positions is None:
    found["serve.room_tokens"] = longest
  if config.sampler.max_tokens > ROOM_TOKENS:
    found["serve.max_tokens"] = config.sampler.max_tokens
  if "group_size" in config.data and config.data.group_size > COMPLETIONS:
    found["serve.max_completions"] = config.data.group_size
  return found


def beside_atlas(launcher: Launcher, asked: argparse.Namespace, launch: launch_words.Launch,
                 environments: tuple[dict[str, str], dict[str, str]]) -> int:
  """Trains beside a server of --mode=serve."""
  if "://" in launch.workdir:
    raise ValueError(f"workdir={launch.workdir}: the server's log and the weights it is given lie there; "
                     "name a folder of this machine")
  base = {**os.environ, server_sampler.TOKEN_VARIABLE: secrets.token_urlsafe(32)}
  base[TRAINER_TOKENS] = base[server_sampler.TOKEN_VARIABLE]
  of_server, of_training = ({**base, **more} for more in environments)
  workdir = pathlib.Path(launch.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  held = pathlib.Path(tempfile.mkdtemp(prefix=".server-", dir=workdir)).resolve()
  try:
    start, weights = held / "start", held / "weights"
    weights.mkdir()
    port = free_port(None)
    url = f"http://127.0.0.1:{port}"
    # The server needs a run of the same model; its weights are replaced before the first rollout.
    make = [sys.executable, str(ROOT / "scripts" / "launch_start.py"), f"--config={launch.spec}",
            f"--workdir={start}", *(f"--config.{name}={value}" for name, value in launch.overrides.items()
                                    if not name.startswith(("server.", "vllm.")))]
    serve = [sys.executable, "-m", "atlas_jax.main", "--mode=serve", f"--workdir={start}", f"--port={port}",
             f"--config.serve.weights_folder={weights}",
             *(f"--config.{name}={value}" for name, value in served_fields(launch.config).items())]
    with (workdir / LOG).open("ab") as log:
      if subprocess.run(make, env=of_server, stdout=log, stderr=log, check=False).returncode:
        raise ValueError(f"the model that the server starts with could not be made; {workdir / LOG} says why")
    server = Server(serve, workdir / LOG, environment=of_server)
    try:
      if not launcher.wait_for(server, url, within_s=asked.start_timeout_s):
        return signals.STOPPED
      shutil.rmtree(start)  # It is read, and may be as large as several checkpoints.
      print(f"launch_with_server: the server is at {url}, its log is "
            f"{workdir / LOG}", file=sys.stderr, flush=True)
      flags = launch.flags(sampler__kind="server", server__url=url, server__weights_folder=weights)
      code = launcher.train(asked.n_train, flags, of_training)
      # Of a training that failed this may be the cause.
      if code not in (0, signals.STOPPED) and (death := server.death()):
        print(f"launch_with_server: {death}", file=sys.stderr)
      return code
    finally:
      server.stop()
  finally:
    shutil.rmtree(held, ignore_errors=True)


def beside_vllm(launcher: Launcher, asked: argparse.Namespace, launch: launch_words.Launch,
                environments: tuple[dict[str, str], dict[str, str]]) -> int:
  """Trains beside a vLLM server, which the run itself starts and stops."""
  of_server, of_training = environments
  fields: dict[str, Any] = {"sampler__kind": "vllm", "vllm__start_timeout_s": asked.start_timeout_s}
  devices = of_server.get("CUDA_VISIBLE_DEVICES")
  if devices is not None and "vllm.command" not in launch.overrides:
    words = ["env", f"CUDA_VISIBLE_DEVICES={devices}", sys.executable, "-m", engine.MODULE]
    fields["vllm__command"] = shlex.join(words)
  if asked.n_server > 1:
    more = launch.overrides.get("vllm.arguments", "")
    fields["vllm__arguments"] = f"{more} --tensor-parallel-size {asked.n_server}".strip()
  return launcher.train(asked.n_train, launch.flags(**fields), {**os.environ, **of_training})


def main(argv: Sequence[str] | None = None) -> int:
  """Launches; returns the exit code of the training, 2 for a command that cannot be."""
  asked, words = parser().parse_known_args(argv)
  try:
    environments = places(asked.n_server, asked.n_train, os.environ)
    # The fields of a server are not known yet; which one it is is what others are checked with.
    launch = launch_words.read(words, sampler__kind={"atlas": "server", "vllm": "vllm"}[asked.server])
  except ValueError as error:
    print(f"launch_with_server: {error}", file=sys.stderr)
    return 2
  print(f"launch_with_server: the run is in {launch.workdir}", file=sys.stderr, flush=True)
  run = beside_atlas if asked.server == "atlas" else beside_vllm
  try:
    return run(Launcher(), asked, launch, environments)
  except (OSError, ValueError) as error:
    print(f"launch_with_server: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
  sys.exit(main())
