"""Votes, rankings and scores, against what the original program gave and against small cases by hand."""

import collections
import hashlib
import json
import math
import pathlib

import numpy as np
import pytest

from atlas_jax.puzzles.arc import voting

FIXTURE = pathlib.Path(__file__).parents[2] / "fixtures" / "trm" / "arc_evaluator.json"


@pytest.fixture(scope="module")
def original():
  return json.loads(FIXTURE.read_text())


def pairs_of(original):
  return {
    task: [(np.array(pair["input"]), np.array(pair["output"])) for pair in found["test"]]
    for task, found in original["test_puzzles"].items()
  }


def inputs_of(original):
  return {task: [grid for grid, _ in pairs] for task, pairs in pairs_of(original).items()}


def votes_of(original):
  votes = voting.Votes()
  for given in original["predictions"]:
    task = given["identifier"].split("|||")[0]
    grid = original["test_puzzles"][task]["test"][given["test_index"]]["input"]
    q = 1 / (1 + math.exp(-given["q_halt_logit"]))
    votes.add(task, grid, given["prediction_de_augmented"], q)
  return votes


def digest(grid):
  cells = np.array(grid, np.uint8)
  return hashlib.sha256(bytes(cells.shape) + cells.tobytes()).hexdigest()


def votes_by_digest(original, votes):
  found = collections.defaultdict(dict)
  for task in sorted(votes.tasks):
    for text, count in votes.counts(task).items():
      found[task][digest(voting.grid_of(text))] = count
  return found


def test_scores_equal_the_original_ones(original):
  expected = original["expected"]["metrics_K2"]
  found = voting.scores(votes_of(original), pairs_of(original), pass_at=(1, 2, 3, 5))
  assert {f"ARC/{name}": found[name] for name in found if name.startswith("pass@")} == expected


def test_rankings_equal_the_original_ones_with_counts_and_mean_q(original):
  votes = votes_of(original)
  for place, expected in original["expected"]["ranking"].items():
    task, index = place.split("/")
    ranked = votes.ranking(task, inputs_of(original)[task][int(index)])
    assert [each.grid.tolist() for each in ranked] == [each["grid"] for each in expected]
    assert [each.n_votes for each in ranked] == [each["count"] for each in expected]
    assert [digest(each.grid) for each in ranked] == [each["sha256"] for each in expected]
    means = [each["mean_q"] for each in expected]
    np.testing.assert_allclose([each.mean_q for each in ranked], means, rtol=1e-15)


@pytest.mark.parametrize("attempts", [2, 6])
def test_a_submission_without_filling_equals_the_original_one(original, attempts):
  found = voting.submission(votes_of(original), inputs_of(original), attempts=attempts, fill=False)
  assert found == original["expected"][f"submission_K{attempts}"]


def test_a_filled_submission_has_an_entry_for_every_test_input(original):
  found = voting.submission(votes_of(original), inputs_of(original))
  short = original["expected"]["submission_K2"]
  assert {task: found[task] for task in ("p_a", "p_b")} == {task: short[task] for task in ("p_a", "p_b")}
  assert found["p_c"] == [{"attempt_1": [[7, 7, 7]], "attempt_2": [[7, 7, 7]]}]


def test_a_pair_without_prediction_does_not_move_the_pairs_after_it():
  votes = voting.Votes()
  votes.add("x", [[2]], [[3]], 0.5)
  filled = voting.submission(votes, {"x": [[[1]], [[2]]]}, attempts=1)
  assert filled == {"x": [{"attempt_1": [[1]]}, {"attempt_1": [[3]]}]}
  short = voting.submission(votes, {"x": [[[1]], [[2]]]}, attempts=1, fill=False)
  assert short == {"x": [{"attempt_1": [[3]]}]}


def test_two_evaluations_add_up_to_the_original_accumulated_votes(original):
  once = votes_of(original)
  expected = original["expected"]
  assert votes_by_digest(original, once) == expected["votes_after_two_evaluations_not_aggregated"]
  twice = voting.merged([once, votes_of(original)])
  assert votes_by_digest(original, twice) == expected["votes_after_two_evaluations"]
  assert votes_by_digest(original, once) == expected["votes_after_two_evaluations_not_aggregated"]


def test_three_scores_of_two_attempts_differ_where_a_task_has_two_outputs():
  votes = voting.Votes()
  votes.add("two", [[1]], [[5]], 0.5)
  votes.add("two", [[2]], [[6]], 0.5)
  votes.add("one", [[3]], [[7]], 0.5)
  tests = {"two": [([[1]], [[5]]), ([[2]], [[9]])], "one": [([[3]], [[7]])]}
  found = voting.scores(votes, tests)
  assert found["kaggle_score"] == 2 / 3  # Two of three outputs.
  assert found["harness_score"] == found["pass@2"] == 0.75  # A half of one task and the whole other.
  assert found["whole_task_score"] == 0.5  # One of two tasks.
  assert [found[f"n_{what}"] for what in ("tasks", "outputs", "whole_tasks")] == [2, 3, 2]
  alone = voting.scores(votes, {"two": tests["two"]})
  assert [alone[f"{name}_score"] for name in ("kaggle", "harness", "whole_task")] == [0.5, 0.5, 0.0]
  assert not any("official" in name for name in found)


def test_unknown_outputs_are_in_no_score_and_no_count():
  votes = voting.Votes()
  votes.add("half", [[1]], [[5]], 0.5)
  votes.add("half", [[2]], [[0]], 0.5)  # Not right: nobody knows.
  votes.add("none", [[3]], [[0]], 0.5)
  votes.add("whole", [[4]], [[9]], 0.5)
  tests = {"half": [([[1]], [[5]]), ([[2]], None)], "none": [([[3]], None)], "whole": [([[4]], [[8]])]}
  found = voting.scores(votes, tests)
  assert (found["pass@2"], found["kaggle_score"], found["harness_score"]) == (0.5, 0.5, 0.5)
  assert found["whole_task_score"] == 0.0
  assert [found[f"n_{what}"] for what in ("tasks", "outputs", "whole_tasks")] == [2, 2, 1]
  assert voting.scores(votes, {"none": tests["none"]}) == {"n_tasks": 0, "n_outputs": 0, "n_whole_tasks": 0}
  assert "whole_task_score" not in voting.scores(votes, {"half": tests["half"]})


def test_an_attempt_without_cells_is_never_handed_in():
  votes = voting.Votes()
  for grid, times in (([], 4), ([[2]], 3), ([[3]], 2)):
    for _ in range(times):
      votes.add("some", [[1]], grid, 0.5)
      votes.add("none", [[1]], [], 0.5)
  for fill in (True, False):
    found = voting.submission(votes, {"some": [[[1]]]}, fill=fill)
    assert found == {"some": [{"attempt_1": [[2]], "attempt_2": [[3]]}]}
  assert voting.submission(votes, {"none": [[[1]]]}) == {"none": [{"attempt_1": [[1]], "attempt_2": [[1]]}]}
  assert voting.submission(votes, {"none": [[[1]]]}, fill=False) == {"none": []}
  found = voting.scores(votes, {"some": [([[1]], [[3]])], "none": [([[1]], [[1]])]})
  assert found["pass@2"] == 0.0  # Third among all predictions, and second of those that are grids.
  assert found["kaggle_score"] == found["harness_score"] == found["whole_task_score"] == 1.0


def test_the_score_of_whole_tasks_asks_for_every_output_within_two_attempts():
  votes = voting.Votes()
  for output, times in (([[1]], 3), ([[2]], 2), ([[3]], 1)):
    for _ in range(times):
      votes.add("easy", [[0]], output, 0.5)
      votes.add("half", [[0]], output, 0.5)
  votes.add("half", [[9]], [[8]], 0.5)
  tests = {"easy": [([[0]], [[2]])], "half": [([[0]], [[3]]), ([[9]], [[8]])]}
  found = voting.scores(votes, tests)
  assert found["whole_task_score"] == 0.5
  assert [found[f"pass@{k}"] for k in (1, 2, 5, 1000)] == [0.25, 0.75, 1.0, 1.0]


def test_one_sure_vote_beats_many_doubtful_ones_under_noisy_or_only():
  votes = voting.Votes()
  for _ in range(3):
    votes.add("x", [[0]], [[1]], 0.1)
  votes.add("x", [[0]], [[2]], 0.9)
  assert [each.grid.tolist() for each in votes.ranking("x", [[0]])] == [[[1]], [[2]]]
  ranked = votes.ranking("x", [[0]], "noisy_or")
  assert [each.grid.tolist() for each in ranked] == [[[2]], [[1]]]
  np.testing.assert_allclose([each.noisy_or for each in ranked], [0.9, 1 - 0.9**3])


def test_certainty_is_finite_and_adds_up():
  votes = voting.Votes()
  votes.add("x", [[0]], [[1]], 1.0)
  votes.add("x", [[0]], [[2]], 1.0)
  votes.add("x", [[0]], [[2]], 1.0)
  assert [each.grid.tolist() for each in votes.ranking("x", [[0]], "noisy_or")] == [[[2]], [[1]]]


def test_grids_that_tie_in_all_stay_in_order_of_appearance():
  votes = voting.Votes()
  for value in (7, 3, 5):
    votes.add("x", [[0]], [[value]], 0.5)
  for rule in voting.RULES:
    assert [each.grid.tolist() for each in votes.ranking("x", [[0]], rule)] == [[[7]], [[3]], [[5]]]


def test_grids_are_read_back_from_their_text():
  grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
  assert voting.text_of(grid) == "012/345"
  np.testing.assert_array_equal(voting.grid_of("012/345"), grid)
  assert voting.grid_of("").shape == (0, 0)


def test_an_empty_prediction_is_a_vote_of_its_own():
  votes = voting.Votes()
  votes.add("x", [[0]], np.zeros((0, 0)), 0.5)
  assert votes.ranking("x", [[0]])[0].grid.shape == (0, 0)


def test_saved_votes_are_read_back_with_the_same_rankings_and_bytes(original, tmp_path):
  votes = votes_of(original)
  votes.save(tmp_path / "votes.json.gz")
  again = voting.load(tmp_path / "votes.json.gz")
  assert list(again._items()) == list(votes._items())
  again.save(tmp_path / "again.json.gz")
  assert (tmp_path / "again.json.gz").read_bytes() == (tmp_path / "votes.json.gz").read_bytes()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json.gz", "votes.json.gz"]


def test_a_file_that_holds_no_votes_is_named(tmp_path):
  (tmp_path / "votes.json.gz").write_bytes(b"no")
  with pytest.raises(ValueError, match="votes.json.gz is no file of votes"):
    voting.load(tmp_path / "votes.json.gz")


def test_wrong_votes_and_rules_are_refused():
  votes = voting.Votes()
  with pytest.raises(ValueError, match="q=1.5"):
    votes.add("x", [[0]], [[1]], 1.5)
  with pytest.raises(ValueError, match="from 11 to 11"):
    votes.add("x", [[0]], [[11]], 0.5)
  with pytest.raises(ValueError, match="choose one of count, noisy_or"):
    votes.ranking("x", [[0]], "loudest")
