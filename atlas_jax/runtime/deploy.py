"""Puts a checkpoint to work: its files, its protocol, a server, a self-test, and a row of the store.

A server is this project's `--mode=serve` on loopback, or one whose address is given, such as vLLM. Ours
serves the weights that were exported, which the version names, and not the run that they came from: a
training that went on has newer ones.
"""
import asyncio
import fnmatch
import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.files import inside, json_file, write
from atlas_jax.rollout import teaching
from atlas_jax.rollout.chat_form import AskOptions
from atlas_jax.rollout.endpoint import Endpoint, EndpointError
from atlas_jax.rollout.endpoint_settings import EndpointSettings
from atlas_jax.runtime.agents.agent import AgentError, AgentSession
from atlas_jax.runtime.agents.openai import OpenAIAgent, OpenAIAgentSettings
from atlas_jax.runtime.settings import DeploySettings, ModelSettings

MANIFEST, CHECKPOINT = "manifest.json", "rl_checkpoint"  # As the pipeline names them.
WEIGHTS = "model*.safetensors"  # Of the files that a manifest lists, those that a server reads.
FORMAT = "atlas_jax.rl_checkpoint/1"
TEMPLATE = "chat_template.jinja"
LOOK_S = 0.2
ANSWER_TOKENS = 16  # Of a student's answer in the self-test, which asks whether it answers at all.
SELF_TEST = tuple(f"{11 + 7 * number}+{13 + 3 * number}=" for number in range(20))


class DeployError(RuntimeError):
  """A checkpoint that is not put to work, and why."""


class Checkpoint(NamedTuple):
  """A checkpoint that may be put to work."""

  folder: pathlib.Path
  version: str            # SHA-256 of the manifest
  manifest: dict[str, Any]
  form: str               # "chat" or "texts", as endpoints have it


class ModelServer(NamedTuple):
  """A server that answers."""

  url: str                # up to the version
  model: str              # its name there
  pid: int | None = None  # of one that was started here


def read_checkpoint(path: str, role: str, templates: str) -> Checkpoint:
  """Checks a checkpoint: every file against the manifest, and its protocol against the runtime's.

  Args:
    path: rl_checkpoint/, or the folder of a pipeline that has it.
    role: "teacher" or "student".
    templates: the set that the runtime asks that role with.

  Raises:
    DeployError: naming what differs.
  """
  folder = pathlib.Path(path)
  folder = folder / CHECKPOINT if (folder / CHECKPOINT / MANIFEST).is_file() else folder
  file = folder / MANIFEST
  if not file.is_file():
    raise DeployError(f"{path} has no {MANIFEST}; give the rl_checkpoint/ that `atlas train` wrote")
  try:
    manifest = json_file.read_sealed(file, remedy="make the checkpoint again", needed=True)
    for name, known in manifest["files"].items():
      one = inside.path(folder, name, named_by=file, remedy="make the checkpoint again")
      if not one.is_file() or _sha(one) != known["sha256"]:
        raise DeployError(f"{one} is missing, or has other contents than {file} says; make the checkpoint "
                          f"again")
  except (KeyError, TypeError, ValueError) as error:
    raise DeployError(f"{file} cannot be used: {error}") from error
  if manifest.get("format") != FORMAT:
    raise DeployError(f"{file} has the format {manifest.get('format')!r}, and the runtime reads {FORMAT!r}")
  if manifest.get("role") != role:
    raise DeployError(f"{folder} was trained as the {manifest.get('role')}; deploy it with "
                      f"--as={manifest.get('role')}, or give a {role}")
  _check_protocol(manifest, folder, role, templates)
  return Checkpoint(folder, _sha(file), manifest, "chat" if manifest.get("chat_template_sha256") else "texts")


def _check_protocol(manifest: dict, folder: pathlib.Path, role: str, templates: str) -> None:
  template = folder / TEMPLATE
  there = _sha(template) if template.is_file() else None
  if there != manifest.get("chat_template_sha256"):
    raise DeployError(f"{folder}: the chat template has the SHA-256 {there}, and the manifest says "
                      f"{manifest.get('chat_template_sha256')}; make the checkpoint again")
  if role != "teacher":
    return
  protocol = manifest.get("protocol")
  if not protocol:
    raise DeployError(f"{folder}: the manifest has no protocol, so that nobody knows which prompts it was "
                      f"trained "
                      "on; train it with recipe=teacher")
  ours = teaching.load(templates)
  wanted = {"protocol": teaching.PROTOCOL, "templates_sha256": ours.sha256}
  for name, value in wanted.items():
    if protocol.get(name) != value:
      raise DeployError(f"{folder}: {name} is {protocol.get(name)!r} (templates "
                        f"{protocol.get('templates')!r}), "
                        f"and the runtime asks with {value!r} (templates {ours.name!r}); set "
                        "config.teacher.templates to those that it was trained with")
  rendered = protocol.get("teacher_chat_template_sha256")
  if there is not None and rendered is not None and rendered != there:
    raise DeployError(f"{folder}: it was trained with the chat template {rendered}, and would be served with "
                      f"{there}; make the checkpoint again")


def _sha(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


# Servers.


def start_server(found: Checkpoint, settings: DeploySettings) -> ModelServer:
  """Starts this project's server for a checkpoint, which goes on when this program ends.

  Raises:
    DeployError: if it has no weights that the server reads, the server ends, or is not healthy in its time;
      its log is named.
  """
  folder = pathlib.Path(settings.folder)
  if not fnmatch.filter(found.manifest["files"], WEIGHTS):
    raise DeployError(f"{found.folder} has no exported weights ({WEIGHTS}), which `--mode=serve` reads; make "
                      "the checkpoint again, or serve it yourself, and give --url=http://HOST:PORT/v1")
  folder.mkdir(parents=True, exist_ok=True)
  out, log, pid = (folder / f"{found.version[:16]}.{name}" for name in ("json", "log", "pid"))
  if (running := _started(out, pid)) is not None:  # By a start that was killed before it could tell.
    return running
  port = settings.port or _free_port()
  name = f"{found.manifest['role']}-{found.version[:12]}"
  command = [sys.executable, "-m", "atlas_jax.main", "--mode=serve", f"--workdir={found.folder}",
             f"--port={port}", f"--config.serve.served_as={name}"]
  with open(out, "wb") as said, open(log, "wb") as errors:
    process = subprocess.Popen(command, stdout=said, stderr=errors, stdin=subprocess.DEVNULL,
                               start_new_session=True)
  write.whole(pid, str(process.pid))
  ends = time.monotonic() + settings.start_s
  try:
    while time.monotonic() < ends:
      if process.poll() is not None:
        raise DeployError(f"the server of {found.folder} ended with {process.returncode}: {_last_line(log)} "
                          f"(see {log})")
      if (server := _started(out, pid)) is not None:
        return server
      time.sleep(LOOK_S)
    raise DeployError(f"the server of {found.folder} was not healthy within {settings.start_s:g} seconds "
                      f"(see {log})")
  except BaseException:
    stop_server(process.pid)
    raise


def _started(out: pathlib.Path, pid: pathlib.Path) -> ModelServer | None:
  """Returns the server that has written its address to a file, if it is healthy."""
  if not out.is_file() or not pid.is_file():
    return None
  for line in out.read_text().splitlines():
    if line.startswith("{") and line.endswith("}"):
      said = json.loads(line)
      if is_healthy(f"{said['url']}/v1"):
        return ModelServer(f"{said['url']}/v1", said["model"], int(pid.read_text()))
  return None


def adopt_server(url: str, model: str | None) -> ModelServer:
  """Returns a server that runs already.

  Raises:
    DeployError: if it does not answer, or serves several models and none is named.
  """
  try:
    with urllib.request.urlopen(f"{url}/models", timeout=10) as answer:
      known = [one["id"] for one in json.load(answer)["data"]]
  except (OSError, KeyError, TypeError, ValueError) as error:
    raise DeployError(f"{url} does not answer as a server does ({error}); start it, and give its address "
                      f"up to "
                      "the version, such as http://127.0.0.1:8000/v1") from error
  if model is not None and model not in known:
    raise DeployError(f"{url} serves {', '.join(known)}, and not {model}")
  if model is None and len(known) != 1:
    raise DeployError(f"{url} serves {', '.join(known)}; name one by --model")
  return ModelServer(url, model or known[0])


def is_healthy(url: str) -> bool:
  """Returns whether a server answers."""
  try:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=5) as answer:
      return answer.status == 200
  except (OSError, ValueError):
    return False


def stop_server(pid: int | None) -> None:
  """Asks a server that was started here to end."""
  if pid is None:
    return
  try:
    os.kill(pid, signal.SIGTERM)
  except (ProcessLookupError, PermissionError):
    return  # It has ended, and its number may be another's.


def _free_port() -> int:
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def _last_line(log: pathlib.Path) -> str:
  lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
  return lines[-1] if lines else "it said nothing"


# The self-test.


def endpoint_of(server: ModelServer, form: str, settings: ModelSettings) -> Endpoint:
  """Returns the client of a server, as patient as the config's."""
  given = {} if settings.endpoint is None else {
      name: getattr(settings.endpoint, name) for name in
      ("timeout_s", "deadline_s", "tries", "parallel_requests", "response_format", "key_variable")}
  return Endpoint(EndpointSettings(url=server.url, model=server.model, form=form, **given))


def student_of(server: ModelServer, form: str, version: str, base: Mapping[str, Any], name: str,
               **changes: Any) -> OpenAIAgent:
  """Returns a model that is served as the student, asked as the config's agent is where that is a model, too.

  Args:
    server: that answers.
    form: "chat" or "texts".
    version: of the deployment.
    base: config.agent with its options, of which those of a model at an endpoint are kept.
    name: of the config's agent, which the learning key holds.
    **changes: of `OpenAIAgentSettings`, in place of the config's.
  """
  served = {"url": server.url, "model": server.model, "form": form, "version": version, "name": name}
  kept = {key: value for key, value in base.items() if key not in ("kind", *served)}
  return OpenAIAgent(OpenAIAgentSettings(**{**(kept if base.get("kind") == "openai" else {}), **served,
                                            **changes}))


async def answers_test(agent: OpenAIAgent, count: int, questions: Sequence[str] = SELF_TEST) -> float:
  """Returns the fraction of questions that a student answers at all."""
  async def answered(number: int) -> bool:
    messages = [{"role": "user", "content": questions[number % len(questions)]}]
    try:
      await agent(messages, session=AgentSession(f"self-test {number}", messages[0]["content"], {}))
    except AgentError:
      return False
    return True

  try:
    return sum(await asyncio.gather(*(answered(number) for number in range(count)))) / count
  finally:
    await agent.close()


async def self_test(endpoint: Endpoint, settings: ModelSettings, count: int,
                    questions: Sequence[str] = SELF_TEST) -> float:
  """Returns the fraction of replies to prompts of the protocol that can be read."""
  templates = teaching.load(settings.templates)
  asked = [questions[number % len(questions)] for number in range(count)]

  async def readable(question: str) -> bool:
    messages = teaching.teacher_messages(question, attempts=["0"], templates=templates)
    try:
      reply = await endpoint.ask(messages, options=AskOptions(max_tokens=settings.max_tokens,
                                                              temperature=settings.temperature))
    except EndpointError:
      return False
    found = teaching.parse_reply(reply.text, templates)
    return found.problem is None and (templates.reply != "whole" or found.guidance is not None)

  return sum(await asyncio.gather(*(readable(one) for one in asked))) / count
