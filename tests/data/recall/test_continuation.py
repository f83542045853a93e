"""Passages: what is shown again is the beginning of one, and the answer is how its document goes on."""

import numpy as np

from atlas_jax.data.recall import continuation, sample
from tests.data.recall.settings import answers, drawn, ids_of, setting, texts

SHOWN = continuation.SHOWN_TOKENS


def test_a_passage_is_a_stretch_of_one_document_and_goes_on_as_it_does():
  given = setting(episode_items="1,3", episode_distances="0,100")
  whole = [text.encode() for text in texts()]
  for cell, text in drawn("continuation", given, count=10):
    context = bytes(sample.joined(text.context, 1, text.context_len).astype(np.uint8))
    found = bytes(np.r_[ids_of(text), text.target_T[-1:]][text.context_len:].astype(np.uint8))
    assert len(found) == cell["items"] * (1 + SHOWN + continuation.ANSWER_TOKENS)
    for n, answer in enumerate(answers(text)):
      one = found[n * (1 + SHOWN + len(answer)):][:1 + SHOWN + len(answer)]
      assert one[:1] == b"\n" and one[1 + SHOWN:] == bytes(answer) and len(answer) == 8
      start = context.index(one[1:])
      passage = context[start:start + continuation.PASSAGE_TOKENS]
      assert context.count(passage) == 1 and sum(passage in document for document in whole) == 1


def test_the_gap_follows_the_last_passage():
  for cell, text in drawn("continuation", setting(episode_items="1", episode_distances="0,200"), count=10):
    rest = continuation.PASSAGE_TOKENS - SHOWN - continuation.ANSWER_TOKENS
    assert text.distance_N.tolist() == [rest + cell["distance"] + 1 + SHOWN]
