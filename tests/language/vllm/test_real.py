"""The sampler over a real server of vLLM; skipped unless the variable ATLAS_VLLM says how to start one.

  export ATLAS_VLLM="ENV/bin/python -m vllm.entrypoints.openai.api_server"
  python -m pytest tests/language/vllm/test_real.py

`scripts/vllm_cpu_lane.sh` makes such an environment and runs this.
"""
import json
import os
import pathlib
import time

import jax
import numpy as np
import pytest

from atlas_jax.data import tokenizer
from atlas_jax.language.decoding import sampler as samplers
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.vllm import sampler as vllm
from atlas_jax.language.vllm import weights as vllm_weights
from atlas_jax.language.vllm.client import ServerError
from atlas_jax.models import decoder, language

COMMAND = os.environ.get("ATLAS_VLLM")
BYTES = tokenizer.ByteTokenizer()
LONGEST = 128
FIELDS = dict(like=None, longest_tokens=LONGEST, url=None, command=COMMAND, port=None, shared_folder=None,
              dtype=None, gap_limit_nats=None, start_timeout_s=900.0, timeout_s=300.0, retries=3,
              backoff_s=1.0, parallel_requests=64, arguments="--enforce-eager --max-num-seqs 64")
PROMPTS = [[256, *b"12+30="], [256, *b"one"], [256, *b"12+30="], [9]] * 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800),
              pytest.mark.skipif(not COMMAND, reason="ATLAS_VLLM does not say how to start a server")]


def weights(version):
  """Returns weights of a version; every version changes every leaf."""
  draw = np.random.default_rng(version)
  moved = lambda leaf: leaf * 2 + 0.01 * version * draw.normal(size=leaf.shape).astype(np.float32)
  return jax.tree.map(moved, model().init(jax.random.key(0)))


def model():
  """Returns a model with a shared head, and heads of a width that vLLM has kernels for."""
  fields = dict(vocab_size=257, width=64, depth=2, heads=4, kv_heads=2, head_dim=32, ff_width=192, tied=True)
  return language.from_decoder(decoder.Decoder(**fields))


@pytest.fixture(scope="module")
def figures():
  """Collects what is measured; written to the file that ATLAS_VLLM_FIGURES names."""
  found = {}
  yield found
  if "ATLAS_VLLM_FIGURES" in os.environ:
    pathlib.Path(os.environ["ATLAS_VLLM_FIGURES"]).write_text(json.dumps(found, indent=2) + "\n")


@pytest.fixture(scope="module")
def served(tmp_path_factory, figures):
  """Yields a model and a sampler that has its weights of version 5; those before were handed over as well."""
  tuned = model()
  sampler = vllm.make(tuned, BYTES, workdir=tmp_path_factory.mktemp("run"), **FIELDS)
  try:
    loads = []
    for version in range(6):
      sampler.load(weights(version), version)
      loads.append(dict(sampler.stats))
    figures.update(start_s=sampler.stats["start_s"], hand_overs=loads)
    yield tuned, sampler
  finally:
    sampler.close()


def own(tuned, prompt, tokens, temperature):
  """Returns our own model's log-probabilities of a completion."""
  text = [*prompt, *tokens]
  padded = text + [0] * (LONGEST - len(text))
  found = vllm_weights.score(tuned, weights(5), padded, temperature=temperature)
  return found[len(prompt) - 1 : len(text) - 1]


@pytest.mark.parametrize("options", [
    SamplingOptions(n=4, max_tokens=16),
    SamplingOptions(n=4, max_tokens=16, temperature=0.7, stop_tokens=(256, 10, 101)),
    SamplingOptions(n=2, max_tokens=16, temperature=0.0),
    SamplingOptions(n=2, max_tokens=16, top_k=20, top_p=0.8),
    SamplingOptions(n=2, max_tokens=16, min_p=0.1, repetition_penalty=1.2),
    SamplingOptions(n=2, max_tokens=32, stop_strings=("a", "e"))])
def test_log_probabilities_are_those_of_our_own_model(served, figures, options):
  tuned, sampler = served
  rollout = sampler.generate(PROMPTS, options, seed=3)
  samplers.check(rollout, PROMPTS, options, version=5)
  gap = 0.0
  for row, length in enumerate(rollout.length_B):
    found = own(tuned, PROMPTS[row // options.n], rollout.tokens_BT[row, :length].tolist(),
                options.temperature or 1.0)
    gap = max(gap, float(np.abs(found - rollout.full_logprob_BT[row, :length]).max()))
  figures[f"gap_nats at {options}"] = gap
  assert gap < 1e-4
  again = sampler.generate(PROMPTS, options, seed=3)
  np.testing.assert_array_equal(again.tokens_BT, rollout.tokens_BT)
  if options.temperature:
    assert sampler.generate(PROMPTS, options, seed=4).text_B != rollout.text_B
    first, third = (rollout.tokens_BT[place * options.n : (place + 1) * options.n] for place in (0, 2))
    assert (first != third).any()  # The same prompt at another place.


def test_speed_is_measured(served, figures):
  options, seconds = SamplingOptions(n=4, max_tokens=64), []
  for seed in range(4):
    began = time.monotonic()
    rollout = served[1].generate(PROMPTS, options, seed=seed)
    seconds.append(time.monotonic() - began)
  figures["tokens_per_s"] = float(rollout.length_B.sum() / np.median(seconds))


def test_a_text_too_long_is_refused(served):
  with pytest.raises(ValueError, match="does not fit the 128 that the server takes"):
    served[1].generate([[1] * 100], SamplingOptions(max_tokens=29), seed=0)


def test_a_server_that_dies_is_told_of(served):
  _, sampler = served
  sampler._engine._server._process.terminate()
  with pytest.raises(ServerError, match="Nothing of this step was taken: the same command goes on"):
    for seed in range(1000):  # It may finish what it was asked.
      sampler.generate(PROMPTS, SamplingOptions(max_tokens=16), seed=seed)
