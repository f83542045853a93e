"""Boards show a puzzle's answer after a supervision step, and where it is wrong."""

import copy

import numpy as np

from atlas_jax.monitor.dashboard import boards, charts

SUDOKU = {"kind": "sudoku", "puzzles": [{
  "name": "board 7", "solved": True, "input": [[1, 0], [0, 2]], "target": [[1, 2], [3, 2]],
  "steps": [{"answer": [[1, 2], [0, 4]], "sure": [[99, 50], [20, 10]], "halt": 25, "right": 0.5},
            {"answer": [[1, 2], [3, 2]], "sure": [[99, 90], [80, 99]], "halt": 96, "right": 1.0}]}]}


def test_a_step_has_question_answer_and_target_side_by_side():
  shown, curves = boards.parts(SUDOKU, 0, 1)
  assert [one.caption for one in shown.boards] == ["question", "answer after step 1", "target"]
  question, answer, target = shown.boards
  assert question.texts == [["1", ""], ["", "2"]] and answer.texts == [["1", "2"], ["", "4"]]
  assert answer.colors == [[boards.GIVEN, boards.RIGHT], [boards.WRONG, boards.WRONG]]
  assert boards.WRONG not in sum([*question.colors, *target.colors], [])
  assert answer.hints[1] == ["0, right is 3, 20% sure", "4, right is 2, 10% sure"]
  assert "50% of the cells" in shown.note and "25%" in shown.note
  assert shown.columns == {"row": [0, 0, 1, 1], "column": [0, 1, 0, 1], "answer": [1, 2, 0, 4],
                           "target": [1, 2, 3, 2]}
  assert [one.label for one in curves.curves] == ["cells right", "taken to be right by the model"]
  np.testing.assert_allclose(curves.curves[0].y, [0.5, 1.0])
  np.testing.assert_allclose(curves.curves[1].y, [0.25, 0.96])
  assert boards.names(SUDOKU) == ["1: board 7 (solved)"] and boards.n_steps(SUDOKU) == 2
  assert charts.table(curves)["supervision step"] == [1.0, 2.0] * 2


def test_the_last_step_of_a_solved_one_has_no_wrong_cell():
  shown, _ = boards.parts(SUDOKU, 0, 2)
  assert boards.WRONG not in sum([color for one in shown.boards for color in one.colors], [])


def test_without_a_target_nothing_is_called_wrong():
  record = copy.deepcopy(SUDOKU)
  record["puzzles"][0].update(target=None, solved=None)
  for step in record["puzzles"][0]["steps"]:
    step["right"] = None
  shown, curves = boards.parts(record, 0, 1)
  assert len(shown.boards) == 2 and len(curves.curves) == 1 and "are right" not in shown.note
  assert boards.WRONG not in sum(shown.boards[1].colors, []) and shown.columns["target"] == [None] * 4


def test_a_grid_of_another_size_is_wrong_where_the_right_one_has_no_cell():
  one = {"name": "t", "solved": False, "input": [[1]], "target": [[3]],
         "steps": [{"answer": [[3, 4]], "sure": [[90, 80]], "halt": 1, "right": 0.5},
                   {"answer": [], "sure": [], "halt": 1, "right": 0.0}]}
  first, _ = boards.parts({"kind": "arc", "puzzles": [one]}, 0, 1)
  assert first.boards[1].texts == [["", boards.CROSS]] and first.boards[1].colors == [[boards.ARC[3],
                                                                                        boards.ARC[4]]]
  assert first.boards[1].hints[0][1].startswith("4, wrong: the right grid ends before")
  empty, _ = boards.parts({"kind": "arc", "puzzles": [one]}, 0, 2)
  assert empty.boards[1].colors == [] and empty.boards[1].caption.endswith("(no grid)")


def test_cells_of_a_maze_are_named():
  one = {"name": "m", "solved": False, "input": [[1, 2]], "target": [[1, 5]],
         "steps": [{"answer": [[1, 2]], "sure": [[90, 80]], "halt": 1, "right": 0.5}]}
  shown, _ = boards.parts({"kind": "maze", "puzzles": [one]}, 0, 1)
  assert shown.boards[1].hints[0] == ["wall, 90% sure", "free, right is path, 80% sure"]
  assert shown.boards[1].texts == [["", boards.CROSS]]
