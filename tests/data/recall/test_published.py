"""Sets of others: both forms of rows, every row once, and refusals that name the file."""

import json

import pytest

from atlas_jax.data import recall
from atlas_jax.data.recall import published
from tests.data.recall.settings import drawn, setting, words_of

BABILONG = {"input": "Mary went to the attic. " * 9, "question": "Where is Mary? ", "target": "attic"}
RULER = {"index": 1, "input": "Some text.\nA number: 77.\nWhat is the number?", "outputs": ["77"],
         "answer_prefix": " The number is", "length": 40}


def write(file, *rows):
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def given(path):
  return setting(published_path=str(path))


def test_rows_of_both_forms_are_asked_in_their_order(tmp_path):
  write(tmp_path / "qa1_1k.jsonl", BABILONG, {**BABILONG, "target": "garden"})
  write(tmp_path / "niah.jsonl", RULER)
  task = recall.load("published")
  found = given(tmp_path)
  assert task.cells(found) == [{"set": "niah"}, {"set": "qa1_1k"}]
  assert [task.text_count(cell, found) for cell in task.cells(found)] == [1, 2]
  words = [words_of(task.sample({"set": "qa1_1k"}, found, seed=0, split="eval", number=n)) for n in (0, 1)]
  assert [answer for _, _, answer in words] == [" attic", " garden"]
  context, question, _ = words[0]
  assert (context + question).endswith("attic. \nQuestion: Where is Mary?  Answer:")
  context, question, answer = words_of(task.sample({"set": "niah"}, found, seed=0, split="eval", number=0))
  assert context + question == f"{RULER['input']}{RULER['answer_prefix']}" and answer == " 77"
  assert len(context.encode()) % 16 == 15  # The mark of documents stands before it.


def test_what_cannot_be_asked_is_refused_with_its_file(tmp_path):
  with pytest.raises(ValueError, match="config.eval.published_path=None, and the evaluation 'published'"):
    list(drawn("published", setting(), count=1))
  write(tmp_path / "a.jsonl", {"text": "x"})
  with pytest.raises(ValueError, match="config.eval.published_path=.*a.jsonl:1: has text; a row has inp"):
    list(drawn("published", given(tmp_path / "a.jsonl"), count=1))
  write(tmp_path / "b.jsonl", {**RULER, "outputs": ["1", "2"]})
  with pytest.raises(ValueError, match="holds no row with one answer"):
    list(drawn("published", given(tmp_path / "b.jsonl"), count=1))
  with pytest.raises(ValueError, match="is on the hub; set config.data.download=True to fetch it"):
    list(drawn("published", given("hf:no/such"), count=1))
  assert published.chance({}, None) == 0.0
