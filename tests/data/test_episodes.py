"""Episodes as rows of batches: text beside them, answers out of sight, a curriculum, and a place."""
import numpy as np
import pytest

from atlas_jax.data import episodes
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.language import pretraining
from atlas_jax.recipes import episodic
from tests import runs

FIELDS = {**runs.EPISODES, "recipe": "episodic", "data__align_tokens": 8, "model__gate_floor": 0.05,
          "episode__most_items": 3, "episode__curriculum_steps": 4}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp("episodes") / "text", files=24)


def source_of(corpus, place=None, **fields):
  config = runs.lm_config(corpus, **{**FIELDS, **fields})
  tokenizer = tokenizers.load(config.data.tokenizer)
  return episodic.source_of(config, pretraining.model_of(config), tokenizer, **(place or {}))


def answers(batch, row):
  """Yields (places of the answer's tokens, ids of the document before them) of each answer of a row."""
  places = np.flatnonzero(batch["answer_BT"][row])
  for part in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
    if len(part):
      start = np.flatnonzero(batch["doc_BT"][row] == batch["doc_BT"][row][part[0]])[0]
      yield part, batch["tokens_BT"][row][start:part[0]]


def test_half_of_the_rows_read_text_on_and_the_others_are_episodes(corpus):
  source = source_of(corpus)
  first, second = source.next(), source.next()
  asks = first["answer_BT"].any(axis=1)
  assert asks.tolist() == [True, False, True, False] == second["answer_BT"].any(axis=1).tolist()
  for row in np.flatnonzero(~asks):
    plain = pretraining.train_source_of(runs.lm_config(corpus, **FIELDS), batch_rows=2, process_index=0,
                                        process_count=1)
    expected = [plain.next() for _ in range(2)]
    for step, batch in enumerate((first, second)):
      for name in ("tokens_BT", "targets_BT", "weight_BT", "doc_BT"):
        assert np.array_equal(batch[name][row], expected[step][name][row // 2]), name


def test_an_answer_stood_earlier_in_its_document_as_far_as_asked_and_nowhere_between(corpus):
  source = source_of(corpus)
  seen = 0
  for _ in range(6):
    batch = source.next()
    for row in (0, 2):
      for part, before_T in answers(batch, row):
        answer = bytes(batch["targets_BT"][row][part].astype(np.uint8))
        before = bytes(np.where(before_T < 256, before_T, 0).astype(np.uint8))
        assert before.count(answer) == 1, (answer, before)
        assert len(before) - before.find(answer) - len(answer) >= 16
        seen += 1
  assert seen >= 12


def test_everything_but_questions_counts_and_padding_does_not(corpus):
  batch = source_of(corpus).next()
  for row in (0, 2):
    real = batch["doc_BT"][row] >= 0
    counted, answer = batch["weight_BT"][row] > 0, batch["answer_BT"][row] > 0
    assert not counted[~real].any() and not (answer & ~counted).any()
    assert counted.sum() > 0.6 * real.sum() and answer.sum() >= 3
    assert np.array_equal(batch["bytes_BT"][row] > 0, counted & (batch["targets_BT"][row] < 256))


def test_documents_of_neighbouring_segments_differ_so_that_memory_starts_anew(corpus):
  source = source_of(corpus)
  first, second = source.next(), source.next()
  for row in (0, 2):
    assert not set(first["doc_BT"][row]) & set(second["doc_BT"][row]) - {-1}
    doc_T = first["doc_BT"][row]
    starts = np.flatnonzero((doc_T >= 0) & (np.r_[-1, doc_T[:-1]] != doc_T))
    assert (starts % 8 == 0).all() and len(starts)


def test_items_and_distance_grow_to_their_most(corpus):
  source = source_of(corpus, episode__most_distance=96)
  assert [source.most_items(step) for step in range(6)] == [1, 2, 2, 3, 3, 3]
  distances = [source.most_distance(step) for step in range(6)]
  assert distances == [36, 56, 76, 96, 96, 96]
  at_once = source_of(corpus, episode__curriculum_steps=0)
  assert at_once.most_items(0) == 3 and at_once.most_distance(0) == 256


def test_the_number_of_items_is_that_of_the_curriculum(corpus):
  source = source_of(corpus, episode__curriculum_steps=1_000, episode__tasks="key_value")
  for _ in range(3):
    batch = source.next()
    docs = [(row, batch["doc_BT"][row][part[0]]) for row in (0, 2) for part, _ in answers(batch, row)]
    assert len(docs) == len(set(docs))  # One answer per episode.


def test_rows_follow_from_seed_step_and_row_whatever_the_processes(corpus):
  whole = source_of(corpus)
  parts = [source_of(corpus, place={"process_index": index, "process_count": 2}) for index in range(2)]
  for _ in range(2):
    batch, halves = whole.next(), [part.next() for part in parts]
    for name, value in batch.items():
      assert np.array_equal(value, np.concatenate([half[name] for half in halves])), name
  other = source_of(corpus, seed=5).next()
  assert not np.array_equal(other["tokens_BT"], source_of(corpus).next()["tokens_BT"])


def test_a_saved_place_is_found_again_and_belongs_to_its_settings(corpus):
  source = source_of(corpus)
  source.next()
  state = source.state()
  expected = source.next()
  again = source_of(corpus)
  again.restore(state)
  assert all(np.array_equal(value, again.batch(1)[name]) for name, value in expected.items())
  with pytest.raises(ValueError, match=r"config.episode.most_items=3 then, 2 now|most_items"):
    source_of(corpus, episode__most_items=2).restore(state)
  with pytest.raises(ValueError, match="text_frac"):
    source_of(corpus, episode__text_frac=0.25).restore(state)


REFUSED = [
  ({"data__segment_len": 64}, "config.data.segment_len=64 is too short for an episode of config.episode."
                              "tasks='key_value' with config.episode.least_distance=16, which takes up to "),
  ({"episode__text_frac": 1.0}, "text_frac=1.0 of config.data.batch_rows=4 leaves 4 rows of text and 0 of"),
  ({"episode__text_frac": 0.1}, "text_frac=0.1 of config.data.batch_rows=4 leaves 0 rows of text and 4 of"),
  ({"episode__tasks": "mqar"}, r"config.episode.tasks='mqar' has 'mqar'; known are .*key_value"),
  ({"episode__tasks": ""}, "config.episode.tasks='' names no task"),
  ({"episode__tasks": "key_value:0"}, "must be tasks with commas"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_episodes_that_cannot_be_are_refused(fields, words, corpus):
  with pytest.raises(ValueError, match=words):
    source_of(corpus, **fields)


def test_all_rows_may_be_episodes(corpus):
  batch = source_of(corpus, episode__text_frac=0.0).next()
  assert batch["answer_BT"].any(axis=1).all()


def test_rows_of_text_are_spread_evenly():
  assert episodes.rows_of_text(8, 0.25) == {3: 0, 7: 1}
  assert episodes.rows_of_text(5, 0.4) == {2: 0, 4: 1}
  assert len(episodes.rows_of_text(10, 0.3)) == 3
