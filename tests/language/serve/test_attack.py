"""Hostile requests, wear and kills in their short form; `scripts/faults.sh` is the long one."""
import asyncio
import json

import pytest

from tests.language.serve import attack, attacks, endurance, kills, scripted
from tests.language.serve.attacks import Attack
from tests.language.serve.test_http_server import serving

COUNT = 600


def test_attacks_get_answers_below_500_and_others_are_answered_as_before(caplog):
  made = scripted.service(lambda text: "answer", template=scripted.TOOLS, body_bytes=2**20)
  with serving(made, headers_s=0.5) as port:
    valid = [{"prompt": "x", "seed": 1}, {"prompt": [65, 66], "max_tokens": 3}]
    report = asyncio.run(attack.run(port, 0, 0, COUNT, valid))
  assert not report.faults, report.faults[:5]
  assert report.valid > COUNT // attack.VALID_EVERY
  assert {400, 404, 405, 408, 413, 415, 431} <= set(report.statuses)
  assert report.longest_s < 10
  assert "Traceback" not in caplog.text
  assert not made.scheduler.streams


def test_an_attack_is_the_same_whenever_it_is_made():
  made = [attacks.attack(3, number) for number in range(2_000)]
  assert made[1_000:] == [attacks.attack(3, number) for number in range(1_000, 2_000)]
  assert {one.name for one in made} == {kind.__name__ for kind in (*attacks.QUICK, *attacks.SLOW)}


def test_answers_that_are_not_as_they_must_be_are_told():
  sent = Attack("name", (b"x",))
  for statuses, problem in (((200,), ""), ((), ""), ((400, 500), ""), ((400,), "no end within 30 s")):
    assert attack.fault(sent, attack.Seen(statuses, problem, 0.0))
  assert not attack.fault(sent, attack.Seen((400, 404), "", 0.0))
  assert attack.fault(sent._replace(expects=attacks.BELOW_500), attack.Seen((), "", 0.0))
  assert not attack.fault(sent._replace(expects=attacks.NOTHING), attack.Seen((), "", 0.0))
  assert not attack._is_error(b'{"detail": "Not Found"}')


@pytest.mark.slow
def test_a_real_server_stands_attacks(tmp_path, capsys):
  assert attack.main(["--count=300", f"--workdir={tmp_path}/attack"]) == 0
  assert json.loads(capsys.readouterr().out)["attacks"] == 300


@pytest.mark.slow
def test_a_real_server_whose_store_is_full_stays_within_its_memory(tmp_path, capsys):
  assert endurance.main(["--count=200", "--most_mib=60", f"--workdir={tmp_path}/endurance"]) == 0
  assert json.loads(capsys.readouterr().out)["last"]["evicted"] > 0


@pytest.mark.slow
def test_a_killed_server_goes_on_with_its_conversations(tmp_path, capsys):
  assert kills.main(["--count=2", "--clients=2", f"--workdir={tmp_path}/kills"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["kills"] == 2 and found["cached_tokens"] > 0


def test_what_a_store_and_a_conversation_lose_is_told():
  look = {"requests": 1, "resident_mib": 100.0, "store_bytes": 9, "disk_bytes": 9, "conversations": 1,
          "evicted": 3}
  assert not endurance.faults_of([look] * 10, 5)
  grown = [look] * 9 + [look | {"resident_mib": 106.0, "store_bytes": endurance.STORE_BYTES + 1}]
  assert [fault.split()[0] for fault in endurance.faults_of(grown, 5)] == ["memory", "store_bytes"]
  talk = kills.Talk("c")
  talk.kept, talk.answered = [1, 2], [3]
  assert not talk.lost([1, 2, 3]) and "turn" in talk.lost([1, 2]) and "kept" in talk.lost([1, 3])
