"""The text of a completion that is written id by id, held back before what may stop it."""
import numpy as np
import pytest

from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.language.decoding import stops
from atlas_jax.language.decoding.stream_text import StopText

TOKENIZER = ByteTokenizer()


class Pairs(ByteTokenizer):
  """Ids of one to three bytes, so that characters and stop strings begin and end inside of them."""
  table = [b"a", b"b", b"ab", b"ba\xc3", b"\xa9", b"\xc3\xa9b", b"bb", b"", b"\xe2\x82"]
  vocab_size = len(table)

  def decode_bytes(self, ids):
    return b"".join(self.table[int(i)] for i in np.asarray(ids).reshape(-1))

  def byte_lengths(self):
    return np.array([len(one) for one in self.table], np.int32)


def pushed(text, tokens):
  pieces = []
  for token in tokens:
    pieces.append(text.push(token))
    if text.stopped is not None:
      break
  return pieces, len(pieces)


@pytest.mark.parametrize("strings", [("abb",), ("bb", "abba"), ("é", "bé"), ("aab", "b"), ("zz",)])
def test_it_stops_where_the_whole_text_would_be_cut(strings):
  draw = np.random.default_rng(len(strings[0]))
  stopped = 0
  for _ in range(300):
    tokens = draw.integers(0, 11, draw.integers(1, 12)).tolist()
    text = StopText(Pairs(), strings)
    pieces, size = pushed(text, tokens)
    expected = stops.cut(tokens, strings, Pairs())
    whole = "".join(pieces) + text.flush()
    if expected is None:
      assert (text.stopped, size) == (None, len(tokens))
      assert whole == Pairs().decode_bytes(stops.known(tokens, Pairs())).decode(errors="replace")
    else:
      stopped += 1
      assert (size, whole) == expected and text.stopped in strings
  assert stopped > 20 or strings == ("zz",)


def test_what_may_become_a_stop_string_is_held_back_and_no_more():
  text = StopText(TOKENIZER, ("stop",))
  assert [text.push(token) for token in b"a st"] == ["a", " ", "", ""]
  assert text.push(ord("a")) == "sta"
  assert [text.push(token) for token in b"stst"] == ["", "", "st", ""]
  assert (text.stopped, text.flush()) == (None, "st")


def test_half_a_character_is_held_back():
  text = StopText(TOKENIZER, ())
  assert [text.push(token) for token in "é".encode()] == ["", "é"]
  assert (text.push(0xC3), text.flush()) == ("", "�")
