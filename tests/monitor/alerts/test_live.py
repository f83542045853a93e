"""Alerts beside the loop: stalls by the clock, secrets, processes that send nothing."""

import json
import time
import types

import numpy as np
import pytest

from atlas_jax import closing
from atlas_jax.monitor.alerts.live import NO_ALERTS, Live, tell_once
from tests import runs
from tests.monitor.alerts import streams
from tests.monitor.alerts.receivers import TOKEN, MailServer, Receiver

pytestmark = pytest.mark.core


def recorded(workdir):
  """Events of alerts.jsonl by rule and state."""
  lines = (workdir / "alerts.jsonl").read_text().splitlines()
  return [(event["rule"], event["state"]) for event in map(json.loads, lines)]


def test_a_stall_is_told_while_it_lasts_and_when_it_is_over(tmp_path):
  training = [False]
  live = Live(runs.toy_config(alerts__stall_s=0.1), tmp_path, is_training=lambda: training[0])
  live.beat(3)
  live._beat_s -= 60
  live._look_for_stall()  # An evaluation may take long.
  assert not (tmp_path / "alerts.jsonl").exists()
  training[0] = True
  live._beat_s = time.monotonic() - 60
  live._look_for_stall()
  live._look_for_stall()
  live.beat(4)
  live.close()
  assert recorded(tmp_path) == [("stall", "firing"), ("stall", "recovered")]


def test_all_sinks_get_an_event_and_no_file_gets_a_secret(tmp_path):
  with Receiver() as receiver, MailServer() as mails:
    config = runs.toy_config(alerts__sinks="log,telegram,webhook,email")
    live = Live(config, tmp_path, environment={**receiver.environment, **mails.environment})
    live.tell("failed", 7, f"ValueError: the token is {TOKEN}")
    live.tell("upload", 7, "it failed", severity="warning")
    live.tell("checkpoint", 8)
    live.close()
  assert len(receiver.got) == 4 and len(mails.mails) == 2
  assert any("WARNING: upload in" in text for text in receiver.texts)
  whole = (tmp_path / "alerts.jsonl").read_text() + "".join(receiver.texts) + "".join(mails.mails)
  assert TOKEN not in whole and "the token is [secret]" in whole
  # A checkpoint is written down, and not sent: it would come every few minutes.
  assert recorded(tmp_path) == [("failed", "told"), ("upload", "told"), ("checkpoint", "told")]


def test_the_result_of_an_upload_is_told_when_the_run_is_over(tmp_path):
  with Receiver() as receiver:
    config = runs.toy_config(alerts__sinks="telegram")
    tell_once(config, tmp_path, "upload", 6, "done", environment=receiver.environment)
  assert receiver.texts[0].endswith("the result of the upload: done") and len(receiver.texts) == 1


def test_only_process_0_sends(monkeypatch):
  run = types.SimpleNamespace(config=runs.toy_config(alerts__sinks="telegram"), workdir=None, step=0)
  monkeypatch.setattr(closing.hosts, "is_main", lambda: False)
  assert closing.alerts_of(run) is NO_ALERTS  # And its environment need hold no secret.


def test_rules_that_are_off_and_alerts_that_are_off_say_nothing(tmp_path):
  live = Live(runs.toy_config(alerts__off="failed,nan"), tmp_path)
  live.tell("failed", 1)
  assert live.observe(1, {"train/skipped_updates": 3}) == []
  live.close()
  assert not (tmp_path / "alerts.jsonl").exists()
  # A config whose alerts are off asks for no secret.
  Live(runs.toy_config(alerts__sinks="telegram", alerts__on=False), tmp_path, environment={}).close()
  assert NO_ALERTS.observe(1, {}) == [] and NO_ALERTS.tell("failed", 1) is None


def test_numbers_of_the_device_are_judged_as_the_file_holds_them(tmp_path):
  live = Live(runs.toy_config(), tmp_path)
  assert live.observe(1, {"train/skipped_updates": np.int32(0), "grad/norm": np.float32("nan")}) == []
  assert [event.rule for event in live.observe(2, {"train/skipped_updates": np.int32(1)})] == ["nan"]
  live.close()


def test_rules_without_a_number_are_named_once(tmp_path, caplog):
  live = Live(runs.toy_config(), tmp_path)
  with caplog.at_level("INFO"):
    for row in streams.rows():
      live.observe(row["step"], row)
  live.close()
  assert caplog.text.count("alerts: rules without a number so far") == 1
  assert "memory_collapse (no row has eval/collapsed)" in caplog.text
