"""Our own sampler: what it draws is what the model predicts, whatever the layout; stops, refusals."""
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.data import tokenizer
from atlas_jax.evals import stopping
from atlas_jax.language.decoding import native
from atlas_jax.language.decoding import sampler as samplers
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.losses.token_logprobs import token_logprobs
from atlas_jax.models import placement
from atlas_jax.models.language import from_decoder
from atlas_jax.parallel import mesh as meshes
from tests import hf_fixture
from tests.helpers import quick_compilation
from tests.language.decoding.test_sampling import distribution
from tests.language.languages import tiny

BYTES = tokenizer.ByteTokenizer()
PROMPTS = [[256, *b"one"], [7], [256, *b"a longer prompt"], [256, *b"one"]]
KINDS = ("decoder", "memory")


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.lru_cache
def sampler_of(kind="decoder", **fields):
  """Returns a sampler of a tiny model, compiled once for all tests."""
  language, params = tiny(kind, **fields)
  made = NativeSampler(language, BYTES, bucket_tokens=8, piece_tokens=4)
  made.load(params, version=5)
  return made


@functools.lru_cache
def wrote(kind="decoder", seed=1, n=2, max_tokens=8, prompts=4, **options):
  """Returns a rollout of the first prompts, checked."""
  options = SamplingOptions(n=n, max_tokens=max_tokens, **options)
  rollout = sampler_of(kind).generate(PROMPTS[:prompts], options, seed)
  samplers.check(rollout, PROMPTS[:prompts], options, version=5)
  return rollout


@functools.partial(jax.jit, static_argnums=0)
def _read(language, params, tokens_BT, count_B):
  doc_BT = jnp.where(jnp.arange(tokens_BT.shape[1])[None] < count_B[:, None], 0, -1)
  return language.read(params, tokens_BT, doc_BT)[0]


def whole_texts(rollout, prompts, n):
  """Returns ids of prompts and completions, [B, 32], and how many each has."""
  texts = [[*prompts[row // n], *tokens] for row, tokens in enumerate(completions(rollout))]
  return np.array([text + [0] * (32 - len(text)) for text in texts], np.int32), np.array([*map(len, texts)])


def predictions(kind, rollout, prompts, n):
  """Returns hidden vectors of whole texts, read at once."""
  language, params = tiny(kind)
  tokens_BT, count_B = whole_texts(rollout, prompts, n)
  return language, params, tokens_BT, _read(language, params, tokens_BT, count_B)


def completions(rollout):
  return [rollout.tokens_BT[row, :length].tolist() for row, length in enumerate(rollout.length_B)]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_completions_are_the_likeliest_ids_of_the_whole_text(kind):
  rollout = wrote(kind, temperature=0.0)
  language, params, tokens_BT, hidden_BTD = predictions(kind, rollout, PROMPTS, 2)
  best_BT = np.asarray(jnp.argmax(hidden_BTD @ language.head(params), -1))
  for row, tokens in enumerate(completions(rollout)):
    start = len(PROMPTS[row // 2]) - 1
    assert tokens == best_BT[row, start:start + len(tokens)].tolist()
  assert not rollout.sampler_logprob_BT.any() and (rollout.full_logprob_BT < 0).all()


def test_greedy_completions_of_a_published_model_are_the_recorded_ones():
  recorded = hf_fixture.reference("qwen2_tiny")
  prompts = [row[mask.astype(bool)] for row, mask in
             zip(recorded["greedy_prompt_ids"], recorded["greedy_prompt_mask"])]
  model, params = hf_fixture.load("qwen2_tiny")
  sampler = NativeSampler(from_decoder(model), BYTES)
  sampler.load(params, version=0)
  options = SamplingOptions(max_tokens=recorded["greedy_new_ids"].shape[1], temperature=0.0)
  rollout = sampler.generate(prompts, options, 0)
  np.testing.assert_array_equal(rollout.tokens_BT, recorded["greedy_new_ids"])
  np.testing.assert_allclose(rollout.full_logprob_BT, recorded["greedy_logps"], atol=hf_fixture.TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_that_training_computes(kind, temperature):
  rollout = wrote(kind, temperature=temperature)
  language, params, tokens_BT, hidden_BTD = predictions(kind, rollout, PROMPTS, 2)
  logprob_BT = token_logprobs(hidden_BTD[:, :-1], language.head(params), tokens_BT[:, 1:],
                              temperature=temperature)
  for row, length in enumerate(rollout.length_B):
    start = len(PROMPTS[row // 2]) - 1
    np.testing.assert_allclose(rollout.full_logprob_BT[row, :length], logprob_BT[row, start:start + length],
                               atol=1e-4)
  np.testing.assert_array_equal(rollout.full_logprob_BT, rollout.sampler_logprob_BT)
  assert len(set(map(tuple, completions(rollout)))) == 8  # Equal prompts and completions of one all differ.


def test_filters_and_penalty_are_those_of_the_oracle_for_every_id_drawn():
  options = dict(temperature=1.3, top_k=20, top_p=0.8, min_p=0.02, repetition_penalty=1.5)
  rollout = wrote(n=3, **options)
  language, params, tokens_BT, hidden_BTD = predictions("decoder", rollout, PROMPTS, 3)
  logits_BTV = np.asarray(hidden_BTD @ language.head(params))
  for row, tokens in enumerate(completions(rollout)):
    start = len(PROMPTS[row // 3])
    for at, token in enumerate(tokens):
      before = tokens_BT[row, :start + at].tolist()
      drawn_V = distribution(logits_BTV[row, start + at - 1], SamplingOptions(**options), before)
      full_V = distribution(logits_BTV[row, start + at - 1], SamplingOptions(temperature=1.3))
      np.testing.assert_allclose(rollout.sampler_logprob_BT[row, at], np.log(drawn_V[token]), atol=1e-4)
      np.testing.assert_allclose(rollout.full_logprob_BT[row, at], np.log(full_V[token]), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_do_not_depend_on_how_many_are_drawn_together(kind):
  many, alone = (completions(wrote(kind, n=n, prompts=1)) for n in (8, 1))
  assert many[:1] == alone and many[:2] == completions(wrote(kind))[:2]


def test_seeds_repeat_and_differ():
  first = completions(wrote())
  assert completions(sampler_of().generate(PROMPTS, SamplingOptions(n=2, max_tokens=8), 1)) == first
  assert not any(tokens in first for tokens in completions(wrote(seed=2)))


def test_changing_what_is_traced_compiles_nothing():
  sampler = NativeSampler(tiny("decoder")[0], BYTES, bucket_tokens=8)
  sampler.load(tiny("decoder")[1], version=0)
  ask = lambda prompts=PROMPTS, n=2, **options: sampler.generate(prompts, SamplingOptions(n=n, **options), 0)
  first = ask(max_tokens=16, top_p=0.9)
  assert sampler.compilations == 2
  sampler.load(jax.tree.map(lambda x: 2 * x, tiny("decoder")[1]), version=1)
  other = ask(max_tokens=13, temperature=0.5, top_k=3, min_p=0.1, stop_tokens=(1, 2),
              prompts=[[3]] * 3 + [[4] * 16])
  assert sampler.compilations == 2 and not np.array_equal(first.tokens_BT[:, :13], other.tokens_BT)
  ask(max_tokens=9)  # Filters are off.
  assert sampler.compilations == 4
  ask(max_tokens=9, prompts=[[3]] * 4)  # Shorter prompts.
  assert sampler.compilations == 6


def test_prompts_are_read_once_and_writing_ends_with_the_last_row():
  language, params = tiny("decoder")
  read, steps = [], []

  def prefill(params, tokens_BT, count_B, *, room_tokens):
    read.append(tokens_BT.shape)
    return language.prefill(params, tokens_BT, count_B, room_tokens=room_tokens)

  def decode(params, state, token_B):
    jax.debug.callback(lambda: steps.append(1))
    return language.decode(params, state, token_B)

  sampler = NativeSampler(language._replace(prefill=prefill, decode=decode), BYTES, bucket_tokens=8)
  sampler.load(params, version=0)
  free = completions(sampler.generate(PROMPTS, SamplingOptions(n=3, max_tokens=24), 0))
  jax.effects_barrier()
  assert read == [(4, 16)] and len(steps) == 23
  stops = tuple({tokens[3] for tokens in free})
  rollout = sampler.generate(PROMPTS, SamplingOptions(n=3, max_tokens=24, stop_tokens=stops), 0)
  jax.effects_barrier()
  assert len(steps) == 23 + 3 and rollout.length_B.max() == 4 and set(rollout.reason_B) == {"stop_token"}


def as_stopped_later(free, options):
  """Returns (ids, reason, text) of completions written without stops, cut as `sampler.stop_at` does."""
  stopped = [samplers.stop_at(tokens, options, BYTES) for tokens in completions(free)]
  return [(tokens[:size], reason, text) for tokens, (size, reason, text) in zip(completions(free), stopped)]


@pytest.mark.parametrize("kind", KINDS)
def test_completions_stop_where_one_written_to_the_end_would_be_cut(kind):
  free = wrote(kind, n=6, max_tokens=24)
  drawn = completions(free)
  letters = [chr(token) for tokens in drawn for token in tokens[5:] if 32 < token < 127]
  pair = next(bytes(pair) for tokens in drawn for pair in zip(tokens, tokens[1:]) if max(pair) < 127)
  options = SamplingOptions(n=6, max_tokens=24, stop_tokens=(drawn[0][9], drawn[7][0], 400),
                            stop_strings=(pair.decode(), letters[0], letters[-1]))
  rollout = sampler_of(kind).generate(PROMPTS, options, 1)
  samplers.check(rollout, PROMPTS, options, version=5)
  expected = as_stopped_later(free, options)
  assert list(zip(completions(rollout), rollout.reason_B, rollout.text_B)) == expected
  assert set(rollout.reason_B) == {"stop_token", "stop_string", "length"}
  mask_BT = samplers.completion_mask(rollout)
  assert (rollout.tokens_BT[~mask_BT] == BYTES.doc_id).all() and not rollout.full_logprob_BT[~mask_BT].any()


def test_stop_strings_end_writing_early():
  free = wrote(n=6, max_tokens=24)
  strings = tuple({chr(t) for tokens in completions(free) for t in tokens if t < 128})
  steps = []
  language, params = tiny("decoder")
  counted = lambda *args: (jax.debug.callback(lambda: steps.append(1)), language.decode(*args))[1]
  sampler = NativeSampler(language._replace(decode=counted), BYTES, bucket_tokens=8, piece_tokens=4)
  sampler.load(params, version=5)
  rollout = sampler.generate(PROMPTS, SamplingOptions(n=6, max_tokens=24, stop_strings=strings), 1)
  jax.effects_barrier()
  assert set(rollout.reason_B) == {"stop_string"}
  assert rollout.length_B.max() - 1 <= len(steps) < rollout.length_B.max() + 4


def test_a_string_is_found_across_pieces_and_characters_of_several_bytes():
  tokens = [*"ab€".encode(), 256, 269, *"dé".encode(), *b"xx"]
  for strings in (("€d",), ("é", "zz"), ("b€dé",), ("xx",), ("x",), ("dé", "€d")):
    options = SamplingOptions(max_tokens=99, stop_strings=strings)
    size, _, text = samplers.stop_at(tokens, options, BYTES)
    assert native.stops.cut(tokens, strings, BYTES) == (size, text)
    looked, done_B = native.stops.StringStops(BYTES, strings, 1), np.zeros(1, bool)
    found = [bool(looked.push(np.array([[token]]), done_B)[0]) for token in tokens]
    assert found.index(True) == size - 1
  assert native.stops.cut(tokens, ("q", "€é"), BYTES) is None


class FewIds:
  """A tokenizer of a table, which refuses ids that it does not have."""
  vocab_size, doc_id = 40, 39

  def decode_bytes(self, ids):
    table = [bytes([65 + i]) for i in range(39)] + [b""]
    return b"".join(table[int(i)] for i in ids)

  def decode(self, ids):
    return self.decode_bytes(ids).decode()

  def byte_lengths(self):
    return np.r_[np.ones(39, np.int32), 0]


def test_ids_beyond_the_tokenizer_have_no_text():
  sampler = NativeSampler(tiny("decoder")[0], FewIds(), bucket_tokens=8)
  sampler.load(tiny("decoder")[1], version=0)
  for strings in ((), ("B",)):
    rollout = sampler.generate(PROMPTS, SamplingOptions(n=2, max_tokens=8, stop_strings=strings), 1)
    assert max(map(max, completions(rollout))) >= 40
    for tokens, text in zip(completions(rollout), rollout.text_B):
      whole = "".join(chr(65 + token) for token in tokens if token < 39)
      assert text == (whole[:-1] if strings and "B" in whole else whole)


@pytest.mark.parametrize("kind, prompts, axes, options", [
    ("decoder", 4, dict(data=4, fsdp=2), {}), ("memory", 4, dict(data=2, fsdp=2, tensor=2), {}),
    ("decoder", 3, dict(data=2, fsdp=2, tensor=2),
     dict(repetition_penalty=1.2, top_p=0.9, stop_strings=("e", "f", "g")))])
def test_eight_devices_write_what_one_does(kind, prompts, axes, options):
  language, params = tiny(kind)
  mesh = meshes.make(**axes)
  sampler = NativeSampler(language, BYTES, mesh, bucket_tokens=8, piece_tokens=4)
  sampler.load(jax.device_put(params, placement.shardings(mesh, params)), version=5)
  alone = wrote(kind, prompts=prompts, **options)
  together = sampler.generate(PROMPTS[:prompts], SamplingOptions(n=2, max_tokens=8, **options), 1)
  assert completions(together) == completions(alone) and together.text_B == alone.text_B
  np.testing.assert_allclose(together.full_logprob_BT, alone.full_logprob_BT, atol=1e-4)


WORKER = """
import json, sys
import jax
from atlas_jax.models import placement
from atlas_jax.parallel import hosts, mesh as meshes
from tests.helpers import quick_compilation
from tests.language.decoding.test_native import BYTES, PROMPTS, NativeSampler, SamplingOptions
from tests.language.decoding.test_native import completions, tiny
hosts.start(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
mesh, (language, params) = meshes.make(data=2, fsdp=2), tiny("decoder")
put = lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i])
params = jax.tree.map(put, jax.device_get(params), placement.shardings(mesh, params))
with quick_compilation():
  sampler = NativeSampler(language, BYTES, mesh, bucket_tokens=8, piece_tokens=4)
  sampler.load(params, version=5)
  for strings in ((), ("e", "f", "g")):
    rollout = sampler.generate(PROMPTS, SamplingOptions(n=2, max_tokens=8, stop_strings=strings), 1)
    print("WROTE", json.dumps([completions(rollout), rollout.text_B]))
"""


def test_two_processes_both_get_what_one_writes():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
  workers = [subprocess.Popen(
      [sys.executable, "-c", WORKER, str(port), str(rank)], env=env, cwd=Path(__file__).parents[3],
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in (0, 1)]
  try:
    outs = [worker.communicate(timeout=240)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  alone = [[completions(one), list(one.text_B)] for one in (wrote(), wrote(stop_strings=("e", "f", "g")))]
  for worker, out in zip(workers, outs):
    assert worker.returncode == 0, out
    assert [json.loads(line[6:]) for line in out.splitlines() if line.startswith("WROTE ")] == alone


def test_long_prompts_are_padded_to_whole_blocks_of_attention():
  prompts, options = [[5] * 17, [6]], SamplingOptions(max_tokens=8)
  blocked, whole = (NativeSampler(tiny("decoder", **fields)[0], BYTES, bucket_tokens=8)
                    for fields in (dict(attention_block_tokens=16), {}))
  for sampler in (blocked, whole):
    sampler.load(tiny("decoder")[1], version=0)
  first, other = (completions(sampler.generate(prompts, options, 0)) for sampler in (blocked, whole))
  assert first == other


@pytest.mark.parametrize("prompts, options, seed, message", [
    ([[1], []], {}, 0, "prompt 1 has no ids"), ([[[1]]], {}, 0, "prompt 0 has no ids"),
    ([[1], [2, 270]], {}, 0, r"prompt 1 has ids from 2 to 270; they must be integers in 0\.\.269"),
    ([[-1]], {}, 0, "prompt 0 has ids from -1"), ([[1.5]], {}, 0, "must be integers"),
    ([[1]], dict(top_k=271), 0, "config.sampler.top_k=271 is more than the model's vocabulary of 270"),
    ([[1]], {}, -1, "seed=-1 must lie in"),
    ([[1], [1] * 9], {}, 0, "prompt 1 has 9 ids, which with config.sampler.max_tokens=8 are more than the "
     "model's learned_positions=16; lower max_tokens to 7")])
def test_what_cannot_be_written_is_refused(prompts, options, seed, message):
  sampler = NativeSampler(tiny("decoder", learned_positions=16)[0], BYTES)
  sampler.load({}, version=0)
  with pytest.raises(ValueError, match=message):
    sampler.generate(prompts, SamplingOptions(max_tokens=8, **options), seed)


@pytest.mark.parametrize("size, least, steps, expected", [
    (1, 8, 2, 8), (8, 8, 2, 8), (9, 8, 2, 16), (33, 8, 2, 48), (49, 8, 2, 64), (65, 8, 2, 96),
    (5, 1, 4, 5), (8, 1, 4, 8), (9, 1, 4, 10), (17, 1, 4, 20), (0, 4, 1, 4)])
def test_sizes_are_rounded_up_to_few(size, least, steps, expected):
  assert native.round_up(size, least=least, steps=steps) == expected


def test_an_evaluation_gets_the_same_completions_and_stops_between_two_pieces_of_them(monkeypatch):
  monkeypatch.setattr(stopping, "PIECE_TOKENS", 3)
  asked = []
  with stopping.stoppable(lambda: bool(asked.append(1))):
    again = sampler_of().generate(PROMPTS, SamplingOptions(n=2, max_tokens=8), 1)
  for one, other in zip(again, wrote(), strict=True):
    np.testing.assert_array_equal(one, other)
  assert len(asked) == 3  # Up to 3, 6 and 8 ids.
  with stopping.stoppable(lambda: len(asked) == 4 or bool(asked.append(1))):
    with pytest.raises(stopping.EvalStopped):
      sampler_of().generate(PROMPTS, SamplingOptions(n=2, max_tokens=8), 1)
