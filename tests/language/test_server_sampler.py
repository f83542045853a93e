"""The sampler that asks our own server: it writes what the native one writes, or says why it cannot."""
import contextlib
import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from atlas_jax.language import samplers, server_sampler
from atlas_jax.language.decoding import programs
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.language.serve.access import TRAINER_TOKENS, Access
from atlas_jax.language.serve.answering import RequestLimits, Service
from atlas_jax.language.serve.conversations import Conversations
from atlas_jax.language.serve.generation_fields import CompletionLimits
from atlas_jax.language.serve.policy_weights import PolicyWeights
from atlas_jax.language.serve.served_text import ServedText
from atlas_jax.language.serve.server_metrics import ServerMetrics
from atlas_jax.language.vllm import weights
from atlas_jax.language.vllm.client import ServerError
from atlas_jax.models import language as languages
from atlas_jax.models import lora
from tests import runs
from tests.language.decoding import serving
from tests.language.languages import tiny
from tests.language.serve import test_http_server
from tests.language.test_export import leave_run
from tests.recipes import test_grpo

TOKEN, USER = "a-trainer-of-enough-length", "a-user-of-enough-length"
PROMPTS = [[256, *b"one"], [7], [256, *b"one"]]
OPTIONS = SamplingOptions(n=2, max_tokens=6, stop_tokens=(256, 97))
FILTERED = dataclasses.replace(OPTIONS, temperature=0.7, stop_strings=("\x07",), top_k=5)
LIKELIEST = dataclasses.replace(OPTIONS, temperature=0, repetition_penalty=1.5)
FIELDS = dict(served_as=None, token_variable=None, gap_limit_nats=None, timeout_s=60.0, retries=2,
              backoff_s=0.01, parallel_requests=4)


@pytest.fixture(autouse=True)
def _prepared(monkeypatch):
  monkeypatch.setattr(programs, "make", serving.shared_programs)
  monkeypatch.setenv(server_sampler.TOKEN_VARIABLE, TOKEN)


class Served:
  """A server of a tiny model.

  Attributes:
    url: of it.
    scheduler: that writes.
    folder: of weights.
    change: (route, answer) -> answer, of JSON, for a server that answers what it must not.
  """

  def __init__(self, scheduler, folder):
    self.scheduler = scheduler
    self.folder = folder
    self.url = ""
    self.change = lambda route, answer: answer

  def sampler(self, language, tokenizer=serving.TOKENIZER, **fields):
    """Returns a sampler that asks it."""
    given = {**FIELDS, "url": self.url, "weights_folder": str(self.folder), "workdir": None, **fields}
    return server_sampler.make(language, tokenizer, **given)


@contextlib.contextmanager
def served(folder, language, params, *, version=50, takes=True, max_tokens=20, tokenizer=serving.TOKENIZER,
           tokens=(USER,), end_tokens=()):
  """Yields a server of a model that listens at a port."""
  room = None if language.token_axes is None else serving.ROOM
  with serving.Scheduler(serving.Settings(
      slots=4, group_rows=serving.ROWS, piece_tokens=serving.PIECE, room_tokens=room, store_bytes=2**22,
      store_every_tokens=serving.PIECE), tokenizer) as scheduler:
    scheduler.load("base", language, params, version)
    text = ServedText(tokenizer, None, end_tokens, language.vocab_size, room)
    limits = RequestLimits(2**16, 5, 64, CompletionLimits(max_tokens, 8, room))
    service = Service(scheduler, text, limits, Access(tokens, (TOKEN,)), Conversations(None, 3),
                      ServerMetrics(scheduler.stats, {}))
    if takes:
      service.policy = PolicyWeights(scheduler, folder, lambda name, params: None)
    with test_http_server.serving(service) as port:
      made = Served(scheduler, folder)
      made.url = f"http://127.0.0.1:{port}"
      yield made


def scaled(params, factor):
  return jax.tree.map(lambda leaf: leaf * np.float32(factor), params)


def recomputed(language, params, rollout, prompts, options):
  """Returns the log-probability of each id in the tempered distribution, by reading each text once."""
  found_BT = np.zeros_like(rollout.full_logprob_BT)
  for row, size in enumerate(rollout.length_B):
    text = [*prompts[row // options.n], *rollout.tokens_BT[row, :size].tolist()]
    found_BT[row, :size] = weights.score(language, params, text, temperature=options.temperature)[-size:]
  return found_BT


@pytest.mark.parametrize("kind", serving.KINDS)
def test_it_writes_what_the_native_sampler_writes(kind, tmp_path):
  language, params = tiny(kind)
  native = NativeSampler(language, serving.TOKENIZER)
  with served(tmp_path, language, scaled(params, 0.5)) as server:
    sampler = server.sampler(language)
    # A lower version than the server's, as a run that begins has; and then others, in any order.
    for version, factor in ((0, 1.0), (3, 0.8), (3, 0.9)):
      of = scaled(params, factor)
      sampler.load(of, version)
      native.load(of, version)
      assert server.scheduler.models() == {"base": version}
      for options in (OPTIONS,) if version else (OPTIONS, FILTERED, LIKELIEST):
        found, expected = (one.generate(PROMPTS, options, seed=2**63 + 5) for one in (sampler, native))
        for name in ("tokens_BT", "length_B", "version_B"):
          np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert (found.reason_B, found.text_B) == (expected.reason_B, expected.text_B)
        for name in ("sampler_logprob_BT", "full_logprob_BT"):
          np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-4)
        if options is OPTIONS and version == 0:
          # Nothing is left out, so it is the distribution drawn from.
          own_BT = recomputed(language, of, found, PROMPTS, options)
          np.testing.assert_allclose(found.sampler_logprob_BT, own_BT, atol=1e-4)
    assert sampler.stats["hand_over_gap_nats"] < 1e-4
  assert not list(tmp_path.iterdir())


def test_adapters_are_handed_over_merged(tmp_path):
  language, params = tiny("decoder")
  options = dict(rank=2, alpha=4.0, targets=("q", "v"), scaling="rank")
  module = language.module.copy(lora=options)
  adapted = languages.from_decoder(module)
  adapters = jax.tree.map(lambda leaf: leaf + 0.1, lora.start(module, jax.random.key(1)))
  joined = lora.join(adapters, params)
  native = NativeSampler(adapted, serving.TOKENIZER)
  native.load(joined, 1)
  with served(tmp_path, language, params) as server:
    sampler = server.sampler(adapted)
    sampler.load(joined, 1)
    found, expected = (one.generate(PROMPTS, OPTIONS, seed=4) for one in (sampler, native))
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)


def test_users_are_answered_meanwhile_and_may_change_nothing(tmp_path):
  language, params = tiny("decoder")
  httpx = pytest.importorskip("httpx")
  with served(tmp_path, language, params) as server:
    sampler = server.sampler(language)
    stop = threading.Event()
    statuses = []

    def ask():
      while not stop.is_set():
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": [5, 6], "max_tokens": 5},
                            headers={"Authorization": f"Bearer {USER}"}, timeout=30)
        statuses.append(answer.status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    for version in range(3):
      sampler.load(scaled(params, 1 + version / 10), version)
      sampler.generate(PROMPTS, OPTIONS, seed=1)
    stop.set()
    thread.join(30)
    assert statuses
    assert set(statuses) == {200}


def test_another_run_that_gives_weights_is_found_out(tmp_path):
  language, params = tiny("decoder")
  with served(tmp_path, language, params) as server:
    first, second = (server.sampler(language, workdir=name) for name in ("one", "two"))
    first.load(params, 4)
    # Of the same version, so that completions alone would not tell.
    second.load(scaled(params, 0.9), 4)
    with pytest.raises(ServerError, match="another run gives weights to it"):
      first.generate(PROMPTS, OPTIONS, seed=1)
    with pytest.raises(ValueError, match="another run gives weights to it"):
      first.load(params, 5)
    assert second.generate(PROMPTS, OPTIONS, seed=1).version_B.tolist() == [4] * 6


def test_a_server_that_was_restarted_is_found_out(tmp_path):
  language, params = tiny("decoder")
  with served(tmp_path, language, params) as server:
    sampler = server.sampler(language)
    sampler.load(params, 4)
    server.scheduler.replace("base", params, 50)  # As a new one on the same run has.
    with pytest.raises(ServerError, match="weights_version=50, and version=4 was handed over"):
      sampler.generate(PROMPTS, OPTIONS, seed=1)
    server.scheduler.replace("base", params, 4)
    with pytest.raises(ServerError, match="has the weights None of 'base'"):
      sampler.generate(PROMPTS, OPTIONS, seed=1)


def test_a_server_that_takes_no_weights_or_is_away_is_told_of(tmp_path):
  language, params = tiny("decoder")
  with served(tmp_path, language, params, takes=False) as server:
    with pytest.raises(ValueError, match="status 403.*--config.serve.weights_folder=FOLDER"):
      server.sampler(language).load(params, 1)
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    away = f"http://127.0.0.1:{probe.getsockname()[1]}"
    server.url = away
    with pytest.raises(ServerError, match=r"/v1/weights does not answer .* in 3 tries"):
      server.sampler(language).load(params, 1)
  assert not list(tmp_path.iterdir())


def test_a_token_that_may_not_change_weights_is_refused_and_not_shown(tmp_path, monkeypatch):
  language, params = tiny("decoder")
  with served(tmp_path, language, params) as server:
    for token, status in ((USER, 403), ("unknown-but-long-enough", 401)):
      monkeypatch.setenv("MINE", token)
      with pytest.raises(ValueError, match=f"status {status}") as caught:
        server.sampler(language, token_variable="MINE").load(params, 1)
      assert token not in str(caught.value)
    assert server.scheduler.models() == {"base": 50}
  for token in ("", "two words", "line\nbreak", "\xe4"):
    monkeypatch.setenv("MINE", token)
    with pytest.raises(ValueError, match="token_variable='MINE': MINE ") as caught:
      server.sampler(language, token_variable="MINE")
    assert not token or token not in str(caught.value)


def test_another_model_is_refused_and_what_is_served_stays(tmp_path):
  language, params = tiny("decoder")
  others = {"vocab_size=270": dict(vocab_size=280), "width=24": dict(width=24),
            "rope_base=500.0": dict(rope_base=500.0)}
  with served(tmp_path, language, params) as server:
    for match, fields in others.items():
      other, its = tiny("decoder", **fields)
      with pytest.raises(ValueError, match=match):
        server.sampler(other).load(its, 1)
    with pytest.raises(ValueError, match="config.server.served_as='none' is not served .*; there are base"):
      server.sampler(language, served_as="none").load(params, 1)
    assert server.scheduler.models() == {"base": 50}
    assert server.scheduler.model("base").params is params


def test_prompts_that_do_not_fit_are_refused_before_they_are_asked(tmp_path):
  language, params = tiny("decoder")
  with served(tmp_path, language, params) as server:
    sampler = server.sampler(language)
    with pytest.raises(ValueError, match="no weights yet"):
      sampler.generate(PROMPTS, OPTIONS, seed=1)
    sampler.load(params, 0)
    with pytest.raises(ValueError, match="prompt 1 has 157 ids.*config.serve.room_tokens"):
      sampler.generate([[5], [5] * 157], OPTIONS, seed=1)
    with pytest.raises(ValueError, match="prompt 0 has ids from 270"):
      sampler.generate([[270]], OPTIONS, seed=1)
    with pytest.raises(ValueError, match="status 400.*config.serve.max_tokens"):
      sampler.generate([[5]], dataclasses.replace(OPTIONS, max_tokens=21), seed=1)


GOOD = dict(token_ids=[5, 97], sampler_logprobs=[-1.0, -2.0], full_logprobs=[-1.0, -2.0], weights_version=3,
            finish_reason="stop", stop_reason=97)


@pytest.mark.parametrize(("changes", "match"), [
    (dict(token_ids=None), "a completion with no token_ids"),
    (dict(token_ids=[]), "a completion with 0 token_ids"),
    (dict(token_ids=[5, 270]), "token_ids from 5 to 270; this model has 0..269"),
    (dict(sampler_logprobs=None), "gave no sampler_logprobs for 2 ids"),
    (dict(full_logprobs=[-1.0]), "gave 1 full_logprobs for 2 ids"),
    (dict(full_logprobs=[-1.0, -9999.0]), "full_logprobs that are no log-probabilities"),
    (dict(weights_version=2), "weights_version=2, and version=3"),
    (dict(weights_version=None), "weights_version=None, and version=3"),
    (dict(finish_reason="length"), "finish_reason='length'"),
    (dict(token_ids=[5, 6]), "ends after 2 for None"),
    (dict(token_ids=[97, 6]), "ends after 1 for 'stop_token'")])
def test_an_answer_that_is_not_whole_is_refused(changes, match, tmp_path):
  language, _ = tiny("decoder")
  sampler = Served(None, tmp_path)
  sampler.url = "http://127.0.0.1:1"
  made = sampler.sampler(language)
  assert made._read(GOOD, OPTIONS, 3).reason == "stop_token"
  with pytest.raises(ServerError, match=match):
    made._read(GOOD | changes, OPTIONS, 3)


def test_fields_that_are_missing_are_named_before_anything_starts(tmp_path):
  for fields, match in (({}, "config.server.url=None"),
                        ({"server__url": "http://x:1"}, "weights_folder=None"),
                        ({"server__url": "http://x:1", "server__weights_folder": str(tmp_path / "no")},
                         "is no folder here"),
                        ({"server__url": "ftp://x", "server__weights_folder": str(tmp_path)},
                         "config.server.url='ftp://x' is not the address"),
                        ({"server__url": "http://me:secret@x:1", "server__weights_folder": str(tmp_path)},
                         "config.server.url has a name or password")):
    config = test_grpo.config_of(sampler__kind="server", **fields)
    with pytest.raises(ValueError, match=match) as caught:
      samplers.load(config, load_initial_model(config), runs.one_device())
    assert "secret" not in str(caught.value)


def test_what_a_killed_run_left_is_taken_away(tmp_path):
  language, _ = tiny("decoder")
  server = Served(None, tmp_path)
  server.url = "http://127.0.0.1:1"
  run = server.sampler(language, workdir="here")._run
  for name in (f"policy-{run}-3-aa.safetensors", "policy-other-3-aa.safetensors"):
    (tmp_path / name).touch()
  server.sampler(language, workdir="here")
  assert [file.name for file in tmp_path.iterdir()] == ["policy-other-3-aa.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["decoder", "memory", "lora"])
def test_a_run_through_a_server_learns_what_the_native_run_learns(layout, tmp_path):
  changes = dict(optim__steps=4, **test_grpo.LAYOUTS[layout])
  expected, rows = test_grpo.run(test_grpo.config_of(**changes), tmp_path / "native")
  config = test_grpo.config_of(**changes)
  start = load_initial_model(config)
  language = start.language
  if layout == "lora":
    language = languages.from_decoder(language.module.copy(lora=None))
  folder = tmp_path / "weights"
  folder.mkdir()
  with served(folder, language, language.init(jax.random.key(9)), tokenizer=start.tokenizer) as server:
    through = test_grpo.config_of(**changes, sampler__kind="server", server__url=server.url,
                                  server__weights_folder=str(folder))
    found, told = test_grpo.run(through, tmp_path / "through")
    assert server.scheduler.models() == {"base": 3}
  assert len(told) == len(rows) == 4
  assert all(row["policy/sampler_gap_nats_max"] < 1e-4 for row in told)
  assert all(row["rollout/hand_over_gap_nats"] < 1e-4 for row in told)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.slow
def test_the_program_takes_weights_where_it_is_started_for_it(tmp_path, monkeypatch):
  monkeypatch.setenv(TRAINER_TOKENS, TOKEN)
  workdir, folder = tmp_path / "run", tmp_path / "weights"
  folder.mkdir()
  leave_run(workdir, test_grpo.config_of())
  command = [sys.executable, "-m", "atlas_jax.main", "--mode=serve", f"--workdir={workdir}", "--port=0",
             "--config.serve.slots=2", "--config.serve.group_rows=2",
             f"--config.serve.weights_folder={folder}"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
    try:
      told = json.loads(program.stdout.readline())
      config = test_grpo.config_of(sampler__kind="server", server__url=told["url"],
                                   server__weights_folder=str(folder))
      start = load_initial_model(config)
      sampler = samplers.load(config, start, runs.one_device(), tmp_path / "trained")
      sampler.load(start.language.init(jax.random.key(9)), 5)
      assert sampler.generate([[5, 6]], OPTIONS, seed=1).version_B.tolist() == [5, 5]
    finally:
      program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 0
