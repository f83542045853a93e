"""Runs that are served, with their real models: over HTTP and in a terminal, before and after a restart."""
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import httpx
import jax
import pytest

from atlas_jax.checkpoint import Checkpoints
from atlas_jax.language import runs
from atlas_jax.language.decoding.scheduler_settings import STATS
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.language.serve import served_run, terminal
from atlas_jax.language.serve.access import Access
from atlas_jax.language.serve.answering import Service
from atlas_jax.language.serve.server_metrics import ServerMetrics
from configs import memory_40m
from tests import program
from tests.language.serve.scripted import Client
from tests.language.test_export import leave_run
from tests.program import refused
from tests.runs import changed


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run of a tiny memory model that has seen no text."""
  folder = tmp_path_factory.mktemp("served") / "run"
  leave_run(folder, changed(memory_40m.get_config("smoke,pretrain"), {}))
  return folder


def config_of(workdir, **fields):
  config = runs.config_of(workdir)
  config.serve.update(slots=2, group_rows=2, piece_tokens=16, store_every_tokens=16, store_gib=0.1, **fields)
  return config


@contextlib.contextmanager
def client_of(config, workdir):
  """Yields a client of a run's service."""
  with served_run.opened(config, workdir, mode="serve") as served:
    limits = served_run.request_limits(config, served.text)
    metrics = ServerMetrics(served.scheduler.stats, STATS)
    yield Client(Service(served.scheduler, served.text, limits, Access(()),
                         served_run.open_conversations(config), metrics, served.trace))


def test_a_run_is_served_and_a_conversation_goes_on_after_a_restart(workdir, tmp_path):
  config = config_of(workdir, folder=str(tmp_path))
  asked = dict(prompt="def f(x):" * 5, max_tokens=24, seed=3, return_token_ids=True)
  with client_of(config, workdir) as client:
    model, = client.ask("/v1/models").json()["data"]
    assert (model["id"], model["version"], model["memory"]) == ("run", 2, True)
    assert model["state_bytes"] > 0
    cold = client.post("/v1/completions", **asked, conversation="c")
    warm = client.post("/v1/completions", **asked)
    assert warm["choices"] == cold["choices"]
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    whole = "".join(one["choices"][0]["text"] for one in client.stream("/v1/completions", **asked))
    assert whole == cold["choices"][0]["text"]
    ids = cold["choices"][0]["prompt_token_ids"] + cold["choices"][0]["token_ids"]
    told = client.post("/v1/memory", tokens=ids)
    assert all(0 <= one <= 1 for one in told["gate"])
    assert len(told["surprise"]) == len(ids)
    expected = client.post("/v1/completions", prompt=[*ids, *b" more"], max_tokens=8, seed=4)
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["red", "blue"]}}}
    chosen = client.post("/v1/completions", prompt="x", response_format=form, seed=1)["choices"][0]
    assert json.loads(chosen["text"]) in ("red", "blue")
    assert "atlas_jax_scheduler_requests " in client.ask("/metrics").text
  with client_of(config, workdir) as client:
    again = client.post("/v1/completions", prompt=" more", max_tokens=8, seed=4, conversation="c")
    assert again["choices"] == expected["choices"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_run_talks_in_a_terminal(workdir):
  out = io.StringIO()
  terminal.run(config_of(workdir), workdir, iter(["/set max_tokens 5\n", "def f\n", "/memory\n"]), out)
  assert "5 written" in out.getvalue()
  assert "surprise" in out.getvalue()


def test_settings_that_do_not_fit_are_refused_before_weights_are_read(workdir):
  config = config_of(workdir, room_tokens=64)
  with pytest.raises(ValueError, match=r"config\.serve\.room_tokens=64"):
    with served_run.opened(config, workdir, mode="serve"):
      pass
  config = config_of(workdir)
  config.serve.store_every_tokens = 17
  with pytest.raises(ValueError, match=r"config\.serve: store_every_tokens=17"):
    served_run.settings(config, None)


def test_flags_of_the_server_are_checked(workdir):
  where = f"--workdir={workdir}"
  assert "--port is for --mode=serve" in refused(program.run("--mode=eval", where, "--port=1"))
  assert "--mode=serve and chat" in refused(program.run("--mode=eval", where, "--config.serve.slots=2"))
  assert "are the same" in refused(program.run("--mode=serve", where, "--port=1", "--config.serve.port=2"))
  open_to_all = program.run("--mode=serve", where, "--config.serve.host=0.0.0.0")
  assert "ATLAS_JAX_SERVE_TOKENS" in refused(open_to_all)


@pytest.mark.slow
def test_the_program_serves_until_a_signal_and_takes_newer_weights_at_another(workdir, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(workdir, run)
  command = [sys.executable, "-m", "atlas_jax.main", "--mode=serve", f"--workdir={run}", "--port=0",
             "--config.serve.group_rows=2", "--config.serve.slots=2"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as program_:
    try:
      told = json.loads(program_.stdout.readline())
      answer = httpx.post(f"{told['url']}/v1/completions", json={"prompt": "x", "max_tokens": 3}, timeout=60)
      assert answer.json()["usage"]["completion_tokens"] == 3
      config = runs.config_of(run)
      params = load_initial_model(config).init(jax.random.key(1))[0]
      saver = Checkpoints(run, **config.checkpoint)
      saver.save(3, {"params": params}, {"step": 3})
      saver.close()
      program_.send_signal(signal.SIGHUP)
      until = time.monotonic() + 60
      while httpx.get(f"{told['url']}/v1/models").json()["data"][0]["version"] != 3:
        assert time.monotonic() < until
        time.sleep(0.1)
    finally:
      program_.send_signal(signal.SIGTERM)
    assert program_.wait(30) == 0
