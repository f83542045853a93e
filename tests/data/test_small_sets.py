"""Sets of one item to twenty are split so that both splits have some, or refused; larger ones as ever."""
import json

import numpy as np
import pytest

from atlas_jax.data import problems, prompts, ranked, source
from atlas_jax.data.store import split_place

FRACTIONS = (0.01, 0.05, 0.5, 0.99)
SIZES = range(1, 21)
SPLITS = ("train", "held_out")


def write_rows(path, n: int) -> str:
  """Writes n rows that every recipe reads, and returns the file."""
  rows = [{"prompt": f"say {i}", "answer": str(i), "completion": str(i), "responses": [str(i), "no"]}
          for i in range(n)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def text_splits(folder, n, frac):
  """The files of both splits of n texts."""
  folder.mkdir()
  for i in range(n):
    (folder / f"{i:02}.txt").write_text(f"text {i} ".ljust(70, "."))
  sources = [source.load(source="text", name="files", path=str(folder), segment_len=8, batch_rows=1, seed=0,
                         held_out_frac=frac, threads=0, split=split) for split in SPLITS]
  return [[n for n in range(n) if f"text {n} ".encode() in one.text()] for one in sources]


def prompt_splits(folder, n, frac):
  """The prompts of both splits of n rows, as sft, grpo and gkd read them."""
  folder.mkdir()
  file = write_rows(folder / "rows.jsonl", n)
  found = [prompts.load("files", files=file, split=split, held_out_frac=frac) for split in SPLITS]
  return [[one.prompt for one in each.first(99)] for each in found]


def ranked_splits(folder, n, frac):
  """The prompts of both splits of n groups of ranked responses."""
  folder.mkdir()
  file = write_rows(folder / "rows.jsonl", n)
  found = ranked.load(files=file, eval_files=None, name="files", held_out_frac=frac, seed=0)
  return [[one.prompt for one in each] for each in found]


KINDS = (text_splits, prompt_splits, ranked_splits)
each_kind = pytest.mark.parametrize("splits", KINDS, ids=["text", "prompts", "ranked"])


@each_kind
@pytest.mark.parametrize("frac", FRACTIONS)
def test_both_splits_of_two_to_twenty_items_have_some(splits, frac, tmp_path):
  for n in SIZES[1:]:
    train, held_out = splits(tmp_path / f"{n}", n, frac)
    assert train and held_out and not set(train) & set(held_out) and len(train) + len(held_out) == n


@each_kind
def test_a_single_item_is_refused_with_what_to_do(splits, tmp_path):
  with pytest.raises(ValueError, match="held_out_frac=0.05: 1 .* cannot be split.*give more, or set "
                                       "config.data.held_out_frac=0 to train on all without evaluation"):
    splits(tmp_path / "one", 1, 0.05)


def test_with_nothing_held_out_all_are_trained_on(tmp_path):
  for n in (1, 2, 20):
    file = write_rows(tmp_path / f"{n}.jsonl", n)
    assert prompts.load("files", files=file, held_out_frac=0.0).count == n
    train, held_out = ranked.load(files=file, eval_files=None, name="files", held_out_frac=0.0, seed=0)
    assert (len(train), held_out) == (n, [])


def test_a_task_with_nothing_held_out_is_trained_on_as_well():
  train, held_out = ranked.load(files=None, eval_files=None, name="arithmetic", held_out_frac=0.0, seed=0)
  assert len(train) == ranked.MADE_PROMPTS and held_out == []


@pytest.mark.parametrize("frac", FRACTIONS)
def test_the_bound_is_the_fraction_where_that_leaves_both_splits_some(frac):
  position_N = np.random.default_rng(0).random(1_000)
  below = problems.threshold(position_N, frac, "place")
  np.testing.assert_array_equal(position_N < below, position_N < frac)


@pytest.mark.parametrize("frac", FRACTIONS)
def test_the_item_of_the_least_place_is_held_out_and_that_of_the_largest_trained_on(frac):
  position_N = np.array([0.3, 0.2, 0.4])
  out_N = position_N < problems.threshold(position_N, frac, "place")
  assert out_N[1] and not out_N[2]


def test_a_split_by_the_fraction_alone_is_known_by_it_alone_and_a_moved_one_by_its_bound(tmp_path):
  names = [f"{n:02}.txt" for n in range(40)]
  state_of = lambda folder, chosen, frac: _state(tmp_path / folder, chosen, frac)
  assert any(split_place(name) < 0.2 for name in names)
  assert "held_out_below" not in state_of("many", names, 0.2)
  few = [name for name in names if split_place(name) > 0.2][:6]
  assert state_of("few", few, 0.2)["held_out_below"] > 0.2


def _state(folder, names, frac):
  folder.mkdir()
  for name in names:
    (folder / name).write_text(name * 10)
  return source.load(source="text", name="files", path=str(folder), segment_len=8, batch_rows=1, seed=0,
                     held_out_frac=frac, threads=0).state()
