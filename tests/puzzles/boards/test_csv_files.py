"""Boards of people's own files: every common form is read, and nothing wrong or leaking is passed on."""
import numpy as np
import pytest

from atlas_jax.puzzles import boards
from atlas_jax.puzzles.boards import maze, sudoku
from atlas_jax.puzzles.boards import sudoku_symmetry as symmetry
from tests.puzzles import board_files

DIGITS = "0123456789"
# Side 4: a board of one solution, and a question with two of its several.
AMBIGUOUS = [("1234341221430000", "1234341221434321"), ("1200340020000000", "1234341221434321"),
             ("1200340020000000", "1243342123144132")]  # fmt: skip


@pytest.fixture(scope="module")
def made():
  """Train and test boards of side 4 that share no class."""
  return tuple(sudoku.generate(n, side=4, split=split, seed=0) for n, split in ((12, "train"), (4, "test")))


def rows_of(found):
  """The (question, answer) texts of boards."""
  return [row[:2] for row in board_files.texts(found, DIGITS)]


def write(file, rows, header="question,answer", start="", end="\n"):
  """Writes a file of boards as it stands."""
  lines = [header, *(",".join(row) for row in rows)]
  file.write_bytes((start + "\n".join(lines) + end).encode("utf-8"))
  return file


def build(folder, **options):
  """The two sets of a folder's boards of side 4."""
  return sudoku.build(**{**dict(side=4, path=str(folder), n_train=None, n_test=None, n_augmentations=0,
                                cache_dir=folder / "cache"), **options})  # fmt: skip


def shown(split):
  """The boards of a set, question and answer, as bytes."""
  return {(left.tobytes(), right.tobytes()) for left, right in zip(*split.read(np.arange(split.n_examples)))}


HEADERS = ["quizzes,solutions", "puzzle,solution", "question,answer", "Quizzes, Solutions", '"quiz","answer"']


@pytest.mark.parametrize("header", HEADERS)
def test_the_headers_that_people_have_are_read(header, made, tmp_path):
  found = sudoku.read(write(tmp_path / "a.csv", rows_of(made[0]), header), side=4)
  np.testing.assert_array_equal(found.questions, made[0].questions)
  np.testing.assert_array_equal(found.answers, made[0].answers)


def test_columns_that_are_not_used_are_named_once(made, tmp_path, caplog):
  rows = [("7", *row, "24", "2.5") for row in rows_of(made[0])]
  found = sudoku.read(write(tmp_path / "a.csv", rows, "id,puzzle,solution,clues,difficulty"), side=4)
  assert len(found.ratings) == 12 and not found.ratings.any()
  assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
    "not used are the columns 'id', 'clues', 'difficulty'"]  # fmt: skip


@pytest.mark.parametrize("start, end", [("\ufeff", "\n"), ("", "\n\n\n"), ("", "\n  \n,\n"), ("\ufeff", "")])
def test_a_byte_order_mark_and_blank_lines_change_nothing(start, end, made, tmp_path):
  found = sudoku.read(write(tmp_path / "a.csv", rows_of(made[0]), start=start, end=end), side=4)
  np.testing.assert_array_equal(found.questions, made[0].questions)
  assert found.places.tolist() == list(range(2, 14))


@pytest.mark.parametrize("header, words", [
  ("sudoku,solved", r"no column question, among \['sudoku', 'solved'\].*known names are question, .*quizzes"),
  ("puzzle,solved", "no column answer, .*known names are answer, .*solutions"),
  ("puzzle;solution", "no column question, .*separated by commas"),
  ("puzzle,quizzes,solution", "'puzzle' and 'quizzes' could both be the question; rename or remove one"),
])  # fmt: skip
def test_a_header_that_is_not_known_is_refused_with_those_that_are(header, words, tmp_path):
  with pytest.raises(ValueError, match=rf"a\.csv:1: .*{words}"):
    sudoku.read(write(tmp_path / "a.csv", [], header), side=4)


def test_files_of_other_encodings_and_ratings_that_are_not_there_are_named(made, tmp_path):
  file = write(tmp_path / "a.csv", rows_of(made[0]))
  with pytest.raises(ValueError, match=r"a\.csv:1: no column rating, which min_rating=3 needs"):
    sudoku.read(file, side=4, min_rating=3)
  file.write_text(file.read_text(), encoding="utf-16")
  with pytest.raises(ValueError, match=r"a\.csv is in UTF-16; save it as UTF-8"):
    sudoku.read(file, side=4)


@pytest.mark.parametrize("name", ["train.csv", "sudoku.csv"])
def test_of_a_file_without_test_boards_some_are_held_out_and_not_trained_on(name, made, tmp_path):
  """Also those that shuffles make of the held-out ones."""
  first = made[0].take(np.arange(6))
  shuffle = symmetry.hashed(4, 0, np.arange(6), np.ones(6, int))
  twins = [symmetry.apply(shuffle, cells) for cells in (first.questions, first.answers)]
  pairs = [np.concatenate(pair) for pair in zip(first[:2], twins)]
  both = boards.of_lists(*pairs, np.zeros(12), np.arange(12), 16)
  write(tmp_path / name, rows_of(both))
  path = tmp_path if name == "train.csv" else tmp_path / name
  train, test = build(path, n_test=3, cache_dir=tmp_path / "cache")
  forms = [{symmetry.canonical(4, sudoku.decode(np.frombuffer(left, np.uint8)),
                               sudoku.decode(np.frombuffer(right, np.uint8))) for left, right in shown(split)}
           for split in (train, test)]  # fmt: skip
  assert test.n_groups == 3 and train.n_groups > 0 and not forms[0] & forms[1]
  assert train.n_groups == 12 - sum(
    symmetry.canonical(4, question, answer) in forms[1]
    for question, answer in zip(both.questions, both.answers, strict=True))  # fmt: skip


def test_what_cannot_be_held_out_or_found_is_one_helpful_line(made, tmp_path):
  write(tmp_path / "sudoku.csv", rows_of(made[0]))
  with pytest.raises(ValueError, match=r"train.csv does not exist; .*to read sudoku.csv alone, path='.*csv'"):
    build(tmp_path)
  with pytest.raises(ValueError, match="n_test=None .* beside .*sudoku.csv there is none; give the number"):
    build(tmp_path / "sudoku.csv", cache_dir=tmp_path)
  with pytest.raises(ValueError, match="n_train=10, but there are only"):
    build(tmp_path / "sudoku.csv", n_test=4, n_train=10, cache_dir=tmp_path)


def test_boards_of_several_solutions_are_left_out_and_named(made, tmp_path, caplog):
  write(tmp_path / "train.csv", [*AMBIGUOUS[:2], *rows_of(made[0])])
  write(tmp_path / "test.csv", [*rows_of(made[1]), AMBIGUOUS[2]])
  train, test = build(tmp_path)
  lines = [int(name.split(":")[1]) for name in (*train.group_names, *test.group_names)]
  assert lines == [2, *range(4, 16), 2, 3, 4, 5]
  said = "\n".join(caplog.messages)
  assert "train.csv:3: 1 board is left out: their questions have several solutions" in said
  assert "test.csv:6: 1 board is left out" in said


def test_a_question_of_the_test_is_not_trained_on_whatever_its_answer(made, tmp_path, caplog):
  """Also where nothing looks for second solutions."""
  write(tmp_path / "train.csv", [AMBIGUOUS[1], *rows_of(made[0])])
  write(tmp_path / "test.csv", [*rows_of(made[1]), AMBIGUOUS[2]])
  train, test = build(tmp_path, one_solution=False)
  assert not {left for left, _ in shown(train)} & {left for left, _ in shown(test)}
  assert train.n_groups == 12 and test.n_groups == 5
  assert "train.csv:2: 1 board is left out: a test board is the same or equivalent" in caplog.text


def test_too_few_boards_say_how_many_were_left_out(made, tmp_path):
  write(tmp_path / "train.csv", [*AMBIGUOUS, *rows_of(made[0])])
  write(tmp_path / "test.csv", rows_of(made[1]))
  with pytest.raises(ValueError, match="n_train=15, but there are only 13 such boards, 2 others being left"):
    build(tmp_path, n_train=15)
  write(tmp_path / "train.csv", rows_of(made[1]))
  with pytest.raises(ValueError, match="n_train=None takes all .*, and there is none but 4 that are left"):
    build(tmp_path)
  write(tmp_path / "test.csv", [])
  with pytest.raises(ValueError, match="n_test=None takes all boards of a file, and there is none; give"):
    build(tmp_path)


def test_mazes_of_several_shortest_paths_are_counted(tmp_path, caplog):
  ring = "Soo##", " #o##", "  G##", "#####", "#####"
  write(tmp_path / "a.csv", [("".join(ring).replace("o", " "), "".join(ring))])
  assert len(maze.read(tmp_path / "a.csv", side=5).ratings) == 1
  assert "1 of 1 mazes have several shortest paths; any but the answer's counts as wrong" in caplog.text
