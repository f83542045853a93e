"""Answers of every supervision step are recorded for the puzzles of an evaluation's pictures."""

import json

import numpy as np
import pytest

from atlas_jax.puzzles import accuracy, grids, step_answers, tracing
from atlas_jax.state import Trained
from tests.evals.answers import answer
from tests.helpers import quick_compilation
from tests.puzzles import test_solver as solving


def scripted(*predictions_T, halt=0.25):
  """A tracer whose every row answers the same, and which counts its rows."""
  calls = []

  def trace(params, batch, reset, tables):
    calls.append({name: array.shape for name, array in batch.items()})
    rows = len(batch["ids_B"])
    prediction_NBT = np.stack([np.tile(np.asarray(one), (rows, 1)) for one in predictions_T])
    return tracing.SolvingTrace(prediction_NBT, np.full(prediction_NBT.shape, 0.5),
                                np.full(prediction_NBT.shape[:2], halt))

  trace.calls = calls
  return trace


TRAINED = Trained({}, {"reset": ()})


def test_a_sudoku_is_recorded_in_digits():
  given, right = np.array([2, 1, 1, 3]), np.array([2, 3, 4, 3])
  trace = scripted([2, 3, 0, 3], right)
  record = step_answers.make(trace, "sudoku", (2, 2), lambda result: f"board {result.example}", rows=2)
  found = record(TRAINED, [answer(given, right, right, example=7)])
  assert found == {"kind": "sudoku", "puzzles": [{
    "name": "board 7", "solved": True, "input": [[1, 0], [0, 2]], "target": [[1, 2], [3, 2]],
    "steps": [{"answer": [[1, 2], [0, 2]], "sure": [[50, 50], [50, 50]], "halt": 25, "right": 0.75},
              {"answer": [[1, 2], [3, 2]], "sure": [[50, 50], [50, 50]], "halt": 25, "right": 1.0}]}]}
  json.dumps(found)


def test_fewer_puzzles_are_filled_up_to_one_shape_and_too_many_are_cut():
  trace = scripted(np.ones(4))
  record = step_answers.make(trace, "maze", (2, 2), lambda result: str(result.example), rows=2)
  for count, kept in ((1, 1), (2, 2), (3, 2)):
    results = [answer(np.ones(4), np.ones(4), np.ones(4), example=number) for number in range(count)]
    assert [one["name"] for one in record(TRAINED, results)["puzzles"]] == ["0", "1"][:kept]
  assert record(TRAINED, []) is None
  assert trace.calls == [{"inputs_BT": (2, 4), "labels_BT": (2, 4), "ids_B": (2,)}] * 3


def test_a_puzzle_without_a_target_says_so():
  record = step_answers.make(scripted(np.ones(4)), "maze", (2, 2), lambda result: "x", rows=1)
  (one,) = record(TRAINED, [answer(np.ones(4), np.full(4, -100), np.ones(4))])["puzzles"]
  assert one["target"] is None and one["solved"] is None and one["steps"][0]["right"] is None


def test_grids_of_arc_are_cut_out_and_their_chances_with_them():
  given = grids.encode(np.array([[1, 2]], np.uint8), canvas=4)
  right = grids.encode(np.array([[3], [4]], np.uint8), canvas=4)
  labels = np.where(right == 0, -100, right.astype(int))
  record = step_answers.make(scripted(given, right), "arc", (4, 4), lambda result: "t", rows=1,
                             crop=grids.crop)
  (one,) = record(TRAINED, [answer(given, labels, right)])["puzzles"]
  assert one["input"] == [[1, 2]] and one["target"] == [[3], [4]]
  assert [step["answer"] for step in one["steps"]] == [[[1, 2]], [[3], [4]]]
  assert [step["sure"] for step in one["steps"]] == [[[50, 50]], [[50], [50]]]


@pytest.mark.parametrize("workdir", [False, True])
def test_an_evaluation_leaves_them_beside_its_pictures(tmp_path, workdir):
  model, params, table, reset = solving.tiny()
  side = model.seq_len
  trained = Trained(params, {"reset": reset}, {"puzzles": table})
  results = solving.solved()[:3]
  with quick_compilation():
    trace = tracing.make(model, n_supervision=solving.N_SUPERVISION)
    record = step_answers.make(trace, "maze", (1, side), lambda result: str(result.example), rows=4)
    run = accuracy.make(lambda trained: iter(results), batch_rows=4, n_pictures=4, record=record)
    run(trained, step=3, workdir=tmp_path if workdir else None)
  files = list(tmp_path.rglob("*.json"))
  assert [file.relative_to(tmp_path).as_posix() for file in files] == (
      ["evals/step_00000003/steps.json"] if workdir else [])
  if workdir:
    for one in json.loads(files[0].read_text())["puzzles"]:
      (result,) = [result for result in results if str(result.example) == one["name"]]
      np.testing.assert_array_equal(one["steps"][-1]["answer"], [result.prediction_T])
      assert len(one["steps"]) == solving.N_SUPERVISION
