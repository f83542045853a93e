"""The store of prefixes: what it finds, what it forgets, and what is there after a process was killed."""
import threading

import numpy as np
import pytest

from atlas_jax.language.decoding import state_files
from atlas_jax.language.decoding.prefix_store import PrefixStore, Root
from atlas_jax.language.decoding.state_disk import StateDisk, StoredState

BLOCK = 4
FIXED, GROWING = Root("model a", False), Root("model a, cache", True)


def state(tokens, size=100):
  """Makes a state that tells its text, of 4 * size bytes and a hidden vector of 8."""
  return StoredState([np.full(size, hash(tuple(tokens)) % 2**31, np.int32)], np.zeros((1, 2), np.float32))


def ids(draw, low, high):
  return draw.integers(0, 2, draw.integers(low, high + 1)).astype(np.int32)  # Few ids: many common starts.


def lcp(one, other):
  size = min(len(one), len(other))
  differ = np.flatnonzero(one[:size] != other[:size])
  return int(differ[0]) if len(differ) else size


def whole(tokens):
  return len(tokens) // BLOCK * BLOCK


def check_found(match, root, tokens):
  """Compares the states of a match with those that were put behind the same ids."""
  ends = range(BLOCK, match.tokens + 1, BLOCK) if root.grows else [match.tokens] * bool(match.tokens)
  assert [one.arrays[0][0] for one in match.states] == [state(tokens[:end]).arrays[0][0] for end in ends]


@pytest.mark.parametrize("root", [FIXED, GROWING])
def test_it_finds_the_longest_start_that_was_put(root):
  draw, store, texts = np.random.default_rng(0), PrefixStore(BLOCK, 10**9), []
  for _ in range(300):
    tokens = ids(draw, 1, 30)
    match = store.find(root, tokens)
    assert match.tokens == max((lcp(tokens, text) // BLOCK * BLOCK for text in texts), default=0)
    assert match.shared == max((lcp(tokens, text[:whole(text)]) for text in texts), default=0)
    check_found(match, root, tokens)
    for end in range(BLOCK, whole(tokens) + 1, BLOCK):
      store.put(root, tokens[:end], state(tokens[:end]))
    texts.append(tokens)


@pytest.mark.parametrize("root", [FIXED, GROWING])
def test_it_stays_within_its_bytes_and_what_it_finds_is_right(root):
  draw, most = np.random.default_rng(1), 12_000
  store, found = PrefixStore(BLOCK, most), 0
  for _ in range(400):
    tokens = ids(draw, 4, 40)
    match = store.find(root, tokens)
    check_found(match, root, tokens)
    found += match.tokens
    for end in range(match.tokens + BLOCK, whole(tokens) + 1, BLOCK):
      store.put(root, tokens[:end], state(tokens[:end]))
      assert store.bytes <= most
  assert found and store.evicted and 0 < store.states < 40


def test_what_is_used_stays_and_what_is_not_makes_room():
  store = PrefixStore(BLOCK, 3 * 1_000)
  texts = [np.full(BLOCK, number, np.int32) for number in range(4)]
  for text in texts[:3]:
    store.put(FIXED, text, state(text))
  store.find(FIXED, texts[0])
  store.put(FIXED, texts[3], state(texts[3]))
  assert [store.has(FIXED, text) for text in texts] == [True, False, True, True]
  store.put(FIXED, texts[1], state(texts[1], size=10_000))
  assert store.refused == 1 and not store.has(FIXED, texts[1])


def test_roots_never_meet():
  store, text = PrefixStore(BLOCK, 10**6), np.arange(BLOCK, dtype=np.int32)
  store.put(FIXED, text, state(text))
  assert store.find(Root("model a, another tenant", False), text).tokens == 0


@pytest.mark.parametrize("grows", [False, True])
def test_roots_whose_texts_made_room_are_gone(grows):
  """A server's clients name as many users as they like."""
  store, text = PrefixStore(BLOCK, 5_000), np.arange(2 * BLOCK, dtype=np.int32)
  for number in range(100):
    root = Root(f"user {number}", grows)
    store.put(root, text, state(text))  # Where it grows, its first part is missing, and nothing is kept.
    store.put(root, text[:BLOCK], state(text[:BLOCK]))
    assert store.bytes <= 5_000
  assert len(store._roots) < 10
  assert store.find(root, text).tokens == (BLOCK if grows else 2 * BLOCK)


def test_a_state_is_found_while_it_waits_for_a_slow_disk(tmp_path, monkeypatch):
  may_write, write = threading.Event(), state_files.write_state
  monkeypatch.setattr(state_files, "write_state", lambda *args: may_write.wait() and write(*args))
  disk = StateDisk(tmp_path, 10**6, most_waiting_bytes=2_000)
  store = PrefixStore(BLOCK, 900, disk)  # For one state.
  texts = [np.full(BLOCK, number, np.int32) for number in range(9)]
  for text in texts:
    store.put(FIXED, text, state(text))
  assert 0 < disk.waiting_bytes <= 2_000
  assert disk.skipped == 5  # Of nine states of 408 bytes.
  check_found(store.find(FIXED, texts[0]), FIXED, texts[0])
  assert store.find(FIXED, texts[0]).tokens == BLOCK
  may_write.set()
  disk.flush()
  assert disk.waiting_bytes == 0 and not disk._waiting
  assert disk.bytes >= sum(file.stat().st_size for file in tmp_path.iterdir())
  assert store.find(FIXED, texts[1]).tokens == BLOCK  # From its file.
  disk.close()


@pytest.mark.parametrize("root", [FIXED, GROWING])
def test_a_killed_process_leaves_what_was_written(root, tmp_path):
  """The second store finds what the first had put, though nothing was closed; damaged files are dropped."""
  draw, first = np.random.default_rng(2), PrefixStore(BLOCK, 10**6, StateDisk(tmp_path, 10**6))
  texts = [ids(draw, 8, 24) for _ in range(20)]
  for tokens in texts:
    for end in range(BLOCK, whole(tokens) + 1, BLOCK):
      first.put(root, tokens[:end], state(tokens[:end]))
  first._disk.flush()
  (tmp_path / ".x.state.00.part").write_bytes(b"half")
  second = PrefixStore(BLOCK, 10**6, StateDisk(tmp_path, 10**6))
  assert not (tmp_path / ".x.state.00.part").exists() and second.states == first.states
  for tokens in texts:
    match = second.find(root, tokens)
    assert match.tokens == whole(tokens)
    check_found(match, root, tokens)
  victims = sorted(tmp_path.glob("*.state"))[::3]
  for file in victims:
    content = file.read_bytes()
    file.write_bytes(content[:-3] + b"xyz")
  third = PrefixStore(BLOCK, 10**6, StateDisk(tmp_path, 10**6))
  for tokens in texts:
    check_found(third.find(root, tokens), root, tokens)
  assert third._disk.damaged


@pytest.mark.parametrize("root", [FIXED, GROWING])
def test_files_stay_within_their_bytes_and_a_state_may_come_back_from_the_disk(root, tmp_path):
  draw = np.random.default_rng(3)
  disk = StateDisk(tmp_path, 20_000)
  store, found = PrefixStore(BLOCK, 6_000, disk), 0
  for _ in range(120):
    tokens = ids(draw, 4, 30)
    match = store.find(root, tokens)
    check_found(match, root, tokens)
    found += match.tokens
    for end in range(match.tokens + BLOCK, whole(tokens) + 1, BLOCK):
      store.put(root, tokens[:end], state(tokens[:end]))
      disk.flush()
      assert not disk.is_over
  assert sum(file.stat().st_size for file in tmp_path.glob("*.state")) <= 20_000
  assert found
  disk.close()


def test_files_of_other_settings_are_taken_away(tmp_path):
  text = np.arange(2 * BLOCK, dtype=np.int32)
  first = PrefixStore(BLOCK, 10**6, StateDisk(tmp_path, 10**6))
  first.put(FIXED, text, state(text))
  first._disk.close()
  disk = StateDisk(tmp_path, 10**6)
  second = PrefixStore(2 * BLOCK, 10**6, disk)
  assert second.find(FIXED, text).tokens == 0
  disk.close()
  assert not list(tmp_path.glob("*.state"))
