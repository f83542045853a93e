"""Batches of ranked responses: what counts, ragged groups, resume, processes; and the groups made here."""

import json

import numpy as np
import pytest

from atlas_jax.data import arithmetic, countdown, ranked, ranked_tasks, responses, tokenizer
from atlas_jax.data.problems import StableRandom

BYTES = tokenizer.load("byte")
DOC = BYTES.doc_id


def group(prompt, *texts, where="file@1"):
  return responses.parse_row(where, {"prompt": prompt, "responses": list(texts)})


GROUPS = [
  group("ab", "long one", "short"),
  group("c", "x"),
  group("d", "1", "22", "333"),
  group("e", "yes", "no"),
]


def source(found=tuple(GROUPS), *, segment_len=20, batch_rows=2, encoding=(), **fields):
  coded = ranked.encode(list(found), BYTES, segment_len=segment_len, **dict(encoding))
  return ranked.RankedSource(coded, batch_rows=batch_rows, doc_id=DOC, **fields)


def texts_of(batch, row, number):
  """The inputs of a response's row, and the targets that count."""
  real = batch["doc_BGT"][row, number] == 0
  return (
    BYTES.decode(batch["tokens_BGT"][row, number][real]),
    list(batch["targets_BGT"][row, number][batch["mask_BGT"][row, number]]),
  )


def test_the_response_and_its_end_count_and_nothing_else():
  batch = source(seed=None).next()
  read, counted = texts_of(batch, 0, 0)
  assert read == "ablong one"
  assert bytes(counted[:-1]) == b"long one" and counted[-1] == DOC
  assert batch["tokens_BGT"][0, 0, 0] == DOC
  np.testing.assert_array_equal(batch["tokens_BGT"][0, 0, 1:], batch["targets_BGT"][0, 0, :-1])


def test_ragged_groups_say_which_responses_are_there():
  batch = source(seed=None, batch_rows=4).next()
  assert batch["valid_BG"].sum(1).tolist() == [2, 1, 3, 2]
  np.testing.assert_array_equal(batch["score_BG"], [[1, 0, 0], [0, 0, 0], [2, 1, 0], [1, 0, 0]])
  absent = ~batch["valid_BG"]
  assert not batch["mask_BGT"][absent].any() and (batch["doc_BGT"][absent] == -1).all()
  assert batch["tokens_BGT"].shape == (4, 3, 11)  # DOC, "ab", "long one", without the last id.


def test_lengths_are_multiples_of_a_memory_s_chunks():
  assert source(align_tokens=8).next()["tokens_BGT"].shape == (2, 3, 16)


def test_ties_have_equal_scores():
  listed = [{"text": text, "rank": rank} for text, rank in (("a", 1), ("b", 2), ("c", 2))]
  tied = responses.parse_row("f@1", {"prompt": "p", "responses": listed})
  assert source([tied], batch_rows=1).next()["score_BG"].tolist() == [[2, 1, 1]]


def test_every_group_is_seen_once_an_epoch_in_a_new_order():
  one = source(batch_rows=1)
  seen = [one.provenance(step) + [int(one.next()["valid_BG"].sum())] for step in range(8)]
  sizes = [size for _, size in seen]
  assert sorted(sizes[:4]) == sorted(sizes[4:]) == [1, 2, 2, 3]
  assert one.steps_of(10) == 40 and source(batch_rows=3).steps_of(10) == 14


def test_without_a_seed_groups_are_read_once_in_order_and_the_last_rows_are_empty():
  one = source(seed=None, batch_rows=3)
  first, second = one.next(), one.next()
  assert first["valid_BG"].any(1).all()
  assert second["valid_BG"].any(1).tolist() == [True, False, False]
  assert one.provenance(1) == ["file@1", "past the end@0", "past the end@0"]
  with pytest.raises(StopIteration):
    one.next()


def same(left, right):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_a_saved_place_goes_on_with_the_very_next_batch():
  one = source()
  for _ in range(3):  # Into the second epoch.
    one.next()
  state = json.loads(json.dumps(one.state()))
  expected = [one.next() for _ in range(3)]
  again = source()
  again.restore(state)
  for batch in expected:
    same(again.next(), batch)


def test_a_place_in_other_data_is_refused():
  state = source().state()
  with pytest.raises(ValueError, match="belongs to other data or settings: fingerprint="):
    source(GROUPS[:3]).restore(state)
  with pytest.raises(ValueError, match="seed=0 then, 1 now"):
    source(seed=1).restore(state)


def test_scores_are_part_of_what_data_are():
  scored = {"prompt": "e", "responses": [{"text": "yes", "rank": 1}, {"text": "no", "rank": 1}]}
  assert source(GROUPS[3:]).fingerprint != source([responses.parse_row("f@1", scored)]).fingerprint


def test_processes_have_the_blocks_of_one_batch():
  whole = source(batch_rows=4)
  parts = [source(batch_rows=4, process_index=index, process_count=2) for index in (0, 1)]
  for step in range(3):
    expected = whole.next()
    halves = [part.next() for part in parts]
    same({name: np.concatenate([half[name] for half in halves]) for name in expected}, expected)
    assert sum((part.provenance(step) for part in parts), []) == whole.provenance(step)


def test_processes_must_divide_the_rows():
  with pytest.raises(ValueError, match="config.data.batch_rows=3 does not divide by the 2 processes"):
    source(batch_rows=3, process_count=2)


def test_what_is_too_long_is_an_error_skipped_or_cut():
  with pytest.raises(
    ValueError,
    match=r"2 responses .* config.data.segment_len=6, the longest 11: file@1: "
    r"responses\[0\].*; set it to 11",
  ):
    source(segment_len=6)
  kept = source(segment_len=6, encoding=dict(overlong="skip"), seed=None, batch_rows=4)
  assert kept.count == 3 and kept.segment_len <= 6
  cut = source(segment_len=6, encoding=dict(overlong="truncate"), seed=None, batch_rows=4).next()
  assert bytes(texts_of(cut, 0, 0)[1]) == b"long"
  gone = source(segment_len=2, encoding=dict(overlong="truncate"), seed=None, batch_rows=1)
  assert gone.count == 3  # Of "ab" nothing is left to learn.


def test_scores_are_those_of_the_whole_group_when_some_are_left_out():
  batch = source(GROUPS[2:3], segment_len=4, encoding=dict(overlong="skip"), batch_rows=1).next()
  assert batch["score_BG"].tolist() == [[2, 1]]


def test_few_responses_are_taken_evenly_from_best_to_worst():
  score_G = np.array([0, 4, 2, 1, 3])
  assert ranked.chosen(score_G, None) == [0, 1, 2, 3, 4]
  assert ranked.chosen(score_G, 3) == [0, 1, 2]  # Worst, best, middle.
  assert ranked.chosen(score_G, 1) == [1]


def test_no_group_at_all_is_refused():
  with pytest.raises(ValueError, match="there is no group of responses"):
    source([])


# --- groups that are made here ---


def loaded(**fields):
  known = dict(files=None, eval_files=None, name="arithmetic", held_out_frac=0.2, seed=0)
  return ranked.load(**(known | fields))


@pytest.mark.parametrize("task", ("arithmetic", "countdown"))
def test_made_groups_are_worth_what_they_say(task):
  made = ranked_tasks.make(task, split="train", count=60, seed=3, held_out_frac=0.2, scores=True)
  sizes = {len(one.responses) for one in made}
  assert sizes == {1, 2, 3, 4, 5, 6}
  assert responses.counts(made)["tied_pairs"] > 0
  for one in made:
    assert responses.parse_row(one.where, responses.as_row(one)).responses == one.responses
    assert not responses.is_contrary(one)
    for kind, response in zip(one.meta["kinds"], one.responses, strict=True):
      assert response.score == ranked_tasks.SCORES[kind]
      assert is_right(one, response.text) == (kind in ("steps", "direct")), (one, response)


def is_right(one, text):
  final = text.rpartition("#### ")[2]
  if one.meta["task"] == "arithmetic":
    return final == one.meta["answer"]
  target, numbers = one.meta["answer"].split(" from ")
  return countdown.solves(final, int(target), list(map(int, numbers.split())))


def test_a_slip_is_one_carry():
  for a, b in ((47, 85), (12, 34), (905, 96), (99, 1)):
    for column in range(len(str(max(a, b))) - 1):
      total, steps = ranked_tasks.slipped(a, b, column)
      assert abs(total - (a + b)) == 10 ** (column + 1)
      assert steps.endswith(f"#### {total}")
  assert ranked_tasks.slipped(47, 85, 5) == arithmetic.solve("+", 47, 85)  # Behind the last column.


def test_made_groups_depend_on_the_seed_alone_and_splits_share_no_prompt():
  train, held_out = loaded()
  again, _ = loaded()
  assert train == again and train != loaded(seed=1)[0]
  assert not {responses.key(one) for one in train} & {responses.key(one) for one in held_out}


def test_numbers_of_one_digit_have_slips_too():
  problem = arithmetic.Arithmetic(digits=1).problem(0)
  kinds = [kind for kind, _ in ranked_tasks.sums(problem, StableRandom(0))]
  assert kinds.count("slip") == 2


@pytest.mark.parametrize(("fields", "says"), (
  (dict(name="python_stdlib"), "config.data.name='python_stdlib' has no ranked responses"),
  (dict(options={"operations": "*"}), "ranked responses are made for sums alone"),
  (dict(eval_files="x.json"), "config.ranked.eval_files='x.json' needs config.data.files"),
))  # fmt: skip
def test_what_cannot_be_made_is_refused(fields, says):
  with pytest.raises(ValueError, match=says):
    loaded(**fields)


def write(path, prompts):
  rows = [{"prompt": prompt, "responses": ["a", "b"]} for prompt in prompts]
  path.write_text(json.dumps(rows))
  return str(path)


def test_files_of_their_own_or_a_share_of_the_prompts_are_held_out(tmp_path, caplog):
  many, few = write(tmp_path / "many.json", map(str, range(30))), write(tmp_path / "few.json", ["x", "7"])
  train, held_out = loaded(files=many)
  assert len(train) + len(held_out) == 30 and 0 < len(held_out) < 15
  train, held_out = loaded(files=many, eval_files=few)
  assert (len(train), len(held_out)) == (30, 2)
  assert "1 prompts of config.ranked.eval_files" in caplog.text
  train, held_out = loaded(files=many, held_out_frac=0.0)
  assert (len(train), len(held_out)) == (30, 0)
  with pytest.raises(ValueError, match="config.ranked.eval_files='nowhere.json' cannot be read"):
    loaded(files=many, eval_files="nowhere.json")
