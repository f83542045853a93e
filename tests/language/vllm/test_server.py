"""The server as a child process: started on the right weights, watched, and stopped with all it started."""
import contextlib
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from atlas_jax.data import tokenizer
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.vllm import sampler as vllm
from atlas_jax.language.vllm import server as vllm_server
from atlas_jax.language.vllm.client import Client, ServerError
from tests.helpers import quick_compilation
from tests.language.languages import tiny

ROOT = pathlib.Path(__file__).parents[3]
STUB = f"{sys.executable} -m tests.language.vllm.stub"
FIELDS = dict(like=None, longest_tokens=32, url=None, command=STUB, arguments="", port=None, dtype=None,
              shared_folder=None, gap_limit_nats=None, start_timeout_s=120.0, timeout_s=30.0, retries=1,
              backoff_s=0.01, parallel_requests=4)
BYTES = tokenizer.ByteTokenizer()
# Starts a process of its own, as vLLM does, and tells both numbers.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("pids", os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
# Answers for another model, as a server does that had the port before.
FOREIGN = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_response(200)
    self.end_headers()
    self.wfile.write(json.dumps({"data": [{"id": "x", "root": "/elsewhere", "max_model_len": 9}]}).encode())
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
RUN = """
import os, pathlib, signal, sys
from atlas_jax.language.vllm.server import Server
log = pathlib.Path(sys.argv[1])
server = Server([sys.executable, "-c", sys.argv[2]], log, environment=os.environ,
                temporary=log.parent / "weights")
if sys.argv[3] == "raise":
  import weakref
  class Held: pass
  held = Held()
  weakref.finalize(held, server.stop)
sys.stdin.read(1)
if sys.argv[3] == "raise":
  raise ValueError("the run fails")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@pytest.fixture
def make(tmp_path, monkeypatch):
  """Yields a function that makes samplers whose server is the stand-in; they are closed after the test."""
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  made = []

  def build(**fields):
    made.append(vllm.make(tiny("decoder")[0], BYTES, workdir=tmp_path, **(FIELDS | fields)))
    return made[-1]

  yield build
  for sampler in made:
    sampler.close()


def is_alive(pid):
  """Returns whether a process still runs; one that has ended and waits for its parent does not."""
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
  except OSError:
    return False


def wait_until(what, seconds=30.0):
  deadline = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def pids_in(log):
  lines = log.read_text().splitlines() if log.exists() else []
  return [int(word) for line in lines if line.startswith("pids") for word in line.split()[1:]]


def test_a_server_is_started_with_the_weights_and_stopped(make, tmp_path):
  sampler, params = make(), tiny("decoder")[1]
  sampler.load(params, 1)
  sampler.load(jax.tree.map(lambda leaf: leaf * 0.9, params), 2)
  prompts, options = [[256, 7], [5]], SamplingOptions(n=2, max_tokens=4)
  assert (sampler.generate(prompts, options, seed=0).version_B == 2).all()
  command = (tmp_path / "vllm_server.log").read_text().splitlines()[0]
  assert "--logprobs-mode processed_logprobs" in command and "--max-model-len 32" in command
  assert "--skip-tokenizer-init" in command and "--generation-config vllm" in command
  served = pathlib.Path(command.split("--model ")[1].split()[0])
  assert served.is_dir()
  url = sampler._engine._client.url
  sampler.close()
  assert Client(url, timeout_s=5.0, retries=0, backoff_s=0.0).once("/health").trouble is not None
  assert not served.exists() or not str(served).startswith("/dev/shm")
  with pytest.raises(ValueError, match="no weights yet"):
    sampler.generate(prompts, options, seed=0)


def test_a_server_that_ends_is_told_of_at_once(tmp_path):
  server = vllm_server.Server([sys.executable, "-c", FAMILY], tmp_path / "log", environment=os.environ)
  url = f"http://127.0.0.1:{vllm_server.free_port(None)}"
  client = Client(url, timeout_s=5.0, retries=50, backoff_s=30.0, death=server.death)
  wait_until(lambda: len(pids_in(tmp_path / "log")) == 2)
  os.kill(pids_in(tmp_path / "log")[0], signal.SIGKILL)
  wait_until(lambda: server.death() is not None)
  with pytest.raises(ServerError, match=r"does not answer .* server has ended \(exit code 137\); the end of"):
    client.ask("/weight_info")
  wait_until(lambda: not any(is_alive(pid) for pid in pids_in(tmp_path / "log")))


@pytest.mark.parametrize("script, message", [
    ("raise RuntimeError('no room')", "exit code 1.*vllm_server.log: RuntimeError: no room"),
    ("import no_such_module", "it needs atlas_jax.vllm."),
    (FOREIGN, "serves /elsewhere and not .*another program's server answers there"),
])
def test_a_server_that_does_not_start_well_is_told_of(make, script, message):
  with pytest.raises(ServerError, match=message):
    make(command=shlex.join([sys.executable, "-c", script])).load(tiny("decoder")[1], 0)


def test_a_start_takes_no_longer_than_allowed(make):
  command = f"{sys.executable} -c 'import time; time.sleep(60)'"
  sampler = make(command=command, start_timeout_s=0.5)
  with pytest.raises(ServerError, match="did not start within config.vllm.start_timeout_s=0.5 s"):
    sampler.load(tiny("decoder")[1], 0)


def test_stopping_ends_all_that_was_started_and_nothing_else(tmp_path):
  other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
  try:
    server = vllm_server.Server([sys.executable, "-c", FAMILY], tmp_path / "log", environment=os.environ)
    wait_until(lambda: len(pids_in(tmp_path / "log")) == 2)
    assert server.death() is None
    server.stop()
    wait_until(lambda: not any(is_alive(pid) for pid in pids_in(tmp_path / "log")))
    assert other.poll() is None
    server.stop()
    assert "has ended" in server.death()
  finally:
    other.kill()
    other.wait()


@pytest.mark.parametrize("end", ["raise", "kill"])
def test_a_run_that_fails_or_is_killed_leaves_no_server(tmp_path, end):
  log = tmp_path / "log"
  (tmp_path / "weights").mkdir()
  run = subprocess.Popen([sys.executable, "-c", RUN, str(log), FAMILY, end], stdin=subprocess.PIPE,
                         stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
  try:
    wait_until(lambda: len(pids_in(log)) == 2)
    run.communicate(b"x")
    wait_until(lambda: not any(is_alive(pid) for pid in pids_in(log)))
    wait_until(lambda: not (tmp_path / "weights").exists())
  finally:
    run.kill()
    for pid in pids_in(log):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_port_that_is_taken_is_refused(make):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    with pytest.raises(ValueError, match=r"config.vllm.port=\d+ is taken .* set config.vllm.url"):
      make(port=taken.getsockname()[1])


@pytest.mark.parametrize("fields, error, message", [
    (dict(command="no_such_program --x"), ValueError, "config.vllm.command='no_such_program --x' does not"),
    (dict(command=""), ValueError, "config.vllm.command=''"),
    (dict(url="localhost:8000"), ValueError, "config.vllm.url='localhost:8000' is not the address"),
    (dict(longest_tokens=None), ValueError, "needs config.data.max_prompt_tokens"),
    (dict(command=None), ModuleNotFoundError, "atlas_jax.vllm.* config.vllm.url"),
])
def test_fields_that_cannot_be_are_refused_before_a_server_starts(make, fields, error, message):
  if error is ModuleNotFoundError and vllm_server_is_installed():
    pytest.skip("vllm is installed here")
  with pytest.raises(error, match=message):
    make(**fields)


def vllm_server_is_installed():
  """Returns whether this Python has vllm."""
  import importlib.util
  return importlib.util.find_spec("vllm") is not None


@pytest.mark.parametrize("language, what", [
    (tiny("memory")[0], "not a model with memory"),
    (tiny("decoder", learned_positions=40)[0], "not one with learned_positions"),
])
def test_models_that_vllm_cannot_serve_are_refused(language, what, tmp_path):
  with pytest.raises(ValueError, match=f"{what}; set config.sampler.kind='native'"):
    vllm.make(language, BYTES, workdir=tmp_path, **FIELDS)


def test_a_url_without_a_server_names_the_command_that_starts_one(make, tmp_path):
  port = vllm_server.free_port(None)
  with pytest.raises(ServerError, match=rf"http://127.0.0.1:{port}/health does not answer .* VLLM_SERVER_DEV_"
                                        r"MODE=1 .*-m vllm.entrypoints.openai.api_server --model \S+even"):
    make(url=f"http://127.0.0.1:{port}/v1").load(tiny("decoder")[1], 0)
  assert (tmp_path / "served" / "even" / "model.safetensors").is_file()
