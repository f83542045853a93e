"""Mazes have one shortest path, transforms keep it, and train and test share no walls under transforms."""
import collections
import pathlib
import sys

import numpy as np
import pytest

from atlas_jax.puzzles import boards, grids
from atlas_jax.puzzles.boards import maze
from atlas_jax.puzzles.boards import maze_solver as solver
from tests.puzzles import board_files

FIXTURE = pathlib.Path(__file__).parents[2] / "fixtures" / "trm" / "sudoku_maze.npz"
CHARACTERS = "?" + maze.CHARACTERS
SIDES = (7, 9, 12)

# Rows of 5: two ways of unequal length, several of equal length, and no way.
LOOP = "S   #" " ## #" " ##G#" "    #" "#####"
RING = "S  ##" " # ##" "  G##" "#####" "#####"
CLOSED = "S#  #" "###  " "  #  " "  # G" "#####"


def distances(tokens):
  """Steps from the start to every cell that can be reached, one cell after another."""
  side = round(len(tokens) ** 0.5)
  start = int(np.flatnonzero(tokens == solver.START)[0])
  steps, queue = {start: 0}, collections.deque([start])
  while queue:
    cell = queue.popleft()
    row, col = divmod(cell, side)
    for new_row, new_col in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
      other = new_row * side + new_col
      inside = 0 <= new_row < side and 0 <= new_col < side
      if inside and tokens[other] != solver.WALL and other not in steps:
        steps[other] = steps[cell] + 1
        queue.append(other)
  return steps


def steps_to_goal(tokens):
  return distances(tokens).get(int(np.flatnonzero(tokens == solver.GOAL)[0]))


def n_shortest_paths(tokens):
  """Counts the shortest paths, cells in order of their distance."""
  side = round(len(tokens) ** 0.5)
  steps = distances(tokens)
  n_paths = dict.fromkeys(steps, 0)
  for cell in steps:
    before = [other for other in steps if steps[other] == steps[cell] - 1
              and abs(other // side - cell // side) + abs(other % side - cell % side) == 1]
    n_paths[cell] = sum(n_paths[other] for other in before) if steps[cell] else 1
  return n_paths[int(np.flatnonzero(tokens == solver.GOAL)[0])]


@pytest.fixture(scope="module", params=SIDES)
def generated(request):
  side = request.param
  return side, maze.generate(12, side=side, split="train", seed=4, min_path=side + 2)


def test_the_characters_are_the_reference_ones():
  assert maze.CHARACTERS == str(np.load(FIXTURE, allow_pickle=False)["maze_charset"])
  np.testing.assert_array_equal(maze.encode("# SGo"), [1, 2, 3, 4, 5])
  assert maze.decode(np.arange(6)) == "?# SGo"
  with pytest.raises(ValueError, match="X"):
    maze.encode("#X")


@pytest.mark.parametrize("text, steps, is_unique", [(LOOP, 5, True), (RING, 4, False), (CLOSED, None, False)])
def test_the_solver_knows_length_and_uniqueness(text, steps, is_unique):
  found = solver.solve(maze.encode(text))
  assert (len(found.cells) - 1 if found.cells else None) == steps == steps_to_goal(maze.encode(text))
  assert found.is_unique == is_unique


def test_of_several_shortest_paths_the_fixed_one_is_given():
  assert solver.solve(maze.encode(RING)).cells == [0, 1, 2, 7, 12]


def test_no_path_leads_around_the_edge():
  text = "S  ##" "#####" "#####" "#  G#" "#####"
  assert solver.solve(maze.encode(text)).cells == []
  assert solver.solve(maze.encode("####S" "G####" + "#" * 15)).cells == []


def test_generated_mazes_have_one_shortest_path_which_is_the_answer(generated):
  side, found = generated
  for question, answer, rating, _ in zip(*found, strict=True):
    assert [np.sum(question == kind) for kind in (solver.START, solver.GOAL, solver.PATH)] == [1, 1, 0]
    solution = solver.solve(question)
    assert solution.is_unique and n_shortest_paths(question) == 1
    assert len(solution.cells) - 1 == rating == steps_to_goal(question) >= side + 2
    drawn = question.copy()
    drawn[solution.cells[1:-1]] = solver.PATH
    np.testing.assert_array_equal(answer, drawn)
    assert solver.path_of(answer) == rating


def test_all_free_cells_are_connected(generated):
  _, found = generated
  for question in found.questions:
    assert len(distances(question)) == np.sum(question != solver.WALL)


def test_without_opened_walls_a_maze_is_a_tree_and_with_them_it_has_loops():
  side = 15
  line = np.arange(side * side).reshape(side, side)
  pairs = np.concatenate([np.stack([line[1:], line[:-1]], -1).reshape(-1, 2),
                          np.stack([line[:, 1:], line[:, :-1]], -1).reshape(-1, 2)])

  def n_loops(loop_frac):
    maze_ = maze.generate(1, side=side, split="train", seed=0, min_path=10, loop_frac=loop_frac).questions[0]
    passable = maze_ != solver.WALL
    return passable[pairs].all(axis=1).sum() - passable.sum() + 1

  # 8 x 8 rooms have 112 neighbours; 63 doors make a tree, and 49 walls are left.
  assert [n_loops(frac) for frac in (0, 0.1, 0.2)] == [0, 5, 10]


def test_even_mazes_use_both_of_their_edges():
  found = maze.generate(30, side=8, split="train", seed=0, min_path=5)
  free = (found.questions != solver.WALL).reshape(-1, 8, 8)
  assert {(bool(one[0].any()), bool(one[:, 0].any())) for one in free} == {
      (True, True), (True, False), (False, True), (False, False)}


def test_mazes_depend_on_seed_and_split_and_more_of_them_begin_alike():
  options = dict(side=9, min_path=12)
  few, many = (maze.generate(n, split="train", seed=3, **options) for n in (3, 6))
  np.testing.assert_array_equal(few.questions, many.questions[:3])
  for split, seed in (("test", 3), ("train", 2)):
    other = maze.generate(3, split=split, seed=seed, **options)
    assert not (few.questions == other.questions).all(axis=1).any()


def test_mazes_that_cannot_be_had_are_an_error(monkeypatch):
  monkeypatch.setattr(boards, "PATIENCE", 20)
  with pytest.raises(ValueError, match="nothing new after 0 of 2 boards of side=9 with min_path=60"):
    maze.generate(2, side=9, split="train", seed=0, min_path=60)


def test_transforms_keep_the_path_and_follow_the_order_of_kinds(tmp_path):
  side = 9
  train, test = maze.build(side=side, n_train=4, n_test=2, n_augmentations=7, cache_dir=tmp_path)
  assert (train.n_groups, train.n_puzzles, test.n_puzzles) == (4, 32, 2)
  assert (train.seq_len, train.vocab_size, train.n_ids) == (81, 6, 1)
  inputs, labels = train.read(np.arange(32), None)
  assert inputs.dtype == labels.dtype == np.uint8
  for number in range(32):
    original, kind = number // 8 * 8, number % 8
    for tokens in (inputs, labels):
      turned = grids.transform(tokens[original].reshape(side, side), kind).ravel()
      np.testing.assert_array_equal(tokens[number], turned)
    assert steps_to_goal(inputs[number]) == steps_to_goal(inputs[original]) == solver.path_of(labels[number])
  picked = np.array([9, 0, 31])
  for some, every in zip(train.read(picked, np.random.default_rng(0)), (inputs, labels), strict=True):
    np.testing.assert_array_equal(some, every[picked])


def test_forms_are_equal_for_all_transforms_and_any_start_and_goal(generated):
  side, found = generated
  first = found.questions[0]
  turned = np.array([grids.transform(first.reshape(side, side), kind).ravel() for kind in range(8)])
  turned[5] = np.where(turned[5] == solver.START, solver.FREE, turned[5])
  assert len(set(maze.forms(side, turned))) == 1
  assert len(set(maze.forms(side, found.questions))) == len(found.questions)


def test_no_train_maze_has_the_walls_of_a_test_maze(tmp_path):
  side = 5  # So small that both streams come upon the same walls.
  train, test = maze.build(side=side, n_train=100, n_test=20, cache_dir=tmp_path)
  shown = [set(maze.forms(side, split.read(np.arange(split.n_examples))[0])) for split in (train, test)]
  assert not shown[0] & shown[1]
  alone = maze.generate(100, side=side, split="train", seed=0, min_path=3)
  assert set(maze.forms(side, alone.questions)) & shown[1]


def test_what_was_built_is_read_back_and_identified_by_its_contents(tmp_path):
  options = dict(side=9, n_train=4, n_test=3)
  first, again, elsewhere = (maze.build(**options, cache_dir=tmp_path / name)[0] for name in ("a", "a", "b"))
  np.testing.assert_array_equal(first.read(np.arange(4))[0], again.read(np.arange(4))[0])
  assert len(list((tmp_path / "a").glob("*.npz"))) == 2
  assert first.fingerprint == again.fingerprint == elsewhere.fingerprint
  for change in (dict(seed=1), dict(n_augmentations=3), dict(min_rating=12), dict(loop_frac=0.2)):
    assert maze.build(**{**options, **change}, cache_dir=tmp_path / "a")[0].fingerprint != first.fingerprint


@pytest.mark.parametrize("options, message", [
    (dict(side=4), "side=4"), (dict(n_augmentations=8), "n_augmentations=8"),
    (dict(loop_frac=1.5), "loop_frac=1.5"), (dict(n_test=None), "n_test=None"),
    (dict(path="nowhere"), "nowhere/train.csv"),
])
def test_wrong_arguments_are_named(options, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    maze.build(**{"side": 9, **options}, cache_dir=tmp_path)


@pytest.fixture
def folder(tmp_path):
  """Eight train mazes, of which the third is a turned test maze, and four test mazes."""
  train, test = (maze.generate(n, side=7, split=split, seed=0, min_path=8)
                 for n, split in ((8, "train"), (4, "test")))
  for mine, theirs in ((train.questions, test.questions), (train.answers, test.answers)):
    mine[2] = grids.transform(theirs[1].reshape(7, 7), 3).ravel()
  board_files.write(tmp_path / "train.csv", board_files.texts(train, CHARACTERS))
  board_files.write(tmp_path / "test.csv", board_files.texts(test, CHARACTERS))
  return tmp_path


def test_files_are_read_without_train_mazes_that_are_test_mazes(folder):
  train, test = maze.build(side=7, path=str(folder), n_train=None, n_test=None, cache_dir=folder / "cache")
  assert [int(name.split(":")[1]) for name in train.group_names] == [2, 3, 5, 6, 7, 8, 9]
  read = maze.read(folder / "test.csv", side=7)
  np.testing.assert_array_equal(test.read(np.arange(4))[0], read.questions)
  np.testing.assert_array_equal(test.read(np.arange(4))[1], read.answers)
  few, _ = maze.build(side=7, path=str(folder), n_train=3, n_test=2, cache_dir=folder / "cache")
  assert few.n_groups == 3 and set(few.group_names) < set(train.group_names)


def test_the_hub_is_asked_only_when_that_is_allowed(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", board_files.hub(folder))
  options = dict(side=7, path="hf:owner/name", n_train=2, n_test=2, cache_dir=folder / "cache")
  with pytest.raises(ValueError, match="download=True"):
    maze.build(**options)
  assert maze.build(**options, download=True)[0].n_groups == 2


DRAWN = "Soo##" "##o##" "##o##" "##G##" "#####"
ASKED = DRAWN.replace("o", " ")


@pytest.mark.parametrize("row, message", [
    ((ASKED[1:], DRAWN, "5"), "the question has 24 characters, it needs 25"),
    ((DRAWN, DRAWN, "5"), "the question has 'o' at character 2"),
    ((ASKED.replace("S", " "), DRAWN.replace("S", " "), "5"), "one S and one G"),
    ((ASKED.replace("#", "G", 1), DRAWN.replace("#", "G", 1), "5"), "one S and one G"),
    ((ASKED, DRAWN.replace("#", " ", 1), "5"), "the answer must be the question"),
    ((ASKED, DRAWN.replace("o", " ", 1), "5"), "lead from S to G in no path"),
    ((ASKED, ASKED, "5"), "lead from S to G in no path"),
    ((ASKED, DRAWN, "five"), "rating 'five'"),
])
def test_faulty_rows_are_named_by_file_and_line(row, message, tmp_path):
  board_files.write(tmp_path / "mazes.csv", [(ASKED, DRAWN, 5), row])
  with pytest.raises(ValueError, match=rf"mazes\.csv:3: .*{message}"):
    maze.read(tmp_path / "mazes.csv", side=5)


def test_answers_that_are_no_shortest_path_are_taken_and_logged(tmp_path, caplog):
  around = "S  ##" "o# ##" "o#G##" "ooo##" "#####"
  board_files.write(tmp_path / "mazes.csv", [(around.replace("o", " "), around, 6)])
  assert len(maze.read(tmp_path / "mazes.csv", side=5).ratings) == 1
  assert "the answers of 1 of 1 mazes are not shortest paths" in caplog.text
