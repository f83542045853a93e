"""Processes find, compare, await and miss each other; here each is a thread, joined over loopback."""

import concurrent.futures
import socket
import threading
import time

import pytest

from atlas_jax.parallel import agree, wire
from atlas_jax.parallel.peers import Limits, PeerError, Peers

SOON = Limits(join_s=5.0, silent_s=5.0, wait_s=5.0)


def free_port():
  """Returns a port that nobody listens on."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def together(*calls):
  """Runs the calls at the same time and returns what each returned or raised."""
  def outcome(call):
    try:
      return call()
    except PeerError as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    return list(pool.map(outcome, calls))


def run_of(count, limits=SOON, facts=None, numbers=None):
  """Lets so many processes gather; gives them, and what `gather` raised in each."""
  address = f"127.0.0.1:{free_port()}"
  peers = [Peers(number, count, limits) for number in numbers or range(count)]
  for one in peers:
    assert one.may_speak()  # None of them may end the process of the test.
  facts = facts or [{}] * count
  outcomes = together(*[lambda one=one, mine=mine: one.gather(address, mine)
                        for one, mine in zip(peers, facts, strict=True)])
  return peers, outcomes


def test_processes_gather_meet_and_part():
  peers, outcomes = run_of(3, facts=[{"seed": "1"}] * 3)
  assert outcomes == [None] * 3 and len({one.port for one in peers}) == 1
  for name in ("jit_step", "jit_eval"):
    assert together(*[lambda one=one, name=name: one.meet(name, {"x": "1"}) for one in peers]) == [None] * 3
  assert together(*[one.finish for one in peers]) == [None] * 3
  assert [one.fate() for one in peers] == [None] * 3


def test_facts_that_differ_are_named_with_their_processes_to_all():
  facts = [{"config.seed": str(seed), "code": "a"} for seed in (0, 7, 7)]
  _, outcomes = run_of(3, facts=facts)
  assert {str(one) for one in outcomes} == {
      "the processes of this run differ: config.seed is 0 in process 0 and 7 in processes 1, 2; start all "
      "with the same command and code"}


def test_a_number_that_two_processes_have_is_refused():
  _, outcomes = run_of(3, limits=SOON._replace(join_s=2.0), numbers=(0, 1, 1))
  assert any("--process_id=1 is given to two processes" in str(one) for one in outcomes)
  assert None not in outcomes


def test_processes_that_count_differently_are_refused():
  address = f"127.0.0.1:{free_port()}"
  outcomes = together(lambda: Peers(0, 2, SOON).gather(address, {}),
                      lambda: Peers(1, 3, SOON).gather(address, {}))
  assert all("--num_processes=2 in process 0 and 3 in process 1" in str(one) for one in outcomes)


def test_a_port_that_is_taken_and_an_address_that_is_none_are_refused():
  with wire.listen(0) as taken, pytest.raises(PeerError, match="cannot listen on port .*choose another port"):
    Peers(0, 2, SOON).gather(f"127.0.0.1:{taken.getsockname()[1]}", {})
  with pytest.raises(ValueError, match="--coordinator=here must be HOST:PORT"):
    Peers(1, 2, SOON).gather("here", {})


def test_something_else_behind_the_address_is_refused():
  with wire.listen(0) as server:
    def answer():
      connection, _ = server.accept()
      connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(PeerError, match="did not let process 1 join .*something else listens there"):
      Peers(1, 2, SOON).gather(f"127.0.0.1:{server.getsockname()[1]}", {})


def test_strangers_on_the_port_do_not_disturb():
  address = f"127.0.0.1:{(port := free_port())}"
  def stranger():
    wire.connect("127.0.0.1", port, within_s=5).sendall(b"GET / HTTP/1.1\r\n\r\n")
    return Peers(1, 2, SOON).gather(address, {})
  assert together(lambda: Peers(0, 2, SOON).gather(address, {}), stranger) == [None, None]


def test_who_is_late_is_waited_for_and_who_does_not_come_is_named():
  (first, second), _ = run_of(2, limits=SOON._replace(wait_s=1.0))
  def late():
    time.sleep(0.6)
    second.meet("jit_step")
  assert together(lambda: first.meet("jit_step"), late) == [None, None]
  with pytest.raises(PeerError, match="process 1 of this run lives, and did not come to 'jit_eval' within"):
    first.meet("jit_eval")
  with pytest.raises(PeerError, match="process 1 of this run lives"):
    second.meet("jit_eval")


def test_processes_at_different_places_are_refused():
  (first, second), _ = run_of(2)
  outcomes = together(lambda: first.meet("jit_step"), lambda: second.meet("jit_eval"))
  assert all("the place they are at is jit_step in process 0 and jit_eval in process 1" in str(one)
             for one in outcomes)


def test_last_words_reach_all_and_end_their_waiting():
  (first, second, third), _ = run_of(3)
  outcomes = together(lambda: first.meet("a"), lambda: second.meet("a"),
                      lambda: third.leave("the disk is full"))
  assert all(f"process 2 of 3 ({socket.gethostname()}) ended: the disk is full" in str(one)
             for one in outcomes[:2])


def test_a_connection_that_closes_without_a_word_is_a_death():
  (first, second, third), _ = run_of(3)
  second._links[0]._connection.shutdown(socket.SHUT_RDWR)
  for one in (first, third):
    fate = one.fate(within_s=5)
    assert "process 1 of 3" in fate and "ended without a word: it was killed" in fate


def test_silence_is_told_from_death(monkeypatch):
  monkeypatch.setattr(Peers, "_beat", lambda self: None)
  (first, second), _ = run_of(2, limits=SOON._replace(silent_s=0.5))
  assert "was silent for 0.5 s (config.hosts.silent_s)" in first.fate(within_s=5)
  assert "silent" in second.fate(within_s=5)


def test_a_relay_passes_on_both_ways_and_outlives_the_other_end():
  with wire.listen(0) as server:
    relay = wire.Relay("127.0.0.1", server.getsockname()[1], within_s=5)
    here = wire.connect("127.0.0.1", relay.port, within_s=5)
    there, _ = server.accept()
    here.sendall(b"question")
    assert there.recv(100) == b"question"
    there.sendall(b"answer")
    assert here.recv(100) == b"answer"
    there.close()
  here.settimeout(0.5)
  with pytest.raises(TimeoutError):  # It still looks open.
    here.recv(1)


def test_differences_are_counted_and_cut():
  facts = {0: {str(i): "x" * 200 for i in range(9)}, 1: {}}
  line = agree.differences(facts)
  assert f"0 is {'x' * 80}... in process 0 and absent in process 1" in line
  assert line.endswith("; 5 more differ")
  assert agree.differences({0: {"a": "1"}, 1: {"a": "1"}}) is None


def test_the_digest_of_the_code_is_of_every_file(tmp_path, monkeypatch):
  (tmp_path / "memory").mkdir()
  (tmp_path / "memory/scan.py").write_text("one")
  monkeypatch.setattr(agree, "_PACKAGE", tmp_path)
  digests = set()
  for text in ("one", "two", "two"):
    (tmp_path / "memory/scan.py").write_text(text)
    agree.code_digest.cache_clear()
    digests.add(agree.code_digest())
  agree.code_digest.cache_clear()
  assert len(digests) == 2
