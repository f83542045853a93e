"""The program asks what --evals and config.eval.tasks name: rows, pictures, and what is refused."""

import json

import numpy as np
import pytest

from atlas_jax.data import recall as tasks
from atlas_jax.evals import recall
from tests import program
from tests.program import refused

FIELDS = dict(eval__task_samples=3, eval__mqar_pairs=2, eval__mqar_distances=8,
              train__eval_every_steps=3, eval__tasks="mqar", data__source="text", checkpoint__best_metric=
              "recall_mqar_accuracy", checkpoint__best_mode="max")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The workdir of a run that is asked at intervals."""
  folder = tmp_path_factory.mktemp("recall")
  texts = program.write_texts(folder / "texts")
  done = program.run(*program.tiny(texts, **FIELDS), f"--workdir={folder / 'run'}")
  assert done.code == 0, done.err
  return folder / "run"


def test_training_asks_at_intervals_and_at_the_end(trained):
  rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows if "eval/recall/mqar/accuracy" in row] == [3, 6]
  summary = json.loads((trained / "summary.json").read_text())
  assert {row["condition"] for row in summary["rows"]} == {"as_it_is", "emptied", "swapped", "writes_off"}
  assert summary["recall_mqar_texts"] == 3 and summary["recall_mqar_answers"] == 6
  for step in (3, 6):
    assert (trained / f"evals/step_{step:08d}/mqar.png").exists()


def test_a_run_is_asked_what_the_flag_names_and_nothing_else(trained):
  before = (trained / "config.json").read_bytes()
  done = program.run("--mode=eval", f"--workdir={trained}", "--evals=babilong,mqar",
                     "--config.eval.babilong_lengths=512", "--config.eval.babilong_tasks=2")
  assert done.code == 0, done.err
  found = json.loads(done.out)
  assert found["step"] == 6 and not any(name.startswith("val/") for name in found)
  assert {row["eval"] for row in found["rows"]} == {"babilong", "mqar"} and len(found["rows"]) == 8
  row = found["rows"][0]
  assert (row["task"], row["length"], row["condition"], row["texts"]) == (2, 512, "as_it_is", 3)
  assert np.isclose(row["chance"], 1 / 6) and row["nats"] > 0 and 0 <= row["choice_accuracy"] <= 1
  folder = trained / "evals/step_00000006"
  assert json.loads((folder / "babilong.json").read_text()) == found["rows"][:4]
  assert (folder / "babilong.png").stat().st_size > 1_000
  assert (trained / "config.json").read_bytes() == before


def test_episodes_are_asked_by_items_and_distance(trained):
  done = program.run("--mode=eval", f"--workdir={trained}", "--evals=key_value",
                     "--config.eval.episode_items=1,2", "--config.eval.episode_distances=16,40")
  assert done.code == 0, done.err
  found = json.loads(done.out)
  assert len(found["rows"]) == 2 * 2 * 4
  for row in found["rows"]:
    assert row["distance_tokens_least"] > row["distance"] and row["answers"] == 3 * row["items"]
  for axis in ("items_1", "items_2", "distance_16", "distance_40"):
    assert 0 <= found[f"eval/recall/key_value/{axis}/accuracy"] <= 1
  assert np.isclose(found["eval/recall/key_value/chance"], 26.0 ** -3)
  assert found["eval/recall/key_value/answers"] == 3 * (1 + 1 + 2 + 2)


@pytest.mark.parametrize(("flags", "words"), [
  (["--evals=mqra"], "--evals='mqra': there is no evaluation 'mqra'; did you mean 'mqar'? (known are "
   "babilong, continuation, entity, formal, key_value, last_word, lm_eval, mad, mqar, niah, passkey, "
   "published)"),
  (["--evals=,"], "--evals=',' names no evaluation; known are babilong"),
  (["--evals=published"], "config.eval.published_path=None, and the evaluation 'published' reads files"),
  (["--evals=lm_eval"], "config.eval.lm_eval_tasks=None, and the evaluation 'lm_eval' runs the tasks"),
  (["--evals=entity"], "config.eval.episode_items=1, config.eval.episode_distances=256: 10 texts have been "
   "drawn, and in none could 100 draws find a line of real text with a name or a number"),
  (["--evals=passkey", "--config.eval.episode_items=65"], "episode_items=65 must be different whole numbers "
   "from 1 to 64"),
  (["--evals=mqar", "--config.eval.episode_items=2"], "config.eval.episode_items='2' is not read"),
  (["--evals=mqar", "--config.eval.niah_lengths=256"], "config.eval.niah_lengths='256' is not read"),
  (["--evals=niah", "--config.eval.niah_lengths=8"], "config.eval.niah_lengths=8 must be different whole"),
  (["--evals=niah", "--config.eval.niah_lengths=128", "--config.eval.task_gap_tokens=128"],
   "keeps more than half of it free"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused_before_anything_compiles(flags, words, trained):
  assert words in refused(program.run("--mode=eval", f"--workdir={trained}", *flags))


def test_the_flag_is_of_evaluation_alone():
  line = refused(program.run("--config=configs/memory_40m.py:smoke,pretrain", "--workdir=x", "--evals=mqar"))
  assert "--evals is for --mode=eval, this is --mode=train; the evals of training is --config.eval.ta" in line


def test_every_task_is_an_evaluation():
  assert set(tasks.names()) | {"lm_eval"} == set(recall.names())
  assert recall.chosen("mqar,niah,mqar") == ("mqar", "niah") and recall.chosen(None) == ()


def test_a_recipe_that_makes_no_such_evaluation_is_named():
  with pytest.raises(ValueError, match="--evals=mqar: the recipe of this run makes no evaluation 'mqar'"):
    recall.only({"perplexity": None}, "mqar")
