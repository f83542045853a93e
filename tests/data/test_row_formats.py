"""Formats of rows: what each column becomes, columns that say the same, and those that contradict."""

import json

import pytest

from atlas_jax.data import chats, prompts, tokenizer

BYTES = tokenizer.ByteTokenizer()
USER = {"role": "user", "content": "cat?"}
SAID = {"role": "assistant", "content": "chat"}
SYSTEM = {"role": "system", "content": "French."}
SHARE_GPT = [{"from": "human", "value": "cat?"}, {"from": "gpt", "value": "chat"}]
ALPACA = {"instruction": "Translate.", "input": "cat", "output": "chat"}
TOOL = {"type": "function", "function": {"name": "look_up"}}


@pytest.mark.parametrize(
  "row, prompt, solution",
  [
    (ALPACA, "Translate.\n\ncat", "chat"),
    ({**ALPACA, "input": ""}, "Translate.", "chat"),
    ({"instruction": "Translate.", "context": "cat", "response": "chat"}, "Translate.\n\ncat", "chat"),
    ({**ALPACA, "system": "French."}, [SYSTEM, {"role": "user", "content": "Translate.\n\ncat"}], "chat"),
    (
      {**ALPACA, "history": [["cat?", "chat"]]},
      [USER, SAID, {"role": "user", "content": "Translate.\n\ncat"}],
      "chat",
    ),
    ({"conversations": SHARE_GPT}, [USER], "chat"),
    ({"conversations": SHARE_GPT, "system": "French."}, [SYSTEM, USER], "chat"),
    ({"conversations": [USER, SAID]}, [USER], "chat"),
    ({"messages": json.dumps([USER, SAID])}, [USER], "chat"),
    ({"prompt": json.dumps([USER]), "completion": json.dumps([SAID])}, [USER], "chat"),
    ({"prompt": "cat?", "system": "French.", "completion": "chat"}, [SYSTEM, USER], "chat"),
    ({"system_prompt": "French.", "question": "cat?", "response": "chat"}, [SYSTEM, USER], "chat"),
    ({"prompt": [USER], "completion": [USER, SAID]}, [USER], "chat"),
    ({"prompt": [SYSTEM, USER], "system": "French.", "completion": "chat"}, [SYSTEM, USER], "chat"),
    ({"problem": "cat?", "output": "chat"}, "cat?", "chat"),
    ({"prompt": "[cat]", "completion": "[1, 2]"}, "[cat]", "[1, 2]"),
    ({"prompt": "cat?", "completion": 7}, "cat?", "7"),
  ],
)
def test_the_formats_that_people_have_are_read(row, prompt, solution):
  found = prompts.parse_row("f:1", row)
  assert (found.prompt, found.solution) == (prompt, solution)
  assert set(found.columns) == set(row)


@pytest.mark.parametrize(
  "row, message",
  [
    (
      {"messages": [USER, SAID], "prompt": "dog?"},
      "'messages' and 'prompt' are both prompts and ask different",
    ),
    ({"messages": [USER, SAID], **ALPACA}, "'messages' and 'instruction' are both prompts"),
    ({**ALPACA, "prompt": "dog?"}, "'instruction' and 'prompt' are both prompts"),
    ({"prompt": "cat?", "input": "dog"}, "'prompt' and 'input' are both prompts"),
    (
      {"messages": [USER, SAID], "conversations": [{"from": "human", "value": "dog?"}]},
      "'conversations' are both",
    ),
    (
      {"messages": [USER, SAID], "completion": "chien"},
      "'completion' and the last message of 'messages' are diff",
    ),
    (
      {"messages": [SYSTEM, USER, SAID], "system": "German."},
      "'system' and the system's message of its chat",
    ),
    ({"messages": [USER], "tools": [TOOL], "functions": [{"name": "f"}]}, "has 'tools' and 'functions'"),
    ({"prompt": "cat?", "images": ["a.png"]}, "has 'images', and models here read text alone"),
    ({"messages": "what is it?"}, "'messages' is a text that is not JSON"),
    ({"messages": "[{'role': 'user'}]"}, "'messages' is a text that is not JSON.*double quotes"),
    ({"messages": '{"role": "user"}'}, "messages are dict, not a list"),
    ({"prompt": "cat?", "tools": "look_up"}, "'tools' is a text that is not JSON"),
    ({"prompt": "cat?", "tools": ["look_up"]}, "'tools' must be a list of tools"),
    ({"prompt": "cat?", "system": 5}, "'system' is int, not a text"),
    ({"prompt": "cat?", "completion": True}, "its solution 'completion' is bool, not a text"),
    ({"prompt": "cat?", "completion": {"a": 1}}, "its solution 'completion' is dict, not a text"),
    ({"prompt": [USER], "completion": [USER]}, "'completion' must be the assistant's messages"),
    ({"prompt": "cat?", "answer": ["a"]}, "its answer is list, not a text or a number, in 'answer'"),
    ({"instruction": ["a"], "output": "b"}, "'instruction' is list, not a text"),
    ({**ALPACA, "history": ["a"]}, "'history' must be a list of"),
    (
      {"prompt": "cat?", "chat_template_kwargs": {"messages": []}},
      "'chat_template_kwargs' must be an object",
    ),
    ({"chosen": "a b", "rejected": "a c"}, "has no prompt.*'chosen' and 'rejected' are ranked responses"),
    ({"text": "all of it"}, "has no prompt.*Plain texts.*config.recipe='memory_lm'"),
    ({"promp": "a?", "id": 1}, r"has no prompt.*it has 'promp', 'id' \(is 'promp' for 'prompt'\?\)"),
    ({"messages": "[]"}, "messages are an empty list, not a list of at least one"),
    ({"conversations": [{"from": "narrator", "value": "a"}]}, r"messages\[0\] is from 'narrator'"),
    ({"conversations": [{"from": "human", "text": "a"}]}, r"messages\[0\] has no field 'value'"),
    ({"messages": [{**USER, "content": [{"type": "text", "text": "a", "cache": 1}]}]}, "'cache' in a part"),
    (
      {"messages": [USER, {**SAID, "tool_calls": [{"name": 5}]}]},
      r"messages\[1\] has 'tool_calls' that are no",
    ),
  ],
)
def test_what_contradicts_or_cannot_be_is_refused_with_place_and_column(row, message):
  with pytest.raises(ValueError, match=f"^f:7: .*{message}"):
    prompts.parse_row("f:7", row)


def test_columns_that_say_the_same_are_read_once():
  row = {"messages": [USER, SAID], "prompt": "cat?", "completion": "chat", "system": ""}
  found = prompts.parse_row("f:1", row)
  assert (found.prompt, found.solution, found.read_from["prompt"]) == ([USER], "chat", "messages")
  assert dict(found.extra) == {"prompt": "cat?", "completion": "chat", "system": ""}


def test_a_column_that_is_named_wins_over_all_formats():
  row = {"messages": [USER, SAID], "prompt": "dog?", "completion": "chien", **ALPACA}
  found = prompts.parse_row("f:1", row, {"prompt": "prompt"})
  assert (found.prompt, found.solution) == ("dog?", "chien") and set(found.extra) == {"messages", *ALPACA}
  better = {"prompt": "cat?", "chosen": [USER, SAID], "rejected": [USER, {**SAID, "content": "chien"}]}
  assert prompts.parse_row("f:1", better, {"solution": "chosen"}).solution == "chat"


def test_nothing_but_texts_numbers_and_lists_counts_as_given():
  row = {
    "prompt": "cat?",
    "answer": float("nan"),
    "ground_truth": None,
    "solution": "chat",
    "response": " ",
    "completion": [],
  }
  found = prompts.parse_row("f:1", row)
  assert (found.prompt, found.answer, found.solution) == ("cat?", "chat", None)


def test_a_column_of_any_name_does_not_change_what_is_learnt():
  plain = {"prompt": "cat?", "completion": "chat"}
  for name in ("message", "text", "reply", "values", "read", "where"):
    problem = prompts.parse_row("f:1", {**plain, name: "dog"})
    assert problem.extra == {name: "dog"}
    coded = chats.encode(problem, BYTES)
    assert coded.ids_T.tolist() == [256, *b"cat?chat", 256]


def test_messages_of_a_completion_follow_the_prompt():
  call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
  row = {"prompt": "cat?", "completion": [call, {"role": "tool", "content": "chat"}, SAID]}
  found = prompts.parse_row("f:1", row)
  assert found.prompt == "cat?" and chats.reply_of(found) == row["completion"] and found.solution == "chat"


@pytest.mark.parametrize(
  "row, message",
  [
    (
      {"prompt": "a?", "chosen": "b", "rejected": "c"},
      "'chosen' and 'rejected' are ranked responses, which config.recipe='ranked' learns from",
    ),
    ({"question": "a?", "answer": "b"}, r"config.data.fields, such as config.data.fields.solution='answer'"),
    ({"prompt": "a?", "completion": "b", "label": False}, "its 'label' is false"),
  ],
)
def test_a_row_without_what_is_learnt_says_what_it_has(row, message):
  with pytest.raises(ValueError, match=f"f:3: .*{message}"):
    chats.encode(prompts.parse_row("f:3", row), BYTES)


def test_a_named_column_that_no_row_has_is_refused(tmp_path):
  (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a?", "gold": "1"}) + "\n")
  load = lambda fields: prompts.load("files", files=str(tmp_path), held_out_frac=0.0, fields=fields)
  assert load({"answer": "gold"}).problem(0).answer == "1"
  with pytest.raises(ValueError, match=r"fields=\{'answer': 'god'\} names what no row .* 'prompt', 'gold'"):
    load({"answer": "god"})


def test_tools_and_further_messages_are_part_of_what_data_are():
  call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
  rows = [
    {"prompt": "cat?", "completion": "chat"},
    {"prompt": "cat?", "completion": "chat", "tools": [TOOL]},
    {"prompt": "cat?", "completion": [call, SAID]},
  ]
  marks = [prompts.ProblemList([prompts.parse_row("f:1", row)]).fingerprint for row in rows]
  assert len(set(marks)) == 3


CALLED = {"name": "f", "arguments": {"x": 1}}
ASSISTANT = {"role": "assistant", "content": ""}


@pytest.mark.parametrize("said, message", [
  ({**ASSISTANT, "tool_calls": [CALLED], "function_call": CALLED}, "'tool_calls' and 'function_call'"),
  ({"from": "gpt", "value": "a", "content": "b"}, "'value' and 'content'"),
  ({"from": "function_call", "value": json.dumps(CALLED), "tool_calls": [CALLED]},
   "'value' and 'tool_calls'"),
  ({**ASSISTANT, "tool_calls": [{"name": "f", "parameters": {"x": 1}}]}, "has 'parameters' in a call"),
  ({**ASSISTANT, "tool_calls": [{"function": {"name": "f", "parameters": {}}}]},
   "has 'parameters' in a call"),
  ({**ASSISTANT, "tool_calls": [{**CALLED, "function": {"name": "g"}}]}, "has 'name' in a call"),
  ({**ASSISTANT, "tool_calls": [{"name": "f", "arguments": '{"x": 1, "x": 2}'}]}, "'x' twice in one object"),
])
def test_a_message_that_says_two_things_at_once_is_refused(said, message):
  with pytest.raises(ValueError, match=rf"f:1: messages\[1\] .*{message}"):
    prompts.parse_row("f:1", {"messages": [USER, said]})


def test_fields_of_calls_that_are_null_are_as_good_as_absent():
  call = {"id": None, "parameters": None, "name": None, "function": {**CALLED, "description": None}}
  found = prompts.parse_row("f:1", {"messages": [USER, {**ASSISTANT, "tool_calls": [call]}]})
  assert chats.reply_of(found)[0]["tool_calls"][0]["function"]["arguments"] == {"x": 1}


def test_a_chat_as_json_text_hides_no_value():
  with pytest.raises(ValueError, match="f:1: 'messages' has 'content' twice in one object"):
    prompts.parse_row("f:1", {"messages": '[{"role": "user", "content": "A", "content": "B"}]'})


def test_a_label_may_be_the_text_that_tables_have():
  with pytest.raises(ValueError, match="its 'label' is false"):
    chats.encode(prompts.parse_row("f:3", {"prompt": "a?", "completion": "b", "label": "False"}), BYTES)


@pytest.mark.parametrize("row", [
  {"prompt": str([USER]), "completion": "chat"},
  {"prompt": "cat?", "completion": str([SAID])},
  {"prompt": "cat?", "completion": "[{'content': 'chat',\n 'role': 'assistant'}]"},
])
def test_a_chat_as_python_shows_it_is_not_taken_for_a_text(row):
  with pytest.raises(ValueError, match="is a text that is not JSON .*double quotes, as json.dumps does"):
    prompts.parse_row("f:1", row)
  assert prompts.parse_row("f:1", {"prompt": "[{'a': 1}]", "completion": "[1"}).solution == "[1"


def test_pictures_in_a_message_are_refused_as_those_of_a_row_are():
  for field in ("images", "audio"):
    with pytest.raises(ValueError, match=rf"f:1: messages\[0\]: has '{field}', and models here"):
      prompts.parse_row("f:1", {"messages": [{**USER, field: ["a.png"]}, SAID]})
  assert prompts.parse_row("f:1", {"messages": [{**USER, "images": []}, SAID]}).solution == "chat"
