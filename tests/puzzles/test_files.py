"""Built data sets in the reference program's files: read as they are, and refused where they do not fit."""
import json
import pathlib

import numpy as np
import pytest

from atlas_jax.puzzles import files, source

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "trm" / "arc_builder.npz"
ARRAYS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")


@pytest.fixture(scope="module")
def built():
  with np.load(FIXTURE) as found:
    return dict(found)


def write(folder, built):
  """Writes the fixture's five toy tasks as the reference program does."""
  for split in ("train", "test"):
    (folder / split).mkdir(parents=True)
    (folder / split / "dataset.json").write_text(str(built[f"{split}/dataset_json"]))
    for name in ARRAYS:
      np.save(folder / split / f"all__{name}.npy", built[f"{split}/{name}"])
  (folder / "identifiers.json").write_text(str(built["identifiers_json"]))
  (folder / "test_puzzles.json").write_text(str(built["test_puzzles_json"]))
  return folder


@pytest.fixture
def folder(tmp_path, built):
  return write(tmp_path / "toy", built)


def change_json(path, **fields):
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_array(path, change):
  array = np.load(path)
  np.save(path, change(array))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_built_set_is_read_as_it_was_written(folder, built, split):
  found = getattr(files.load(folder), split)
  examples = np.arange(found.n_examples)[::-1]
  inputs, labels = found.read(examples, None)
  np.testing.assert_array_equal(inputs, built[f"{split}/inputs"][::-1])
  np.testing.assert_array_equal(labels, built[f"{split}/labels"][::-1])
  assert inputs.dtype == labels.dtype == np.uint8
  np.testing.assert_array_equal(found.puzzle_starts, built[f"{split}/puzzle_indices"])
  np.testing.assert_array_equal(found.group_starts, built[f"{split}/group_indices"])
  np.testing.assert_array_equal(found.puzzle_ids, built[f"{split}/puzzle_identifiers"])
  assert (found.seq_len, found.vocab_size, found.n_ids) == (900, 12, 66)


def test_names_and_test_tasks_come_along(folder, built):
  found = files.load(folder)
  assert list(found.train.names) == json.loads(str(built["identifiers_json"]))
  assert found.train.group_names == ("tr1", "tr0", "ev0", "ev1", "co0")
  assert found.test_puzzles == json.loads(str(built["test_puzzles_json"]))


def test_inputs_stay_in_the_file_until_they_are_read(folder):
  found = files.load(folder).train
  written = np.load(folder / "train" / "all__inputs.npy", mmap_mode="r+")
  written[:] = 5
  written.flush()
  assert (found.read(np.array([3]))[0] == 5).all()


def test_a_source_serves_a_built_set(folder):
  served = source.PuzzleSource(files.load(folder).train, batch_rows=8, seed=0, threads=0)
  batch = served.next(None)
  assert batch["inputs_BT"].shape == batch["labels_BT"].shape == (8, 900)
  names = {origin.split("@")[0] for origin in served.provenance(0)}
  assert names <= set(served.train.names) - {files.BLANK}


def test_a_sudoku_set_has_one_id_and_wide_integers(tmp_path):
  tokens = np.arange(3 * 4).reshape(3, 4)
  for split in ("train", "test"):
    (tmp_path / split).mkdir()
    (tmp_path / split / "dataset.json").write_text(json.dumps({
      "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": 12, "seq_len": 4,
      "num_puzzle_identifiers": 1, "total_groups": 2, "total_puzzles": 2, "sets": ["all"]}))
    for name, array in zip(ARRAYS, (tokens, tokens, np.zeros(3, int), np.arange(4), np.array([0, 2, 3]))):
      np.save(tmp_path / split / f"all__{name}.npy", array)
  found = files.load(tmp_path)
  assert found.test_puzzles == {} and found.train.names == found.train.group_names == ()
  inputs, labels = found.train.read(np.array([2, 0]))
  assert inputs.dtype == np.int32 and inputs.tolist() == labels.tolist() == tokens[[2, 0]].tolist()


def test_several_folders_follow_one_another(tmp_path, built):
  one, two = (write(tmp_path / name, built) for name in ("one", "two"))
  change_array(two / "train" / "all__inputs.npy", lambda array: array[:, ::-1])
  whole, single = files.load(f"{one}, {two}"), files.load(one)
  assert (whole.train.n_groups, whole.train.n_puzzles, whole.train.n_examples) == (10, 130, 364)
  inputs, labels = whole.train.read(np.array([363, 0, 182, 181]))
  expected = built["train/inputs"]
  np.testing.assert_array_equal(
    inputs, [expected[181][::-1], expected[0], expected[0][::-1], expected[181]])
  np.testing.assert_array_equal(labels, built["train/labels"][[181, 0, 0, 181]])
  np.testing.assert_array_equal(whole.train.ids_of(np.array([0, 182, 363])),
                                single.train.ids_of(np.array([0, 0, 181])))
  assert whole.train.group_names == single.train.group_names * 2
  assert whole.test_puzzles == single.test_puzzles


def test_a_moved_set_is_the_same_and_changed_rows_or_names_are_another(tmp_path, built):
  one, two = (write(tmp_path / name, built) for name in ("one", "two"))
  before = files.load(one)
  assert before.train.fingerprint == files.load(two).train.fingerprint != before.test.fingerprint
  json.dumps(before.train.identity)
  change_array(one / "train" / "all__labels.npy", lambda array: np.roll(array, 1, axis=0))
  assert files.load(one).train.fingerprint != before.train.fingerprint
  (two / "identifiers.json").unlink()
  assert files.load(two).train.fingerprint != before.train.fingerprint


METADATA = [
  (dict(pad_id=1), "dataset.json has pad_id=1; it must be 0"),
  (dict(ignore_label_id=-100), "has ignore_label_id=-100; it must be 0"),
  (dict(blank_identifier_id=None), "has blank_identifier_id=None; it must be 0"),
  (dict(vocab_size=0), "has vocab_size=0; it must be a positive integer"),
  (dict(seq_len=81), r"all__inputs.npy has rows of 900 tokens, and dataset.json says seq_len=81"),
  (dict(num_puzzle_identifiers=30), "has ids from 1 to 65, and dataset.json says num_puzzle_identifiers=30"),
  (dict(total_groups=6), "has total_groups=6, and the files hold 5"),
  (dict(sets=[]), r"has sets=\[\]; it must list"),
  (dict(sets=["most"]), "most__inputs.npy cannot be read"),
]


@pytest.mark.parametrize("fields, message", METADATA)
def test_metadata_that_do_not_fit_are_refused(folder, fields, message):
  change_json(folder / "train" / "dataset.json", **fields)
  with pytest.raises(ValueError, match=message):
    files.load(folder)


FAULTS = [
  ("labels", lambda array: array[:-1], "all__labels.npy is of shape .181, 900., and inputs of .182, 900."),
  ("inputs", lambda array: array[0], "inputs.npy is uint8 of shape .900,.; it must be integers of 2 axes"),
  ("labels", lambda array: array / 2, "all__labels.npy is float64 of shape"),
  ("puzzle_indices", lambda array: array[:-1], "runs from 0 to 180; it must rise from 0 to the 182 examples"),
  ("puzzle_indices", lambda array: array[[0, 2, 1, *range(3, 66)]], "must rise from 0 .* never fall"),
  ("puzzle_indices", lambda array: array[[0, *range(2, 66)]], "has 65 puzzles, and puzzle_indices 64"),
  ("group_indices", lambda array: array + 1, "runs from 1 to 66; it must rise from 0 to the 65 puzzles"),
  ("group_indices", lambda array: array[:0], "all__group_indices.npy is empty"),
  ("puzzle_identifiers", lambda array: array - 2, "has ids from -1 to 63"),
]


@pytest.mark.parametrize("name, change, message", FAULTS)
def test_arrays_that_do_not_fit_are_refused(folder, name, change, message):
  change_array(folder / "train" / f"all__{name}.npy", change)
  with pytest.raises(ValueError, match=message):
    files.load(folder)


def test_tokens_beyond_the_vocabulary_are_refused_when_they_are_read(folder):
  def spoil(array):
    array[7, 3] = 12
    return array

  change_array(folder / "test" / "all__labels.npy", spoil)
  found = files.load(folder).test
  found.read(np.arange(7))
  with pytest.raises(ValueError, match="has tokens from 0 to 12, and dataset.json says vocab_size=12"):
    found.read(np.arange(8))


@pytest.mark.parametrize("name, content, message", [
  ("identifiers.json", ["<blank>", "a"], "names 2 ids from '<blank>' on; it must name all 66"),
  ("identifiers.json", {}, "identifiers.json: holds a dict, and must hold a list"),
  ("test_puzzles.json", [], "test_puzzles.json: holds a list, and must hold an object"),
])
def test_names_and_tasks_that_do_not_fit_are_refused(folder, name, content, message):
  (folder / name).write_text(json.dumps(content))
  with pytest.raises(ValueError, match=message):
    files.load(folder)


def test_a_folder_without_a_built_set_is_refused(tmp_path, folder):
  with pytest.raises(ValueError, match="elsewhere/train/dataset.json cannot be read .* has train/ and test/"):
    files.load(tmp_path / "elsewhere")
  (folder / "test" / "all__labels.npy").write_bytes(b"")
  with pytest.raises(ValueError, match="test/all__labels.npy: cannot be read as a NumPy array"):
    files.load(folder)
  with pytest.raises(ValueError, match="is ' , '; give its folder"):
    files.load(" , ")


@pytest.mark.parametrize("split", ["train", "test"])
def test_folders_and_splits_of_unlike_sizes_are_refused(tmp_path, built, split):
  one, two = (write(tmp_path / name, built) for name in ("one", "two"))
  change_json(two / split / "dataset.json", vocab_size=13)
  with pytest.raises(ValueError, match=f"two/{split}/dataset.json has vocab_size=13 and .*one/.* has 12"):
    files.load(f"{one},{two}")


def test_folders_that_name_ids_or_tasks_differently_are_refused(tmp_path, built):
  one, two = (write(tmp_path / name, built) for name in ("one", "two"))
  names = json.loads((two / "identifiers.json").read_text())
  (two / "identifiers.json").write_text(json.dumps([names[0], *names[:0:-1]]))
  with pytest.raises(ValueError, match="two/identifiers.json and .*one/.* name ids differently"):
    files.load(f"{one},{two}")
  (two / "identifiers.json").write_text(json.dumps(names))
  (two / "test_puzzles.json").write_text(json.dumps({"ev0": {}}))
  with pytest.raises(ValueError, match="two/test_puzzles.json has another task 'ev0'"):
    files.load(f"{one},{two}")
