"""Samplers: what may be asked, what must come back, and the scripted one that keeps to both."""
import math

import numpy as np
import pytest

from atlas_jax.data import tokenizer
from atlas_jax.language.decoding import sampler as samplers
from atlas_jax.language.decoding.sampler import Completion, SamplingOptions, ScriptedSampler

BYTES = tokenizer.ByteTokenizer()
SCRIPT = {"1+1=": ["2", "3", "eleven"], "hi": ["hello"]}
PROMPTS = [[256, *b"1+1="], [256, *b"hi"], [256, *b"1+1="]]
OPTIONS = SamplingOptions(n=4, max_tokens=12, stop_tokens=(256,))


@pytest.fixture
def sampler():
  made = ScriptedSampler(BYTES, SCRIPT)
  made.load({"w": 1}, version=3)
  return made


def rows(rollout):
  return list(zip(rollout.text_B, rollout.reason_B, rollout.length_B.tolist()))


def test_completions_of_a_prompt_are_adjacent_and_from_its_script(sampler):
  rollout = sampler.generate(PROMPTS, OPTIONS, seed=1)
  samplers.check(rollout, PROMPTS, OPTIONS, version=3)
  assert set(rollout.text_B[:4]) <= set(SCRIPT["1+1="]) and rollout.text_B[4:8] == ("hello",) * 4
  assert len(set(rollout.text_B)) > 2 and rollout.version_B.tolist() == [3] * 12


def test_the_same_seed_gives_the_same_and_another_gives_others(sampler):
  first, again, other = (sampler.generate(PROMPTS * 4, OPTIONS, seed=seed) for seed in (1, 1, 2))
  assert first.text_B == again.text_B != other.text_B
  np.testing.assert_array_equal(first.tokens_BT, again.tokens_BT)


def test_a_completion_does_not_depend_on_how_many_there_are(sampler):
  few, many = (sampler.generate(PROMPTS, SamplingOptions(n=n, stop_tokens=(256,)), seed=5) for n in (2, 5))
  assert [few.text_B[2 * p + j] for p in range(3) for j in range(2)] == [
      many.text_B[5 * p + j] for p in range(3) for j in range(2)]


def test_log_probabilities_are_those_of_the_choice(sampler):
  rollout = sampler.generate(PROMPTS, OPTIONS, seed=1)
  np.testing.assert_allclose(rollout.sampler_logprob_BT.sum(1)[:4], -math.log(3), rtol=1e-6)
  np.testing.assert_array_equal(rollout.full_logprob_BT, rollout.sampler_logprob_BT)
  assert not rollout.sampler_logprob_BT[4:8].any()


def test_ids_end_with_the_stop_token_which_the_text_leaves_out(sampler):
  rollout = sampler.generate(PROMPTS[1:2], OPTIONS, seed=0)
  assert rows(rollout) == [("hello", "stop_token", 6)] * 4
  assert rollout.tokens_BT[0].tolist() == [*b"hello", 256]
  assert samplers.completion_mask(rollout).all()


@pytest.mark.parametrize("options, expected", [
    (dict(max_tokens=3), ("hel", "length", 3)), (dict(max_tokens=6), ("hello", "stop_token", 6)),
    (dict(max_tokens=5), ("hello", "length", 5)), (dict(stop_strings=("l",)), ("he", "stop_string", 3)),
    (dict(stop_strings=("lo", "ll")), ("he", "stop_string", 4)),
    (dict(stop_strings=("x",)), ("hello", "stop_token", 6)),
    (dict(stop_tokens=(ord("e"),)), ("h", "stop_token", 2)),
])
def test_completions_stop_where_the_options_say(sampler, options, expected):
  options = SamplingOptions(**{"stop_tokens": (256,), **options})
  rollout = sampler.generate(PROMPTS[1:2], options, seed=0)
  assert rows(rollout) == [expected]
  samplers.check(rollout, PROMPTS[1:2], options)


def test_without_temperature_the_first_of_the_script_is_taken(sampler):
  rollout = sampler.generate(PROMPTS[:1], SamplingOptions(n=5, temperature=0.0, stop_tokens=(256,)), seed=0)
  assert rollout.text_B == ("2",) * 5


def test_a_script_may_read_the_weights():
  sampler = ScriptedSampler(BYTES, lambda prompt, params: [f"{prompt} {params}"])
  for version, params in enumerate(("old", "new")):
    sampler.load(params, version)
    rollout = sampler.generate(PROMPTS[1:2], SamplingOptions(stop_tokens=(256,)), seed=0)
    assert rollout.text_B == (f"hi {params}",) and rollout.version_B.tolist() == [version]
  assert sampler.calls == 2


@pytest.mark.parametrize("prompt, options, loaded, message", [
    (b"hi", OPTIONS, False, "no weights yet"),
    (b"ho", OPTIONS, True, "the script offers nothing for the prompt 'ho'"),
    (b"hi", SamplingOptions(), True, "stop_tokens is empty"),
])
def test_a_script_that_cannot_go_on_says_why(prompt, options, loaded, message):
  sampler = ScriptedSampler(BYTES, SCRIPT)
  if loaded:
    sampler.load(None, 0)
  with pytest.raises(ValueError, match=message):
    sampler.generate([[256, *prompt]], options, seed=0)


@pytest.mark.parametrize("fields, message", [
    (dict(max_tokens=0), "config.sampler.max_tokens=0 must be at least 1"), (dict(n=0), "sampler.n=0"),
    (dict(temperature=-1.0), "temperature=-1.0 must be 0 or more"), (dict(top_k=0), "top_k=0 .* or None"),
    (dict(temperature=math.nan), "temperature=nan"), (dict(top_p=0.0), "top_p=0.0 must be above 0"),
    (dict(top_p=1.1), "top_p=1.1"), (dict(min_p=1.0), "min_p=1.0"),
    (dict(stop_strings=("",)), "stop_strings"),
    (dict(repetition_penalty=0.0), "repetition_penalty=0.0 must be above 0; 1 is off"),
])
def test_options_that_cannot_be_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    SamplingOptions(**fields)


def test_options_know_whether_they_leave_ids_out():
  assert SamplingOptions(temperature=0.5, top_p=1.0, min_p=0.0).draws_from_all
  for field in (dict(top_k=5), dict(top_p=0.9), dict(min_p=0.1), dict(repetition_penalty=1.2)):
    assert not SamplingOptions(**field).draws_from_all


def made(*lengths, version=0, logprob=-1.0, reason="length"):
  return samplers.assemble([Completion([7] * size, [logprob] * size, [logprob] * size, reason, "x", version)
                            for size in lengths], pad_id=7, width=4)


def test_padding_is_told_by_length_and_not_by_its_id():
  rollout = made(2, 0, 4)
  assert (rollout.tokens_BT == 7).all()
  assert samplers.completion_mask(rollout).sum(1).tolist() == [2, 0, 4] == rollout.length_B.tolist()
  assert rollout.sampler_logprob_BT.sum(1).tolist() == [-2, 0, -4]


def test_completions_that_do_not_fit_arrays_are_refused():
  with pytest.raises(ValueError, match="a completion has 5 ids, more than the width=4"):
    made(5)
  with pytest.raises(ValueError, match="completion 0 has 2 ids, but 1 and 2 log-probabilities"):
    samplers.assemble([Completion([1, 2], [0.0], [0.0, 0.0], "length", "", 0)], pad_id=0)


@pytest.mark.parametrize("rollout, more, message", [
    (made(1), {}, "gave 1 completions for 1 prompts of 2 each; it must give 2"),
    (made(4, 1, version=1), dict(version=3, max_staleness=1),
     "completion 0 of prompt 0: was written by weights of version 1, training has 3"),
    (made(1, 1, version=4), dict(version=3), "version 4, training has 3"),
    (made(1, 1, logprob=math.nan), {}, "sampler_logprob_BT has values that are no log-probabilities"),
    (made(1, 1, logprob=0.5), {}, "no log-probabilities"),
    (made(1, 4)._replace(length_B=np.array([1, 5])), {}, "completion 1 of prompt 0: has 5 ids"),
    (made(1, 1, reason="eos"), {}, "stopped for 'eos'"),
    (made(0, 1, reason="stop_token"), {}, "completion 0 of prompt 0: stopped at a token that is none of"),
])
def test_a_rollout_that_is_not_what_was_asked_is_refused(rollout, more, message):
  with pytest.raises(ValueError, match=message):
    samplers.check(rollout, [[1]], SamplingOptions(n=2, max_tokens=4, stop_tokens=(9,)), **more)


def test_weights_within_the_allowed_staleness_pass():
  options = SamplingOptions(n=2, max_tokens=4)
  samplers.check(made(1, 0, version=2), [[1]], options, version=3, max_staleness=1)
  samplers.check(made(1, 0, version=2), [[1]], options)
