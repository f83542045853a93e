"""The protocol between teacher and student: what is shown, and which replies can be used."""
import json

import pytest

from atlas_jax.rollout import teaching
from atlas_jax.rollout.teaching import CHAT, PLAIN, TAGS, Teaching

NEVER = "never guidance or a verdict"


def test_braces_of_questions_and_replies_are_text():
  question = 'Write {"a": {approach}} and {guidance}'
  messages = teaching.teacher_messages(question, approach="{question} {shown}", templates=CHAT)
  assert messages[1]["content"].count(question) == 1 and "{question} {shown}" in messages[1]["content"]
  assert '{"valid": true or false' in messages[0]["content"]
  assert teaching.guided_messages(question, "{question}", PLAIN)[0]["content"] == "{question} " + question


def test_the_teacher_is_shown_what_there_is_and_nothing_else():
  alone = teaching.teacher_messages("q")[1]["content"]
  assert "before solving" not in alone and "tried" not in alone
  given = dict(approach="first", attempts=("wrong", "again"), context="c")
  both = teaching.teacher_messages("q", **given)[1]["content"]
  assert both.index("first") < both.index("Attempt 1:\nwrong") < both.index("Attempt 2:\nagain")
  assert "else is known:\nc" in both


def test_guidance_is_a_message_of_its_own_and_without_any_nothing_is_said():
  told = teaching.guided_messages("q", "mind the sign")
  assert [one["role"] for one in told] == ["user", "user"] and "mind the sign" in told[1]["content"]
  assert told[:1] == teaching.baseline_messages("q") == teaching.guided_messages("q", None)


def test_what_stands_before_a_question_stays_before_it():
  chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
  asked = teaching.baseline_messages(chat)
  assert asked[0] == chat[0] and asked[1]["content"].startswith("q\n")
  assert "be brief\n\nq" in teaching.teacher_messages(chat)[1]["content"]


REPLIES = [
    ('{"valid": false, "guidance": " look ", "confidence": 0.5}', Teaching("look", False, 0.5)),
    ('```json\n{"valid": true, "guidance": null}\n```', Teaching(None, True)),
    ('{"valid": true, "guidance": "  "}', Teaching(None, True)),
    ("<thinking>no</thinking>\n<teaching>\nadd\n</teaching> <teaching>b</teaching>", Teaching("add")),
    ('{"valid": "false", "guidance": "a"}', "'valid' must be true or false"),
    ('{"guidance": "a"}', "'valid' must be"),
    ('{"valid": true, "guidance": 3}', "'guidance' must be a text"),
    ('{"valid": true, "confidence": true}', "'confidence' must be a number"),
    ('{"valid": true, "confidence": 1.5}', "'confidence' must be"),
    ('{"valid": true, "note": ""}', "unknown"),
    ('{"valid": true', "no JSON"), ('{"valid": true, "valid": false}', "no JSON"),
    ("add the units", "neither a JSON object nor <teaching>"), ("<teaching>cut", "neither"), ("", "neither")]


@pytest.mark.parametrize("number", range(len(REPLIES)))
def test_replies_are_read_or_refused_with_the_reason(number):
  text, expected = REPLIES[number]
  found = teaching.parse_reply(text)
  if isinstance(expected, Teaching):
    assert found == expected
  else:
    assert expected in found.problem and found[:3] == (None, None, None), NEVER


def test_a_set_says_which_form_it_takes():
  reply = '{"valid": true, "guidance": "a"}'
  assert teaching.parse_reply(reply, TAGS).problem and teaching.parse_reply(reply).guidance == "a"
  assert teaching.parse_reply("<teaching>a</teaching>", CHAT._replace(reply="json")).problem
  assert teaching.parse_reply(" a b ", PLAIN) == Teaching("a b")
  assert teaching.parse_reply(" \n", PLAIN) == Teaching()


def test_texts_of_the_config_replace_those_of_a_set():
  formats = {"guided": "{guidance}: {question}", "teacher": None, "probe": "? {question}"}
  made = teaching.load("plain", formats)
  assert teaching.guided_messages("1+1=", "sum", made)[0]["content"] == "sum: 1+1="
  assert teaching.probe_messages("1+1=", made)[0]["content"] == "? 1+1=" and made.teacher == PLAIN.teacher
  assert teaching.probe_messages("q", PLAIN._replace(probe=())) == []


def test_a_file_may_have_a_set(tmp_path):
  file = tmp_path / "short.json"
  file.write_text(json.dumps({"baseline": [["user", "{question}"]], "reply": "whole"}))
  made = teaching.load(str(file))
  assert (made.name, made.reply, made.teacher) == ("short", "whole", CHAT.teacher)
  file.write_text(json.dumps({"basline": []}))
  with pytest.raises(ValueError, match=r"short.json' cannot be read: has the fields basline; known are name"):
    teaching.load(str(file))


@pytest.mark.parametrize(("formats", "message"), [
    ({"guided": "{question}"}, "guided lacks {guidance}, so that the student is not shown it"),
    ({"baseline": "{question} {approach}"}, "baseline has {approach}; it may have {question}"),
    ({"teacher": "{question} {guidance}"}, "teacher has {guidance}; it may have"),
    ({"probe": "{qestion}"}, "probe has {qestion}")])
def test_a_text_that_would_hide_something_is_refused(formats, message):
  with pytest.raises(ValueError, match=message):
    teaching.load("chat", formats)


def test_an_unknown_set_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="config.teacher.templates='caht' is no set .*chat, tags, plain"):
    teaching.load("caht")


def test_the_manifest_tells_protocols_and_templates_apart():
  first = teaching.manifest(CHAT, teacher_template="a", student_template=None)
  assert first["protocol"] == teaching.PROTOCOL and first["student_chat_template_sha256"] is None
  assert first == teaching.manifest(CHAT, teacher_template="a")
  # By its texts, whatever it is called.
  assert CHAT._replace(name="mine").sha256 == CHAT.sha256 != TAGS.sha256
  assert teaching.manifest(CHAT, teacher_template="b") != first
