"""The plain form: one completion at a time, and it writes what the sampler of training writes."""
import dataclasses

import numpy as np
import pytest

from atlas_jax.language.decoding.native import NativeSampler
from tests.helpers import quick_compilation
from tests.language.decoding import serving
from tests.language.languages import tiny


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


class _Bytes(type(serving.TOKENIZER)):
  """Bytes, and ids that stand for no text, as the models have them."""
  vocab_size = 270


@pytest.mark.parametrize("kind", serving.KINDS)
def test_it_writes_what_the_sampler_writes(kind):
  """Ids of the same draws from the same scores, which are rounded otherwise: of other shapes."""
  asked = serving.request([256, *b"one two three"], seed=7, n=2, max_tokens=12, temperature=0.8, top_k=50,
                          repetition_penalty=1.2, stop_tokens=(260, 261, 262))
  sampler = NativeSampler(tiny(kind)[0], _Bytes())
  sampler.load(tiny(kind)[1], version=0)
  rollout = sampler.generate([asked.prompt], asked.sampling, seed=7)
  for row, events in enumerate(serving.expected(kind, asked)):
    length = rollout.length_B[row]
    assert [event.token for event in events] == rollout.tokens_BT[row, :length].tolist()
    np.testing.assert_allclose([event.sampler_logprob for event in events],
                               rollout.sampler_logprob_BT[row, :length], atol=1e-4)
    np.testing.assert_allclose([event.full_logprob for event in events],
                               rollout.full_logprob_BT[row, :length], atol=1e-4)


@pytest.mark.parametrize("kind", serving.KINDS)
def test_the_slot_makes_no_difference_to_any_bit(kind):
  asked = serving.request([256, *b"once upon a time"], seed=3, max_tokens=10, top_logprobs=3)
  first, *others = (serving.expected(kind, asked, slot=slot) for slot in range(serving.ROWS))
  assert all(other == first for other in others)


def test_the_first_completion_may_have_any_number():
  """So a stream that is asked for n completions can be asked for them one by one."""
  asked = serving.request([256, *b"a"], seed=3, n=3)
  one = dataclasses.replace(asked, sampling=dataclasses.replace(asked.sampling, n=1))
  alone = [serving.expected("memory", dataclasses.replace(one, first=number))[0] for number in range(3)]
  assert alone == [[dataclasses.replace(event, index=0) for event in events]
                   for events in serving.expected("memory", asked)]
