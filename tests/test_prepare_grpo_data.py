"""The script that prepares ranked responses: what it makes, reads, splits and refuses."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from atlas_jax.data import responses, tokenizer

ROOT = pathlib.Path(__file__).parents[1]


def prepare(*flags, cwd=ROOT):
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  command = [sys.executable, str(ROOT / "scripts" / "prepare_grpo_data.py"), *map(str, flags)]
  return subprocess.run(command, text=True, capture_output=True, env=environment, cwd=cwd)


def told(*flags):
  done = prepare(*flags)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def refused(*flags):
  done = prepare(*flags)
  assert done.returncode == 1, done.stdout
  assert done.stderr.splitlines()[-1].startswith("prepare_grpo_data: ")
  return done.stderr.splitlines()[-1]


def test_without_files_tasks_are_ranked_the_same_every_time(tmp_path):
  both = ("--prompts=40", "--tasks=arithmetic,countdown")
  said = told(f"--out={tmp_path}/a", *both)
  assert said["grpo_training"]["prompts"] == 40 and said["validation"]["prompts"] == 4
  assert said["grpo_training"]["tied_pairs"] > 0 and "1" in said["grpo_training"]["groups_by_size"]
  told(f"--out={tmp_path}/b", *both)
  for name in ("grpo_training.json", "validation.json"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
  train, held_out = (responses.read(str(tmp_path / "a" / name)) for name in
                     ("grpo_training.json", "validation.json"))  # fmt: skip
  for side in (train, held_out):
    assert {one.meta["task"] for one in side} == {"arithmetic", "countdown"}
  assert not {responses.key(one) for one in train} & {responses.key(one) for one in held_out}
  assert "score" not in json.loads((tmp_path / "a" / "validation.json").read_text())[0]["responses"][0]


def test_scores_can_be_written_besides(tmp_path):
  told(f"--out={tmp_path}", "--prompts=6", "--scores")
  rows = json.loads((tmp_path / "grpo_training.json").read_text())
  assert all("score" in one for row in rows for one in row["responses"])


def write_rows(path):
  rows = [{"prompt": f"Question {number}?", "responses": [f"good {number}", "bad"]} for number in range(9)]
  rows.append({"prompt": "Quø?", "source": "mine", "responses": [
    {"text": "só", "rank": 2}, {"text": "no", "rank": 9}, {"text": "no", "rank": 9}]})  # fmt: skip
  path.write_text("\n".join(map(json.dumps, rows)))
  return path


def test_files_of_every_form_become_one_and_no_prompt_is_on_both_sides(tmp_path):
  lines = write_rows(tmp_path / "rows.jsonl")
  listed = tmp_path / "rows.json"
  listed.write_text(json.dumps([{"prompt": "Question 3?", "responses": [{"text": "x", "score": 0.5}]}]))
  said = told(f"--out={tmp_path}/out", f"--files={lines},{listed}", "--held_out_frac=0.3")
  both = [responses.read(said[name]["file"]) for name in ("grpo_training", "validation")]
  assert len(both[0]) + len(both[1]) == 11
  keys = [{responses.key(one) for one in side} for side in both]
  assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 10
  mended = next(one for side in both for one in side if one.prompt == "Quø?")
  assert [(one.text, one.rank) for one in mended.responses] == [("só", 1), ("no", 2)]
  assert dict(mended.meta) == {"source": "mine"}
  assert said["left_out"] == 0
  assert said["flags"] == [
    f"--config.data.files={tmp_path}/out/grpo_training.json",
    f"--config.ranked.eval_files={tmp_path}/out/validation.json",
  ]


def test_tables_become_the_same(tmp_path):
  arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  rows = [{"prompt": f"{number}", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}
          for number in range(6)]  # fmt: skip
  parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
  said = told(f"--out={tmp_path}", f"--files={tmp_path}/rows.parquet", "--held_out_frac=0.2")
  assert said["grpo_training"]["prompts"] + said["validation"]["prompts"] == 6
  assert json.loads((tmp_path / "validation.json").read_text())[0].keys() == {"prompt", "responses"}


def test_bad_rows_are_named_and_may_be_few(tmp_path):
  file = write_rows(tmp_path / "rows.jsonl")
  file.write_text(file.read_text() + '\n{"prompt": "x", "responses": [{"text": "a", "rank": 0}]}')
  said = refused(f"--out={tmp_path}/out", f"--files={file}")
  assert f"{file}:11: responses[0].rank is 0; ranks are whole numbers from 1" in said
  assert not (tmp_path / "out").exists()
  done = prepare(f"--out={tmp_path}/out", f"--files={file}", "--bad_input_frac=0.1")
  assert f"left out {file}:11: responses[0].rank is 0" in done.stderr
  assert json.loads(done.stdout)["left_out"] == 1


def test_a_line_that_is_no_json_is_named(tmp_path):
  file = write_rows(tmp_path / "rows.jsonl")
  file.write_text(file.read_text() + "\n{nope")
  assert f"{file}:11: not JSON" in refused(f"--out={tmp_path}/out", f"--files={file}")


def test_mistakes_are_said_in_one_line(tmp_path):
  assert "--out is missing" in refused()
  assert "--tasks=chess must be some of arithmetic, countdown" in refused(
    f"--out={tmp_path}", "--tasks=chess"
  )
  assert "config.data.files='nowhere' names no file" in refused(f"--out={tmp_path}", "--files=nowhere")
  told(f"--out={tmp_path}", "--prompts=4")
  file = tmp_path / "grpo_training.json"
  assert "would overwrite" in refused(f"--out={tmp_path}", f"--files={file}")
  assert "delete it" in refused(f"--out={tmp_path}", "--prompts=4", "--held_out_frac=0")
  file.write_text('[{"prompt": "one", "responses": ["a"]}]')
  assert "1 prompt cannot be split" in refused(f"--out={tmp_path}/out", f"--files={file}")


def test_a_tokenizer_can_be_trained_on_the_training_texts(tmp_path):
  pytest.importorskip("tokenizers")
  said = told(f"--out={tmp_path}", "--prompts=40", "--vocab_size=280")
  assert said["vocab_size"] == tokenizer.load(str(tmp_path / "tokenizer")).vocab_size == 280
  assert f"--config.data.tokenizer={tmp_path}/tokenizer" in said["flags"]
  assert "--config.decoder.vocab_size=280" in said["flags"]
  assert "holds a tokenizer already" in refused(f"--out={tmp_path}", "--prompts=40", "--vocab_size=280")
