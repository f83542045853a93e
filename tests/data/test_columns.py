"""Columns of rows: used, refused, or named once; 200 rows of columns at random for each recipe."""

import json
import logging
import math
import random

import pytest

from atlas_jax.data import chats, columns, prompts, ranked, responses, row_formats, sft, tokenizer
from atlas_jax.data.columns import Needs
from tests.data import templates

BYTES = tokenizer.ByteTokenizer()
USER = {"role": "user", "content": "cat?"}
SAID = {"role": "assistant", "content": "chat"}
OTHER = {"role": "assistant", "content": "chien"}
TOOLS = [{"type": "function", "function": {"name": "look_up"}}]
CALL = {
  "role": "assistant",
  "content": "",
  "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
}


def names(row, fields=None, **needs):
  return columns.unused(prompts.parse_row("f:1", row, fields), Needs(**needs))


@pytest.mark.parametrize(
  "row, unused",
  [
    ({"prompt": "a?", "completion": "b", "id": 7, "empty": None, "blank": " "}, ["id"]),
    ({"instruction": "a", "input": "b", "output": "c", "text": "a b c"}, ["text"]),
    (
      {"prompt": "a?", "completion": "b", "response": "c", "answer": "d", "solution": "e"},
      ["response", "solution"],
    ),
    ({"prompt": "a?", "completion": "b", "tools": TOOLS}, ["tools"]),
    ({"prompt": "a?", "completion": "b", "parallel_tool_calls": True}, ["parallel_tool_calls"]),
    ({"prompt": "a?", "completion": "b", "chat_template_kwargs": {"mood": 1}}, ["chat_template_kwargs.mood"]),
    ({"messages": [USER, SAID], "prompt": "cat?", "prompt_id": 1}, ["prompt", "prompt_id"]),
    ({"messages": [USER, SAID], "chosen": [USER, SAID], "rejected": [USER, OTHER]}, ["chosen", "rejected"]),
  ],
)
def test_what_nothing_reads_is_named(row, unused):
  assert names(row) == unused


def test_what_a_recipe_does_not_read_is_named_for_it():
  row = {"messages": [USER, {**SAID, "weight": 1}], "answer": "chat"}
  assert names(row, solution=False) == ["messages[-1]"]
  assert names({"messages": [USER, {**SAID, "weight": 0}, USER]}, solution=False) == ["messages[].weight"]
  assert names(row, answer=False) == ["answer"]
  assert names({"prompt": "a?", "completion": "b"}, solution=False) == ["completion"]


def test_what_a_reward_asks_for_is_used_under_any_name():
  row = {"prompt": "a?", "ground_truth": "1", "level": 2, "completion": "b", "id": 3}
  asked = frozenset({"level", "completion"})
  assert names(row, solution=False, columns=asked) == ["id"]
  assert names(row, solution=False, columns=None) == ["completion"]
  problem = prompts.parse_row("f:1", row)
  assert problem.columns == row and problem.read_from == {
    "prompt": "prompt",
    "answer": "ground_truth",
    "solution": "completion",
  }


def test_what_a_template_shows_is_used_and_the_rest_of_a_message_named():
  pytest.importorskip("jinja2")
  row = {
    "messages": [{**USER, "name": "Ann"}, {**SAID, "reasoning_content": "hm"}],
    "tools": TOOLS,
    "parallel_tool_calls": True,
    "chat_template_kwargs": {"enable_thinking": True},
  }
  shown = names(row, template=templates.template())
  assert shown == ["messages[].name", "parallel_tool_calls", "chat_template_kwargs.enable_thinking"]
  polite = ["messages[].name", "messages[].reasoning_content", "tools", *shown[1:]]
  assert names(row, template=templates.template(templates.POLITE)) == polite
  quiet = {**row, "chat_template_kwargs": {"enable_thinking": False}, "messages": [USER]}
  assert names(quiet, solution=False, template=templates.template()) == ["parallel_tool_calls"]
  with pytest.raises(ValueError, match="does not show"):
    names({"messages": [USER, CALL]}, template=templates.template("{{ messages[0].content }}tool_calls"))


def test_a_chat_that_the_template_refuses_is_named_when_it_is_looked_at():
  pytest.importorskip("jinja2")
  row = {"messages": [SAID, {**USER, "name": "Ann"}, SAID]}
  with pytest.raises(ValueError, match="f:1: the chat template refuses the messages: roles must alternate"):
    names(row, template=templates.template(templates.ALTERNATES + "{{ messages[0].name }}"))


@pytest.fixture
def file(tmp_path):
  rows = [{"prompt": f"{n}?", "anser": "1", "id": n, **({"note": "x"} if n < 3 else {})} for n in range(9)]
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_one_warning_of_a_data_set_names_all_columns_and_counts_rows(file, caplog):
  with caplog.at_level(logging.WARNING):
    for split in ("train", "held_out"):
      prompts.load("files", files=file, split=split, held_out_frac=0.3)
  (record,) = caplog.records
  assert (
    "'anser' (9 of 9 rows; is 'answer' meant?), 'id' (9 of 9 rows), 'note' (3 of 9 rows)" in record.message
  )


def test_nothing_is_said_where_all_is_read(tmp_path, caplog):
  (tmp_path / "a.jsonl").write_text('{"prompt": "a?", "answer": "1", "level": 2, "note": null}\n')
  with caplog.at_level(logging.WARNING):
    prompts.load("files", files=str(tmp_path), held_out_frac=0.0, needs=Needs(columns=frozenset({"level"})))
  assert not caplog.records


def test_ranked_files_name_what_nothing_reads(tmp_path, caplog):
  listed = [{"text": "a", "rank": 1, "by": "Ann"}, {"text": "b", "rank": 2}]
  (tmp_path / "a.jsonl").write_text(
    json.dumps({"prompt": "a?", "responses": listed, "id": 1, "tools": TOOLS})
  )
  with caplog.at_level(logging.WARNING):
    ranked.load(files=str(tmp_path), eval_files=str(tmp_path), name="files", held_out_frac=0.0, seed=0)
  said = [record.message for record in caplog.records if "nothing asks for" in record.message]
  assert len(said) == 2 and all(
    "'responses[].by' (1 of 1 rows), 'id' (1 of 1 rows), 'tools' (1 of 1 rows)" in one for one in said
  )


# Rows at random.

ASKED = frozenset({"level"})
SFT_ROWS = [
  {"prompt": "cat?", "completion": "chat"},
  {"prompt": [USER], "completion": [SAID]},
  {"messages": [USER, SAID, {**USER, "content": "dog?"}, {**OTHER, "weight": 1}], "tools": TOOLS},
  {"messages": [USER, CALL, {"role": "tool", "content": "chat"}, SAID], "tools": json.dumps(TOOLS)},
  {
    "conversations": [{"from": "human", "value": "cat?"}, {"from": "gpt", "value": "chat"}],
    "system": "Be kind.",
  },
  {"instruction": "Translate.", "input": "cat", "output": "chat"},
  {"question": "cat?", "response": "chat", "system_prompt": "Be kind."},
  {"messages": json.dumps([USER, SAID])},
]
GRPO_ROWS = [
  {"prompt": "1+1?", "answer": "2", "level": 1},
  {"prompt": [USER], "ground_truth": "chat"},
  {"question": "1+1?", "answer": 2, "system": "Think."},
  {"messages": [USER], "solution": "chat", "tools": TOOLS},
  {"instruction": "Add.", "input": "1 1", "answer": "2"},
]
RANKED_ROWS = [
  {"prompt": "cat?", "responses": ["chat", "chien"]},
  {
    "prompt": [USER],
    "responses": [{"text": "chat", "rank": 1}, {"text": "chien", "rank": 2}],
    "meta": {"a": 1},
  },
  {"prompt": "cat?", "chosen": "chat", "rejected": "chien", "score_chosen": 2.0, "score_rejected": 1.0},
  {"chosen": [USER, SAID], "rejected": [USER, OTHER], "tools": TOOLS},
  {"chosen": "The cat is small.", "rejected": "The cat is big."},
  {"question": "cat?", "system": "Be kind.", "chosen": [SAID], "rejected": [OTHER]},
  {
    "instruction": "Translate.",
    "input": "cat",
    "responses": [{"text": "a", "score": 1}, {"text": "b", "score": 0}],
  },
]
VALUES = [
  None,
  "",
  " ",
  "dog",
  "cat",
  5,
  -1.5,
  True,
  False,
  math.nan,
  [],
  ["a"],
  {},
  {"a": 1},
  [USER],
  [USER, SAID],
  json.dumps([USER, SAID]),
  "[{'role': 'user'}]",
  TOOLS,
  {"enable_thinking": False},
  [None],
  10**30,
]
NAMES = [
  *row_formats.KNOWN,
  *row_formats.MEDIA,
  "label",
  "text",
  "id",
  "source",
  "message",
  "weight",
  "level",
  "meta",
  "where",
  "extra",
  "values",
  "Prompt",
  " prompt",
  "promt",
  "anwser",
  "messages ",
  "role",
  "",
]


def shaken(draw, row):
  """Adds, removes, renames and mistypes columns of a row, up to three times."""
  row = dict(row)
  for _ in range(draw.randrange(4)):
    kind, name = draw.choice(("add", "add", "remove", "rename", "mistype")), draw.choice([*row, "prompt"])
    if kind == "add":
      row[draw.choice(NAMES)] = draw.choice(VALUES)
    elif kind == "remove":
      row.pop(name, None)
    elif name in row:
      value = row.pop(name)
      row[
        draw.choice((name[:-1], name.upper(), name + "s", draw.choice(NAMES))) if kind == "rename" else name
      ] = value if kind == "rename" else draw.choice(VALUES)
  return row


def read_sft(row, template):
  problem = prompts.parse_row("row:7", row)
  found = columns.unused(problem, Needs(answer=False, template=template))
  coded = sft.encode([problem], BYTES, segment_len=10_000, template=template)
  return found, [(one.where, one.ids_T.tolist(), one.learn_T.tolist()) for one in coded]


def read_grpo(row, template):
  problem = prompts.parse_row("row:7", row)
  found = columns.unused(problem, Needs(solution=False, columns=ASKED, template=template))
  asked = {name: value for name, value in problem.columns.items() if name in ASKED}
  return found, (chats.prompt_ids(problem, BYTES, template).tolist(), problem.answer, repr(asked))


def read_gkd(row, template):
  problem = prompts.parse_row("row:7", row)
  found = columns.unused(problem, Needs(template=template))
  ids_T, learn_T = chats.encode(problem, BYTES, template, learn="last")
  prompt = chats.prompt_ids(problem, BYTES, template)
  return found, (prompt.tolist(), ids_T.tolist(), learn_T.tolist(), problem.answer)


def read_ranked(row, template):
  group = responses.parse_row("row:7", row)
  (coded,) = ranked.encode([group], BYTES, segment_len=10_000, template=template)
  return ranked.unused(group, template), (
    [(ids_T.tolist(), learn_T.tolist()) for ids_T, learn_T in coded.rows],
    coded.score_G.tolist(),
  )


RECIPES = {
  "sft": (SFT_ROWS, read_sft),
  "grpo": (GRPO_ROWS, read_grpo),
  "gkd": ([*SFT_ROWS, *({**row, "answer": "2"} for row in SFT_ROWS)], read_gkd),
  "ranked": (RANKED_ROWS, read_ranked),
}


def outcome(read, row, template):
  """(names of columns that nothing reads, what is learnt), or the error."""
  try:
    return read(row, template), None
  except ValueError as error:
    return None, str(error)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_column_of_200_random_rows_is_used_refused_or_named(recipe):
  pytest.importorskip("jinja2")
  bases, read = RECIPES[recipe]
  draw, shown = random.Random(recipe), templates.template()
  refused = named = 0
  for _ in range(200):
    row, template = shaken(draw, draw.choice(bases)), draw.choice((shown, shown, None))
    found, error = outcome(read, row, template)
    if found is None:
      refused += 1
      assert error.startswith("row:7"), error
      assert any(repr(name) in error or f": {name}" in error for name in (*row, *row_formats.KNOWN)) or (
        "config.data.chat_template" in error
      ), (row, error)
      continue
    unused, learnt = found
    named += len(unused) > 0
    given = {name for name, value in row.items() if not row_formats.is_empty(value)}
    whole = {name for name in unused if name in given}
    partly = {name.partition("[")[0].partition(".")[0] for name in unused} - whole
    reduced = {name: value for name, value in row.items() if name not in whole}
    again, why = outcome(read, reduced, template)
    assert again is not None, (row, why)
    assert again[1] == learnt, (row, unused)
    for name in given - whole - partly:  # What is used changes what is learnt, if nothing says the same.
      without, _ = outcome(read, {one: value for one, value in reduced.items() if one != name}, template)
      assert without is None or without[1] != learnt, (row, name, unused)
  assert 30 < refused < 140 and named > 15, (refused, named)
