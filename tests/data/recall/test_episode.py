"""Episodes: every answer stands once where it was stored, as far away as it says, in a text that fits."""

import functools

import numpy as np
import pytest

from atlas_jax.data import recall
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.recall import episode, haystack, sample
from tests.data.recall.settings import ALIGN, haystack_of, ids_of, setting, texts

NAMES = ("key_value", "passkey", "continuation", "entity")
CELLS = [(items, distance) for items in (1, 4, 8) for distance in (0, 256, 2_000)]


@functools.cache
def real_text():
  """Half a megabyte of the standard library."""
  return haystack.of_corpus(name="python_stdlib", path=None, text_field="text", limit_bytes=500_000,
                            download=False, cache_dir=None, bad_input_frac=0.0, held_out_frac=0.2,
                            tokenizer=tokenizers.ByteTokenizer(), split="eval")()


@pytest.fixture(scope="module")
def subwords(tmp_path_factory):
  """A tokenizer that merges characters within words, and a setting with its texts."""
  pytest.importorskip("tokenizers")
  coder = tokenizers.train_bpe([text.encode() for text in texts()], vocab_size=400,
                               folder=tmp_path_factory.mktemp("bpe"))
  found = haystack_of(texts(), coder)
  return setting(tokenizer=coder, text=lambda: found)


def draws(name, given, items, distance, count=20, split="eval"):
  """Draws texts of a cell."""
  cell = {"items": items, "distance": distance}
  return [recall.load(name).sample(cell, given, seed=0, split=split, number=n) for n in range(count)]


def occurrences(part_T, whole_T):
  """Places at which a part begins in a whole."""
  windows = np.lib.stride_tricks.sliding_window_view(whole_T, len(part_T))
  return np.flatnonzero((windows == part_T).all(axis=1)).tolist()


def check(text, given, distance):
  """Looks the answers of a text up in its ids, and its bytes."""
  context_T = sample.joined(text.context, 0, text.context_len)
  whole_T = np.r_[ids_of(text), text.target_T[-1:]]
  assert context_T[0] == given.tokenizer.doc_id and text.context_len % given.align_tokens == 0
  assert (context_T[1:] != given.tokenizer.doc_id).all()
  for n, said in enumerate(text.distance_N):
    places = np.flatnonzero(text.answer_T == n)
    answer_T = text.target_T[places]
    assert np.ptp(places) == len(places) - 1 and len(places) == len(answer_T) > 0
    asked_at = text.context_len + places[0] + 1
    cue_T = whole_T[asked_at - 3:asked_at]  # The last tokens of the question stand before the answer, too.
    stored_at = occurrences(np.r_[cue_T, answer_T], context_T)
    assert len(stored_at) == 1
    assert said == asked_at - (stored_at[0] + 3 + len(answer_T)) >= distance
    words = given.tokenizer.decode_bytes(answer_T).strip()
    assert given.tokenizer.decode_bytes(context_T).count(words) == 1
    assert given.tokenizer.decode_bytes(whole_T[text.context_len:]).count(words) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("items", "distance"), CELLS)
def test_answers_stand_once_in_the_context_as_far_away_as_they_say(name, items, distance):
  given = setting()
  found = draws(name, given, items, distance)
  for text in found:
    assert len(text.distance_N) == items
    check(text, given, distance)
    assert text.context_len + len(text.input_T) <= episode.room(name, items, distance, ALIGN)
  assert len({tuple(ids_of(text)) for text in found}) == len(found)


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_tokens_may_be_a_chunk(name):
  for align in (1, 64):
    given = setting(align_tokens=align)
    for text in draws(name, given, 2, 100, count=5):
      check(text, given, 100)
      assert text.context_len + len(text.input_T) <= episode.room(name, 2, 100, align)


@pytest.mark.parametrize("name", NAMES)
def test_real_text_has_all_that_is_needed(name):
  given = setting(text=real_text)
  for items, distance in ((4, 256), (8, 2_000)):
    for text in draws(name, given, items, distance, count=5):
      check(text, given, distance)
      assert text.context_len + len(text.input_T) <= episode.room(name, items, distance, ALIGN)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_several_characters_are_the_same_where_they_are_stored(name, subwords):
  for text in draws(name, subwords, 4, 256, count=8):
    check(text, subwords, 256)


@pytest.mark.parametrize("name", NAMES)
def test_items_are_asked_for_in_orders_of_their_own(name):
  """Where an answer was stored is where it is asked for less its distance."""
  orders = set()
  for text in draws(name, setting(), 4, 0):
    asked_at = [text.context_len + int(np.argmax(text.answer_T == n)) for n in range(4)]
    orders.add(tuple(np.argsort(asked_at - text.distance_N).tolist()))
  assert len(orders) > 8


@pytest.mark.parametrize(("name", "slack"), [("key_value", 0), ("passkey", 0), ("continuation", 0),
                                             ("entity", 60)])
def test_a_text_has_room_for_no_more_than_it_may_take(name, slack):
  given = setting(align_tokens=1)
  longest = max(text.context_len + len(text.input_T) for text in draws(name, given, 1, 10, count=300))
  assert longest + slack >= episode.room(name, 1, 10, 1) >= longest


def test_room_counts_whole_chunks_and_knows_its_tasks():
  assert episode.room("key_value", 4, 256, 1) == 1 + 4 * 57 + 256 + 4 * 8 - 1
  assert episode.room("key_value", 4, 256, 64) == episode.room("key_value", 4, 256) == 512 + 4 * 8 - 1
  with pytest.raises(ValueError, match="'niah' has no episodes; those with episodes are continuation, ent"):
    episode.room("niah", 4, 256)


def test_the_fields_are_the_cells():
  given = setting(episode_items="2,5", episode_distances="0,64")
  for name in NAMES:
    assert recall.load(name).cells(given) == [{"items": items, "distance": distance} for items in (2, 5)
                                              for distance in (0, 64)]
    assert 0 <= recall.load(name).chance({}, given) <= 26.0 ** -3


@pytest.mark.parametrize("name", NAMES)
def test_cells_that_cannot_be_are_refused(name):
  for items, distance in ((0, 10), (2, -1)):
    with pytest.raises(ValueError, match=f"a text of {items} items at {distance} tokens cannot be; config"):
      draws(name, setting(), items, distance, count=1)


@pytest.mark.parametrize("name", ["continuation", "entity"])
def test_text_in_which_all_returns_is_refused_with_what_to_do(name):
  """The same two lines for ever: no passage stands once, and no word is a name."""
  same = haystack_of([b"the same line again\nand the other one\n" * 200])
  with pytest.raises(ValueError, match="episode_items=2, .*distances=64: 10 texts .* take fewer items or sh"):
    draws(name, setting(text=lambda: same), 2, 64, count=1)


@pytest.mark.parametrize(("after", "before", "apart"), [("xyz", "ab", True), ("xyab", "cd", False)])
def test_an_answer_that_two_parts_make_where_they_meet_is_no_answer(after, before, apart):
  """The end of one item and the beginning of the next would say it a second time."""
  given = setting()
  ids = given.tokenizer.encode
  items = [episode.line_of(given, "\n1=", "abcd", after, ids("")),
           episode.line_of(given, "\n2=", "efgh", "", ids(before))]
  draw = np.random.default_rng(0)
  make = lambda number: items[number]
  cell = {"items": 2, "distance": 20}
  if apart:
    check(episode.text(cell, draw, given, make, kind="a letter"), given, 20)
  else:
    with pytest.raises(ValueError, match="in none could 100 draws find a letter that occurs nowhere else"):
      episode.text(cell, draw, given, make, kind="a letter")


def test_a_gap_that_holds_every_value_is_refused():
  letters = [chr(ord("a") + n) for n in range(26)]
  every = " ".join(a + b + c for a in letters for b in letters for c in letters).encode()
  full = haystack_of([every])
  with pytest.raises(ValueError, match="in none could 100 draws find a key and a value that occurs nowhere"):
    draws("key_value", setting(text=lambda: full), 1, len(every), count=1)


def test_documents_that_are_too_short_are_refused():
  short = haystack_of([b"Short. "] * 50)
  for name, tokens in (("continuation", 48), ("entity", 96)):
    with pytest.raises(ValueError, match="no document has [4-9][0-9] tokens") as found:
      draws(name, setting(text=lambda: short), 1, 10, count=1)
    assert int(str(found.value).split()[3]) >= tokens
