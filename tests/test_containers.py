"""The containers' entry trains, is stopped, killed and goes on; health, stop of a pod, files of the image.

No container engine is needed: the entry script runs here as it does in the image, with real trainings.
"""

import contextlib
import http.server
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from atlas_jax.checkpoint import Checkpoints
from tests import hub_server

ROOT = pathlib.Path(__file__).parents[1]
DOCKER = ROOT / "scripts" / "docker"
ENTRY = DOCKER / "entry.sh"
ENDLESS = "--config.optim.steps=100000 --config.eval.max_tokens=256 --config.eval.tasks=None"


def program(name):
  """A script of the image as a module."""
  spec = importlib.util.spec_from_file_location(name, DOCKER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


health, stop_pod = program("health"), program("stop_pod")


def settings(tmp_path, **more):
  """The environment of an entry, with nothing of this machine's own."""
  own = {name: value for name, value in os.environ.items()
         if not name.startswith(("ATLAS_", "HF_", "RUNPOD_", "TELEGRAM_")) and name != "UPLOAD"}
  return {**own, "ATLAS_PYTHON": sys.executable, "ATLAS_RUNS": str(tmp_path / "runs"), "DASHBOARD": "0",
          "ATLAS_STATE": str(tmp_path / "state"), "ATLAS_RUN": "run", "JAX_NUM_CPU_DEVICES": "1",
          "ATLAS_CONFIG": "configs/memory_40m.py:smoke,pretrain", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
          **more}


def entry(environment, *arguments):
  """Runs the entry to its end."""
  return subprocess.run(["bash", ENTRY, *arguments], env=environment, capture_output=True, text=True,
                        timeout=60)


@contextlib.contextmanager
def started(environment, *arguments):
  """Starts the entry; kills what is left of it at the end."""
  process = subprocess.Popen(["bash", ENTRY, *arguments], env=environment, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
  try:
    yield process
  finally:
    if process.poll() is None:
      process.terminate()
      try:
        process.communicate(timeout=60)
      except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def wait_for(what, process, *, within_s=200):
  """Waits until something is there while a process lives."""
  end = time.monotonic() + within_s
  while not (found := what()):
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < end, "it did not come"
    time.sleep(0.05)
  return found


def dry(tmp_path, *arguments, **more):
  done = entry(settings(tmp_path, ATLAS_DRY_RUN="1", **more), *arguments)
  assert done.returncode == 0, done.stderr
  return done.stdout.split()


# --- what is started ---


@pytest.mark.parametrize(
  ("variables", "flags"),
  [({}, ["--config.upload.when=never"]),
   ({"HF_TOKEN": "x"}, ["--config.upload.when=end"]),
   ({"HF_TOKEN": "x", "UPLOAD": "always"}, ["--config.upload.when=always"]),
   ({"HF_TOKEN": "x", "UPLOAD": "never"}, ["--config.upload.when=never"]),
   ({"DATA_PATH": "/data/*.txt"}, ["--config.data.name=files", "--config.data.path=/data/*.txt"]),
   ({"CUDA_DEVICE": "1"}, ["--local_devices=1"]),
   ({"TELEGRAM_BOT_TOKEN": "x", "TELEGRAM_CHAT_ID": "1"}, ["--config.alerts.sinks=log,telegram"]),
   ({"ALERT_SINKS": "webhook"}, ["--config.alerts.sinks=webhook"]),
   ({"ATLAS_FLAGS": "--config.seed=3  --trust"}, ["--config.seed=3", "--trust"])],
)  # fmt: skip
def test_variables_become_flags(variables, flags, tmp_path):
  found = dry(tmp_path, **variables)
  assert set(flags) <= set(found) and f"--workdir={tmp_path / 'runs' / 'run'}" in found
  if not variables:
    assert len(found) == 6  # python -m atlas_jax.main --config --workdir and the one above.


def test_arguments_are_flags_of_the_training_and_a_command_is_run_in_its_place(tmp_path):
  done = entry(settings(tmp_path), "echo", "hello")
  assert done.stdout == "hello\n" and not (tmp_path / "runs").exists()
  assert dry(tmp_path, "--config.seed=3")[-1] == "--config.seed=3"


@pytest.mark.parametrize(
  ("config", "name"),
  [("configs/memory_40m.py", "memory_40m"),
   ("configs/memory_40m.py:cpu,rule=delta", "memory_40m_cpu_rule_delta")],
)  # fmt: skip
def test_a_run_is_named_by_its_configuration(config, name, tmp_path):
  assert f"--workdir={tmp_path / 'runs' / name}" in dry(tmp_path, ATLAS_RUN="", ATLAS_CONFIG=config)


@pytest.mark.parametrize(
  ("variables", "says"),
  [({"ATLAS_START": "all"}, "ATLAS_START=all must be train, dashboard or manual"),
   ({"ATLAS_START": "train", "ATLAS_CONFIG": ""}, "ATLAS_CONFIG is not set"),
   ({"UPLOAD": "sometimes"}, "UPLOAD=sometimes must be never, end or always"),
   ({"DASHBOARD_PORT": "web"}, "DASHBOARD_PORT=web must be a number"),
   ({"ATLAS_PYTHON": "/nowhere/python"}, "there is no interpreter"),
   ({"ATLAS_RUNS": "/proc/runs"}, "ATLAS_RUNS=/proc/runs cannot be written by user")],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_started(variables, says, tmp_path):
  done = entry(settings(tmp_path, **variables))
  assert done.returncode == 2 and says in done.stderr and not (tmp_path / "state").exists()


def test_nothing_automatic_stays_until_it_is_stopped(tmp_path):
  with started(settings(tmp_path, ATLAS_START="manual")) as process:
    wait_for((tmp_path / "state").exists, process)
    assert health.main(settings(tmp_path)) == (0, "nothing is trained: manual")
    process.terminate()
    assert "nothing is started" in process.communicate(timeout=30)[0] and process.returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("atlas_jax.monitor.dashboard") is None, reason="there is no "
                                                                                            "dashboard")
def test_the_dashboard_alone_answers_and_ends_with_the_container(tmp_path):
  with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as free:
    port = str(free.server_address[1])
  variables = settings(tmp_path, ATLAS_START="dashboard", DASHBOARD="1", DASHBOARD_PORT=port)
  with started(variables) as process:
    wait_for(lambda: health.main(variables)[0] == 0, process)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0
  wait_until_gone = time.monotonic() + 20
  while health.main(variables)[0] == 0:
    assert time.monotonic() < wait_until_gone
    time.sleep(0.1)


# --- trainings ---


@pytest.mark.slow
def test_a_run_is_killed_stopped_finished_and_each_time_uploaded(tmp_path):
  run = tmp_path / "runs" / "run"
  steps = lambda: Checkpoints(run, read_only=True).steps()
  with hub_server.serving() as hub:
    variables = settings(tmp_path, UPLOAD="always", **hub_server.environment(hub, tmp_path / "cache"))
    endless = {**variables, "ATLAS_FLAGS": ENDLESS}

    with started(endless) as process:  # Killed, as for want of memory.
      wait_for(steps, process)
      assert health.main(endless)[0] == 0 and "heartbeat" in health.main(endless)[1]
      os.kill(json.loads((run / "owner.json").read_text())["pid"], signal.SIGKILL)
      said = process.communicate(timeout=120)[0]
    assert process.returncode == 137 and "uploading what it has saved" in said, said
    killed = json.loads((run / "upload.json").read_text())
    assert killed["state"] == "done" and killed["step"] == steps()[-1]

    with started(endless) as process:  # The same command goes on, and is stopped as `docker stop` does it.
      wait_for(lambda: steps()[-1] > killed["step"], process)
      process.terminate()
      said = process.communicate(timeout=120)[0]
    assert process.returncode == 75 and f"resumed from step {killed['step']}" in said, said
    stopped = json.loads((run / "upload.json").read_text())
    assert stopped["state"] == "done" and stopped["step"] == steps()[-1] > killed["step"]

    end = steps()[-1] + 2
    done = subprocess.run(["bash", ENTRY, f"--config.optim.steps={end}"], env=endless, capture_output=True,
                          text=True, timeout=200)
    assert done.returncode == 0 and "the training is finished" in done.stderr, done.stderr
    assert json.loads((run / "upload.json").read_text())["step"] == end
    files = hub.repos["alice/atlas-40m-episodic"].files
    assert json.loads(files["summary.json"])["steps"] == end and "report.png" in files
    assert hub_server.TOKEN not in said + done.stderr + done.stdout


def test_a_training_that_fails_keeps_its_exit_code_and_the_pod_is_stopped(tmp_path):
  with runpod([200]) as pod:
    variables = settings(tmp_path, ATLAS_FLAGS="--config.optim.lr=fast", STOP_POD_AFTER_S="0.1",
                         **pod.environment)
    with started(variables) as process:
      wait_for(lambda: pod.requests, process)
      process.terminate()
      said = process.communicate(timeout=30)[0]
  assert process.returncode == 1 and "the training failed with exit code 1" in said, said
  assert "--config.optim.lr=fast" in said and KEY not in said


def test_a_pod_that_is_kept_alive_goes_on(tmp_path):
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "keep_alive").touch()
  with runpod([]) as pod:
    variables = settings(tmp_path, ATLAS_FLAGS="--config.optim.lr=fast", **pod.environment)
    with started(variables) as process:
      state = tmp_path / "state"
      wait_for(lambda: state.exists() and "dashboard" in state.read_text(), process)
      process.terminate()
      process.communicate(timeout=30)
  assert process.returncode == 1 and not pod.requests


# --- health ---


def test_health_is_the_heartbeat_of_the_training(tmp_path):
  environ = {"ATLAS_STATE": str(tmp_path / "state")}
  assert health.main(environ) == (1, f"{tmp_path / 'state'} does not exist: the entry script has not begun")
  (tmp_path / "state").write_text(f"train\n{tmp_path}\n8501\n")
  assert health.main(environ)[1].endswith("the training has not begun, or has ended")
  (tmp_path / "owner.json").write_text("{}")
  assert health.main(environ)[0] == 0
  old = time.time() - 100
  os.utime(tmp_path / "owner.json", (old, old))
  assert health.main(environ)[0] == 1 and "no heartbeat of the training for 1" in health.main(environ)[1]
  assert health.main({**environ, "HEALTH_SILENT_S": "200"})[0] == 0


def test_health_asks_a_dashboard_that_stands_alone(tmp_path):
  class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(200 if self.path == "/_stcore/health" else 404)
      self.end_headers()

    def log_message(self, *_):
      pass

  with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    (tmp_path / "state").write_text(f"dashboard\n{tmp_path}\n{port}\n")
    assert health.main({"ATLAS_STATE": str(tmp_path / "state")}) == (0, "the dashboard answers 200")
    server.shutdown()
  code, why = health.main({"ATLAS_STATE": str(tmp_path / "state")})
  assert code == 1 and "does not answer" in why


# --- the pod ---

KEY = "rpa_secretKEY0123456789"


class Pod:
  """What stands for RunPod: answers, one after another, and what was asked."""

  def __init__(self, answers):
    self.answers = list(answers)
    self.requests = []
    self.environment = {}


@contextlib.contextmanager
def runpod(answers):
  pod = Pod(answers)

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      pod.requests.append((self.path, self.headers["Authorization"]))
      self.send_response(pod.answers.pop(0))
      self.end_headers()

    def log_message(self, *_):
      pass

  with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pod.environment = {"RUNPOD_API": f"http://127.0.0.1:{server.server_address[1]}", "RUNPOD_POD_ID": "abc/1",
                       "RUNPOD_API_KEY": KEY}
    yield pod
    server.shutdown()


@pytest.mark.parametrize(("answers", "tries", "why"),
                         [([200], 1, None), ([500, 429, 204], 3, None), ([401], 1, "answers 401"),
                          ([500] * 5, 5, "answers 500")])
def test_a_pod_is_asked_to_stop_until_it_answers(answers, tries, why):
  with runpod(answers) as pod:
    found = stop_pod.stop(pod.environment, wait_s=0.001)
  assert pod.requests == [("/pods/abc%2F1/stop", f"Bearer {KEY}")] * tries
  assert found is None if why is None else why in found and "stop it by hand" in found and KEY not in found


def test_the_countdown_is_cancelled_by_a_file(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(stop_pod, "LOOK_S", 0.01)
  keep = tmp_path / "keep_alive"
  threading.Timer(0.1, keep.touch).start()
  with runpod([]) as pod:
    assert stop_pod.main(["--seconds=60", f"--keep_alive={keep}"], pod.environment) == stop_pod.CANCELLED
    assert not pod.requests
  assert f"to keep it: touch {keep}" in capsys.readouterr().out
  assert stop_pod.main([f"--keep_alive={keep}"], {}) == 1
  assert "RUNPOD_POD_ID and RUNPOD_API_KEY must be set" in capsys.readouterr().out


# --- the files ---


def tool(name):
  """The path of a linter, which lies beside Python or on the path."""
  return shutil.which(name, path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
  "command", [("shellcheck", "--severity=style", ENTRY), ("hadolint", DOCKER / "Dockerfile")],
  ids=["shellcheck", "hadolint"])
def test_linters_find_nothing(command):
  program, *arguments = command
  assert tool(program), f"{program} is missing: pip install -e '.[dev]'"
  done = subprocess.run([tool(program), *arguments], capture_output=True, text=True, timeout=120)
  assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def stages():
  """{stage of the Dockerfile: its lines}."""
  found = {}
  for line in (DOCKER / "Dockerfile").read_text().splitlines():
    if match := re.match(r"FROM (\S+) AS (\S+)", line):
      found[match[2]] = [*found.get(match[1], [line])]
    elif found:
      found[[*found][-1]].append(line)
  return found


def test_every_image_is_of_an_exact_version_and_of_a_user_without_rights():
  for name, lines in stages().items():
    assert re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim-\w+ AS base", lines[0]), name
    users = [line for line in lines if line.startswith("USER ")]
    assert users[-1] == "USER 1000:1000", name
  text = (DOCKER / "Dockerfile").read_text()
  for lock in re.findall(r"requirements/[\w.-]+", text):
    assert (ROOT / lock).exists() or lock == "requirements/.", lock
  assert text.count("--require-hashes") == 2 and "--constraint requirements/py311.txt" in text


def test_images_have_the_names_that_are_documented_and_configurations_that_are_there():
  bake = (DOCKER / "docker-bake.hcl").read_text()
  for name in ("5090_40M", "hopper", "latest", "cpu", "tpu"):
    block = re.search(rf'target "{name}" {{(.*?)\n}}', bake, re.DOTALL)[1]
    assert re.search(r'target\s+= "(\w+)"', block)[1] in stages() and f":{name}" in block
  for file in re.findall(r"ATLAS_CONFIG=(configs/\w+\.py)", (DOCKER / "Dockerfile").read_text()):
    assert (ROOT / file).is_file()
  compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
  assert compose["services"].keys() == {"cpu", "40m", "340m", "dashboard"}
  assert all(service["build"]["target"] in stages() for service in compose["services"].values())


def test_every_variable_that_is_read_stands_in_the_table():
  table = (DOCKER / "README.md").read_text()
  read = set(re.findall(r"\$\{([A-Z][A-Z0-9_]+)", ENTRY.read_text())) - {"BASH_SOURCE", "PYTHONPATH"}
  read |= set(re.findall(r"environ(?:\.get\(|\[)[\"']([A-Z_]+)", "".join(
    (DOCKER / f"{name}.py").read_text() for name in ("health", "stop_pod"))))
  missing = [name for name in sorted(read) if f"`{name}`" not in table]
  assert len(read) > 15 and not missing
