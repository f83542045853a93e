"""Faults of data that recipes/test_original_faults.py lists, put back: each fails a check that ours pass."""
import json

import numpy as np
import pytest

from atlas_jax.data import formats, stepped
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.language import pretraining
from tests import runs
from tests.data import test_episodes, test_formats, test_modular_arithmetic

WINDOW = 48  # Tokens that attention sees.
FIELDS = {"model__window_tokens": WINDOW, "episode__least_distance": None}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp("faults") / "text", files=24)


@pytest.fixture(scope="module")
def batch(corpus):
  """Two rows of episodes and two of text."""
  return test_episodes.source_of(corpus, **FIELDS).next()


# --- what is learnt ---


def targets_come_next(batch):
  """Checks that a target is the next token, and that a model which repeats its input answers nothing."""
  doc_BT = batch["doc_BT"]
  same_BT = (doc_BT[:, 1:] == doc_BT[:, :-1]) & (doc_BT[:, 1:] >= 0)
  next_BT = batch["tokens_BT"][:, 1:]
  assert np.array_equal(batch["targets_BT"][:, :-1][same_BT], next_BT[same_BT]), "not the next"
  echoed = (batch["tokens_BT"] == batch["targets_BT"])[batch["answer_BT"] > 0].mean()
  assert echoed < 0.3, f"an echo gives {echoed:.0%} of the answers"


def test_echoes_are_no_answers(batch):
  """Fault 9: the loss of a token itself, at its own place."""
  targets_come_next(batch)
  with pytest.raises(AssertionError, match="not the next"):
    targets_come_next({**batch, "targets_BT": batch["tokens_BT"]})


def answers_are_hidden(batch):
  """Checks that where a token counts, what is read is not the token itself."""
  counts_BT = batch["weight_BT"] > 0
  assert counts_BT.any() and not (batch["tokens_BT"] == batch["targets_BT"])[counts_BT].any(), "in the input"


def test_an_answer_in_the_input_is_noticed():
  """Fault 37: an equation that is scored where its answer is read."""
  batch = test_modular_arithmetic.load().next()
  answers_are_hidden(batch)
  shown_BT = np.where(batch["weight_BT"] > 0, batch["targets_BT"], batch["tokens_BT"])
  with pytest.raises(AssertionError, match="in the input"):
    answers_are_hidden({**batch, "tokens_BT": shown_BT})


def answers_are_out_of_sight(batch):
  """Checks that what answers a question stands further back than attention sees, and nowhere nearer."""
  count = 0
  for row in range(len(batch["tokens_BT"])):
    for part, before_T in test_episodes.answers(batch, row):
      answer = bytes(batch["targets_BT"][row][part].astype(np.uint8))
      seen = bytes(np.where(before_T < 256, before_T, 0).astype(np.uint8))[-WINDOW:]
      assert answer not in seen, f"{answer!r} is in sight"
      count += 1
  assert count >= 2


def test_answers_in_sight_are_noticed(batch, corpus):
  """Fault 10: by default an episode is longer than attention sees."""
  answers_are_out_of_sight(batch)
  near = {**FIELDS, "episode__least_distance": 0, "episode__most_distance": 0, "episode__most_items": 1}
  with pytest.raises(AssertionError, match="is in sight"):
    answers_are_out_of_sight(test_episodes.source_of(corpus, **near).next())


# --- ids ---


@pytest.fixture(scope="module")
def coder(corpus, tmp_path_factory):
  """A tokenizer of 280 ids, trained on the corpus, and where it is."""
  pytest.importorskip("tokenizers")
  folder = tmp_path_factory.mktemp("faults") / "bpe"
  texts = [file.read_bytes() for file in sorted(corpus.iterdir())]
  return tokenizers.train_bpe(texts, vocab_size=280, folder=folder), folder


def first_batch(config):
  return pretraining.train_source_of(config, threads=0, process_index=0, process_count=1).next()


def is_read_with(coder, corpus, batch):
  """Checks that the ids of a batch are those of a text of the corpus in a tokenizer."""
  row, doc = 0, batch["doc_BT"][0, 0]
  ids = batch["tokens_BT"][row][batch["doc_BT"][row] == doc]
  text = coder.decode_bytes(ids[ids != coder.doc_id])
  found = any(text in file.read_bytes() for file in corpus.iterdir())
  assert len(text) > 5 and found, f"the ids stand for {text!r}, which is no text of the corpus"


def test_another_tokenizer_is_noticed(coder, corpus, monkeypatch):
  """Fault 20: whatever path the config names, one tokenizer is read."""
  coder, folder = coder
  config = runs.lm_config(corpus, data__tokenizer=str(folder), model__vocab_size=coder.vocab_size)
  is_read_with(coder, corpus, first_batch(config))
  monkeypatch.setattr(tokenizers, "load", lambda name: tokenizers.ByteTokenizer())
  with pytest.raises(AssertionError, match="no text of the corpus"):
    is_read_with(coder, corpus, first_batch(config))


def ids_have_rows(config):
  """Checks that a model has a row of its table for every id that it is given."""
  pretraining.prepare(config)
  most = first_batch(config)["tokens_BT"].max()
  assert most < config.model.vocab_size, f"the id {most} is beyond a table of {config.model.vocab_size} rows"


def test_ids_beyond_the_vocabulary_are_noticed(coder, corpus, monkeypatch):
  """Fault 21."""
  coder, folder = coder
  ids_have_rows(runs.lm_config(corpus, data__tokenizer=str(folder), model__vocab_size=coder.vocab_size))
  small = runs.lm_config(corpus, data__tokenizer=str(folder), model__vocab_size=257)
  with pytest.raises(ValueError, match="config.model.vocab_size=257 is not the vocabulary"):
    ids_have_rows(small)
  monkeypatch.setattr(pretraining, "check_vocabulary", lambda config, tokenizer: None)
  with pytest.raises(AssertionError, match="is beyond a table of 257 rows"):
    ids_have_rows(small)


# --- files, processes, documents ---


def is_read_whole(file, texts):
  """Checks that every document of a file is read to its end."""
  found, _ = test_formats.read(file, bad_input_frac=1.0)
  assert [text for _, text in found] == texts, "documents are lost"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_characters_cut_in_two_are_noticed(name, tmp_path, monkeypatch):
  """Fault 22: blocks that are decoded one by one, until one cannot be."""
  monkeypatch.setattr(formats, "CHUNK_BYTES", 7)
  texts = [json.dumps(n) + " žluťoučký kůň, 日本語" for n in range(9)]
  file = tmp_path / name
  file.write_bytes(test_formats.PACKED[name.removeprefix("a.jsonl")](test_formats.as_lines(texts)))
  is_read_whole(file, texts)
  chunks = formats._chunks

  def decoded_apart(file):
    for chunk in chunks(file):
      try:
        yield chunk.decode().encode()
      except UnicodeDecodeError:
        return

  monkeypatch.setattr(formats, "_chunks", decoded_apart)
  with pytest.raises(AssertionError, match="documents are lost"):
    is_read_whole(file, texts)


def processes_share_the_rows(corpus):
  """Checks that two processes together read what one does."""
  whole = test_episodes.source_of(corpus, **FIELDS).next()
  halves = [test_episodes.source_of(corpus, {"process_index": index, "process_count": 2}, **FIELDS).next()
            for index in range(2)]
  for name, rows in whole.items():
    assert np.array_equal(rows, np.concatenate([half[name] for half in halves])), f"{name} are not shared out"


def test_processes_that_read_the_same_are_noticed(corpus, monkeypatch):
  """Fault 23."""
  processes_share_the_rows(corpus)
  rows_of = stepped.rows_of
  monkeypatch.setattr(stepped, "rows_of", lambda rows, process_index, process_count, **fields: rows_of(
    rows, 0, process_count, **fields))
  with pytest.raises(AssertionError, match="are not shared out"):
    processes_share_the_rows(corpus)


def documents_have_borders(batch, doc_id=256):
  """Checks that every mark of a document in a row begins one of another number."""
  for doc_T, tokens_T in zip(batch["doc_BT"], batch["tokens_BT"]):
    begun = doc_T[(tokens_T == doc_id) & (doc_T >= 0)]
    assert len(begun) == len(set(begun)), "a document begins in another"


def test_documents_without_borders_are_noticed(batch):
  """Fault 24."""
  documents_have_borders(batch)
  with pytest.raises(AssertionError, match="a document begins in another"):
    documents_have_borders({**batch, "doc_BT": np.minimum(batch["doc_BT"], 0)})
