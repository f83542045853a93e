"""Runs that write with a server: what is learnt, a server that dies and comes back, several processes."""
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from atlas_jax import recipes
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.language.vllm import weights
from atlas_jax.language.vllm.client import ServerError
from tests import program, runs
from tests.language.languages import tiny
from tests.language.vllm.stub import Engine, Stub
from tests.recipes import test_grpo

CHANGES = dict(rewards="tests.language.vllm.test_runs.watched", optim__steps=4, sampler__kind="vllm",
               optim__decay_frac=0.5, checkpoint__every_steps=2, vllm__retries=2, vllm__backoff_s=0.01)
SERVER = {"scored": 0, "fails_at": None, "stub": None}
WORKER = """
import sys
import jax
from atlas_jax.data import tokenizer
from atlas_jax.parallel import hosts
from atlas_jax.language.vllm import sampler as vllm
from atlas_jax.language.decoding.sampler import SamplingOptions
from tests.language.languages import tiny
port, rank, url, workdir = sys.argv[1:]
hosts.start(f"127.0.0.1:{port}", 2, int(rank))
sampler = vllm.make(tiny("decoder")[0], tokenizer.ByteTokenizer(), like=None, workdir=workdir,
                    longest_tokens=64, url=url, command=None, arguments="", port=None, shared_folder=None,
                    dtype=None, gap_limit_nats=None, start_timeout_s=60.0, timeout_s=60.0, retries=0,
                    backoff_s=0.01, parallel_requests=4)
sampler.load(tiny("decoder")[1], 7)
rollout = sampler.generate([[5], [256, 9]], SamplingOptions(n=2, max_tokens=5), seed=1)
print("WROTE", rollout.tokens_BT.tolist(), rollout.sampler_logprob_BT.tolist(), rollout.version_B.tolist())
try:
  sampler.generate([[5]], SamplingOptions(max_tokens=5), seed=1)
except vllm.ServerError as error:
  print("FAILED", error, flush=True)
hosts.leave(0)
"""


def watched(prompt, completion, answer):
  """Is a reward that differs, and has the server fail when it is asked to."""
  SERVER["scored"] += 1
  if SERVER["scored"] == SERVER["fails_at"]:
    SERVER["stub"].fail("500", times=3)
  return test_grpo.spread(prompt, completion, answer)


@pytest.fixture
def config(tmp_path):
  """A config of a run that writes with a stand-in, which it starts on other weights."""
  made = test_grpo.config_of(**CHANGES)
  start = load_initial_model(made)
  longest = made.data.max_prompt_tokens + made.sampler.max_tokens
  folder = weights.Exports(start.language.module, like=None, shared_folder=str(tmp_path / "served"),
                           workdir=tmp_path, dtype="float32", max_tokens=longest)
  params = start.language.init(jax.random.key(9))
  with Stub(Engine(folder.write(params), max_model_len=longest)) as stub:
    SERVER.update(scored=0, fails_at=None, stub=stub)
    yield test_grpo.config_of(**CHANGES, vllm__url=stub.url)


@pytest.mark.slow
def test_a_run_whose_server_fails_takes_no_half_step_and_goes_on(config, tmp_path):
  expected, rows = test_grpo.run(config, tmp_path / "whole")
  assert len(rows) == 4 and all(row["policy/sampler_gap_nats_max"] < 1e-4 for row in rows)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
  SERVER.update(scored=0, fails_at=3 * 8)
  with pytest.raises(ServerError, match=r"/v1/completions failed \(status 500\).* goes on from the newest"):
    runs.run_lm(config, tmp_path / "parts")
  recipe = recipes.load(config, runs.one_device())
  assert int(runs.saved(config, recipe, tmp_path / "parts").step) in (2, 3)
  params, again = test_grpo.run(config, tmp_path / "parts")
  for left, right in zip(jax.tree.leaves(params), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(left, right)
  assert again == rows


@pytest.mark.slow
def test_several_processes_get_what_the_first_is_given(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  language, params = tiny("decoder")
  folder = weights.Exports(language.module, like=None, shared_folder=str(tmp_path / "served"),
                           workdir=tmp_path, dtype="float32", max_tokens=64).write(params)
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
  with Stub(Engine(folder)) as stub:
    stub.fail("500", after=4)  # A prompt that is scored, a completion that is looked at, and two prompts.
    workers = [subprocess.Popen(
        [sys.executable, "-c", WORKER, str(port), str(rank), stub.url, str(tmp_path)], env=environment,
        cwd=program.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    try:
      told = [worker.communicate(timeout=240) for worker in workers]
    finally:
      for worker in workers:
        worker.kill()
        worker.wait()
    asked = len(stub.engine.asked)
  lines = [[line for line in out.splitlines() if line.startswith(("WROTE", "FAILED"))] for out, _ in told]
  assert lines[0] == lines[1] and len(lines[0]) == 2, told
  assert "[7, 7, 7, 7]" in lines[0][0] and "/v1/completions failed (status 500)" in lines[0][1]
  assert asked == 4
  assert len(list(pathlib.Path(tmp_path).glob("served/*"))) == 1
