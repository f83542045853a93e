"""What is held out is opened before the first update; with nothing held out a run trains all the same."""
import json

import pytest

from atlas_jax import config as configs
from atlas_jax import recipes
from atlas_jax.data import problems
from atlas_jax.language import pretraining
from tests import program, runs, tuning
from tests.recipes import test_contract

SPLIT = [name for name in recipes.names() if name != "trm"]  # Recursive models have test sets of their own.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Texts to train on."""
  return runs.write_corpus(tmp_path_factory.mktemp("held_out") / "text")


def loaded(name, corpus, **fields):
  """The recipe of that name, made from its smallest config."""
  return recipes.load(test_contract.config_of(name, corpus, **fields), runs.one_device())


@pytest.mark.parametrize("name", SPLIT)
def test_a_recipe_with_nothing_held_out_has_no_evaluation(name, corpus):
  found = loaded(name, corpus, data__held_out_frac=0.0)
  assert found.evals == {} and found.source is not None


def rows_file(folder, rows):
  """Fields that read rows of a file and hold out half of them."""
  file = tuning.write_rows(folder / "rows.jsonl", rows)
  return {"data__name": "files", "data__files": str(file), "data__options": {}, "data__held_out_frac": 0.5}


def answerless(folder):
  """Rows of prompts alone."""
  return rows_file(folder, [{"prompt": f"{n}+1="} for n in range(6)])


def long_held_out(folder, name):
  """Rows of which the held-out ones are too long for a row, and left out."""
  rows = [{"prompt": f"{n}=", "completion": "1", "answer": "1", "responses": ["1", "2"]} for n in range(6)]
  fields = {**rows_file(folder, rows), "data__overlong": "skip"}
  place = lambda row: problems.uniform_hash(json.dumps(row["prompt"]) if name != "ranked" else row["prompt"])
  for row in rows:
    if place(row) < 0.5:
      row["completion"], row["responses"] = "1" * 900, ["1" * 900, "2" * 900]
  assert 0 < sum(place(row) < 0.5 for row in rows) < 6
  tuning.write_rows(folder / "rows.jsonl", rows)
  return fields


def test_a_column_that_no_held_out_row_has_is_asked_for_where_rows_to_train_on_have_it(tmp_path, corpus):
  rows = [{"prompt": f"{n}=", "answer": "1", "task": "math"} for n in range(6)]
  for row in rows:
    if problems.uniform_hash(json.dumps(row["prompt"])) < 0.5:
      del row["task"]
  fields = {**rows_file(tmp_path, rows), "rewards": "tests.rollout.user_rewards.by_task"}
  assert loaded("grpo", corpus, **fields).evals
  rows_file(tmp_path, [{"prompt": row["prompt"], "answer": "1"} for row in rows])
  with pytest.raises(ValueError, match="asks for the column 'task', and no row has it"):
    loaded("grpo", corpus, **fields)


FAULTS = [
    ("memory_lm", lambda folder: {"eval__batch_rows": 1}, "config.eval.batch_rows=1 leaves no other row"),
    ("sft", lambda folder: {**long_held_out(folder, "sft"), "data__max_problems": None},
     "held-out examples has a token to learn within config.data.segment_len=64"),
    ("gkd", lambda folder: long_held_out(folder, "gkd"), "held-out solutions fits into config.sampler.max"),
    ("ranked", lambda folder: long_held_out(folder, "ranked"), "there is no group of responses"),
    ("grpo", answerless, "config.eval.grader='correct' compares with answers, and none of the"),
    ("teacher", lambda folder: {**answerless(folder), "teacher__grader": "correct"},
     "config.teacher.grader='correct' compares with answers, and none of the"),
    ("teacher", lambda folder: {"data__max_prompt_tokens": 2}, "its prompt has . tokens, more than"),
    ("teacher", lambda folder: {"data__max_prompt_tokens": 2, "data__overlong": "skip"},
     "questions can be shown to the teacher: its prompts are longer than config.data.max_prompt_tokens=2"),
    ("grpo", lambda folder: {"data__max_prompt_tokens": 2}, "its prompt has . tokens, more than"),
    ("grpo", lambda folder: {"data__max_prompt_tokens": 2, "data__overlong": "skip"},
     "held-out problems can be asked: their prompts are longer than config.data.max_prompt_tokens=2"),
]


@pytest.mark.parametrize(("name", "fields", "words"), FAULTS)
def test_held_out_data_that_cannot_be_evaluated_are_refused_when_the_recipe_is_made(
    name, fields, words, corpus, tmp_path):
  with pytest.raises(ValueError, match=words):
    loaded(name, corpus, **fields(tmp_path))


# --- the program on folders of few files ---


def flags(folder, n, **fields):
  """Flags that train a tiny model on n files at the fraction of the default."""
  return program.tiny(program.write_texts(folder / "texts", n=n), data__source="text",
                      **{"data__held_out_frac": 0.05, "optim__steps": 2, **fields})


def test_folders_of_one_file_to_twenty_are_opened_with_some_held_out_or_refused(tmp_path):
  opened = []
  for n in range(1, 21):
    folder = runs.write_corpus(tmp_path / f"{n}", files=n)
    config = runs.lm_config(folder, data__held_out_frac=0.05, data__batch_rows=1)
    try:
      opened.append((n, recipes.load(config, runs.one_device()).evals.keys()))
    except ValueError as error:
      assert n == 1 and "1 document of config.data.name='files' cannot be split" in str(error)
  assert [n for n, _ in opened] == list(range(2, 21))
  assert all({"perplexity", "memory_gain", "baselines"} <= found for _, found in opened)


def test_six_files_train_and_are_evaluated(tmp_path):
  done = program.run(*flags(tmp_path, 6), f"--workdir={tmp_path}/run")
  assert done.code == 0, done.err
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["val_tokens"] > 0 and "evaluation" not in summary
  found = program.run("--mode=eval", f"--workdir={tmp_path}/run", "--config.eval.max_tokens=256")
  assert 0 < json.loads(found.out)["val/tokens"] <= 256


def test_one_file_is_refused_before_anything_is_made(tmp_path):
  line = program.refused(program.run(*flags(tmp_path, 1), f"--workdir={tmp_path}/run"))
  assert "1 document of config.data.name='files' cannot be split into training and held-out ones" in line
  assert not list((tmp_path / "run").iterdir())


def test_a_run_with_nothing_held_out_trains_and_says_that_it_is_not_evaluated(tmp_path):
  done = program.run(*flags(tmp_path, 1, data__held_out_frac=0.0), f"--workdir={tmp_path}/run")
  assert done.code == 0, done.err
  assert "trained without evaluation: config.data.held_out_frac=0 holds nothing out" in done.err
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["evaluation"] == "none" and not [name for name in summary if name.startswith("val_")]
  line = program.refused(program.run("--mode=eval", f"--workdir={tmp_path}/run"))
  assert "has no evaluation, config.data.held_out_frac=0 holds nothing out" in line


def test_held_out_documents_may_be_transformed_and_those_of_training_are_not(corpus):
  """The evaluation of a run that has learnt from documents as they are."""
  plain = test_contract.config_of("memory_lm", corpus)
  other = test_contract.config_of("memory_lm", corpus, eval__transform="repeat")
  assert configs.is_free("eval.transform")
  texts = [pretraining.held_out_of(config, None).text() for config in (plain, other)]
  assert len(texts[1]) == 2 * len(texts[0]) and texts[0][:50] == texts[1][:50]
  fingerprints = [pretraining.train_source_of(config).fingerprint for config in (plain, other)]
  assert fingerprints[0] == fingerprints[1]


def test_transforms_of_data_reach_training_and_held_out_documents_before_anything_compiles(corpus):
  config = test_contract.config_of("memory_lm", corpus, data__transform="permute_bytes")
  recipe = recipes.load(config, runs.one_device())
  assert recipe.source.manifest["transform"] == "permute_bytes"
  assert pretraining.held_out_of(config, None).manifest["transform"] == "permute_bytes"


def test_a_memory_that_is_never_written_says_which_parameters_learn_nothing(corpus, caplog):
  caplog.set_level("INFO")
  loaded("memory_lm", corpus, model__memory__writes=False)
  assert "writes=False: gates and values of the memories get no gradient" in caplog.text
