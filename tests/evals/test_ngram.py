"""The trigram equals a loop over dictionaries, across batches and documents; gzip is gzip."""
import gzip
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from atlas_jax.evals import ngram
from tests.data.corpora import take, tiny_source, write_texts

VOCAB, DOC = 257, 256


def contexts(batches):
  """(before last, last, target) of each counted target, by a loop over rows."""
  last = {}
  for batch in batches:
    for row in range(len(batch["tokens_BT"])):
      for t, doc in enumerate(batch["doc_BT"][row].tolist()):
        before_doc, before = last.get(row, (-1, DOC))
        token = int(batch["tokens_BT"][row, t])
        if batch["weight_BT"][row, t] > 0:
          yield before if before_doc == doc else DOC, token, int(batch["targets_BT"][row, t])
        last[row] = doc, token


class SlowTrigram:
  """Witten-Bell by dictionaries."""

  def __init__(self, batches):
    self.counts = defaultdict(Counter)
    for a, b, c in contexts(batches):
      for context in ((), (b,), (a, b)):
        self.counts[context][c] += 1

  def probability(self, context, target):
    """P(target | context), backing off to a shorter context."""
    lower = self.probability(context[1:], target) if context else 1 / VOCAB
    seen = self.counts.get(context)
    if not seen:
      return lower
    return (seen[target] + len(seen) * lower) / (seen.total() + len(seen))

  def bits(self, batches):
    """Bits of all counted targets."""
    return -sum(math.log2(self.probability((a, b), c)) for a, b, c in contexts(batches))


@pytest.fixture
def splits(tmp_path):
  folder = write_texts(tmp_path / "texts", n=30)
  held_out = tiny_source(folder, split="held_out")
  return take(tiny_source(folder), 9), take(held_out, len(held_out))


def test_bits_per_byte_equal_a_loop_over_dictionaries(splits):
  train, held_out = splits
  n_bytes = sum(int(batch["bytes_BT"].sum()) for batch in held_out)
  model = ngram.fit(train, vocab_size=VOCAB, doc_id=DOC)
  expected = SlowTrigram(train).bits(held_out) / n_bytes
  assert model.bits_per_byte(held_out) == pytest.approx(expected, rel=1e-12)
  assert model.n_tokens == sum(int(batch["weight_BT"].sum()) for batch in train)


def test_counting_in_small_buffers_changes_nothing(splits, monkeypatch):
  train, held_out = splits
  whole = ngram.fit(train, vocab_size=VOCAB, doc_id=DOC).bits_per_byte(held_out)
  monkeypatch.setattr(ngram, "BUFFERED", 50)
  assert ngram.fit(train, vocab_size=VOCAB, doc_id=DOC).bits_per_byte(held_out) == whole


def test_counts_may_grow_between_evaluations(splits):
  train, held_out = splits
  model = ngram.fit(train[:4], vocab_size=VOCAB, doc_id=DOC)
  early = model.bits_per_byte(held_out)
  for batch in train[4:]:
    model.add(batch)
  late = model.bits_per_byte(held_out)
  assert late == ngram.fit(train, vocab_size=VOCAB, doc_id=DOC).bits_per_byte(held_out) != early


def test_probabilities_of_all_targets_sum_to_one(splits):
  train, _ = splits
  model = ngram.fit(train, vocab_size=VOCAB, doc_id=DOC)
  for before, last in ((DOC, DOC), (97, 98), (0, 1), (110, DOC)):
    keys = (before * VOCAB + last) * VOCAB + np.arange(VOCAB)
    assert model.probability(keys).sum() == pytest.approx(1, rel=1e-12)


def test_without_counts_every_token_is_equally_likely(splits):
  _, held_out = splits
  model = ngram.Trigram(vocab_size=VOCAB, doc_id=DOC)
  n_tokens = sum(float(batch["weight_BT"].sum()) for batch in held_out)
  n_bytes = sum(int(batch["bytes_BT"].sum()) for batch in held_out)
  assert model.bits_per_byte(held_out) == pytest.approx(math.log2(VOCAB) * n_tokens / n_bytes)


def test_a_vocabulary_of_32000_fits(splits):
  train, held_out = splits
  model = ngram.fit(train, vocab_size=32_000, doc_id=DOC)
  assert 0 < model.bits_per_byte(held_out) < 16


def test_a_split_without_bytes_is_refused():
  with pytest.raises(ValueError, match="no bytes"):
    ngram.Trigram(vocab_size=VOCAB, doc_id=DOC).bits_per_byte([])


def test_gzip_is_measured_in_bits_per_byte():
  text = b"to be or not to be, " * 40
  assert ngram.gzip_bits_per_byte(text) == 8 * len(gzip.compress(text, 9)) / len(text) < 1
