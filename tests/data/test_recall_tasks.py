"""Tasks of recall as batches: documents one after another, answers that count, and a place that is a step."""

import numpy as np
import pytest

from atlas_jax.data import recall_tasks
from atlas_jax.data import source as sources
from atlas_jax.language import pretraining
from tests import runs

OPTIONS = {"tasks": "mqar:2,niah,text", "mqar_pairs": "3", "mqar_distances": "20", "niah_lengths": "128",
           "niah_kinds": "single_2", "task_gap_tokens": 16}
LONG = {"tasks": "niah", "niah_lengths": "320", "niah_kinds": "single_2", "task_gap_tokens": 16}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp("tasks") / "text")


def load(corpus, **fields):
  given = {"options": OPTIONS, "seed": 3, "segment_len": 512, "batch_rows": 4, "align_tokens": 16,
           "threads": 0, "name": "files", "path": str(corpus), "cache_dir": f"{corpus}_cache",
           "held_out_frac": 0.3}
  return sources.load("recall_tasks", **{**given, **fields})


def documents(batch):
  """Yields the arrays of each document of a batch."""
  for row in range(len(batch["doc_BT"])):
    for doc in sorted(set(batch["doc_BT"][row]) - {-1}):
      here = batch["doc_BT"][row] == doc
      yield {name: value[row][here] for name, value in batch.items()}


def test_documents_begin_with_the_mark_at_multiples_and_count_their_answers_alone(corpus):
  batch = load(corpus).next()
  starts = [np.flatnonzero((doc_T >= 0) & (np.r_[-1, doc_T[:-1]] != doc_T)) for doc_T in batch["doc_BT"]]
  assert all((start % 16 == 0).all() and len(start) > 1 for start in starts)
  kinds = set()
  for one in documents(batch):
    assert one["tokens_BT"][0] == 256 and one["pos_BT"].tolist() == list(range(len(one["pos_BT"])))
    counted = one["weight_BT"] > 0
    assert np.array_equal(one["bytes_BT"] > 0, counted & (one["targets_BT"] < 256))
    kind = "text" if counted.all() else "mqar" if counted.sum() == 3 else "niah"
    kinds.add(kind)
    if kind != "mqar":
      assert np.array_equal(one["tokens_BT"][1:], one["targets_BT"][:-1])
    if kind == "niah":
      assert bytes(one["targets_BT"][counted].astype(np.uint8)).decode()[-1] == "."
  assert kinds == {"text", "mqar", "niah"}


def test_numbers_of_neighbouring_documents_differ_also_across_steps(corpus):
  source = load(corpus)
  first, second = source.next(), source.next()
  for row in range(4):
    assert not set(first["doc_BT"][row]) & set(second["doc_BT"][row]) - {-1}


def test_a_place_is_its_step_and_belongs_to_its_settings(corpus):
  source, other = load(corpus), load(corpus)
  source.next()
  other.restore(source.state())
  here, there = source.next(), other.next()
  assert all(np.array_equal(here[name], there[name]) for name in here)
  with pytest.raises(ValueError, match="belongs to other data or settings: seed=3 then, 4 now"):
    load(corpus, seed=4).restore(source.state())
  with pytest.raises(ValueError, match="settings: options.mqar_pairs='3' then, '4' now"):
    load(corpus, options={**OPTIONS, "mqar_pairs": "4"}).restore(source.state())


def test_a_place_belongs_to_the_corpus_that_is_read(corpus, tmp_path):
  other = runs.write_corpus(tmp_path / "other")
  (other / "more.py").write_text("a file that the first corpus has not\n" * 40)
  for options in (LONG, {"tasks": "text"}):
    state = load(corpus, options=options).state()
    load(corpus, options=options).restore(state)
    with pytest.raises(ValueError, match="belongs to other data or settings: sha256='"):
      load(other, options=options).restore(state)
  mqar = {"tasks": "mqar"}  # It reads none.
  load(other, options=mqar).restore(load(corpus, options=mqar).state())


def test_processes_share_the_rows_and_splits_share_nothing(corpus):
  whole = load(corpus).next()
  parts = [load(corpus, process_index=n, process_count=2).next() for n in range(2)]
  assert all(np.array_equal(np.concatenate([part[name] for part in parts]), whole[name]) for name in whole)
  held_out = load(corpus, split="held_out", max_tokens=3 * 4 * 512)
  texts = [{bytes(one["tokens_BT"].astype(np.uint8)) for one in documents(batch)}
           for batch in (whole, held_out.next())]
  assert not texts[0] & texts[1]
  assert [bool(held_out.next()) for _ in range(2)] == [True, True]
  with pytest.raises(StopIteration):
    held_out.next()


def test_a_text_that_is_longer_than_a_segment_goes_on_in_the_next(corpus):
  whole = load(corpus, options=LONG, segment_len=512)
  short = load(corpus, options=LONG, segment_len=128)
  assert whole.parts == 1 and short.parts == 4
  parts = [short.next() for _ in range(4)]
  joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
  found = list(documents(joined))
  assert len(found) == 4 and all(one["weight_BT"].sum() == 9 for one in found)
  with pytest.raises(ValueError, match="config.data.segment_len=128 is shorter than the longest text"):
    load(corpus, options=LONG, segment_len=128, carry=False)


class Interrupted(dict):
  """Slots in which another thread puts the next one of a row as soon as the first has been put there."""

  def __init__(self, source):
    super().__init__()
    self.source = source

  def __setitem__(self, row, made):
    super().__setitem__(row, made)
    if made[0] == 0:
      super().__setitem__(row, (1, self.source._drawn(row, 1)))


def test_a_thread_that_prepares_another_step_of_the_row_changes_nothing(corpus):
  want, source = load(corpus).batch(0), load(corpus)
  source._slots = Interrupted(source)
  found = source.batch(0)
  assert all(np.array_equal(found[name], want[name]) for name in want)


def test_options_that_no_task_reads_are_refused(corpus):
  with pytest.raises(ValueError, match="options.mqar_pairs=3 is not read by .*tasks=niah,text; leave"):
    load(corpus, options={**OPTIONS, "tasks": "niah,text"})


def test_weights_are_read_and_wrong_ones_refused():
  assert recall_tasks.weights_of("mqar:2, niah ,text:0.5") == {"mqar": 2.0, "niah": 1.0, "text": 0.5}
  for text, words in (("", "needs tasks with commas"), (None, "needs tasks with commas"), ("mqar:x", "must"),
                      ("mqar,mqar", "each once"), ("mqar:0", "must be"), ("maqr", "did you mean 'mqar'"),
                      ("published", "has 'published'; ")):
    with pytest.raises(ValueError, match=words):
      recall_tasks.weights_of(text)
  with pytest.raises(ValueError, match="config.data.options.mqar_pair is no option of a task; did you mean"):
    sources.load("recall_tasks", options={"tasks": "mqar", "mqar_pair": 3}, seed=0, segment_len=64,
                 batch_rows=2)


def test_the_recipe_of_memory_models_reads_it():
  assert "recall_tasks" in sources.names(pretraining.READS)
