"""Documents that begin anywhere in a row are read as if each stood alone."""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import scan
from tests.helpers import assert_close, quick_compilation
from tests.memory.contract import CHUNK, FILES, N, case, stream

# The first one goes on from an earlier call; padding stands inside the second, and ends the row.
DOCUMENTS = np.array([7, 7, 3, 3, -1, 3, 3, 3, 9, 4, 4, -1], np.int32)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.partial(jax.jit, static_argnums=0, static_argnames="n_chunks")
def documents(rule, running, learned, tokens, gates, doc_T, last_doc, *, n_chunks):
  return scan.scan_documents(
    rule, running, learned, tokens, gates, doc_T, last_doc, chunk_size=CHUNK, n_chunks=n_chunks
  )


def alone(small, running, position_S):
  """Reads the tokens at these places, in a call that is filled up with others."""
  order = np.concatenate([position_S, np.zeros(N - len(position_S), int)])
  part = jax.tree.map(lambda x: x[order], (small.tokens, small.gates))
  after, out_TM = stream(small.rule, running, small.learned.slow, *part, len(position_S))
  return after, out_TM[: len(position_S)]


@pytest.mark.parametrize("name", FILES)
def test_documents_that_begin_anywhere_equal_documents_read_alone(x64, name):
  small = case(name)
  begun, _ = alone(small, small.start(), np.array([5, 8, 2]))
  n_chunks = scan.chunks_of_documents(N, CHUNK, 4)
  after, out_TM = documents(
    small.rule, begun, small.learned, small.tokens, small.gates, DOCUMENTS, 7, n_chunks=n_chunks
  )
  for number in (7, 3, 9, 4):
    position_S = np.flatnonzero(DOCUMENTS == number)
    start = begun if number == 7 else scan.start(small.rule, small.learned)
    expected, expected_SM = alone(small, start, position_S)
    assert_close(out_TM[position_S], expected_SM, why=f"document {number}")
  assert_close(after, expected, why="the memory after the last document")
  assert not np.asarray(out_TM)[DOCUMENTS < 0].any()


def test_tokens_without_room_are_not_a_number_and_those_before_are_right(x64):
  small, doc_T = case("titans"), np.arange(N, dtype=np.int32)
  read = functools.partial(
    documents, small.rule, small.start(), small.learned, small.tokens, small.gates, doc_T, -2
  )
  after, out_TM = read(n_chunks=scan.chunks_of_documents(N, CHUNK, None))
  cut, cut_TM = read(n_chunks=6)
  assert np.isfinite(out_TM).all() and np.isnan(cut_TM[5:]).all()
  assert_close(cut_TM[:5], out_TM[:5])
  assert all(np.isnan(x).all() for x in jax.tree.leaves(cut.memory.fast))
  assert int(after.position) == 1


def test_the_bound_of_chunks_holds_for_every_way_to_cut_a_row_into_documents():
  for length in range(1, 10):
    for cuts in itertools.product((False, True), repeat=length - 1):
      ends = [at + 1 for at, cut in enumerate(cuts) if cut] + [length]
      sizes = np.diff([0, *ends])
      for begun in range(CHUNK):  # Tokens of the first document that an earlier call has read.
        head = min((CHUNK - begun) % CHUNK, sizes[0])
        used = 1 + sum(-(-size // CHUNK) for size in [sizes[0] - head, *sizes[1:]])
        assert used <= scan.chunks_of_documents(length, CHUNK, len(sizes))
        assert used <= scan.chunks_of_documents(length, CHUNK, None)


def test_gradients_flow_through_documents_as_through_documents_read_alone(x64):
  small = case("titans")
  running = scan.start(small.rule, small.learned)

  def together(learned, tokens):
    out_TM = documents(small.rule, running, learned, tokens, small.gates, DOCUMENTS, -2, n_chunks=9)[1]
    return jnp.sum(jnp.sin(out_TM))

  def apart(learned, tokens):
    total = 0.0
    for number in (7, 3, 9, 4):
      position_S = np.flatnonzero(DOCUMENTS == number)
      order = np.concatenate([position_S, np.zeros(N - len(position_S), int)])
      part = jax.tree.map(operator.itemgetter(order), (tokens, small.gates))
      begun = scan.start(small.rule, learned)
      total += jnp.sum(jnp.sin(stream(small.rule, begun, learned.slow, *part, len(position_S))[1]))
    return total

  arguments = small.learned, small.tokens
  assert_close(jax.grad(together, (0, 1))(*arguments), jax.grad(apart, (0, 1))(*arguments))
