"""The engine: slots are filled and freed while others go on, and each row writes what it would alone."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.language.decoding import engine as engines
from atlas_jax.language.decoding import sampling, streams
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.decoding.sampler import SamplingOptions
from tests.helpers import assert_same_bits, quick_compilation
from tests.language.languages import tiny

KINDS = ("decoder", "memory")
SLOTS, PIECE, ROOM = 3, 7, 40


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.lru_cache
def setup(kind):
  """Returns an engine of a tiny model, compiled once for all tests, and its parameters."""
  language, params = tiny(kind)
  return engines.make(language, piece_tokens=PIECE, room_tokens=ROOM), params


def prompt(length, seed=0):
  return np.random.default_rng(seed).integers(0, 257, (1, length)).astype(np.int32)


def read(kind, length, seed=0):
  """Reads a prompt on its own, by pieces."""
  engine, params = setup(kind)
  return engine.prefill(params, engine.init(1), prompt(length, seed))


def decoded(kind, state, slot, tokens, others=False):
  """Returns the state and the logits of one slot, [steps, V], while others read the same ids or their own."""
  engine, params = setup(kind)
  found = []
  for n, token in enumerate(tokens):
    token_B = np.full(SLOTS, 11 * n % 257, np.int32) if others else np.zeros(SLOTS, np.int32)
    token_B[slot] = token
    state, logits_BV = engine.decode(params, state, token_B)
    found.append(np.asarray(logits_BV)[slot])
  return state, np.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_put_into_a_slot_goes_on_as_it_would_alone(kind):
  """To the last bit, whatever the other slots hold and did before."""
  engine, _ = setup(kind)
  tokens = [3, 200, 41, 9]
  row, _ = read(kind, 10)
  alone = engine.insert(engine.init(SLOTS), 1, row)
  _, expected = decoded(kind, alone, 1, tokens)
  busy = engine.insert(engine.init(SLOTS), 0, read(kind, 17, seed=1)[0])
  busy = engine.insert(busy, 1, read(kind, 3, seed=2)[0])
  busy, _ = decoded(kind, busy, 2, [5, 6, 7], others=True)
  busy = engine.insert(busy, 1, row)
  _, found = decoded(kind, busy, 1, tokens, others=True)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_writes_what_a_state_of_one_row_writes(kind):
  engine, params = setup(kind)
  row, _ = read(kind, 10)
  slots = engine.insert(engine.init(SLOTS), 2, row)
  _, found = decoded(kind, slots, 2, [3, 200, 41], others=True)
  for n, token in enumerate([3, 200, 41]):
    row, logits_BV = engine.decode(params, row, np.array([token], np.int32))
    np.testing.assert_allclose(found[n], np.asarray(logits_BV)[0], atol=1e-5)  # Products of other shapes.


@pytest.mark.parametrize("kind", KINDS)
def test_a_released_slot_has_read_nothing_and_the_others_stay(kind):
  engine, _ = setup(kind)
  full = lambda: functools.reduce(
      lambda state, slot: engine.insert(state, slot, read(kind, 4 + slot, seed=slot)[0]), range(SLOTS),
      engine.init(SLOTS))
  state = engine.release(full(), 1)
  assert_same_bits(engine.take_rows(state, [1]), engine.init(1))
  assert_same_bits(engine.take_rows(state, [0, 2]), engine.take_rows(full(), [0, 2]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_that_a_state_has_not_is_refused_and_no_other_is_taken(kind):
  engine, _ = setup(kind)
  state = engine.init(SLOTS)
  for ask in (lambda: engine.insert(state, SLOTS, engine.init()), lambda: engine.release(state, -1),
              lambda: engine.take_rows(state, [0, SLOTS])):
    with pytest.raises(ValueError, match=f"is none of the state's {SLOTS} rows"):
      ask()


@pytest.mark.parametrize("kind", KINDS)
def test_one_compilation_serves_all_prompts_slots_and_tokens(kind):
  language, params = tiny(kind)
  traced = []

  def noting(function):
    @functools.wraps(function)
    def noted(*args, **options):
      traced.append(function.__name__)
      return function(*args, **options)
    return noted

  language = language._replace(extend=noting(language.extend), decode=noting(language.decode))
  engine = engines.make(language, piece_tokens=PIECE, room_tokens=ROOM)
  state = engine.init(SLOTS)
  for slot, length in ((2, 3), (0, 7), (1, 20)):
    row, _ = engine.prefill(params, engine.init(1), prompt(length))
    state = engine.insert(state, slot, row)
    state, _ = engine.decode(params, state, np.zeros(SLOTS, np.int32))
  assert traced == ["extend", "decode"]


@pytest.mark.parametrize("kind", KINDS)
def test_reading_from_nothing_is_reading_on_from_an_empty_state(kind):
  language, params = tiny(kind)
  engine, count_B = engines.of(language, room_tokens=ROOM), jnp.array([9, 4])
  tokens_BT = jnp.concatenate([prompt(9), prompt(9, seed=1)])
  read = jax.jit(lambda state: engine.prefill(params, state, tokens_BT, count_B))
  for one, other in zip(jax.tree.leaves(read(None)), jax.tree.leaves(read(engine.init(2))), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_pieces_are_whole_blocks_of_attention_and_have_room():
  language, _ = tiny("decoder", attention_block_tokens=16)
  assert [engines._piece(language, *sizes) for sizes in ((256, 300), (256, 40), (40, 30), (9, 300))] == [
      256, 32, 16, 9]
  assert engines._piece(tiny("memory")[0], 256, None) == 256


class WideTokenizer(ByteTokenizer):
  """Bytes, and ids that stand for no text."""
  vocab_size = 270

  def decode_bytes(self, ids):
    return super().decode_bytes([token for token in ids if token < 256])


@pytest.mark.parametrize("kind, options", [
    ("memory", {}), ("decoder", dict(temperature=0.0)),
    ("decoder", dict(temperature=1.4, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.3))])
def test_a_stream_writes_what_the_sampler_writes(kind, options):
  """One choice of the next id: the seed's text is that of its first completion of the first prompt."""
  language, params = tiny(kind)
  ids, tokenizer = [256, *b"one"], WideTokenizer()
  sampler = NativeSampler(language, tokenizer, bucket_tokens=8)
  sampler.load(params, version=0)
  stops = dict(max_tokens=12, stop_tokens=(256,))
  text = sampler.generate([ids], SamplingOptions(**stops, **options), seed=7).text_B[0]
  engine, _ = setup(kind)
  written = streams.generate(language, params, tokenizer, ids, tokens=12, seed=7, engine=engine, **options)
  assert "".join(written) == text


def test_rows_may_have_settings_of_their_own():
  """Each row draws what it draws where all rows have its settings."""
  given = [SamplingOptions(), SamplingOptions(temperature=0.0), SamplingOptions(temperature=0.7, top_k=5),
           SamplingOptions(top_p=0.6), SamplingOptions(min_p=0.05, repetition_penalty=2.0),
           SamplingOptions(top_k=3, top_p=0.5, temperature=2.0)]
  vocab_size, rows = 37, len(given)
  draw = np.random.default_rng(0)
  logits_BV = jnp.asarray(2 * draw.normal(size=(rows, vocab_size)), jnp.float32)
  seen_BV, row_B = jnp.asarray(draw.random((rows, vocab_size)) < 0.3), jnp.arange(rows, dtype=jnp.int32)
  key_B = sampling.row_keys(sampling.root_words(3), row_B, row_B)
  settings = [sampling.SamplingParams.of(options, vocab_size) for options in given]
  drawn_at = jax.jit(functools.partial(sampling.draw_at, filtered=True))
  together, seen = drawn_at(logits_BV, key_B, row_B, jax.tree.map(lambda *x: np.stack(x), *settings), seen_BV)
  for row in range(rows):
    alone, expected = drawn_at(logits_BV, key_B, row_B[row], settings[row], seen_BV)
    for name in alone._fields:
      np.testing.assert_allclose(getattr(together, name)[row], getattr(alone, name)[row], atol=1e-6)
    np.testing.assert_array_equal(seen[row], expected[row])


def test_rows_may_end_at_ids_of_their_own():
  token_B = jnp.array([4, 5, 6])
  np.testing.assert_array_equal(sampling.is_stop(token_B, jnp.array([5, -1])), [False, True, False])
  np.testing.assert_array_equal(sampling.is_stop(token_B, jnp.array([[4, -1], [4, 6], [-1, 6]])),
                                [True, False, True])
