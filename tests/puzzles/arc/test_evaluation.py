"""The evaluation on ARC, on answers handed to it in place of a model's."""

import json
import math
import pathlib

import numpy as np
import pytest

from atlas_jax.puzzles import grids as data_grids
from atlas_jax.puzzles import solver
from atlas_jax.puzzles.arc import evaluation as arc
from atlas_jax.puzzles.arc import voting

FIXTURE = pathlib.Path(__file__).parents[2] / "fixtures" / "trm" / "arc_evaluator.json"
GRIDS = arc.Grids(data_grids.parse_name, data_grids.crop, data_grids.undo)
BATCH_ROWS = 4


@pytest.fixture(scope="module")
def original():
  return json.loads(FIXTURE.read_text())


def results_of(original, blank_first=False):
  """The answers of the original program's evaluation, with the padding of its batches."""
  results = []
  for given in original["predictions"]:
    tokens = lambda name, given=given: data_grids.encode(np.array(given[name], np.uint8))
    results.append(result(tokens("input_as_seen"), tokens("prediction_as_seen"), given))
  blank = np.zeros(data_grids.SEQ_LEN, np.int32)
  padding = [result(blank, blank, {"identifier_index": 0, "q_halt_logit": 3.0})]
  padding = padding * original["blank_rows_appended"]
  return padding + results if blank_first else results + padding


def result(input_T, prediction_T, given):
  metrics = dict.fromkeys(solver.MEANS, 0.0) | {"exact_accuracy": float(given["q_halt_logit"] > 0)}
  return solver.Result(
    0, input_T, np.full(len(input_T), 5), given["identifier_index"], prediction_T, given["q_halt_logit"],
    metrics, labelled=True, calls=1)  # fmt: skip


def evaluation(original, results=None, **options):
  results = results_of(original) if results is None else results
  given = dict(batch_rows=BATCH_ROWS, names=original["identifiers"], tasks=original["test_puzzles"])
  return arc.make(lambda trained: iter(results), GRIDS, **(given | options))


def test_scores_and_files_of_a_checkpoint_equal_the_original_ones(original, tmp_path):
  out = evaluation(original)(None, step=7, workdir=tmp_path)
  expected = original["expected"]["metrics_K2"]
  for name in ("ARC/pass@1", "ARC/pass@2", "ARC/pass@5"):
    assert out.scalars[name] == expected[name]
  assert out.scalars["ARC/whole_task_score"] == 2 / 3  # All pairs of p_a and p_b, none of p_c.
  folder = tmp_path / "evals" / "step_00000007"
  assert sorted(path.name for path in folder.iterdir()) == [
    "submission.json", "submission_accumulated.json", "votes.json.gz"]  # fmt: skip
  submission = json.loads((folder / "submission.json").read_text())
  short = original["expected"]["submission_K2"]
  assert {task: submission[task] for task in ("p_a", "p_b")} == {task: short[task] for task in ("p_a", "p_b")}
  assert submission["p_c"] == [{"attempt_1": [[7, 7, 7]], "attempt_2": [[7, 7, 7]]}]


def test_padding_before_the_answers_changes_no_vote(original, tmp_path):
  evaluation(original)(None, step=1, workdir=tmp_path / "a")
  evaluation(original, results_of(original, blank_first=True))(None, step=1, workdir=tmp_path / "b")
  file = "evals/step_00000001/votes.json.gz"
  assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_two_checkpoints_accumulate_and_a_repeated_one_counts_once(original, tmp_path):
  run = evaluation(original)
  run(None, step=10, workdir=tmp_path)
  for _ in range(2):
    run(None, step=20, workdir=tmp_path)
  expected = original["expected"]
  total = lambda votes: {task: sorted(votes.counts(task).values()) for task in votes.tasks}
  numbers = lambda name: {task: sorted(found.values()) for task, found in expected[name].items()}
  assert total(arc.accumulated(tmp_path, 20)) == numbers("votes_after_two_evaluations")
  assert total(arc.accumulated(tmp_path, 19)) == numbers("votes_after_two_evaluations_not_aggregated")


def one_vote(original, grid):
  """One sure vote for the first test input of p_a."""
  given = original["predictions"][0] | {"q_halt_logit": 20.0}
  tokens = [data_grids.encode(np.array(rows, np.uint8)) for rows in (given["input_as_seen"], grid)]
  return result(*tokens, given)


def test_scores_of_this_checkpoint_do_not_see_earlier_votes(original, tmp_path):
  tasks = {"p_a": original["test_puzzles"]["p_a"]}
  right, wrong = [one_vote(original, [[4, 3], [2, 1]])] * 2, [one_vote(original, [[0]])]
  evaluation(original, right, tasks=tasks)(None, step=1, workdir=tmp_path)
  scalars = evaluation(original, wrong, tasks=tasks)(None, step=2, workdir=tmp_path).scalars
  assert (scalars["ARC/pass@1"], scalars["ARC/accumulated/pass@1"]) == (0.0, 1.0)
  for name in ("kaggle_score", "harness_score", "whole_task_score"):
    assert (scalars[f"ARC/{name}"], scalars[f"ARC/accumulated/{name}"]) == (0.0, 1.0)
  scalars = evaluation(original, wrong, tasks=tasks)(None, step=3).scalars
  assert not any("accumulated" in name for name in scalars)


def test_exact_accuracy_is_given_per_transform(original):
  scalars = evaluation(original)(None, step=1).scalars
  found = {name.rpartition("/")[2]: value for name, value in scalars.items() if "exact_accuracy/" in name}
  by_kind: dict = {}
  for given in original["predictions"]:
    marks = given["identifier"].split("|||")[1:]
    by_kind.setdefault(marks[0] if marks else "original", []).append(given["q_halt_logit"] > 0)
  assert found == {kind: np.mean(solved) for kind, solved in by_kind.items()}
  assert {kind: scalars[f"ARC/n_examples/{kind}"] for kind in by_kind} == {
    kind: len(solved) for kind, solved in by_kind.items()}  # fmt: skip


def test_scores_are_given_with_and_without_the_tasks_that_are_trained_on(original, tmp_path):
  scalars = evaluation(original, leaked={"p_a"})(None, step=1, workdir=tmp_path).scalars
  rest = {task: found for task, found in original["test_puzzles"].items() if task != "p_a"}
  alone = evaluation(original, tasks=rest)(None, step=1).scalars
  whole = evaluation(original)(None, step=1).scalars
  names = [name for name in whole if name.startswith("ARC/") and "ex" not in name]
  assert {name: scalars[name] for name in names} == {name: whole[name] for name in names}
  for name in names:
    assert scalars[name.replace("ARC/", "ARC/unseen/")] == alone[name]
    assert scalars[name.replace("ARC/", "ARC/accumulated/unseen/")] == alone[name]
  assert scalars["ARC/unseen/n_tasks"] == scalars["ARC/n_tasks"] - 1 == 2
  known = [given["identifier"].split("|||")[0] != "p_a" for given in original["predictions"]]
  assert (scalars["eval/unseen/count"], scalars["eval/all/count"]) == (sum(known), len(known))
  assert not any("unseen" in name for name in whole)


def test_examples_without_labels_count_nowhere(original):
  unlabelled = [each._replace(labelled=False) for each in results_of(original)]
  scalars = evaluation(original, unlabelled)(None, step=1).scalars
  assert scalars["eval/all/count"] == 0
  assert not any("exact_accuracy" in name or "n_examples" in name for name in scalars)


def test_q_is_the_sigmoid_of_the_logit_also_far_out():
  for logit in (-800.0, -3.0, 0.0, 4.0, 800.0):
    expected = 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
    given = solver.Result(0, None, None, 1, None, logit, {}, labelled=True, calls=1)
    np.testing.assert_allclose(given.q, expected, rtol=1e-14, atol=1e-300)


def test_scores_of_a_part_are_over_the_tasks_it_reached(original):
  reached = [one_vote(original, [[4, 3], [2, 1]])]
  assert evaluation(original, reached)(None, step=1).scalars["ARC/pass@1"] == 1 / 3
  assert evaluation(original, reached, whole=False)(None, step=1).scalars["ARC/pass@1"] == 1


def test_tasks_without_outputs_have_a_submission_and_no_score(original, tmp_path):
  tasks = {"p_a": {"test": [{"input": [[1, 2], [3, 4]]}]}}
  out = evaluation(original, [one_vote(original, [[6]])], tasks=tasks)(None, step=1, workdir=tmp_path)
  assert not any("pass@" in name or "score" in name for name in out.scalars)
  assert out.scalars["ARC/n_outputs"] == out.scalars["ARC/accumulated/n_tasks"] == 0
  submission = json.loads((tmp_path / "evals/step_00000001/submission.json").read_text())
  assert submission == {"p_a": [{"attempt_1": [[6]], "attempt_2": [[6]]}]}


def test_an_unknown_rule_stops_before_anything_is_solved(original):
  with pytest.raises(ValueError, match="config.puzzle_eval.vote='loudest'"):
    evaluation(original, rule="loudest")


def test_the_second_rule_ranks_by_the_chance_that_any_vote_is_right(original, tmp_path):
  votes = voting.Votes()
  for each in results_of(original)[:6]:
    arc.vote(votes, original["identifiers"][each.id], each, GRIDS)
  ranked = votes.ranking("p_a", [[1, 2], [3, 4]], "noisy_or")
  sigmoid = lambda logit: 1 / (1 + math.exp(-logit))
  expected = {"4": sigmoid(9), "43/21": 1 - (1 - sigmoid(-1)) * (1 - sigmoid(4)),
              "43/22": 1 - (1 - sigmoid(2)) * (1 - sigmoid(-3)), "12/34": sigmoid(-9)}  # fmt: skip
  assert [voting.text_of(each.grid) for each in ranked] == list(expected)
  np.testing.assert_allclose([each.noisy_or for each in ranked], list(expected.values()))
