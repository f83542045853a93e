"""Rows of ranked responses: every shape that is allowed, ties, what is refused, and where, splits."""

import json
import logging

import numpy as np
import pytest

from atlas_jax.data import responses
from tests import post_training_fixture as fixture

RULES = "arc_atlas/ranked_response_rules"


def row(*ranks, **fields):
  listed = [{"text": f"answer {number}", "rank": rank} for number, rank in enumerate(ranks)]
  return {"prompt": "Why?", "responses": listed} | fields


def group(*ranks, **fields):
  return responses.parse_row("file:3", row(*ranks, **fields))


def test_scores_follow_the_rule_for_ranks():
  for case in fixture.text(RULES)["cases"]:
    assert responses.score_of(group(*case["ranks"]).responses).tolist() == case["scores"]


def test_the_published_example_is_read_with_its_scores_and_meta():
  example = fixture.text(RULES)["data_example"]
  found = responses.parse_row("file:1", example)
  assert (found.prompt, dict(found.meta)) == ("What is 2+2?", {"source": "example"})
  assert found.responses[1] == ("It is four, I think.", 2, 0.6)
  np.testing.assert_allclose(responses.score_of(found.responses), [1, 0.6, 0])
  assert responses.as_row(found) == example


def test_bare_texts_are_the_best_first():
  found = responses.parse_row("file:1", {"prompt": "Why?", "responses": ["so", "because", "no"]})
  assert [one.rank for one in found.responses] == [1, 2, 3]
  assert responses.score_of(found.responses).tolist() == [2, 1, 0]


def test_a_score_wins_over_a_rank_response_by_response():
  listed = [{"text": "a", "rank": 1}, {"text": "b", "rank": 2, "score": 0.25}, {"text": "c", "rank": 3}]
  found = responses.parse_row("file:1", {"prompt": "Why?", "responses": listed})
  assert responses.score_of(found.responses).tolist() == [2, 0.25, 0]


def test_scores_alone_are_enough_and_equal_ones_tie():
  listed = [{"text": text, "score": score} for text, score in (("a", -1), ("b", 5), ("c", 5))]
  found = responses.parse_row("file:1", {"prompt": "Why?", "responses": listed})
  assert [one.rank for one in found.responses] == [3, 1, 1]


def test_one_response_is_a_group():
  found = group(1)
  assert responses.score_of(found.responses).tolist() == [0]
  assert responses.counts([found])["pairs"] == 0


def test_other_fields_become_meta_which_wins():
  assert dict(group(1, id=7, meta={"id": 8, "a": 1}).meta) == {"id": 8, "a": 1}


def test_tables_hold_whole_ranks_as_floats_and_absent_scores_as_none():
  listed = [{"text": "a", "rank": 1.0, "score": None}, {"text": "b", "rank": 2.0, "score": None}]
  assert responses.parse_row("file:1", {"prompt": "Why?", "responses": listed}).responses[1].rank == 2


def test_a_prompt_may_be_messages():
  found = responses.parse_row("file:1", row(1, prompt=[{"role": "user", "content": "Why?"}]))
  assert found.prompt == [{"role": "user", "content": "Why?"}]


BAD = (
  ({"promt": "Why?"}, "file:3: has no 'prompt'; it has 'promt'"),
  ({"question": "Why?"}, "file:3: 'responses' is missing"),
  (row(1, prompt="  "), "file:3: 'prompt' is empty"),
  (row(1, prompt=7), "file:3: prompt: messages are int"),
  (row(1, meta="x"), "file:3: 'meta' is a text, not an object"),
  ({"prompt": "Why?"}, "file:3: 'responses' is missing"),
  (row(), "file:3: 'responses' is empty"),
  (row(responses="a"), "file:3: 'responses' is a text"),
  (row(responses={"text": "a"}), "file:3: 'responses' is an object"),
  (
    row(responses=["a", {"text": "b", "rank": 2}]),
    r"file:3: responses\[0\] is a text; responses are all texts",
  ),
  (row(responses=["a", None]), r"file:3: responses\[0\] is a text"),
  (row(responses=["a", " "]), r"file:3: responses\[1\] is empty"),
  (row(responses=[{"rank": 1}]), r"file:3: responses\[0\].text is missing"),
  (row(responses=[{"text": 4, "rank": 1}]), r"file:3: responses\[0\].text is a number"),
  (row(responses=[{"text": "", "rank": 1}]), r"file:3: responses\[0\].text is empty"),
  (row(responses=[{"text": "a"}]), r"file:3: responses\[0\] has no 'rank'"),
  (row(responses=[{"text": "a", "rank": 1}, {"text": "b", "score": 1}]), r"responses\[1\] has no 'rank'"),
  (row(0, 1), r"file:3: responses\[0\].rank is 0; ranks are whole numbers from 1"),
  (row(1, 1.5), r"file:3: responses\[1\].rank is 1.5"),
  (row(True), r"file:3: responses\[0\].rank is True"),
  (row("1"), r"file:3: responses\[0\].rank is '1'"),
  (row(1, 4), r"file:3: responses\[1\].rank is 4 in a group of 2; ranks are 2 at most"),
  (row(responses=[{"text": "a", "score": float("nan")}]), r"file:3: responses\[0\].score is nan"),
  (row(responses=[{"text": "a", "score": 10**400}]), r"score is 10000+; it must be a finite number"),
  (row(responses=[{"text": "a", "score": 1e39}]), r"score is 1e\+39; it must be"),
  (row(responses=[{"text": "a", "score": -float("inf")}]), r"score is -inf; it must be"),
  (row(responses=[{"text": "a", "rank": 1, "score": "good"}]), r"responses\[0\].score is 'good'; it must be"),
  (
    row(responses=["a", "b", "a"]),
    r"responses\[2\].text is that of responses\[0\], which is ranked otherwise",
  ),
)


@pytest.mark.parametrize(("bad", "says"), BAD)
def test_a_row_that_cannot_be_used_is_refused_with_place_and_field(bad, says):
  with pytest.raises(ValueError, match=says):
    responses.parse_row("file:3", bad)


def test_ranks_that_filtering_left_are_counted_anew_only_if_asked():
  found = responses.parse_row("file:1", row(3, 9, 9, 1), renumber=True)
  assert [one.rank for one in found.responses] == [2, 3, 3, 1]


def test_a_text_may_stand_twice_if_it_is_worth_the_same_and_twins_can_be_left_out():
  listed = [{"text": "a", "rank": 1}, {"text": "a", "rank": 1}, {"text": "b", "rank": 3}]
  found = responses.parse_row("file:1", {"prompt": "Why?", "responses": listed})
  assert len(found.responses) == 3
  assert [(one.text, one.rank) for one in responses.without_twins(found).responses] == [("a", 1), ("b", 2)]


def write(path, rows, lines=True):
  text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
  path.write_text(text)
  return str(path)


@pytest.mark.parametrize("name", ("rows.jsonl", "rows.json"))
def test_files_are_read_and_errors_name_them(tmp_path, name):
  file = write(tmp_path / name, [row(1), row(1, 2)], lines=name.endswith("l"))
  assert [len(found.responses) for found in responses.read(file)] == [1, 2]
  bad = write(tmp_path / f"bad_{name}", [row(1), row(0)], lines=name.endswith("l"))
  with pytest.raises(ValueError, match=rf"{bad}:2: responses\[0\].rank is 0"):
    responses.read(bad)


def test_a_table_is_read_like_lines(tmp_path):
  arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  rows = [row(2, 1), {"prompt": "How?", "responses": [{"text": "so", "rank": 1, "score": 0.5}]}]
  parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
  found = responses.read(str(tmp_path / "rows.parquet"))
  assert responses.score_of(found[0].responses).tolist() == [0, 1]
  assert found[1].responses == (("so", 1, 0.5),)


def test_a_file_without_rows_is_refused(tmp_path):
  with pytest.raises(ValueError, match="has no row; give at least one"):
    responses.read(write(tmp_path / "none.json", [], lines=False))


def test_scores_that_contradict_ranks_are_warned_of(caplog):
  listed = [{"text": "a", "rank": 1, "score": 1}, {"text": "b", "rank": 2, "score": 2}]
  found = responses.parse_row("file:1", {"prompt": "Why?", "responses": listed})
  assert responses.is_contrary(found) and not responses.is_contrary(group(1, 2, 2))
  with caplog.at_level(logging.WARNING):
    responses.warn([found, group(1)])
  assert "scores for some responses only" not in caplog.text
  assert "in 1 of 2 groups, and scores win: file:1" in caplog.text


def test_scores_for_some_responses_only_are_warned_of(caplog):
  listed = [{"text": "a", "rank": 1, "score": 1}, {"text": "b", "rank": 2}, {"text": "c", "rank": 3}]
  found = responses.parse_row("file:1", {"prompt": "Why?", "responses": listed})
  with caplog.at_level(logging.WARNING):
    responses.warn([group(1), found])
  assert "1 of 2 groups have scores for some responses only" in caplog.text and ": file:1;" in caplog.text


def test_a_split_puts_no_prompt_on_both_sides_and_leaves_none_empty():
  found = [group(1, prompt=f"{number % 40}") for number in range(80)]
  train, held_out = responses.split(found, 0.2)
  assert len(train) + len(held_out) == 80
  assert not {one.prompt for one in train} & {one.prompt for one in held_out}
  assert 2 <= len(held_out) <= 32
  two = [group(1, prompt="a"), group(1, prompt="b")]
  assert [len(side) for side in responses.split(two, 1e-9)] == [1, 1]
  assert [len(side) for side in responses.split(two, 0.999)] == [1, 1]
  assert [len(side) for side in responses.split(two, 0.0)] == [2, 0]


def test_a_side_does_not_change_with_other_prompts():
  found = [group(1, prompt=f"{number}") for number in range(60)]
  held_out = {one.prompt for one in responses.split(found, 0.3)[1]}
  assert {one.prompt for one in responses.split(found[:40], 0.3)[1]} == held_out & {str(n) for n in range(40)}


def test_one_prompt_cannot_be_split():
  with pytest.raises(ValueError, match="1 prompt cannot be split"):
    responses.split([group(1), group(1, 2)], 0.5)


def test_counts_tell_of_pairs_and_ties():
  told = responses.counts([group(1, 2, 2), group(1), group(1, 1, prompt="How?")])
  assert told == {
    "prompts": 2,
    "groups": 3,
    "responses": 6,
    "pairs": 2,
    "tied_pairs": 2,
    "groups_by_size": {"1": 1, "2": 1, "3": 1},
  }


def test_what_is_not_read_of_a_preference_is_named():
  said = {"role": "assistant", "content": "a", "reasoning_content": "b", "weight": 0}
  found = responses.parse_row("f:1", {"prompt": [{"role": "user", "content": "q"}], "chosen": [said],
                                      "rejected": [{"role": "assistant", "content": "c"}]})
  assert set(found.unused) == {"chosen[-1].reasoning_content", "chosen[-1].weight"}


def test_scores_of_a_preference_must_be_float32():
  given = {"prompt": "q", "chosen": "a", "rejected": "b", "score_rejected": 0}
  for score in (1e39, 10**400, "1e39"):
    with pytest.raises(ValueError, match="'score_chosen' is .*that float32 holds"):
      responses.parse_row("f:1", {**given, "score_chosen": score})
