"""A model reads texts by segments: scores equal those by hand, and controls touch the memory alone."""

import functools
import mmap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.data.recall import sample as samples
from atlas_jax.evals.recall import reading
from atlas_jax.models import head
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from tests.helpers import assert_close, freeze, tiny_lm

ALIGN, ROWS, SEGMENT = 4, 3, 8


@functools.lru_cache
def lm_and_params():
  """A model of one block: what its attention keeps depends on tokens alone."""
  return tiny_lm(depth=1)[:2]


@functools.lru_cache
def reader():
  return reading.make(lm_and_params()[0], meshes.make(devices=jax.devices()[:1]), rows=ROWS,
                      segment_len=SEGMENT)


def text(seed, context, *, question=6, answers=((3, 5), (5, 6)), tail=None):
  """A text of random ids; an answer stands at targets [start, stop) of the question."""
  draw = np.random.default_rng(seed)
  context_T = draw.integers(0, 32, size=context).astype(np.int32)
  if tail is not None:
    context_T[-len(tail):] = tail
  ids = np.random.default_rng(99).integers(0, 32, size=question + 1).astype(np.int32)
  answer_T = np.full(question, -1)
  for n, (start, stop) in enumerate(answers):
    answer_T[start:stop] = n
  parts = np.split(context_T, [3]) if context else ()
  return samples.RecallSample(tuple(parts), ids[:-1], ids[1:], answer_T, np.ones(len(answers), np.int32))


def scored(texts):
  trained = Trained(lm_and_params()[1])
  return reader().score(trained, texts, reading.shape_of(texts, ALIGN))


@functools.lru_cache
def _by_hand():
  model = lm_and_params()[0]
  return jax.jit(lambda params, ids_BT, doc_BT: head.logits(params, model.apply(
    {"params": params}, ids_BT, model.zero_state(1), doc_BT=doc_BT).hidden_BTD))


def nats_by_hand(one):
  """The nats of every target of a question, read in one piece behind its context."""
  ids_T = np.r_[samples.joined(one.context, 0, one.context_len), one.input_T]
  padded_T = np.r_[ids_T, np.zeros(48 - len(ids_T), int)].astype(np.int32)
  doc_T = np.where(np.arange(48) < len(ids_T), 0, -1)
  logits_TV = np.asarray(_by_hand()(lm_and_params()[1], padded_T[None], doc_T[None]))[0]
  logits_TV = logits_TV[one.context_len:len(ids_T)]
  nats_TV = -np.asarray(jax.nn.log_softmax(jnp.asarray(logits_TV)))
  return nats_TV[np.arange(len(one.target_T)), one.target_T], logits_TV.argmax(-1)


def test_a_text_read_by_segments_scores_as_one_read_at_once():
  texts = [text(0, 20), text(1, 32), text(2, 4)]  # Shorter ones begin later.
  found = scored(texts)
  for row, one in enumerate(texts):
    nats_T, likeliest_T = nats_by_hand(one)
    for answer in range(2):
      here = one.answer_T == answer
      assert_close(found.nats_WBN[0, row, answer], nats_T[here].sum(), tolerance=1e-4)
      assert found.right_WBN[0, row, answer] == np.array_equal(likeliest_T[here], one.target_T[here])


def test_what_greedy_decoding_writes_is_right():
  one = text(5, 20, question=3, answers=((2, 3),))
  prompt = one.input_T
  for _ in range(2):  # The likeliest id, then the likeliest one behind it.
    target_T = np.r_[prompt[1:], 0].astype(np.int32)
    probe = one._replace(input_T=prompt, target_T=target_T, answer_T=np.full(len(prompt), -1))
    prompt = np.r_[prompt, nats_by_hand(probe)[1][-1]].astype(np.int32)
  shown = samples.shown_answer(one.input_T, prompt[3:])
  right = one._replace(input_T=shown[0], target_T=shown[1], answer_T=shown[2])
  wrong_T = shown[1].copy()
  wrong_T[-1] = (wrong_T[-1] + 1) % 32
  found = scored([right, right._replace(target_T=wrong_T), right])
  assert found.right_WBN[0, :, 0].tolist() == [True, False, True]


def test_the_likeliest_candidate_is_chosen_by_all_of_its_tokens():
  candidates = tuple(np.array(ids, np.int32) for ids in ((3, 9), (4,), (30, 2, 8), (7, 7)))
  one = text(6, 20, question=3, answers=((2, 3),))
  shown = samples.shown_answer(one.input_T, candidates[2])
  asked = samples.RecallSample(one.context, *shown, np.ones(1, np.int32), candidates, 2)
  found = scored([asked, asked, asked])
  total = []
  for input_T, target_T, answer_T in asked.alternatives():
    probe = asked._replace(input_T=input_T, target_T=target_T, answer_T=answer_T, candidates=())
    total.append(nats_by_hand(probe)[0][answer_T >= 0].sum())
  assert found.choice_WB[0].tolist() == [int(np.argmin(total))] * 3
  assert_close(found.nats_WBN[0, 0, 0], total[2], tolerance=1e-4)


def test_without_what_the_memory_holds_early_tokens_make_no_difference():
  tail = np.arange(8)  # Attention sees 3 tokens, convolutions 4.
  texts = [text(seed, 24, tail=tail) for seed in (10, 11, 12)]
  nats = dict(zip(reading.CONDITIONS, scored(texts).nats_WBN[..., 0]))
  for condition in ("emptied", "writes_off"):
    assert_close(nats[condition], np.full(3, nats[condition][0]), tolerance=1e-5)
  assert np.ptp(nats["as_it_is"]) > 1e-3
  assert_close(nats["swapped"], np.roll(nats["as_it_is"], 1), tolerance=1e-5)
  assert abs(nats["emptied"][0] - nats["writes_off"][0]) > 1e-6


def test_a_model_without_memory_is_read_as_it_is_alone():
  model, params, _ = tiny_lm(depth=1, memory_mix="none")
  found = reading.make(model, meshes.make(devices=jax.devices()[:1]), rows=1, segment_len=SEGMENT)
  assert found.conditions == ("as_it_is",) and found.reach_tokens == 2
  one = text(0, 20)
  assert found.score(Trained(params), [one], reading.shape_of([one], ALIGN)).nats_WBN.shape == (1, 1, 2)


def test_nothing_beyond_the_reach_changes_an_output_also_with_ngrams():
  ngrams = freeze({"max_n": 4, "table_rows": 64})
  model, params, tokens_1T = tiny_lm(B=1, T=24, memory_mix="none", ngram_embed=ngrams)
  mesh = meshes.make(devices=jax.devices()[:1])
  reach = reading.make(model, mesh, rows=1, segment_len=SEGMENT).reach_tokens
  doc_1T = jnp.zeros_like(tokens_1T)
  last = jax.jit(lambda ids: model.apply({"params": params}, ids, model.zero_state(1), doc_BT=doc_1T)
                 .hidden_BTD[0, -1])

  def moved(back):
    at = 23 - back
    return bool((last(tokens_1T) != last(tokens_1T.at[0, at].set((tokens_1T[0, at] + 1) % 32))).any())

  assert [back for back in range(reach, 24) if moved(back)] == [reach]


def test_one_row_alone_is_refused_where_memories_are_swapped():
  with pytest.raises(ValueError, match="config.eval.batch_rows=1 leaves no other row"):
    reading.make(lm_and_params()[0], meshes.make(devices=jax.devices()[:1]), rows=1, segment_len=SEGMENT)


def test_segments_never_hold_more_than_themselves():
  texts = [text(0, 20), text(1, 8)]
  found = list(reading.segments(texts, SEGMENT, 20))
  assert len(found) == 3 and all(one["tokens_BT"].shape == (2, SEGMENT) for one in found)
  ids_BT = np.concatenate([one["tokens_BT"] for one in found], axis=1)
  doc_BT = np.concatenate([one["doc_BT"] for one in found], axis=1)
  for row, one in enumerate(texts):
    assert ids_BT[row][doc_BT[row] == 0].tolist() == samples.joined(one.context, 0, one.context_len).tolist()
    assert (np.diff(doc_BT[row]) >= 0).all() and (doc_BT[row] == 0).sum() == one.context_len


def test_a_state_has_one_size_however_long_the_text_and_reading_takes_no_more_memory():
  one = reader()
  assert one.state_bytes > 0 and one.reach_tokens == 2
  long = [text(seed, 2_048) for seed in range(ROWS)]
  scored(long)
  assert one.growth_bytes() is None or one.growth_bytes() < 2**20
  kept, watched = [], reading.Growth(8)
  for _ in range(8):
    watched.look()
    kept.append(mmap.mmap(-1, 2**23))  # What it must find: 8 MiB more with every look.
    kept[-1].write(b"1" * 2**23)  # An array could stand where others have been.
  assert watched.bytes is None or watched.bytes > 24 * 2**20
