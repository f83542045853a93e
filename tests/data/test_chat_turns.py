"""Turns of chats: templates that think, turns of no weight, chats that the assistant begins, calls."""

import json

import numpy as np
import pytest

from atlas_jax.data import chats, prompts, sft, tokenizer
from tests.data import templates
from tests.data.templates import ALTERNATES, POLITE, learnt, template

BYTES = tokenizer.ByteTokenizer()
USER = {"role": "user", "content": "1+2?"}
CHAT = [
  USER,
  {"role": "assistant", "content": "3"},
  {"role": "user", "content": "sure?"},
  {"role": "assistant", "content": "yes"},
]
THOUGHT = [USER, {**CHAT[1], "reasoning_content": "hm"}, CHAT[2], {**CHAT[3], "reasoning_content": "ha"}]
GREETING = {"role": "assistant", "content": "Hi!"}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLED = [
  USER,
  {"role": "assistant", "content": None, "tool_calls": [CALL]},
  {"role": "tool", "tool_call_id": "c1", "content": "3"},
  CHAT[1],
]
QUIET = {"enable_thinking": False}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def examples(messages, source=templates.THINKS, *, turns="all", values=(), **columns):
  problem = prompts.parse_row("f:1", {"messages": messages, **columns})
  return sft.encode(
    [problem], BYTES, segment_len=1000, turns=turns, template=template(source, **dict(values))
  )


def texts(found):
  return [(one.where, learnt(one)) for one in found]


def test_a_chat_of_a_template_that_forgets_thoughts_is_learnt_turn_by_turn_at_the_default():
  assert texts(examples(THOUGHT)) == [
    ("f:1#1", ["<think>\nhm\n</think>\n\n3."]),
    ("f:1", ["<think>\nha\n</think>\n\nyes."]),
  ]
  quiet = examples(CHAT, values=QUIET)
  assert texts(quiet) == [("f:1#1", ["3."]), ("f:1", ["yes."])]


@pytest.mark.parametrize(
  "messages, values",
  [(CHAT, {}), (THOUGHT, {}), ([GREETING, *CHAT], {}), (CALLED, {}), (CHAT, QUIET), (CALLED, QUIET)],
)
def test_every_turn_is_learnt_behind_the_very_ids_that_sampling_sees(messages, values):
  template_, asked = template(**values), []
  spoken = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
  for one in examples(messages, values=values):
    ends = np.flatnonzero(np.diff(np.concatenate([[0], one.learn_T.astype(int)])) > 0)
    asked += [one.ids_T[:end].tolist() for end in ends]
  checked = prompts.parse_row("f:1", {"messages": messages})
  whole = [*checked.prompt, *chats.reply_of(checked)]
  expected = [template_.prompt(whole[:number], BYTES).tolist() for number in spoken]
  assert sorted(asked) == sorted(expected)


def test_turns_that_a_template_shows_alike_share_a_row():
  found = examples([USER, {**CALLED[1], "reasoning_content": "hm"}, CALLED[2], CHAT[1]])
  assert texts(found) == [("f:1", ['<think>\nhm\n</think>\n\n[add {"a": 1}].', "<think>\n\n</think>\n\n3."])]


def test_a_turn_that_is_shown_otherwise_than_asked_for_is_refused_with_the_setting():
  with pytest.raises(
    ValueError, match=r"f:1: .*does not begin messages\[1\] as it asks for it.*template_values"
  ):
    examples(THOUGHT, values=QUIET)


@pytest.mark.parametrize("turns", ["all", "split"])
def test_turns_of_weight_0_are_context_and_not_learnt(turns):
  weighed = [USER, {**CHAT[1], "weight": 0}, CHAT[2], {**CHAT[3], "weight": 1}]
  assert texts(examples(weighed, POLITE, turns=turns)) == [("f:1", ["yes."])]
  first = [USER, CHAT[1], CHAT[2], {**CHAT[3], "weight": 0}]
  assert [runs for _, runs in texts(examples(first, POLITE, turns=turns))] == [["3."]]
  none = [USER, {**CHAT[1], "weight": 0}]
  with pytest.raises(ValueError, match="f:1: all turns of the assistant that could be learnt have weight 0"):
    examples(none, POLITE, turns=turns)


def test_marks_of_generation_and_weights_go_together():
  weighed = [USER, {**CHAT[1], "weight": 0}, *CHAT[2:]]
  assert texts(examples(CHAT, templates.MARKED)) == [("f:1", ["3.", "yes."])]
  assert texts(examples(weighed, templates.MARKED)) == [("f:1", ["yes."])]


@pytest.mark.parametrize(
  "weight, role, message",
  [
    (0.5, "assistant", r"messages\[1\].weight is 0.5; it must be 1"),
    ("1", "assistant", r"messages\[1\].weight is '1'; it must be 1"),
    (1, "user", r"messages\[1\].weight is 1 in a message of the user"),
  ],
)
def test_a_weight_that_cannot_be_is_refused(weight, role, message):
  with pytest.raises(ValueError, match=f"f:1: {message}"):
    examples([USER, {"role": role, "content": "a", "weight": weight}, *CHAT])


def test_a_chat_that_the_assistant_begins_is_read_where_the_template_can():
  for turns in ("all", "split"):
    runs = [run for _, each in texts(examples([GREETING, *CHAT], POLITE, turns=turns)) for run in each]
    assert runs == ["Hi!.", "3.", "yes."]
  system = {"role": "system", "content": "s"}
  assert texts(examples([system, GREETING, *CHAT], POLITE)) == [("f:1", ["Hi!.", "3.", "yes."])]
  with pytest.raises(
    ValueError, match="f:1: .*roles must alternate.*begin with the assistant's: put a user's"
  ):
    examples([GREETING, *CHAT], ALTERNATES)


def test_tools_and_calls_are_shown_by_the_template():
  found = examples(CALLED, tools=TOOLS)
  shown = "".join(map(chr, found[-1].ids_T[found[-1].ids_T < 256]))
  assert json.dumps(TOOLS[0]) in shown and '[add {"a": 1}]' in shown
  as_text = examples(CALLED, tools=json.dumps(TOOLS))
  assert [one.ids_T.tolist() for one in as_text] == [one.ids_T.tolist() for one in found]


def test_arguments_of_calls_reach_templates_that_join_texts():
  joins = templates.THINKS.replace(
    "{{ call.function.arguments | tojson }}", "{{ ' ' + call.function.arguments }}"
  )
  for arguments in ('{"a": 1}', {"a": 1}):
    call = {**CALL, "function": {"name": "add", "arguments": arguments}}
    found = examples([USER, {"role": "assistant", "content": "", "tool_calls": [call]}], joins)
    assert '[add  {"a": 1}].' in learnt(found[0])[0]


def test_calls_that_a_template_does_not_show_are_refused():
  with pytest.raises(
    ValueError, match="f:1: the messages have 'tool_calls', which the chat template does not"
  ):
    examples(CALLED, POLITE)


def test_an_older_function_call_is_a_call_of_a_tool():
  call = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}
  old = [USER, call, {"role": "function", "name": "add", "content": "3"}, CHAT[1]]
  bare = [USER, {**CALLED[1], "tool_calls": [CALL["function"]]}, *CALLED[2:]]
  said = json.dumps(CALL["function"])
  shared = [("human", USER["content"]), ("function_call", said), ("observation", "3"), ("gpt", "3")]
  runs = lambda messages: [each for _, each in texts(examples(messages))]
  assert runs(old) == runs(bare) == runs(CALLED)
  assert runs([{"from": who, "value": value} for who, value in shared]) == runs(CALLED)


def test_what_ends_a_turn_is_known_of_templates_that_begin_it_with_a_thought():
  assert template(enable_thinking=False).turn_end(BYTES) == templates.END
  begins = templates.THINKS.replace("{% if enable_thinking is false %}", "{{ '<think>' }}{% if false %}")
  assert template(begins).turn_end(BYTES) == templates.END
  assert template(templates.MARKED).turn_end(BYTES) == templates.END


def test_json_of_a_template_may_say_how_it_is_written():
  shown = template("{{ tools | tojson(ensure_ascii=true, indent=1) }}").render(CHAT, tools=["é"])
  assert shown == '[\n "\\u00e9"\n]'
