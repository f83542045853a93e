"""Verdicts from a run directory: rows that grow and are written anew, damage, heartbeats and disks."""

import json
import os
import time

import pytest

from atlas_jax.files import write
from atlas_jax.monitor.alerts import __main__ as program
from atlas_jax.monitor.alerts import afterwards, watch
from atlas_jax.monitor.alerts.journal import Journal
from tests.monitor.alerts import streams
from tests.monitor.alerts.receivers import Receiver

pytestmark = pytest.mark.core
ROOMY = {"free_gib": lambda place: 100.0}
COLLAPSED = streams.rows(streams.FAULTS["gate_collapse"])


def rules_of(verdict):
  """Rules that fired."""
  return [event.rule for event in verdict.alarms]


def test_rows_that_come_one_by_one_and_in_parts_give_the_same_verdict(tmp_path):
  run = streams.write(tmp_path / "run", [])
  follower = afterwards.Follower(run, **ROOMY)
  lines = []
  for row in COLLAPSED:
    parts = [{key: value for key, value in row.items() if not key.startswith("val/")}, row]
    for part in parts:  # An evaluation joins the last line, which is written again.
      (run / "metrics.jsonl").write_text("".join([*lines, json.dumps(part) + "\n", '{"step": 9']))
      follower.look()
    lines.append(json.dumps(row) + "\n")
  streams.write(run, COLLAPSED)
  follower.look()
  assert follower.events == afterwards.judge(run, **ROOMY).events
  assert rules_of(follower.verdict()) == ["gate_collapse"]


def test_a_file_that_a_resume_has_cut_is_read_anew(tmp_path):
  run = streams.write(tmp_path / "run", COLLAPSED[:23])
  follower = afterwards.Follower(run, **ROOMY)
  follower.look()
  assert rules_of(follower.verdict()) == ["gate_collapse"]
  write.whole(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in COLLAPSED[:20]))
  follower.look()
  assert rules_of(follower.verdict()) == [] and follower.step == 200


def test_a_cut_last_line_is_left_out_and_damage_is_named(tmp_path, capsys):
  run = streams.write(tmp_path / "run", COLLAPSED)
  with (run / "metrics.jsonl").open("a") as out:
    out.write('{"step": 410, "train/lo')
  assert not afterwards.judge(run, **ROOMY).problem
  (run / "metrics.jsonl").write_text('{"step": 1}\nno row\n{"step": 3}\n')
  verdict = afterwards.judge(run, **ROOMY)
  assert "metrics.jsonl:2: not JSON" in verdict.problem and verdict.step == 1
  program.main([f"--runs={run}"])
  assert "rows behind it are not judged" in capsys.readouterr().err


def beat(run, age_s):
  """Makes a heartbeat of that age."""
  (run / "owner.json").write_text("{}")
  os.utime(run / "owner.json", (time.time() - age_s, time.time() - age_s))


def test_a_run_without_a_heartbeat_is_silent(tmp_path):
  run = streams.write(tmp_path / "run", streams.rows())
  beat(run, 1.0)
  assert rules_of(afterwards.judge(run, **ROOMY)) == []
  beat(run, 500.0)
  verdict = afterwards.judge(run, **ROOMY)
  assert rules_of(verdict) == ["silent"] and "is 500 s old" in verdict.alarms[0].text


@pytest.mark.parametrize("clean, finished, silent", ((True, False, False), (False, False, True),
                                                     (False, True, False)))
def test_a_run_that_nobody_has_must_have_been_stopped_or_finished(clean, finished, silent, tmp_path):
  run = streams.write(tmp_path / "run", streams.rows())
  (run / "time.json").write_text(json.dumps({"clean": clean}))
  if finished:
    (run / "summary.json").write_text("{}")
  assert rules_of(afterwards.judge(run, **ROOMY)) == ["silent"] * silent


def test_the_disk_is_looked_at_where_rows_do_not_say(tmp_path):
  rows = [{name: value for name, value in row.items() if name != "system/disk_free_gib"}
          for row in streams.rows()]
  run = streams.write(tmp_path / "run", rows)
  assert rules_of(afterwards.judge(run, free_gib=lambda place: 0.5)) == ["disk"]
  assert rules_of(afterwards.judge(run, **ROOMY)) == []


def test_the_program_prints_a_line_per_alarm_and_says_so_by_its_status(tmp_path, capsys):
  streams.write(tmp_path / "runs/good", streams.rows())
  assert program.main([f"--runs={tmp_path}/runs"]) == 0
  assert "good: no alarm in 400 updates (not judged: " in capsys.readouterr().out
  streams.write(tmp_path / "runs/deep/bad", COLLAPSED)
  assert program.main([f"--runs={tmp_path}/runs"]) == 1
  out = capsys.readouterr().out
  assert "bad: critical: gate_collapse at step 230: all gates of the memory are shut" in out
  assert program.main([f"--runs={tmp_path}/runs", "--json"]) == 1
  found = {run["run"].rpartition("/")[2]: run for run in json.loads(capsys.readouterr().out)["runs"]}
  assert found["good"]["alarms"] == [] and found["bad"]["alarms"][0]["rule"] == "gate_collapse"
  assert found["bad"]["rules"]["gate_collapse"]["state"] == "firing"
  assert found["good"]["unknown"]["memory_collapse"] == "no row has eval/collapsed"


@pytest.mark.parametrize("flags, said", (
  (["--runs=nowhere"], "--runs=nowhere is no folder"),
  (["--runs=."], "holds no run"),
  (["--runs=.", "--json", "--watch"], "leave one out"),
  (["--runs=.", "--watch", "--every_s=0"], "--every_s=0.0 must be above 0"),
  (["--runs=.", "--sinks=log"], "is for --watch"),
))
def test_wrong_input_is_one_line(flags, said, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert program.main(flags) == 2
  err = capsys.readouterr().err
  assert said in err and len(err.splitlines()) == 1


def test_secrets_that_the_watch_needs_are_named(tmp_path, capsys, monkeypatch):
  monkeypatch.delenv("TELEGRAM_BOT_TOKEN", raising=False)
  monkeypatch.delenv("TELEGRAM_CHAT_ID", raising=False)
  streams.write(tmp_path / "run", streams.rows())
  assert program.main([f"--runs={tmp_path}", "--watch", "--sinks=telegram"]) == 2
  assert "--sinks='telegram' asks for telegram, and the environment lacks" in capsys.readouterr().err


def test_the_watch_sends_what_a_dead_trainer_cannot_tell_once(tmp_path):
  run = streams.write(tmp_path / "runs/one", COLLAPSED)
  beat(run, 1.0)
  ages = iter((500.0, 500.0, 1.0, 500.0, 500.0))

  def sleep(seconds):
    age_s = next(ages, None)
    if age_s is None:
      raise KeyboardInterrupt
    beat(run, age_s)
    if age_s == 1.0:  # It was started again, and has made a step.
      with (run / "metrics.jsonl").open("a") as out:
        out.write(json.dumps({"step": 410}) + "\n")

  with Receiver() as receiver:
    options = dict(every_s=0.0, names="telegram", environment=receiver.environment, sleep=sleep, **ROOMY)
    assert watch.watch(tmp_path / "runs", **options) == 1
    told = [text.split("\n")[0] for text in receiver.texts]
    ages = iter((500.0,))
    watch.watch(tmp_path / "runs", **options)  # Started again, it has told of it.
    assert len(receiver.texts) == 3
  assert sorted(told) == ["🔴 <b>CRITICAL: silent in one at step 400</b>",
                          "🔴 <b>CRITICAL: silent in one at step 410</b>",
                          "🟢 <b>RECOVERED: silent in one at step 410</b>"]
  assert [event["state"] for event in Journal(run).events()] == ["firing", "recovered", "firing"]


def test_a_run_that_begins_later_is_watched_too(tmp_path):
  streams.write(tmp_path / "one", streams.rows())
  watcher = watch.Watcher(tmp_path, names="log", **ROOMY)
  assert watcher.look() == []
  beat(streams.write(tmp_path / "two", streams.rows()), 900.0)
  assert [event.rule for event in watcher.look()] == ["silent"]
  watcher.close()


def test_a_journal_passes_over_lines_that_are_no_events(tmp_path):
  one = '{"rule": "nan", "state": "firing", "step": 3, "severity": "info"}'
  (tmp_path / "alerts.jsonl").write_text(one + '\n{"ru')
  journal = Journal(tmp_path)
  assert journal.keys() == {("nan", "firing", 3)}
  event = afterwards.Event(5, "idle", "warning", "firing", 1.0, "idle", "text")
  journal.write(event, text="text")
  assert journal.keys() == {("nan", "firing", 3), ("idle", "firing", 5)}


def test_a_journal_that_cannot_be_written_costs_no_run(tmp_path, caplog):
  (tmp_path / "alerts.jsonl").mkdir()
  journal = Journal(tmp_path)
  event = afterwards.Event(5, "idle", "warning", "firing", 1.0, "idle", "text")
  for _ in range(3):
    journal.write(event, text="text")
  assert journal.unwritten == 3 and caplog.text.count("cannot be written") == 1
