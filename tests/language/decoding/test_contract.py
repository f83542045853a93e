"""What every sampler keeps to; a new one is added by its maker."""
import contextlib
import tempfile
from typing import Any, NamedTuple

import numpy as np
import pytest

from atlas_jax.data import tokenizer
from atlas_jax.language.decoding import sampler as samplers
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.decoding.sampler import SamplingOptions, ScriptedSampler
from atlas_jax.language.vllm import sampler as vllm
from tests.helpers import quick_compilation
from tests.language.languages import tiny
from tests.language.vllm import test_sampler
from tests.language.vllm.stub import Stub

BYTES = tokenizer.ByteTokenizer()
PROMPTS = [[256, *b"1+1="], [256, *b"hi"], [256, *b"1+1="]]


class Case(NamedTuple):
  """A sampler without weights, and weights for it."""

  sampler: Any
  params: Any
  options: SamplingOptions  # of which tests change a field or two
  filtered_temperature: float = 0.8  # one at which it takes filters


@contextlib.contextmanager
def scripted():
  """A script of a few answers."""
  script = {"1+1=": ["2, I think", "3, perhaps", "eleven"], "hi": ["hello", "good morning", "yes?"]}
  yield Case(ScriptedSampler(BYTES, script), {"w": 1}, SamplingOptions(n=4, max_tokens=24,
                                                                       stop_tokens=(256,)))


@contextlib.contextmanager
def native():
  """A tiny model of random parameters, which soon draws one of many stop tokens."""
  language, params = tiny("decoder")
  options = SamplingOptions(n=4, max_tokens=24, stop_tokens=tuple(range(256, 270)))
  yield Case(NativeSampler(language, BYTES, bucket_tokens=24, piece_tokens=8), params, options)


@contextlib.contextmanager
def served():
  """The same tiny model behind a stand-in for vLLM's server, which has other weights at first."""
  language, params = tiny("decoder")
  options = SamplingOptions(n=4, max_tokens=24, stop_tokens=tuple(range(256, 270)))
  with Stub(test_sampler.engine_of()) as stub, tempfile.TemporaryDirectory() as workdir:
    made = vllm.make(language, BYTES, like=None, workdir=workdir, longest_tokens=64,
                     **(test_sampler.FIELDS | dict(url=stub.url)))
    yield Case(made, params, options, filtered_temperature=1.0)
    made.close()


MAKERS = {"scripted": scripted, "native": native, "vllm": served}


@pytest.fixture(params=MAKERS, scope="module")
def case(request):
  """One sampler after the other, each made once."""
  with quick_compilation(), MAKERS[request.param]() as made:
    yield made


@pytest.fixture
def loaded(case):
  """The sampler with weights of version 3, and what is asked of it."""
  case.sampler.load(case.params, version=3)
  return case.sampler, case.options


def asked(options, **fields):
  return SamplingOptions(**{**options.__dict__, **fields})


def completions(rollout):
  return [rollout.tokens_BT[row, :length].tolist() for row, length in enumerate(rollout.length_B)]


@pytest.mark.parametrize("maker", MAKERS)
def test_weights_come_first(maker):
  with MAKERS[maker]() as case:
    with pytest.raises(ValueError, match=r"no weights yet; call load\(params, version\) first"):
      case.sampler.generate(PROMPTS, case.options, seed=0)


def test_what_comes_is_what_was_asked_in_shape_and_kind(loaded):
  sampler, options = loaded
  rollout = sampler.generate([np.array(prompt) for prompt in PROMPTS], options, seed=0)
  samplers.check(rollout, PROMPTS, options, version=3)
  assert rollout.tokens_BT.shape == rollout.sampler_logprob_BT.shape == rollout.full_logprob_BT.shape
  assert rollout.tokens_BT.shape == (12, rollout.length_B.max())
  assert [x.dtype for x in (rollout.tokens_BT, rollout.length_B, rollout.version_B)] == [np.int32] * 3
  assert rollout.sampler_logprob_BT.dtype == rollout.full_logprob_BT.dtype == np.float32
  assert all(isinstance(x, np.ndarray) for x in rollout if not isinstance(x, tuple))
  padding_BT = ~samplers.completion_mask(rollout)
  assert not rollout.sampler_logprob_BT[padding_BT].any() and not rollout.full_logprob_BT[padding_BT].any()


def test_the_same_seed_gives_the_same_and_another_gives_others(loaded):
  sampler, options = loaded
  first, again, other = (sampler.generate(PROMPTS, options, seed=seed) for seed in (7, 7, 8))
  assert completions(first) == completions(again) != completions(other)
  np.testing.assert_allclose(first.sampler_logprob_BT, again.sampler_logprob_BT, atol=1e-5)


def test_completions_of_one_prompt_differ_and_so_do_equal_prompts(loaded):
  sampler, options = loaded
  drawn = [tuple(tokens) for tokens in completions(sampler.generate(PROMPTS, options, seed=1))]
  assert len(set(drawn[:4])) > 1 and drawn[:4] != drawn[8:]


def test_a_completion_depends_on_seed_place_and_number_and_not_on_how_many_there_are(loaded):
  sampler, options = loaded
  few = completions(sampler.generate(PROMPTS[:2], asked(options, n=2), seed=5))
  many = completions(sampler.generate(PROMPTS, options, seed=5))
  assert few == [many[4 * place + number] for place in range(2) for number in range(2)]


def test_the_version_of_the_weights_stands_on_every_completion(case):
  for version in (4, 9):
    case.sampler.load(case.params, version)
    rollout = case.sampler.generate(PROMPTS, case.options, seed=0)
    assert rollout.version_B.tolist() == [version] * 12


def test_reasons_and_texts_are_those_of_the_ids(loaded):
  sampler, options = loaded
  rollout = sampler.generate(PROMPTS, asked(options, max_tokens=6), seed=2)
  samplers.check(rollout, PROMPTS, asked(options, max_tokens=6), version=3)
  assert set(rollout.reason_B) == {"stop_token", "length"}
  for tokens, reason, text in zip(completions(rollout), rollout.reason_B, rollout.text_B):
    stops = [token in options.stop_tokens for token in tokens]
    assert stops[-1] == (reason == "stop_token") and not any(stops[:-1])
    assert text == BYTES.decode(tokens[:-1] if reason == "stop_token" else tokens)
    assert reason == "stop_token" or len(tokens) == 6


def test_a_stop_string_cuts_what_would_have_been_written(loaded):
  sampler, options = loaded
  free = sampler.generate(PROMPTS, options, seed=3)
  place, string = next((row, letter) for row, text in enumerate(free.text_B) for letter in text[1:]
                       if "!" < letter <= "~")
  rollout = sampler.generate(PROMPTS, asked(options, stop_strings=(string, "never written")), seed=3)
  samplers.check(rollout, PROMPTS, asked(options, stop_strings=(string,)), version=3)
  assert rollout.reason_B[place] == "stop_string"
  for before, after, whole, text, reason in zip(
      completions(free), completions(rollout), free.text_B, rollout.text_B, rollout.reason_B):
    assert after == before[:len(after)] and text == whole.split(string)[0]
    assert (reason == "stop_string") == (string in whole) == (after != before or after[-1:] == [ord(string)])


def test_filters_make_what_is_drawn_likelier_than_it_is_among_all(case, loaded):
  sampler, options = loaded
  plain = sampler.generate(PROMPTS, options, seed=4)
  np.testing.assert_allclose(plain.sampler_logprob_BT, plain.full_logprob_BT, atol=1e-5)
  filters = dict(top_k=2, top_p=0.9, temperature=case.filtered_temperature)
  few = sampler.generate(PROMPTS, asked(options, **filters), seed=4)
  assert (few.sampler_logprob_BT >= few.full_logprob_BT - 1e-5).all()


def test_without_temperature_every_seed_gives_the_same(loaded):
  sampler, options = loaded
  first, other = (completions(sampler.generate(PROMPTS, asked(options, temperature=0.0), seed=seed))
                  for seed in (0, 1))
  assert first == other and first[:4] == first[8:] == [first[0]] * 4
