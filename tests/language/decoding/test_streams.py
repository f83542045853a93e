"""Generating: token by token equals the parallel pass, in a state of fixed size, with few compilations."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.language.decoding import engine as engines
from atlas_jax.language.decoding import streams
from atlas_jax.models import head, placement
from atlas_jax.models import language as languages
from atlas_jax.parallel import mesh as meshes
from tests.helpers import assert_close, tiny_lm


class TracedModel:
  """A model that counts how often it is traced, that is how often something is compiled with it."""

  def __init__(self, model):
    self._model, self.n_traces = model, 0

  def __getattr__(self, name):
    return getattr(self._model, name)

  def apply(self, *args, **kwargs):
    self.n_traces += 1
    return self._model.apply(*args, **kwargs)


@functools.lru_cache
def setup():
  """Model, parameters and engine; pieces of 7 tokens, which no chunk border respects."""
  model, params, _ = tiny_lm()
  model = TracedModel(model.clone(vocab_size=257))
  embed = np.random.default_rng(1).normal(scale=0.3, size=(257, model.width))
  params = {**params, "embed": jnp.asarray(embed, jnp.float32)}
  return model, params, engines.make(languages.of_memory(model), piece_tokens=7)


@functools.lru_cache
def forward():
  """The parallel pass over 32 tokens: tokens_T -> logits_TV."""
  model, params, _ = setup()

  @jax.jit
  def logits(tokens_BT):
    out = model.apply({"params": params}, tokens_BT, model.zero_state(1), doc_BT=jnp.zeros_like(tokens_BT),
                      mode="packed")
    return head.logits(params, out.hidden_BTD)[0]

  return lambda tokens_T: np.asarray(logits(tokens_T[None]))


def random_tokens(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 257, shape).astype(np.int32)


class NotingTokenizer(ByteTokenizer):
  """Bytes, and a list of the ids it was asked to decode."""

  def __init__(self):
    self.decoded = []

  def decode_bytes(self, ids):
    self.decoded.extend(ids)
    return super().decode_bytes(ids)


def write(prompt="", *, tokenizer=None, params=None, **options):
  model, usual, engine = setup()
  options = dict(tokens=20, temperature=1.0) | options
  tokenizer, params = tokenizer or ByteTokenizer(), params or usual
  language = languages.of_memory(model)
  return list(streams.generate(language, params, tokenizer, prompt, engine=engine, **options))


@pytest.mark.core
def test_decoding_one_by_one_equals_the_parallel_pass():
  _, params, engine = setup()
  tokens_T = random_tokens(32)
  state, first_BV = engine.prefill(params, engine.init(), tokens_T[None, :10])
  decoded = [np.asarray(first_BV)[0]]
  for token in tokens_T[10:]:
    state, logits_BV = engine.decode(params, state, np.array([token]))
    decoded.append(np.asarray(logits_BV)[0])
  assert_close(np.stack(decoded), forward()(tokens_T)[9:], tolerance=2e-5)


def test_rows_of_a_prompt_may_differ_in_length():
  _, params, engine = setup()
  tokens_BT, count_B = random_tokens(2, 32), np.array([17, 5])
  _, logits_BV = engine.prefill(params, engine.init(2), tokens_BT, count_B)
  expected = [forward()(row)[count - 1] for row, count in zip(tokens_BT, count_B)]
  assert_close(np.asarray(logits_BV), np.stack(expected), tolerance=2e-5)


def test_the_state_keeps_its_size_and_nothing_compiles_again():
  model, params, engine = setup()
  size = lambda state: sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  sizes, traces = [], []
  for length in (3, 7, 40, 75):
    state, logits_BV = engine.prefill(params, engine.init(), random_tokens(1, length))
    state, _ = engine.decode(params, state, np.array([3], np.int32))
    state, _ = engine.decode(params, state, jnp.argmax(logits_BV, -1).astype(jnp.int32))
    sizes.append(size(state))
    traces.append(model.n_traces)
  assert len({*sizes, size(engine.init())}) == 1
  assert traces == traces[:1] * 4


def test_temperature_zero_takes_the_likeliest_token_of_the_parallel_pass():
  pieces = write("de", tokens=6, temperature=0)
  tokens = [256, *b"de"]
  for _ in range(6):
    # Later tokens change nothing before them.
    padded_T = np.r_[tokens, np.zeros(32 - len(tokens))].astype(np.int32)
    tokens.append(int(forward()(padded_T)[len(tokens) - 1].argmax()))
  assert "".join(pieces) == ByteTokenizer().decode(tokens[3:])


def test_one_likeliest_token_is_no_choice():
  assert write("de", top_k=1, temperature=3.0) == write("de", temperature=0)


def test_the_seed_decides_the_text():
  assert write(seed=1) == write(seed=1) != write(seed=2)


def test_text_ends_with_the_document():
  tokenizer, params = NotingTokenizer(), setup()[1]
  even = {**params, "embed": jnp.zeros_like(params["embed"])}  # Every token is as likely as DOC.
  write(tokenizer=tokenizer, params=even, tokens=3000)
  assert 0 < len(tokenizer.decoded) < 3000
  assert tokenizer.doc_id not in tokenizer.decoded


def test_no_piece_ends_inside_a_character():
  """Random bytes are mostly broken UTF-8; the pieces together still are the whole, decoded at once."""
  tokenizer = NotingTokenizer()
  pieces = write("é", tokenizer=tokenizer, tokens=60, temperature=1.5)
  assert all(pieces)
  assert "".join(pieces) == ByteTokenizer().decode(tokenizer.decoded)


def test_a_mesh_writes_the_same_text():
  model, params, _ = setup()
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  split = jax.device_put(params, placement.shardings(mesh, params))
  language = languages.of_memory(model)
  pieces = list(streams.generate(language, split, ByteTokenizer(), "de", tokens=8, temperature=0, mesh=mesh))
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
    write(**(dict(tokens=1, temperature=1.0) | options))


def test_another_tokenizer_is_refused():
  model, params, _ = setup()
  with pytest.raises(ValueError, match="config.model.vocab_size=300"):
    streams.generate(languages.of_memory(model.clone(vocab_size=300)), params, ByteTokenizer(), "", tokens=1)


@pytest.mark.parametrize("ids, found", [([256, 257], "256 to 257"), ([-1, 3], "-1 to 3")])
def test_ids_outside_the_vocabulary_are_refused_at_once(ids, found):
  _, params, engine = setup()
  with pytest.raises(ValueError, match=rf"a prompt has ids from {found}"):
    engine.prefill(params, engine.init(), [ids])
  assert engine.prefill(params, engine.init(), [[3, *ids]], [1])  # Padding may be anything.


@pytest.mark.parametrize("prompt, what", [
    ([256, 257], r"from 256 to 257; they must be integers in 0\.\.256"), ([-1], "from -1"),
    ([1.5], "integers"), ([], "has no ids")])
def test_a_prompt_of_ids_that_the_model_has_not_is_refused_at_once(prompt, what):
  model, params, _ = setup()
  with pytest.raises(ValueError, match=f"prompt has .*{what}|prompt {what}"):
    streams.generate(languages.of_memory(model), params, ByteTokenizer(), prompt, tokens=1)


def test_an_empty_row_of_a_prompt_is_refused():
  _, params, engine = setup()
  with pytest.raises(ValueError, match="DOC alone"):
    engine.prefill(params, engine.init(2), random_tokens(2, 4), [0, 4])
