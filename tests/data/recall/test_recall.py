"""Every task: the same text for the same arguments, whole chunks, and answers that only the context holds."""

import numpy as np
import pytest

from atlas_jax.data import recall
from atlas_jax.data.recall import haystack as haystacks
from atlas_jax.data.recall import options, sample
from atlas_jax.data.recall.haystack import Haystack
from atlas_jax.data.tokenizer import ByteTokenizer
from tests.data.recall.settings import ALIGN, drawn, haystack, ids_of, setting

SMALL = dict(mqar_pairs="3,9", mqar_distances="0,70", mad_lengths="96", niah_lengths="256,512",
             babilong_lengths="512", formal_lengths="64,80", last_word_lengths="512", episode_items="1,3",
             episode_distances="0,70")
EPISODES = ("key_value", "passkey", "continuation", "entity")
NAMES = [name for name in recall.names() if name != "published"]


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_whole_chunks_and_their_answers_are_marked(name):
  for _, text in drawn(name, setting(**SMALL), count=4):
    assert text.context_len % ALIGN == 0
    assert not text.context_len or text.context[0][0] == ByteTokenizer.doc_id
    assert len(text.input_T) == len(text.target_T) == len(text.answer_T)
    assert sorted(set(text.answer_T) - {-1}) == list(range(len(text.distance_N)))
    shown = np.r_[text.input_T[1:], -1] == text.target_T
    assert shown[(text.answer_T < 0)[:-1].nonzero()[0]].all() or name in ("mqar", "mad", "formal")
    assert ids_of(text).max() <= 256 and ids_of(text).min() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_a_text_follows_from_seed_split_cell_and_number_alone(name):
  given = setting(**SMALL)
  first, again = ([ids_of(text).tolist() for _, text in drawn(name, given, count=3)] for _ in range(2))
  assert first == again
  others = [drawn(name, given, count=3, split="train"), drawn(name, given, count=3, seed=1)]
  for other in others:
    assert [ids_of(text).tolist() for _, text in other] != first


@pytest.mark.parametrize("name", ["mqar", "niah", "babilong", "formal", "last_word", *EPISODES])
def test_no_text_is_drawn_in_two_splits(name):
  given = setting(**SMALL)
  found = {split: {tuple(ids_of(text)) for _, text in drawn(name, given, count=30, split=split)}
           for split in recall.SPLITS}
  assert not found["train"] & (found["held_out"] | found["eval"]) and not found["held_out"] & found["eval"]


@pytest.mark.parametrize("name", ["niah", "babilong", "last_word"])
def test_what_is_asked_for_stands_before_the_gap_and_at_no_other_place(name):
  for _, text in drawn(name, setting(**{**SMALL, "task_gap_tokens": 128}), count=10):
    assert text.distance_N.min() > 128
    context_T = sample.joined(text.context, 0, text.context_len)
    answer = text.target_T[text.answer_T == 0]
    question = bytes(text.input_T[:int(np.argmax(text.answer_T == 0)) + 1].astype(np.uint8))
    assert bytes(answer.astype(np.uint8)) not in question
    assert bytes(answer[1:-1].astype(np.uint8)) in bytes(context_T[1:].astype(np.uint8))


def test_candidates_hold_the_right_one_and_change_the_answer_alone():
  for name in ("babilong", "last_word"):
    for _, text in drawn(name, setting(**SMALL), count=5):
      found = text.alternatives()
      assert [x.tolist() for x in found[text.correct]] == [x.tolist() for x in (
          text.input_T, text.target_T, text.answer_T)]
      assert len({tuple(target_T) for _, target_T, _ in found}) == len(text.candidates)


def test_options_are_numbers_or_texts_as_a_command_line_has_them():
  assert options.parse({"niah_lengths": (128, 256)})["niah_lengths"] == (128, 256)
  assert options.parse({"niah_depths": 0.5, "mqar_pairs": 4})["niah_depths"] == (0.5,)
  assert options.parse({"babilong_tasks": "2,1"})["babilong_tasks"] == (2, 1)
  assert options.parse({})["niah_lengths"] == (1024, 2048)
  for given, words in (({"niah_length": 3}, "config.eval.niah_length is no option of a task; did you mean"),
                       ({"niah_lengths": "8"}, "niah_lengths=8 must be different whole numbers from 64"),
                       ({"niah_kinds": "single_9"}, "niah_kinds=single_9 must be one or more of single_1"),
                       ({"mqar_symbols": "x"}, "mqar_symbols='x' must be a whole number, from 1 to 112"),
                       ({"mqar_symbols": 113}, "mqar_symbols=113 must be from 1 to 112"),
                       ({"mqar_pairs": "3,3"}, "mqar_pairs=3,3 must be different whole numbers from 1 to")):
    with pytest.raises(ValueError, match=words):
      options.parse(given)


def test_texts_that_are_too_short_for_what_they_hold_are_refused():
  with pytest.raises(ValueError, match="config.eval.task_gap_tokens=200 keeps more than half of it free"):
    list(drawn("niah", setting(niah_lengths="256", task_gap_tokens=200), count=1))
  with pytest.raises(ValueError, match="babilong_lengths has a text of 64 tokens, and has to hold"):
    list(drawn("babilong", setting(babilong_lengths="64"), count=5))


def test_a_vocabulary_that_is_too_small_is_refused_and_the_mark_is_no_symbol():
  class Small(ByteTokenizer):
    """A vocabulary of 100 ids, the mark among the first."""
    vocab_size, doc_id = 100, 3

  assert sample.symbols(setting(tokenizer=Small()), 6).tolist() == [0, 1, 2, 4, 5, 6]
  with pytest.raises(ValueError, match="has 100 ids, and the task needs 240 and the mark"):
    list(drawn("mqar", setting(tokenizer=Small(), mqar_pairs="3"), count=1))


def test_parts_are_cut_and_put_between_as_arrays_would_be():
  parts = [np.arange(5), np.arange(5, 6), np.arange(6, 20)]
  for start, stop in ((0, 20), (3, 7), (5, 5), (19, 20)):
    assert sample.joined(parts, start, stop).tolist() == list(range(start, stop))
  longer, starts = sample.insert(parts, [0, 5, 5, 20], [np.array([one]) for one in (-1, -2, -3, -4)])
  assert sample.joined(longer, 0, 24).tolist() == [-1, 0, 1, 2, 3, 4, -2, -3, *range(5, 20), -4]
  assert starts == [0, 6, 7, 23]


def test_a_haystack_gives_stretches_of_its_documents_without_copying():
  found = haystack().take(np.random.default_rng(0), 5_000)
  assert sample.length_of(found) == 5_000
  assert all(np.shares_memory(part, haystack()._ids) for part in found)


def test_a_stretch_lies_in_one_document_and_is_refused_where_none_is_so_long():
  found = Haystack(np.arange(60), np.array([0, 10, 50]), np.array([10, 40, 10]))
  draw = np.random.default_rng(0)
  drawn_N = [found.stretch(draw, 8) for _ in range(3_000)]
  assert {one[0] for one in drawn_N} == {*range(3), *range(10, 43), *range(50, 53)}
  assert {one[0] for one in (found.stretch(draw, 40) for _ in range(5))} == {10}
  assert len(found.stretch(draw, 0)) == 0
  rare = Haystack(np.arange(5_040), np.arange(5_001), np.r_[np.ones(5_000, int), 40])
  assert found.stretch(draw, 40)[0] == 10 and rare.stretch(draw, 40)[0] == 5_000
  with pytest.raises(ValueError, match="no document has 41 tokens, .* take a corp"):
    found.stretch(draw, 41)


def test_documents_held_out_hide_nothing_that_is_trained_on(tmp_path):
  for n in range(40):
    (tmp_path / f"{n}.txt").write_text(f"{n:03}" * 50)
  corpus = dict(name="files", path=str(tmp_path), text_field="text", limit_bytes=None, download=False,
                cache_dir=None, bad_input_frac=0.0, tokenizer=ByteTokenizer())
  texts = {}
  for split in ("train", "eval"):
    read = haystacks.of_corpus(**corpus, held_out_frac=0.3, split=split)
    found = read().take(np.random.default_rng(0), 9_000)
    texts[split] = {bytes(part[-3:]) for part in found[1:-1]}
  assert texts["train"] and texts["eval"] and not texts["train"] & texts["eval"]
  read = haystacks.of_corpus(**corpus, held_out_frac=0.0, split="train")
  whole = read().take(np.random.default_rng(0), 9_000)
  assert len({bytes(part[-3:]) for part in whole[1:-1]}) > len(texts["train"])


def test_an_unknown_task_lists_the_known_ones():
  with pytest.raises(ValueError, match="the task 'maqr' is unknown; known are babilong, continuation"):
    recall.load("maqr")
