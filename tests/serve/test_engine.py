"""Generating: token by token equals the parallel pass, in a state of fixed size, with few compilations."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.models import lm
from atlas_jax.parallel import mesh as meshes
from atlas_jax.parallel import place
from atlas_jax.serve import engine as engines
from tests.helpers import assert_close, tiny_lm

LETTERS = b"etaoinshrdlu"


class Letters:
  """A tokenizer of a few letters."""

  def __init__(self, vocab_size):
    self.vocab_size, self.doc_id = vocab_size, vocab_size - 1

  def encode(self, text):
    return np.array([LETTERS.index(char) for char in text.encode()], np.int32)

  def decode_bytes(self, ids):
    return b"".join(LETTERS[i:i + 1] for i in ids)


@functools.lru_cache
def setup(vocab_size=257):
  """Model, parameters and engine; pieces of 7 tokens, which no chunk border respects."""
  model, params, _ = tiny_lm(B=2, T=4, vocab_size=vocab_size)
  return model, params, engines.make(model, piece_tokens=7)


@functools.lru_cache
def forward():
  model, params, _ = setup()

  @jax.jit
  def logits(tokens_BT):
    out = model.apply({"params": params}, tokens_BT, model.zero_state(tokens_BT.shape[0]),
                      doc_BT=jnp.zeros_like(tokens_BT), mode="packed")
    return lm.logits(params, out.hidden_BTD)

  return logits


def random_tokens(rows, length, seed=0):
  return np.random.default_rng(seed).integers(0, 257, (rows, length)).astype(np.int32)


def write(prompt="", *, vocab_size=257, **options):
  model, params, engine = setup(vocab_size)
  tokenizer = ByteTokenizer() if vocab_size == 257 else Letters(vocab_size)
  options = dict(tokens=20, temperature=1.0) | options
  return list(engines.generate(model, params, tokenizer, prompt, engine=engine, **options))


@pytest.mark.core
def test_decoding_one_by_one_equals_the_parallel_pass():
  _, params, engine = setup()
  tokens_BT = random_tokens(2, 32)
  state, first_BV = engine.prefill(params, engine.init(2), tokens_BT[:, :10])
  decoded = [first_BV]
  for t in range(10, 32):
    state, logits_BV = engine.decode(params, state, tokens_BT[:, t])
    decoded.append(logits_BV)
  assert_close(jnp.stack(decoded, axis=1), forward()(tokens_BT)[:, 9:], tolerance=2e-5)


def test_rows_of_a_prompt_may_differ_in_length():
  _, params, engine = setup()
  tokens_BT, count_B = random_tokens(2, 32), np.array([17, 5])
  _, logits_BV = engine.prefill(params, engine.init(2), tokens_BT, count_B)
  assert_close(logits_BV, forward()(tokens_BT)[jnp.arange(2), count_B - 1], tolerance=2e-5)


def test_the_state_keeps_its_size_and_nothing_compiles_again():
  _, params, engine = setup()
  size = lambda state: sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  sizes, compiled = [], []
  for length in (3, 7, 40, 75):
    state, logits_BV = engine.prefill(params, engine.init(), random_tokens(1, length))
    state, _ = engine.decode(params, state, np.array([3], np.int32))
    state, _ = engine.decode(params, state, jnp.argmax(logits_BV, -1).astype(jnp.int32))
    sizes.append(size(state))
    compiled.append(engine.decode._cache_size())
  assert len({*sizes, size(engine.init())}) == 1
  assert len({*compiled}) == 1


def test_temperature_zero_takes_the_likeliest_token_of_the_parallel_pass():
  pieces = write("de", tokens=6, temperature=0)
  tokens = [256, *b"de"]
  for _ in range(6):
    padded_BT = np.zeros((1, 12), np.int32)  # What follows a token does not change its logits.
    padded_BT[0, :len(tokens)] = tokens
    tokens.append(int(jnp.argmax(forward()(padded_BT)[0, len(tokens) - 1])))
  assert "".join(pieces) == ByteTokenizer().decode(tokens[3:])


def test_one_likeliest_token_is_no_choice():
  assert write("de", top_k=1, temperature=3.0) == write("de", temperature=0)


def test_the_seed_decides_the_text():
  assert write(seed=1) == write(seed=1) != write(seed=2)


def test_text_ends_with_the_document():
  text = "".join(write("tea", vocab_size=5, tokens=200))
  assert 0 < len(text) < 100 and set(text) <= set("etao")


def test_no_piece_ends_inside_a_character():
  """Random bytes are mostly broken UTF-8; the pieces together still are the whole, decoded at once."""
  model, params, engine = setup()
  tokens = []

  class Noting(ByteTokenizer):
    def decode_bytes(self, ids):
      tokens.extend(ids)
      return super().decode_bytes(ids)

  pieces = list(engines.generate(model, params, Noting(), "é", tokens=60, temperature=1.5, engine=engine))
  assert "".join(pieces) == ByteTokenizer().decode(tokens)
  assert all(pieces)


def test_a_mesh_writes_the_same_text():
  model, params, _ = setup()
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  split = jax.device_put(params, place.shardings(mesh, params))
  pieces = list(engines.generate(model, split, ByteTokenizer(), "de", tokens=8, temperature=0, mesh=mesh))
  assert pieces == write("de", tokens=8, temperature=0)


@pytest.mark.parametrize("options, message", [
    (dict(tokens=0), "tokens=0 must be at least 1"),
    (dict(temperature=-0.1), "temperature=-0.1 must be 0"),
    (dict(temperature=float("nan")), "temperature=nan"),
    (dict(top_k=0), "top_k=0 must be in 1..257"),
    (dict(top_k=258), "top_k=258 must be in 1..257"),
])
def test_a_wrong_argument_is_refused_at_once(options, message):
  with pytest.raises(ValueError, match=message):
    engines.generate(*setup()[:2], ByteTokenizer(), "", **(dict(tokens=1, temperature=1.0) | options))


def test_another_tokenizer_is_refused():
  with pytest.raises(ValueError, match="config.model.vocab_size=257"):
    engines.generate(*setup()[:2], Letters(5), "", tokens=1, temperature=1.0)


def test_an_empty_row_of_a_prompt_is_refused():
  _, params, engine = setup()
  with pytest.raises(ValueError, match="start with DOC"):
    engine.prefill(params, engine.init(2), random_tokens(2, 4), [0, 4])
