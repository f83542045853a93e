"""Conversations with shared starts, forks and edits: little is read twice, and no answer differs by a bit."""
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from atlas_jax.language.decoding import programs as programs_module
from tests.helpers import quick_compilation
from tests.language.decoding import serving
from tests.language.decoding.serving import events_of, expected, request

CHILD = """
import sys
from tests.helpers import quick_compilation
from tests.language.decoding import serving, test_conversations
with quick_compilation(), serving.scheduler("memory", store_bytes=2**24, store_folder=sys.argv[1]) as server:
  for asked in test_conversations.fixed():
    serving.events_of(server.submit(asked))
  print("served", flush=True)
  server._disk.flush()
  print("written", flush=True)
  import time
  time.sleep(600)
"""


@pytest.fixture(autouse=True, scope="module")
def _shared():
  with quick_compilation(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(programs_module, "make", serving.shared_programs)
    yield


def fixed():
  """Returns the same few requests in every process."""
  draw = np.random.default_rng(5)
  start = draw.integers(0, 257, 50).tolist()
  return [request(start[:cut] + serving.random_prompt(draw, 1, 20), seed=cut) for cut in (50, 31, 48, 0, 17)]


def turn(draw, texts, number, longest):
  """Returns the next prompt: another turn of a conversation, a fork or an edit of one, or a new one."""
  kind = draw.random()
  text = texts[draw.integers(len(texts))] if texts else []
  if kind < 0.15 or not texts:
    head = SYSTEM[draw.integers(len(SYSTEM))]
  elif kind < 0.65:
    head = text
  else:  # Up to any token of it; an edit goes on with the rest.
    cut = int(draw.integers(len(text) // 2, len(text) + 1))
    head = text[:cut]
  more = serving.random_prompt(draw, 1, 12) + (text[len(head) + 1:] if 0.65 <= kind < 0.8 else [])
  prompt = (head + more)[:longest]
  return request(prompt, seed=number, max_tokens=int(draw.integers(1, 5)))


SYSTEM = [np.random.default_rng(seed).integers(0, 257, 90).tolist() for seed in range(3)]


def common(one, other):
  size = min(len(one), len(other))
  differ = np.flatnonzero(np.array(one[:size]) != np.array(other[:size]))
  return int(differ[0]) if len(differ) else size


@pytest.mark.parametrize("kind, turns, store_bytes", [
    ("memory", 200, 2**24), ("decoder", 80, 2**24), ("memory", 60, 60_000), ("decoder", 60, 60_000),
    pytest.param("memory", 1000, 2**26, marks=pytest.mark.slow)])
def test_answers_are_the_cold_ones_and_little_is_read_again(kind, turns, store_bytes):
  """At 60 kB nearly nothing fits, and the answers are the same."""
  draw, texts, shared = np.random.default_rng(turns), [], 0
  with serving.scheduler(kind, store_bytes=store_bytes) as server:
    for number in range(turns):
      asked = turn(draw, texts, number, 150)
      shared += max((common(asked.prompt, text) for text in texts), default=0)
      found = events_of(server.submit(asked))[0]
      assert found == expected(kind, asked), number
      texts.append([*asked.prompt, *(event.token for event in found[0])])
      while server.stats()["background_waiting"]:
        time.sleep(0.001)
      assert server.stats()["store_bytes"] <= store_bytes
    stats = server.stats()
  assert stats["read_tokens"] + stats["cached_tokens"] == stats["prompt_tokens"]
  if store_bytes > 10**6:
    assert stats["cached_tokens"] >= 0.95 * shared, (stats, shared)
  else:
    assert stats["store_evicted"]


def test_many_at_once_share_what_is_read_and_answer_as_alone():
  draw = np.random.default_rng(3)
  start = draw.integers(0, 257, 80).tolist()
  asked = [request(start[:70] + serving.random_prompt(draw, 1, 9), seed=n) for n in range(12)]
  with serving.scheduler("memory", store_bytes=2**24, slots=6) as server:
    found = [events_of(stream) for stream in [server.submit(one) for one in asked]]
    stats = server.stats()
  for one, (events, _) in zip(asked, found, strict=True):
    assert events == expected("memory", one)
  assert stats["read_tokens"] < 80 + 12 * 24 and sum(ends[0].cached_tokens > 0 for _, ends in found) == 11


def test_a_full_hit_reads_nothing_and_answers_alike():
  prompt = np.random.default_rng(0).integers(0, 257, 3 * serving.PIECE).tolist()
  for kind in serving.KINDS:
    with serving.scheduler(kind, store_bytes=2**24) as server:
      first, (end,) = events_of(server.submit(request(prompt, seed=1)))
      again, (hit,) = events_of(server.submit(request(prompt, seed=1)))
      assert again == first and (end.cached_tokens, hit.cached_tokens) == (0, len(prompt))
      assert server.stats()["read_tokens"] == len(prompt)


def test_tenants_models_and_requests_that_are_not_to_be_remembered_share_nothing():
  prompt = list(range(40))
  with serving.scheduler("memory", store_bytes=2**24) as server:
    server.load("other", serving.served("memory").language, serving.served("memory", scale=1.1).params, 0)

    def cached(**fields):
      return events_of(server.submit(request(prompt, **fields)))[1][0].cached_tokens

    assert [cached(remember=False), cached(), cached(), cached(tenant="a"), cached(tenant="a"),
            cached(model="other"), cached(model="other")] == [0, 0, 40, 0, 40, 0, 40]


def test_after_a_kill_the_answers_are_the_same_and_little_is_read(tmp_path):
  """The process is killed without warning; another finds its states, and none that is half written."""
  child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                           cwd=pathlib.Path(__file__).parents[3])
  try:
    assert child.stdout.readline() == "served\n" and child.stdout.readline() == "written\n"
  finally:
    child.send_signal(signal.SIGKILL)
    child.wait()
  with serving.scheduler("memory", store_bytes=2**24, store_folder=tmp_path) as server:
    found = [events_of(server.submit(asked)) for asked in fixed()]
    stats = server.stats()
  assert [events for events, _ in found] == [expected("memory", asked) for asked in fixed()]
  assert stats["cached_tokens"] > 0.7 * stats["prompt_tokens"] and not stats["disk_damaged"]


@pytest.mark.parametrize("kind", serving.KINDS)
def test_after_a_restart_the_answers_are_the_same_bit_for_bit(kind, tmp_path):
  asked = fixed()
  with serving.scheduler(kind, store_bytes=2**24, store_folder=tmp_path) as server:
    for one in asked:
      assert events_of(server.submit(one))[0] == expected(kind, one)
  with serving.scheduler(kind, store_bytes=2**24, store_folder=tmp_path) as server:
    for one in asked:
      assert events_of(server.submit(one))[0] == expected(kind, one)
    assert server.stats()["cached_tokens"] > 0.7 * server.stats()["prompt_tokens"]
