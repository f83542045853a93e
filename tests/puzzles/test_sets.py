"""Every set of puzzles that a config can name is built or refused, and a run knows the puzzles it had."""

import json
import re

import numpy as np
import pytest

from atlas_jax.puzzles import puzzle_set, sets
from atlas_jax.puzzles.boards import maze, sudoku
from atlas_jax.workdir import PUZZLES
from tests import puzzle_runs
from tests.puzzles.arc_files import TASK, with_changes, write_kaggle

ARC = dict(puzzles__canvas=10, puzzles__max_tasks=2, puzzles__n_augmentations=1)
MAZE = dict(puzzles__name="maze", puzzles__side=7, puzzles__min_rating=5)
# What a config may name, and the rows, columns and vocabulary it has.
BUILT = {
  "arc1": (ARC, (10, 10), 12), "arc2": (ARC, (10, 10), 12), "arc2_public": (ARC, (10, 10), 12),
  "files": (ARC, (10, 10), 12), "sudoku": (dict(puzzles__side=6), (6, 6), 8), "maze": (MAZE, (7, 7), 6),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def arc_files(folder):
  """A folder of a training task and two evaluation tasks, of which the second is the training task again."""
  other = with_changes("test", input=[[7]])
  write_kaggle(folder / "arc_files", "training", {"a": TASK})
  write_kaggle(folder / "arc_files", "evaluation", {"b": other, "c": TASK})
  return folder / "arc_files"


def config_of(folder, **changes):
  return puzzle_runs.small_config(folder / "boards", **changes)


def loaded(folder, **changes):
  return sets.load(config_of(folder, **changes))


@pytest.fixture(scope="module")
def built(folder):
  return puzzle_runs.write_built(folder / "built")


def take(source, n):
  return [source.next(None) for _ in range(n)]


def same(left, right) -> bool:
  return all(np.array_equal(left[name], right[name]) for name in left)


def test_every_name_is_tried():
  assert set(BUILT) | {"built"} == set(sets.NAMES)


@pytest.mark.parametrize("name", BUILT)
def test_a_set_is_of_the_shape_that_is_known_without_building_it(name, folder, arc_files):
  changes, canvas, vocab_size = BUILT[name]
  changes = changes | (dict(puzzles__path=str(arc_files)) if name == "files" else {})
  config = config_of(folder, **changes | dict(puzzles__name=name))
  found = sets.load(config)
  assert sets.shape_of(config.puzzles) == (canvas[0] * canvas[1], vocab_size)
  assert (found.kind, found.shape) == ("arc" if name in sets.ARC else name, canvas)
  for split in (found.train, found.test):
    inputs_BT, labels_BT = split.read(np.arange(2), None)
    assert inputs_BT.shape == labels_BT.shape == (2, canvas[0] * canvas[1])
    assert (split.seq_len, split.vocab_size) == sets.shape_of(config.puzzles)
    assert max(inputs_BT.max(), labels_BT.max()) < vocab_size
  assert (len(found.tasks) > 0) == (name in sets.ARC) == (found.train.n_ids > 1)


def test_a_folder_of_the_original_s_layout_is_read(folder, built):
  config = config_of(folder, puzzles__name="built", puzzles__path=str(built))
  found = sets.load(config)
  assert sets.shape_of(config.puzzles) == (16, puzzle_runs.N_TOKENS)
  assert (found.kind, found.shape, found.train.n_ids) == ("sudoku", (4, 4), 2 * puzzle_runs.N_GROUPS + 1)
  stored = np.load(built / "test" / "all__inputs.npy")
  read = [batch["inputs_BT"] for batch in sets.eval_batches_of(config, found)]
  np.testing.assert_array_equal(np.concatenate(read)[: len(stored)], stored)


def test_a_byte_order_mark_in_the_metadata_changes_nothing(built, tmp_path):
  config = of_vocabulary(puzzle_runs.N_TOKENS, built, tmp_path)
  for file in tmp_path.rglob("*.json"):
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
  assert sets.load(config).train.n_groups == puzzle_runs.N_GROUPS


def test_held_out_questions_that_a_built_folder_trains_on_are_found(built, tmp_path, caplog):
  """Whatever their answers are."""
  config = of_vocabulary(puzzle_runs.N_TOKENS, built, tmp_path)
  assert sets.load(config).trained_on == frozenset() and not caplog.messages
  trained, held_out = (np.load(tmp_path / split / "all__inputs.npy") for split in ("train", "test"))
  held_out[[1, 4]] = trained[[5, 0]]
  np.save(tmp_path / "test" / "all__inputs.npy", held_out)
  found = sets.load(config)
  assert found.trained_on == {1, 4}
  assert f"the questions of 2 of {len(held_out)} held-out examples are trained on" in caplog.text


def of_vocabulary(vocab_size, built, folder):
  """A config of a copy of a built folder whose metadata name another vocabulary."""
  for split in ("train", "test"):
    for file in (built / split).iterdir():
      (folder / split).mkdir(exist_ok=True)
      (folder / split / file.name).write_bytes(file.read_bytes())
    for name in ("inputs", "labels"):
      array = folder / split / f"all__{name}.npy"
      np.save(array, np.minimum(np.load(array), vocab_size - 1))
    facts = folder / split / "dataset.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"vocab_size": vocab_size}))
  return config_of(folder, puzzles__name="built", puzzles__path=str(folder))


@pytest.mark.parametrize(("vocab_size", "kind"), [(11, "sudoku"), (6, "maze")])
def test_the_vocabulary_tells_what_a_folder_is_of(vocab_size, kind, built, tmp_path):
  assert sets.load(of_vocabulary(vocab_size, built, tmp_path)).kind == kind


def test_a_folder_of_arc_that_could_not_be_scored_is_refused_before_training(built, tmp_path):
  with pytest.raises(ValueError, match="needs identifiers.json and test_puzzles.json beside"):
    sets.load(of_vocabulary(12, built, tmp_path))


WRONG = [
  (dict(name="arc3"), "config.puzzles.name='arc3' is unknown; known are arc1, arc2, .*, built"),
  (dict(name="built"), "config.puzzles.name='built' reads a folder .*; set config.puzzles.path to it"),
  (dict(name="built", path="nowhere"), "name='built': nowhere/train/dataset.json cannot be read"),
  (dict(side=5), "config.puzzles with name='sudoku': side=5 has no Sudoku; it must be one of 4, 6, 9"),
  (dict(path="nowhere"), "name='sudoku': nowhere/train.csv does not exist; path='nowhere' must be"),
  (dict(name="maze", side=3), "config.puzzles with name='maze': side=3 must be at least 5"),
  (dict(name="maze", side=7, n_augmentations=8), "name='maze': .*n_augmentations=8 in 0..7"),
  (dict(name="arc1", path="nowhere"), "config.puzzles with name='arc1': nowhere has neither data/training"),
  (dict(name="arc2", canvas=40), "config.puzzles with name='arc2': canvas=40 must be the side of a square"),
  (dict(name="arc1", concept_path="nowhere"), "config.puzzles with name='arc1': nowhere has neither"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG)
def test_what_cannot_be_built_is_refused_with_the_field(fields, words, folder, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=words):
    loaded(folder, **{f"puzzles__{name}": value for name, value in fields.items()})


def test_an_evaluation_task_that_is_trained_on_is_known_to_the_evaluation(folder, arc_files, caplog):
  with caplog.at_level("WARNING"):
    found = loaded(folder, **ARC | dict(puzzles__name="files", puzzles__path=str(arc_files)))
  assert found.leaked == {"c"} and set(found.tasks) == {"b", "c"}
  assert "1 of 2 evaluation tasks are trained on with their answers: c equals a" in caplog.text


def test_unknown_outputs_reach_no_batch_as_labels(folder):
  for name, task_id in (("training", "a"), ("evaluation", "b"), ("concept", "c")):
    write_kaggle(folder / "hidden", name, {task_id: TASK}, solutions=False)
  fields = ARC | dict(puzzles__name="files", puzzles__path=str(folder / "hidden"), data__batch_rows=4)
  config = config_of(folder, **fields)
  found = sets.load(config)
  for batch in take(sets.source_of(config, found), 6):
    assert (batch["labels_BT"] >= 0).any(axis=1).all()
  n_trained = [len(TASK["train"])] * 3
  assert np.diff(found.train.puzzle_starts)[found.train.group_starts[:-1]].tolist() == n_trained
  held_out = list(sets.eval_batches_of(config, found))
  assert held_out and all((batch["labels_BT"] == -100).all() for batch in held_out)
  assert any(batch["inputs_BT"].any() for batch in held_out)


def test_tasks_to_be_solved_that_are_left_out_are_said(folder, caplog):
  wide, other = with_changes("test", input=[[1] * 11]), with_changes("test", input=[[7]])
  file = write_kaggle(folder / "asked", "test", {"a": TASK, "b": wide, "c": other})
  fields = ARC | dict(puzzles__name="files", puzzles__test_path=str(file))
  assert sorted(loaded(folder, **fields).tasks) == ["a", "c"]
  said = "canvas=10 and max_tasks=2 leave out 1 of the 3 tasks of test_path: evaluations and their submission"
  assert said in caplog.text
  caplog.clear()
  assert len(loaded(folder, **fields | dict(puzzles__canvas=11, puzzles__max_tasks=None)).tasks) == 3
  assert "leave out" not in caplog.text


def test_hub_stands_for_the_data_set_of_the_name():
  assert sets.HUB == {"sudoku": sudoku.EXTREME, "maze": maze.HARD}
  assert all(re.fullmatch(r"hf:[\w.-]+/[\w.-]+", name) for name in sets.HUB.values())


# --- runs and their puzzles ---


def test_a_run_accepts_its_own_puzzles_and_refuses_others(folder, tmp_path):
  own = loaded(folder)
  with pytest.raises(ValueError, match="puzzles.json is missing: it says which puzzles"):
    own.check_run(tmp_path)
  own.save(tmp_path)
  own.check_run(tmp_path)
  with pytest.raises(ValueError, match="trained on other puzzles: train=.*config.puzzles.path"):
    loaded(folder, puzzles__seed=1).check_run(tmp_path)
  with pytest.raises(ValueError, match=r"n_ids=1 in the run, \d+ here; first_names=\[\] in the run"):
    loaded(folder, **ARC | dict(puzzles__name="arc1")).check_run(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_record_is_named(text, folder, tmp_path):
  (tmp_path / PUZZLES).write_text(text)
  with pytest.raises(ValueError, match="puzzles.json.* it is damaged"):
    loaded(folder).check_run(tmp_path)


def test_the_order_of_the_original_is_there_to_be_chosen(folder, built):
  fields = dict(puzzles__name="built", puzzles__path=str(built), data__batch_rows=4)
  config = config_of(folder, **fields, puzzles__sampler="original", puzzles__epochs_per_iteration=3)
  found = sets.load(config)
  ours = take(sets.source_of(config_of(folder, **fields), found), 3)
  theirs, again = (take(sets.source_of(config, found), 3) for _ in range(2))
  assert all(same(*pair) for pair in zip(theirs, again))
  assert not all(same(*pair) for pair in zip(theirs, ours))


def test_a_fresh_shift_moves_a_grid_at_each_visit_and_keeps_what_it_shows(folder):
  """Cropped to where their colours are, inputs and labels are those of the frozen form."""
  fields = ARC | dict(puzzles__name="arc1", puzzles__max_tasks=1, data__batch_rows=4)
  found = loaded(folder, **fields)
  source = sets.source_of(config_of(folder, **fields, puzzles__shift="fresh"), found)
  batches = take(source, 24)
  seen = {}
  for step, batch in enumerate(batches):
    for row, origin in enumerate(source.provenance(step)):
      frozen = found.train.read(np.array([int(origin.rpartition("@")[2])]), None)
      for tokens_T, frozen_T in zip((batch["inputs_BT"][row], batch["labels_BT"][row]), frozen):
        np.testing.assert_array_equal(colours(tokens_T), colours(frozen_T[0].astype(int)))
      seen.setdefault(origin, set()).add(batch["inputs_BT"][row].tobytes())
  assert any(len(places) > 1 for places in seen.values())
  again = sets.source_of(config_of(folder, **fields, puzzles__shift="fresh"), found)
  take(again, 10)
  state = again.state()
  resumed = sets.source_of(config_of(folder, **fields, puzzles__shift="fresh"), found)
  resumed.restore(json.loads(json.dumps(state)))
  assert all(same(*pair) for pair in zip(take(resumed, 5), batches[10:15]))


def colours(tokens_T):
  """The smallest rectangle with all colours of a canvas."""
  canvas = tokens_T.reshape(10, 10)
  rows, columns = np.nonzero(canvas > 1)
  return canvas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_padding_of_the_held_out_split_has_the_blank_row(folder):
  config = config_of(folder, eval__batch_rows=4)
  batches = list(sets.eval_batches_of(config, sets.load(config)))
  assert [len(batch["ids_B"]) for batch in batches] == [4, 4]
  last = batches[-1]
  assert (last["inputs_BT"][2:] == 0).all() and (last["labels_BT"][2:] == -100).all()
  assert (last["ids_B"][2:] == puzzle_set.BLANK_ID).all() and (last["inputs_BT"][:2] > 0).all()
