"""Yardsticks see the batches that the model has seen, and compress the bytes that it is scored on."""
import gzip

import numpy as np
import pytest

from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.evals import baselines, ngram, sample
from tests.evals.documents import Documents, random_documents

TEXTS = random_documents((90, 33, 14, 51), vocab_size=120)


def text_source(**fields):
  return Documents(TEXTS, doc_id=256, rows=2, segment_len=16, **fields)


def test_the_trigram_is_fitted_on_the_first_steps_of_training():
  train = lambda: text_source(seed=5)
  seen = train()
  batches = [seen.next(None) for _ in range(3)]
  trigram = ngram.fit(batches, vocab_size=257, doc_id=256)
  held_out = text_source()
  expected = trigram.bits_per_byte(held_out.next(None) for _ in range(held_out._plan.steps_per_epoch))
  scalars = baselines.make(train, text_source, ByteTokenizer())(None, step=3).scalars
  assert scalars["eval/trigram_bits_per_byte"] == pytest.approx(expected)
  assert scalars["eval/trigram_tokens"] == sum(batch["weight_BT"].sum() for batch in batches)


def test_gzip_sees_exactly_the_held_out_bytes():
  text = np.concatenate(TEXTS).astype(np.uint8).tobytes()
  scalars = baselines.make(lambda: text_source(seed=5), text_source, ByteTokenizer())(None, step=1).scalars
  assert scalars["eval/gzip_bits_per_byte"] == 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)


def test_a_sample_is_the_prompt_and_what_follows():
  generate = lambda params, prompt, *, tokens: iter([f"{params}", "b" * tokens])
  out = sample.make(generate, "def ", 3)("p", step=0)
  assert (out.scalars, out.text) == ({}, "def pbbb")
