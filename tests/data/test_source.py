"""Sources: found by name, refused where a recipe cannot read their batches; ids of one's own are checked."""

import numpy as np
import pytest

from atlas_jax import recipes
from atlas_jax.data import modular_arithmetic, prompts, recall_tasks, sft, source, text
from atlas_jax.language import pretraining
from tests import runs

SMALL = dict(seed=1, name="arithmetic", batch_rows=2, held_out_frac=0.1)
BATCHES = {
  "modular_arithmetic": (modular_arithmetic, lambda folder: source.load(
    "modular_arithmetic", options={"modulus": 11}, seed=1, segment_len=8, batch_rows=2, held_out_frac=0.5)),
  "prompts": (prompts, lambda folder: source.load("prompts", **SMALL)),
  "recall_tasks": (recall_tasks, lambda folder: source.load(
    "recall_tasks", options={"tasks": "mqar", "mqar_pairs": 2, "mqar_distances": 8}, seed=1, segment_len=64,
    batch_rows=2, threads=0)),
  "sft": (sft, lambda folder: source.load("sft", segment_len=32, max_problems=4, **SMALL)),
  "text": (text, lambda folder: source.load("text", seed=1, name="files", path=str(folder), segment_len=32,
                                            batch_rows=2, held_out_frac=0.3, threads=0,
                                            cache_dir=f"{folder}_cache")),
}  # fmt: skip


def test_every_source_has_a_batch_here():
  assert set(source.names()) == set(BATCHES)


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_holds_the_arrays_that_its_file_names(name, tmp_path):
  module, load = BATCHES[name]
  assert set(load(runs.write_corpus(tmp_path / "text")).next()) == set(module.BATCH)


def test_those_that_hold_what_is_asked_for_are_listed():
  assert source.names(pretraining.READS) == ["modular_arithmetic", "recall_tasks", "text"]
  assert source.names(("tokens_BT", "weight_BT")) == ["modular_arithmetic", "recall_tasks", "sft", "text"]


@pytest.mark.parametrize(("name", "lacking"), [
  ("sft", "bytes_BT"), ("prompts", "bytes_BT, doc_BT, targets_BT, tokens_BT, weight_BT"),
])  # fmt: skip
def test_a_source_that_the_recipe_cannot_read_is_refused(name, lacking, tmp_path):
  config = runs.lm_config(runs.write_corpus(tmp_path / "text"), data__source=name)
  with pytest.raises(ValueError, match=f"config.data.source='{name}' gives no {lacking}, which config.recipe="
                                       "'memory_lm' reads; known sources: modular_arithmetic, recall_tasks"):
    recipes.load(config, runs.one_device())


def test_an_unknown_one_is_refused_with_those_that_the_recipe_reads():
  with pytest.raises(ValueError, match="'texts' is unknown; known sources: modular_arithmetic, recall_tasks"):
    source.check("texts", pretraining.READS, recipe="memory_lm")


def test_a_module_of_ones_own_is_not_looked_into():
  source.check("mine.source", pretraining.READS, recipe="memory_lm")


V = 10


class Given:
  """A source of one batch."""

  manifest = {"corpus": "mine"}

  def __init__(self, **arrays):
    self._batch = {name: np.asarray(array, np.int32) for name, array in arrays.items()}

  def next(self, params):
    return self._batch


def drawn(**arrays):
  return source.checked(Given(**arrays), name="mine.source", vocab_size=V).next(None)


def test_ids_of_the_vocabulary_and_marks_where_nothing_counts_pass():
  batch = drawn(
    tokens_BT=[[0, 9, -1]], doc_BT=[[0, 0, -1]], targets_BT=[[9, 0, -1]], weight_BT=[[1, 1, 0]]
  )
  assert batch["tokens_BT"].tolist() == [[0, 9, -1]]
  assert drawn(puzzle_B=[99])["puzzle_B"] == [99]


@pytest.mark.parametrize("arrays, message", [
  (dict(tokens_BT=[[3, 10]]), "'mine.source' gives the id 10 in tokens_BT; ids are 0..9; .*vocab_size=10"),
  (dict(tokens_BT=[[3, -1]], doc_BT=[[0, 0]]), "the id -1 in tokens_BT"),
  (dict(targets_BT=[[-1, 3]], weight_BT=[[1, 1]]), "the id -1 in targets_BT"),
  (dict(targets_BT=[[-100, 3]], weight_BT=[[0, 1]]), "the id -100 in targets_BT"),
])  # fmt: skip
def test_an_id_that_the_model_has_not_is_refused(arrays, message):
  with pytest.raises(ValueError, match=f"config.data.source=.*{message}|{message}"):
    drawn(**arrays)


def test_all_else_of_the_source_is_its_own_and_sources_of_the_package_are_left_alone():
  mine = Given()
  assert source.checked(mine, name="mine.source", vocab_size=V).manifest == mine.manifest
  assert source.checked(mine, name="text", vocab_size=V) is mine


def test_a_source_of_ones_own_needs_no_tokenizer_for_the_recipe_of_text(tmp_path):
  corpus = runs.write_corpus(tmp_path / "text")
  config = runs.lm_config(corpus, data__source="experiments.mqar.task", data__name="keys:40")
  recipe = recipes.load(config, runs.one_device())
  assert recipe.source.next(None)["tokens_BT"].shape == (4, 32) and "baselines" in recipe.evals
