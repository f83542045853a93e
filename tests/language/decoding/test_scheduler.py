"""Many requests at once: each receives what it would alone, to the last bit; errors stay with their own."""
import threading
import time

import jax
import numpy as np
import pytest

from atlas_jax.language.decoding import programs as programs_module
from atlas_jax.language.decoding.requests import CompletionRequest, Draining, EndEvent, QueueFull
from atlas_jax.language.decoding.scheduler import Scheduler
from atlas_jax.language.decoding.scheduler_settings import STATS, Settings
from atlas_jax.language.decoding.served_model import ServedModel
from tests.helpers import quick_compilation
from tests.language.decoding import serving
from tests.language.decoding.serving import events_of, expected, request
from tests.language.decoding.test_served_model import OPTIONS, adapters
from tests.language.languages import tiny


@pytest.fixture(autouse=True, scope="module")
def _shared():
  with quick_compilation(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(programs_module, "make", serving.shared_programs)
    yield


def mixed(count, seed=0):
  """Makes requests of all kinds of options."""
  draw = np.random.default_rng(seed)
  kinds = [dict(), dict(temperature=0.0, top_logprobs=2), dict(top_k=20, presence_penalty=1.0),
           dict(top_p=0.8, repetition_penalty=1.3), dict(min_p=0.02, logit_bias={65: 3.0}),
           dict(stop_tokens=tuple(range(0, 40))), dict(stop_strings=("a", "e")),
           dict(n=3, frequency_penalty=0.5)]
  return [request(serving.random_prompt(draw), seed=int(draw.integers(2**40)),
                  max_tokens=int(draw.integers(1, 14)), **kinds[number % len(kinds)])
          for number in range(count)]


@pytest.mark.parametrize("kind, slots", [("memory", 1), ("memory", 6), ("decoder", 8)])
def test_each_receives_what_it_would_alone_whenever_it_comes(kind, slots):
  """Of random arrivals, with more requests than slots, and with groups that are not full."""
  asked = mixed(24, seed=slots)
  order = np.random.default_rng(slots).permutation(len(asked))
  with serving.scheduler(kind, slots=slots, reading_rows=3) as server:
    streams = {}
    for place in order:
      streams[place] = server.submit(asked[place])
      time.sleep(0.002 * (place % 3))
    found = {place: events_of(stream) for place, stream in streams.items()}
    stats = server.stats()
  for place, one in enumerate(asked):
    assert found[place][0] == expected(kind, one), place
  ended = sum(stats.get(f"ended_{reason}", 0) for reason in ("length", "stop_token", "stop_string"))
  assert ended == sum(one.sampling.n for one in asked) and stats["requests"] == len(asked)
  assert stats["drawn_tokens"] == sum(len(events) for tokens, _ in found.values() for events in tokens)
  assert set(stats) <= {*STATS, *(f"ended_{reason}" for reason in ("length", "stop_string"))}


def test_the_end_says_why_and_text_has_no_stop_string():
  with serving.scheduler() as server:
    free = events_of(server.submit(request([256, 97], seed=5, max_tokens=12)))[0][0]
    text = "".join(event.text for event in free)
    stop = text[2:4]
    tokens, (end,) = events_of(server.submit(request([256, 97], seed=5, max_tokens=12, stop_strings=(stop,))))
    assert (end.reason, end.stop) == ("stop_string", stop)
    assert "".join(event.text for event in tokens[0]) == text[:text.index(stop)]
    _, (end,) = events_of(server.submit(request([256, 97], seed=5, stop_tokens=(free[1].token,))))
    assert (end.reason, end.stop, end.completion_tokens) == ("stop_token", free[1].token, 2)
    assert (end.prompt_tokens, end.version) == (2, 0)


def test_a_long_prompt_stalls_no_other():
  """While it is read, piece by piece, others write on and new ones begin."""
  order = []
  with serving.scheduler() as server:
    done = threading.Semaphore(0)

    def noting(name):
      def sink(event):
        order.append(name)
        if isinstance(event, EndEvent):
          done.release()
      return sink

    draw = np.random.default_rng(0)
    server.submit(request([256], max_tokens=100), noting("early"))
    server.submit(request(draw.integers(0, 257, 600).tolist(), max_tokens=1), noting("long"))
    server.submit(request([256, 1], max_tokens=5), noting("late"))
    for _ in range(3):
      assert done.acquire(timeout=60)
  first = order.index("long")
  assert order[:first].count("early") > 50 and order[:first].count("late") == 6


def test_a_cancelled_stream_frees_its_slot_and_ends():
  with serving.scheduler(slots=1) as server:
    running = server.submit(request([256], max_tokens=10**6))
    waiting = server.submit(request([256, 1], max_tokens=10**6))
    events = iter(running)
    next(events)
    server.cancel(waiting)
    server.cancel(running)
    assert [event for event in events if isinstance(event, EndEvent)][0].reason == "abort"
    assert [event.reason for event in waiting] == ["abort"]
    assert events_of(server.submit(request([256, 2])))[1][0].reason == "length"
    assert server.stats()["busy_slots"] == 0 and server.stats()["steps"] < 10**4


def test_time_limits_end_what_waits_and_what_writes():
  now = [0.0]
  server = Scheduler(Settings(slots=1, group_rows=4, piece_tokens=8, time_limit_s=50), serving.TOKENIZER,
                     clock=lambda: now[0])
  with server:
    server.load("base", *tiny("memory"), version=0)
    writing = server.submit(request([256], max_tokens=10**6))
    waiting = server.submit(request([256], max_tokens=10**6, time_limit_s=20))
    next(iter(writing))
    now[0] = 30.0
    assert [event.reason for event in waiting] == ["timeout"]
    now[0] = 60.0
    assert [event for event in writing if isinstance(event, EndEvent)][0].reason == "timeout"


def test_a_full_queue_refuses_and_says_when_to_come_again():
  with serving.scheduler(slots=1, reading_rows=1, queue_requests=2) as server:
    streams = [server.submit(request([256], max_tokens=10**6))]
    next(iter(streams[0]))
    with pytest.raises(QueueFull, match="requests wait already; ask again in") as refused:
      for _ in range(5):
        streams.append(server.submit(request([256], max_tokens=3)))
    assert refused.value.retry_after_s >= 1 and len(streams) in (3, 4)
    server.cancel(streams[0])
    assert all(events_of(stream)[1][0].reason == "length" for stream in streams[1:])


@pytest.mark.parametrize("change, match", [
    (dict(prompt=()), "prompt has no ids"), (dict(prompt=(270,)), "must be integers in 0..269"),
    (dict(logit_bias={-1: 1.0}), "has the id -1"), (dict(stop_tokens=(270,)), "has the id 270"),
    (dict(top_k=271), "more than the model's vocabulary"),
    (dict(model="other"), "is not loaded; loaded are base"),
    (dict(max_tokens=160), "there is room for 160")])
def test_what_cannot_be_is_refused_before_it_is_queued(change, match):
  with serving.scheduler("decoder") as server:
    with pytest.raises(ValueError, match=match):
      server.submit(request(**(dict(prompt=(256,)) | change)))
    assert not any(server.stats()[name] for name in ("waiting", "reading", "busy_slots"))


@pytest.mark.parametrize("change, match", [
    (dict(seed=-1), "seed=-1"), (dict(top_logprobs=21), "top_logprobs=21 must be in 0..20"),
    (dict(presence_penalty=2.5), "presence_penalty=2.5"), (dict(frequency_penalty=float("nan")), "frequency"),
    (dict(logit_bias={1: 101}), "logit_bias="), (dict(time_limit_s=0), "time_limit_s=0"),
    (dict(first=-1), "first")])
def test_fields_out_of_their_range_are_refused(change, match):
  with pytest.raises(ValueError, match=match):
    CompletionRequest((1,), **change)


def test_an_error_of_one_request_is_no_other_ones():
  """A function that raises, a sink that raises, and weights that are no numbers."""
  def broken(tokens):
    if len(tokens) == 2:
      raise RuntimeError("no grammar")
    return np.ones(270, bool)

  def failing(event):
    raise OSError("the client is gone")

  language, params = tiny("memory")
  with serving.scheduler() as server:
    server.load("nan", language, jax.tree.map(lambda x: x * np.nan, params), version=0)
    good = [server.submit(request([256, n], seed=n, max_tokens=12)) for n in range(3)]
    bad = server.submit(request([256], allowed=broken))
    server.submit(request([256], max_tokens=10**6), failing)
    nan = server.submit(request([256], model="nan"))
    assert [events_of(stream)[0] for stream in good] == [
        expected("memory", request([256, n], seed=n, max_tokens=12)) for n in range(3)]
    tokens, (end,) = events_of(bad)
    assert (len(tokens[0]), end.reason) == (2, "error") and "no grammar" in str(end.error)
    with pytest.raises(FloatingPointError, match="scores for id 0 .* are not finite"):
      nan.completions()
    assert server.drain(timeout_s=60)


def test_only_allowed_ids_come():
  def allowed(tokens):
    return np.isin(np.arange(270), [97 + len(tokens), 300])

  with serving.scheduler() as server:
    (events,), (end,) = events_of(server.submit(request([256], allowed=allowed, max_tokens=5)))
  assert [event.token for event in events] == [97, 98, 99, 100, 101]


def test_draining_ends_what_was_begun_and_refuses_the_rest():
  with serving.scheduler() as server:
    streams = [server.submit(request([256, n], max_tokens=20)) for n in range(9)]
    assert server.drain()
    with pytest.raises(Draining, match="takes no more requests"):
      server.submit(request([256]))
    assert all(events_of(stream)[1][0].reason == "length" for stream in streams)
  with serving.scheduler() as server:
    endless = server.submit(request([256], max_tokens=10**7))
    next(iter(endless))
    assert not server.drain(timeout_s=0.2)
    assert list(endless)[-1].reason == "abort"


def test_closing_ends_every_stream():
  server = serving.scheduler(slots=1)
  streams = [server.submit(request([256], max_tokens=10**7)) for _ in range(3)]
  server.close()
  assert [list(stream)[-1].reason for stream in streams] == ["abort"] * 3
  server.close()


def test_adapters_are_chosen_by_name_and_differ():
  server = serving.scheduler("decoder", slots=3)
  with server:
    server.load_adapter("one", "base", OPTIONS, adapters(1))
    server.load_adapter("two", "base", OPTIONS, adapters(2))
    names = ["base", "one", "two"] * 3
    asked = [request([256, 7, n], seed=1, max_tokens=12, model=name) for n, name in enumerate(names)]
    found = [events_of(stream)[0] for stream in [server.submit(one) for one in asked]]
    models = {name: server._models.get(name) for name in set(names)}
    assert len(server._loop.groups) <= 3
  for one, events in zip(asked, found, strict=True):
    assert events == expected("decoder", one, model=models[one.model])
  assert len({tuple(event.token for event in events[0]) for events in found[:3]}) == 3


def test_weights_are_swapped_and_those_in_flight_end_with_their_own():
  old, new = serving.served("memory"), serving.served("memory", version=4, scale=1.3)
  with serving.scheduler("memory", slots=2) as server:
    first = request([256, 1], seed=1, max_tokens=40)
    early = server.submit(first)
    next(events := iter(early))
    server.load("base", new.language, new.params, version=4)
    late = server.submit(first)
    assert server.models() == {"base": 4}
    tokens, (end,) = events_of(late)
    assert end.version == 4 and tokens == expected("memory", first, model=new)
    rest = list(events)
    assert rest[-1].version == 0
    whole = [event.token for event in expected("memory", first, model=old)[0]]
    assert [event.token for event in rest[:-1]] == whole[1:]


def test_reading_new_weights_for_their_checksum_holds_up_nobody(monkeypatch):
  reading, may_end = threading.Event(), threading.Event()
  checksum = ServedModel.fingerprint.func

  def slow(model):
    if model.version == 4 and threading.current_thread().name == "loads":
      reading.set()
      assert may_end.wait(30)
    return checksum(model)

  monkeypatch.setattr(ServedModel, "fingerprint", property(slow))
  new = serving.served("memory", version=4, scale=1.3)
  with serving.scheduler("memory", store_bytes=2**20) as server:
    loads = threading.Thread(target=server.load, args=("base", new.language, new.params, 4), name="loads",
                             daemon=True)
    loads.start()
    assert reading.wait(30)
    asked = request([256, 1], max_tokens=2)
    assert events_of(server.submit(asked))[0] == expected("memory", asked, model=new)
    assert server.models() == {"base": 4}
    assert loads.is_alive()  # Still reading.
    may_end.set()
    loads.join()
