"""Prompts: the shapes of rows, errors with file and line, and the same order after a restart."""
import gzip
import json
import os
import sys

import numpy as np
import pytest

from atlas_jax.data import prompts, records, source
from atlas_jax.data.prompts import ProblemList, PromptSource

ROWS = [{"prompt": f"What is {n}+{n}?", "answer": str(2 * n), "level": n % 3} for n in range(11)]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
LESSON = {"problem_text": "p?", "student_approach": "add", "teacher_diagnosis": "wrong",
          "teacher_teaching": "mul"}


def write(path, rows):
  lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path.write_text("".join(line + "\n" for line in lines))
  return path


@pytest.fixture
def file(tmp_path):
  return write(tmp_path / "sums.jsonl", ROWS)


@pytest.mark.parametrize("row, prompt, answer, solution", [
    ({"prompt": "a?", "answer": 3}, "a?", "3", None),
    ({"problem_text": "a?", "ground_truth": "1", "answer": "2"}, "a?", "1", None),
    ({"question": "a?", "solution": "4"}, "a?", "4", None),
    ({"input": "a?", "prompt": "", "completion": "b"}, "a?", None, "b"),
    ({"prompt": "a?", "response": "b", "answer": None}, "a?", None, "b"),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, CHAT[:1], None, "hello"),
    ({"messages": CHAT}, CHAT[:1], None, "hello"),
    ({"messages": CHAT[:1], "answer": "x"}, CHAT[:1], "x", None),
])
def test_a_row_may_name_its_fields_as_public_datasets_do(row, prompt, answer, solution):
  found = prompts.parse_row("f:1", row)
  assert (found.prompt, found.answer, found.solution) == (prompt, answer, solution)


def test_other_columns_are_kept_and_fields_may_be_named():
  row, names = {"q": "a?", "a": "1", "level": 2, "prompt": "not this"}, {"prompt": "q", "answer": "a"}
  found = prompts.parse_row("f:1", row, names)
  assert (found.prompt, found.answer, dict(found.extra)) == ("a?", "1", {"level": 2, "prompt": "not this"})


def test_a_lesson_is_a_chat_whose_answer_has_three_sections():
  found = prompts.parse_row("f:1", LESSON)
  assert [message["role"] for message in found.prompt] == ["system", "user"]
  assert found.prompt[1]["content"] == "p?"
  assert found.solution == "Student's approach:\nadd\n\nDiagnosis:\nwrong\n\nTeaching:\nmul"
  assert found.extra["teacher_teaching"] == "mul"


def test_parts_of_text_are_joined_and_empty_fields_of_messages_dropped():
  parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
  found = prompts.parse_row("f:1", {"messages": [{"role": "user", "content": parts, "name": None}]})
  assert found.prompt == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize("row, message", [
    ({"answer": "1"}, r"f:7: has no prompt: one of 'messages', 'prompt', .* it has 'answer'"),
    ({}, "f:7: has no prompt.*it has nothing"),
    ({"prompt": "  "}, "f:7: has no prompt"),
    ({"prompt": 5}, "f:7: prompt: messages are int"),
    ({"messages": [{"role": "user"}]}, r"f:7: messages\[0\] has no field 'content'"),
    ({"messages": [{"role": "user", "content": [{"image": 1}]}]}, r"messages\[0\] has no field 'content'"),
    ({"messages": [{"content": "a"}]}, r"f:7: messages\[0\] has role None; it must be one of system"),
    ({"messages": ["a"]}, r"f:7: messages\[0\] is str, not an object"),
    ({"messages": CHAT[1:]}, "f:7: its messages have nothing before the assistant's"),
    ({"prompt": "a?", "answer": {"x": 1}}, "f:7: its answer is dict"),
])
def test_a_row_that_is_no_problem_names_its_place_and_field(row, message):
  with pytest.raises(ValueError, match=message):
    prompts.parse_row("f:7", row)


def test_a_field_name_that_means_nothing_is_refused():
  with pytest.raises(ValueError, match=r"config.data.fields has \['promt'\]; its keys are messages, prompt"):
    prompts.parse_row("f:1", {"prompt": "a?"}, {"promt": "q"})


@pytest.mark.parametrize("bad, message", [
    ("{not json", "sums.jsonl:3: not JSON"), ("[1]", "sums.jsonl:3: is list, not an object"),
    ({"answer": "1"}, "sums.jsonl:3: has no prompt"), ('{"prompt": "\\', "sums.jsonl:3: not JSON"),
])
def test_a_bad_line_is_named(tmp_path, bad, message):
  file = write(tmp_path / "sums.jsonl", [ROWS[0], "", bad, ROWS[1]])
  with pytest.raises(ValueError, match=message):
    prompts.load("files", files=str(file), held_out_frac=0.0)


def test_json_lines_json_and_packed_lines_give_the_same_rows(file, tmp_path):
  (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
  (tmp_path / "c.json").write_text(json.dumps(ROWS))
  for name, line in (("sums.jsonl", 3), ("b.jsonl.gz", 3), ("c.json", 3)):
    rows = list(records.read(str(tmp_path / name)))
    assert [record.row for record in rows] == ROWS
    assert rows[line - 1].where == f"{tmp_path / name}:{line}"


def test_parquet_gives_the_same_rows(tmp_path):
  arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  table = arrow.Table.from_pylist([{**row, "messages": CHAT} for row in ROWS])
  parquet.write_table(table, tmp_path / "sums.parquet")
  rows = list(records.read(str(tmp_path)))
  assert [record.row for record in rows] == [{**row, "messages": CHAT} for row in ROWS]
  assert rows[4].where.endswith("sums.parquet:5")
  (tmp_path / "sums.parquet").write_bytes(b"PAR1 no more")
  with pytest.raises(ValueError, match="sums.parquet: not a whole Parquet file"):
    list(records.read(str(tmp_path)))


def test_folders_globs_and_lists_of_files_are_read_in_order(tmp_path):
  for name in ("b", "a", "c"):
    write(tmp_path / f"{name}.jsonl", [{"prompt": name}])
  read = lambda name: [record.row["prompt"] for record in records.read(name)]
  assert read(str(tmp_path)) == read(f"{tmp_path}/*.jsonl") == ["a", "b", "c"]
  assert read(f"{tmp_path}/c.jsonl, {tmp_path}/a.jsonl") == ["c", "a"]


@pytest.mark.parametrize("name, message", [
    ("nowhere.jsonl", "config.data.files='nowhere.jsonl' names no file; it must be a file, folder or glob"),
    ("hf:some/name", "config.data.download=True to fetch it"),
])
def test_a_place_without_rows_is_refused(name, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=message):
    list(records.read(name))


def test_files_of_other_kinds_and_broken_archives_are_refused(tmp_path):
  (tmp_path / "x.xlsx").write_text("a,b\n")
  with pytest.raises(ValueError, match="x.xlsx ends in none of .jsonl"):
    list(records.read(str(tmp_path / "x.xlsx")))
  (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n' + os.urandom(9000))[:4000])
  with pytest.raises(ValueError, match="y.jsonl.gz"):
    list(records.read(str(tmp_path / "y.jsonl.gz")))
  (tmp_path / "z.json").write_text("{}")
  with pytest.raises(ValueError, match="z.json: is one dict; it must be a list"):
    list(records.read(str(tmp_path / "z.json")))


def test_a_hub_dataset_without_the_extra_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(ModuleNotFoundError, match=r"atlas_jax\[data\]"):
    list(records.read("hf:some/name", download=True))


def test_a_hub_dataset_is_read_by_rows(tmp_path):
  pytest.importorskip("datasets")
  write(tmp_path / "train.jsonl", ROWS)
  rows = list(records.read(f"hf:{tmp_path}"))
  assert rows == [records.Record(f"hf:{tmp_path}:{n}", row) for n, row in enumerate(ROWS, start=1)]


def test_rows_are_held_out_by_what_they_ask(file, tmp_path):
  both = [prompts.load("files", files=str(file), split=split, held_out_frac=0.4)
          for split in ("train", "held_out")]
  asked = [{one.prompt for one in found.first(99)} for found in both]
  assert all(asked) and not asked[0] & asked[1] and asked[0] | asked[1] == {row["prompt"] for row in ROWS}
  reversed_file = write(tmp_path / "other.jsonl", ROWS[::-1])
  again = prompts.load("files", files=str(reversed_file), split="held_out", held_out_frac=0.4)
  assert {one.prompt for one in again.first(99)} == asked[1]
  assert prompts.load("files", files=str(file), split="held_out", held_out_frac=1e-9).count == 1


def tiny_source(file, **more):
  found = prompts.load("files", files=str(file), held_out_frac=0.0)
  return PromptSource(found, **{**dict(batch_rows=12, group_size=3, seed=1), **more})


def asked_by(batches):
  return [problem.prompt for batch in batches for problem in batch["problems"]]


def test_every_epoch_asks_each_prompt_once_in_an_order_of_its_own(file):
  train = tiny_source(file)
  order = asked_by(train.next() for _ in range(11))  # 44 prompts: four epochs.
  epochs = [order[at:at + 11] for at in range(0, 44, 11)]
  assert all(sorted(epoch) == sorted(row["prompt"] for row in ROWS) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] and train.steps_per_epoch == 3


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_ask_what_one_asks(file, count):
  whole = tiny_source(file)
  parts = [tiny_source(file, process_index=index, process_count=count) for index in range(count)]
  for _ in range(5):
    batch, pieces = whole.next(), [part.next() for part in parts]
    assert asked_by([batch]) == asked_by(pieces)
    np.testing.assert_array_equal(batch["index"], np.concatenate([piece["index"] for piece in pieces]))


def test_a_restored_source_goes_on_with_the_very_next_batch(file):
  unbroken, stopped = tiny_source(file), tiny_source(file)
  expected = [unbroken.next() for _ in range(8)]
  for _ in range(4):
    stopped.next()
  resumed = tiny_source(file)
  resumed.restore(json.loads(json.dumps(stopped.state())))
  assert asked_by(expected[4:]) == asked_by(resumed.next() for _ in range(4))
  assert asked_by([resumed.batch(1)]) == asked_by(expected[1:2])


def test_a_place_in_other_prompts_is_refused(file, tmp_path):
  state = tiny_source(file).state()
  with pytest.raises(ValueError, match="seed=1 then, 2 now"):
    tiny_source(file, seed=2).restore(state)
  with pytest.raises(ValueError, match="fingerprint="):
    tiny_source(write(tmp_path / "fewer.jsonl", ROWS[1:])).restore(state)


def test_rows_name_where_their_prompt_comes_from(file):
  train = tiny_source(file)
  problems = train.batch(2)["problems"]
  assert train.provenance(2) == [one.where for one in problems for _ in range(3)]
  assert train.provenance(2)[0].startswith(f"{file}:")


@pytest.mark.parametrize("sizes", [dict(batch_rows=10), dict(batch_rows=0), dict(process_count=5)])
def test_groups_that_do_not_fill_the_batch_are_refused(file, sizes):
  with pytest.raises(ValueError, match="must be a positive multiple of group_size=3"):
    tiny_source(file, **sizes)


def test_a_task_is_a_source_without_end():
  train = source.load("prompts", name="countdown", seed=3, held_out_frac=0.1, batch_rows=4,
                      group_size=2, options=dict(size=2))
  assert train.steps_per_epoch is None
  assert [problem.where for problem in train.batch(50)["problems"]] == ["countdown@100", "countdown@101"]


def test_options_of_a_task_are_refused_for_files(file):
  with pytest.raises(ValueError, match="options=.*are of a task"):
    prompts.load("files", files=str(file), options=dict(size=3))
  with pytest.raises(ValueError, match="no problem to ask"):
    ProblemList([])


@pytest.mark.parametrize("options, message", [
    (dict(digitz=3), "config.data.options has digitz, which config.data.name='arithmetic' does not know; its "
                     "options are operations, digits"),
    (dict(digits="abc"), "config.data.options=.*digits=abc must be one positive number"),
    (dict(digits=(1, 2, 3)), "must be one positive number, or the least and the most"),
    (dict(operations="%"), "config.data.options=.*operations='%' must be made of"),
])
def test_an_option_that_a_task_does_not_take_is_named_as_the_config_has_it(options, message):
  with pytest.raises(ValueError, match=message):
    prompts.load("arithmetic", options=options)


def test_files_without_a_row_are_named(tmp_path):
  (tmp_path / "empty.jsonl").write_text("\n")
  with pytest.raises(ValueError, match="empty.jsonl has no row"):
    prompts.load("files", files=str(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize("name, files, message", [
    ("sums.jsonl", None, "it must be one of arithmetic, convention, countdown, 'files' or"),
    ("files", None, "'files' needs them"), ("hf:some/name", "a.jsonl", "and they need it"),
])
def test_a_name_that_is_none_is_refused(name, files, message):
  with pytest.raises(ValueError, match=message):
    prompts.load(name, files=files)
