"""Sinks against servers on this machine that answer as the real ones do."""

import sys

import pytest

from atlas_jax.monitor.alerts import sinks
from atlas_jax.monitor.alerts.message import MOST, Message, redacted
from atlas_jax.monitor.alerts.sinks import SendError
from tests import program
from tests.monitor.alerts.receivers import CHAT, TOKEN, MailServer, Receiver

pytestmark = pytest.mark.core
ODD = "loss_nats is 9 < 10 & *rising* [see](x) under_score `tick`"


def message(text=ODD, **fields):
  """A message of an alarm."""
  return Message(**{"run": "my_run", "rule": "loss_spike", "severity": "critical", "state": "firing",
                    "step": 12, "metric": "train/loss_nats", "value": 9.0, "text": text, **fields})


def telegram(receiver):
  """A sink whose messages come to a receiver."""
  return sinks.make("telegram", receiver.environment, timeout_s=0.3)[0]


def refused(sink, said=None):
  """The error with which a message is not taken."""
  with pytest.raises(SendError) as caught:
    sink.send(said or message())
  return caught.value


def test_telegram_gets_severity_and_rule_in_the_title_and_the_text_below():
  """The original passed them the other way round: the body was the word CRITICAL."""
  with Receiver() as receiver:
    telegram(receiver).send(message())
  sent = receiver.got[0]
  assert sent["path"] == f"/bot{TOKEN}/sendMessage" and sent["chat_id"] == CHAT
  title, body = sent["text"].split("\n")
  assert title == "🔴 <b>CRITICAL: loss_spike in my_run at step 12</b>"
  assert body == ODD.replace("&", "&amp;").replace("<", "&lt;") and sent["parse_mode"] == "HTML"


def test_a_text_that_telegram_cannot_parse_is_sent_plain():
  with Receiver(["parse", "parse"]) as receiver:
    telegram(receiver).send(message())
  assert receiver.tries == 2 and "parse_mode" not in receiver.got[0]
  assert receiver.texts == [f"🔴 CRITICAL: loss_spike in my_run at step 12\n{ODD}"]


def test_telegram_says_how_long_to_wait():
  answer = {"ok": False, "error_code": 429, "description": "Too Many Requests: retry after 7",
            "parameters": {"retry_after": 7}}
  with Receiver([(429, answer)]) as receiver:
    error = refused(telegram(receiver))
  assert error.again and error.after_s == 7


ANSWERS = ((500, True), (502, True), (400, False), (401, False), (404, False))


@pytest.mark.parametrize("status, again", ANSWERS)
def test_what_may_pass_is_tried_again_and_what_stays_is_not(status, again):
  with Receiver([(status, {"ok": False, "description": "Bad Request: chat not found"})]) as receiver:
    error = refused(telegram(receiver))
  assert error.again == again and f"HTTP {status}: Bad Request: chat not found" in str(error)


def test_a_server_that_is_silent_or_gone_is_tried_again():
  with Receiver(["sleep"]) as receiver:
    assert refused(telegram(receiver)).again
  assert refused(telegram(receiver)).again  # Its port is closed.


def test_no_error_holds_a_secret():
  with Receiver([(403, {"description": f"bot{TOKEN} was blocked by {CHAT}"})]) as receiver:
    said = str(refused(telegram(receiver)))
    gone = sinks.make("webhook", receiver.environment, timeout_s=0.3)[0]
  said += str(refused(gone)) + str(refused(telegram(receiver)))
  assert TOKEN not in said and CHAT not in said and "verysecretpart" not in said


def test_a_redirect_is_not_followed():
  with Receiver() as other, Receiver() as receiver:
    receiver.plan.append((302, {}))
    assert not refused(telegram(receiver)).again and not other.got


def test_a_webhook_gets_what_slack_takes():
  with Receiver() as receiver:
    sinks.make("webhook", receiver.environment, timeout_s=1.0)[0].send(message())
  sent = receiver.got[0]
  assert "9 &lt; 10 &amp; *rising*" in sent["text"]
  assert {field["title"]: field["value"] for field in sent["attachments"][0]["fields"]} == {
    "run": "my_run", "rule": "loss_spike", "severity": "critical", "state": "firing", "step": "12",
    "metric": "train/loss_nats", "value": "9.0"}


def test_a_mail_is_sent():
  with MailServer() as server:
    sinks.make("email", server.environment, timeout_s=1.0)[0].send(message("first\nsecond"))
  head, _, body = server.mails[0].partition("\n\n")
  assert "Subject: [atlas_jax] CRITICAL: loss_spike in my_run at step 12" in head
  assert "To: a@example.org, b@example.org" in head and "From: run@example.org" in head
  assert "second" in server.mails[0] and body


def test_mails_that_are_refused_for_now_are_tried_again():
  with MailServer([451, 554]) as server:
    sink = sinks.make("email", server.environment, timeout_s=1.0)[0]
    assert refused(sink).again and not refused(sink).again
  assert refused(sink).again  # The server is gone.


def test_a_password_is_not_sent_without_encryption(monkeypatch):
  with MailServer() as server:
    secrets = {"SMTP_USER": "me", "SMTP_PASSWORD": "hush"}
    sink = sinks.make("email", {**server.environment, **secrets}, timeout_s=1.0)[0]
    monkeypatch.setattr(sinks, "LOCAL", ())
    error = refused(sink)
  assert not error.again and "no encryption" in str(error) and not server.mails


@pytest.mark.parametrize("names, environment, said", (
  ("telegram", {"TELEGRAM_CHAT_ID": "1"}, "lacks TELEGRAM_BOT_TOKEN; export it"),
  ("email", {}, "lacks SMTP_HOST and SMTP_FROM and ALERT_EMAIL_TO; export them"),
  ("webhook", {"ATLAS_WEBHOOK_URL": "  "}, "lacks ATLAS_WEBHOOK_URL"),
  ("webhook", {"ATLAS_WEBHOOK_URL": "example.org"}, "ATLAS_WEBHOOK_URL must hold an address that begins"),
  # The original sent to the token "${TELEGRAM_BOT_TOKEN}".
  ("telegram", {"TELEGRAM_BOT_TOKEN": "${TELEGRAM_BOT_TOKEN}", "TELEGRAM_CHAT_ID": "1"}, "placeholder"),
  ("email", {"SMTP_HOST": "h", "SMTP_FROM": "f", "ALERT_EMAIL_TO": "t", "SMTP_PORT": "no"}, "SMTP_PORT='no'"),
  ("email", {"SMTP_HOST": "h", "SMTP_FROM": "f", "ALERT_EMAIL_TO": "t", "SMTP_USER": "u"}, "belong together"),
))
def test_variables_that_are_missing_or_wrong_are_named(names, environment, said):
  with pytest.raises(ValueError, match=said.replace("$", r"\$")) as caught:
    sinks.make(names, environment, timeout_s=1.0)
  assert "\n" not in str(caught.value)


def test_a_long_text_is_cut():
  assert len(message("x" * 9000).body) == MOST


def test_what_looks_like_a_token_is_taken_out_whoever_holds_it():
  said = redacted(f"POST https://api.telegram.org/bot{TOKEN}/x and hooks.slack.com/services/T0/B0/key end")
  assert TOKEN not in said and "T0/B0/key" not in said and said.endswith(" end")
  assert redacted("the word hush", ["hush"]) == "the word [secret]"


def run_script(*flags, **environment):
  """Runs scripts/test_alert.py."""
  return program.spawn(sys.executable, "scripts/test_alert.py", *flags, **environment)


def test_the_script_sends_and_shows_a_test_message():
  with Receiver([(200, {}), (401, {"description": "Unauthorized"})]) as receiver:
    shown = run_script("--sinks=telegram,webhook", "--dry_run", **receiver.environment)
    assert not receiver.got and shown.code == 0 and TOKEN not in shown.out
    assert "names_with_underscores" in shown.out and '"text": ' in shown.out
    sent = run_script("--sinks=telegram", **receiver.environment)
    assert sent.code == 0 and "names_with_underscores, &lt;b&gt;" in receiver.texts[0]
    failed = run_script("--sinks=telegram", **receiver.environment)
  assert failed.code == 1 and "HTTP 401: Unauthorized" in failed.out
  wrong = run_script("--sinks=email")
  assert wrong.code == 2 and "lacks SMTP_HOST" in wrong.err and "Traceback" not in wrong.err
