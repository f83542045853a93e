"""The packing plan: equal to a slow loop, aligned, continuous, complete."""
import numpy as np
import pytest

from atlas_jax.data import packing

DOC, T, ROWS, ALIGN = 99, 12, 3, 4


def documents(n=11, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 90, size=rng.integers(1, 40)) for _ in range(n)]


def tokens_of(texts):
  lengths = np.array([len(text) for text in texts])
  byte_lengths = np.r_[np.arange(99) % 4, 0].astype(np.int32)
  ids = np.concatenate(texts).astype(np.uint8)
  return packing.Tokens(ids, np.cumsum(lengths) - lengths, lengths, byte_lengths, DOC)


def plan_of(texts, **fields):
  return packing.PackingPlan([len(text) for text in texts],
                             **{**dict(batch_rows=ROWS, segment_len=T, align_tokens=ALIGN, seed=5), **fields})


def slow_epoch(texts, epoch, *, seed=5):
  """All batches of an epoch by a loop: [step][row] -> list of [input, target, weight, position, document]."""
  order = range(len(texts)) if seed is None else packing.permutation(len(texts), seed=seed, epoch=epoch)
  line = []
  for d in order:
    text = [int(token) for token in texts[d]]
    for position, (x, y) in enumerate(zip([DOC, *text], [*text, DOC])):
      line.append([x, y, 1, position, d])
    while len(line) % ALIGN:
      line.append([DOC, DOC, 0, 0, -1])
  if seed is None:
    while len(line) % (ROWS * T):
      line.append([DOC, DOC, 0, 0, -1])
  piece = len(line) // (ROWS * T) * T
  rows = []
  for row in range(ROWS):
    part = [list(entry) for entry in line[row * piece:(row + 1) * piece]]
    first = part[0][3]
    for entry in part:
      if entry[4] != part[0][4] or not entry[2]:
        break
      entry[3] -= first
    rows.append(part)
  return [[rows[row][s:s + T] for row in range(ROWS)] for s in range(0, piece, T)]


@pytest.mark.parametrize("seed", [5, None])
def test_the_plan_equals_a_loop_over_tokens(seed):
  texts = documents()
  plan, tokens = plan_of(texts, seed=seed), tokens_of(texts)
  epochs = 3 if seed else 1
  expected = [batch for epoch in range(epochs) for batch in slow_epoch(texts, epoch, seed=seed)]
  assert plan.steps_per_epoch * epochs == len(expected)
  for step, batch in enumerate(expected):
    for row, entries in enumerate(batch):
      got = packing.read_row(plan, tokens, step, row)
      for column, name in enumerate(["tokens_T", "targets_T", "weight_T", "pos_T"]):
        assert got[name].tolist() == [entry[column] for entry in entries], (step, row, name)
      assert (got["doc_T"] < 0).tolist() == [not entry[2] for entry in entries]


def epoch_rows(plan, tokens, epoch=0):
  """Each row's arrays over a whole epoch, put end to end."""
  steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
  for row in range(plan.batch_rows):
    parts = [packing.read_row(plan, tokens, step, row) for step in steps]
    yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_documents_start_at_multiples_of_the_alignment():
  texts = documents()
  for row in epoch_rows(plan_of(texts), tokens_of(texts)):
    changes = np.flatnonzero(np.diff(row["doc_T"], prepend=-2) * (row["doc_T"] >= 0))
    assert len(changes) > 1
    assert not (changes % ALIGN).any()
    assert not row["pos_T"][changes].any()


def test_streams_continue_across_steps():
  texts = [np.arange(80) % 90, np.arange(70) % 90]
  for row in epoch_rows(plan_of(texts), tokens_of(texts)):
    same = (row["doc_T"][1:] == row["doc_T"][:-1]) & (row["doc_T"][1:] >= 0)
    assert same[T - 1::T].any()
    np.testing.assert_array_equal(row["pos_T"][1:][same], row["pos_T"][:-1][same] + 1)


def test_targets_are_the_inputs_shifted():
  texts = documents()
  for row in epoch_rows(plan_of(texts), tokens_of(texts)):
    same = (row["doc_T"][1:] == row["doc_T"][:-1]) & (row["doc_T"][1:] >= 0)
    np.testing.assert_array_equal(row["tokens_T"][1:][same], row["targets_T"][:-1][same])


def test_document_ids_are_unique_over_rows_and_epochs():
  texts = documents()
  plan, tokens = plan_of(texts), tokens_of(texts)
  seen = [set(row["doc_T"].tolist()) - {-1} for epoch in range(3) for row in epoch_rows(plan, tokens, epoch)]
  assert len(set.union(*seen)) == sum(map(len, seen))


def test_another_epoch_has_the_same_targets_in_another_order():
  texts = [np.arange(11) + 3 * i for i in range(9)]  # 9 x 12 places fill three rows exactly.
  plan, tokens = plan_of(texts), tokens_of(texts)
  first, second = (np.concatenate([row["targets_T"] for row in epoch_rows(plan, tokens, epoch)])
                   for epoch in (0, 1))
  assert first.tolist() != second.tolist()
  assert sorted(first.tolist()) == sorted(second.tolist())


def test_every_byte_is_counted_once_without_a_seed():
  texts = documents()
  tokens = tokens_of(texts)
  counted = sum(int(row["bytes_T"].sum()) for row in epoch_rows(plan_of(texts, seed=None), tokens))
  assert counted == int(tokens.byte_lengths[tokens.ids].sum())


def test_steps_can_be_read_in_any_order():
  texts = documents()
  plan, tokens = plan_of(texts), tokens_of(texts)
  steps = list(range(3 * plan.steps_per_epoch))
  forward = [packing.read_row(plan, tokens, step, 1) for step in steps]
  for step in reversed(steps):
    again = packing.read_row(plan, tokens, step, 1)
    np.testing.assert_array_equal(again["tokens_T"], forward[step]["tokens_T"])


def test_the_order_of_documents_is_the_recorded_one():
  assert packing.permutation(8, seed=3, epoch=1).tolist() == [0, 6, 2, 1, 3, 7, 4, 5]


def test_a_plan_without_a_seed_ends():
  plan = plan_of(documents(), seed=None)
  with pytest.raises(IndexError, match="outside"):
    plan.places(plan.steps_per_epoch, 0)


def test_max_tokens_rounds_down_to_steps_but_not_below_one():
  texts = documents()
  assert plan_of(texts, seed=None, max_tokens=2 * ROWS * T + 5).steps_per_epoch == 2
  assert plan_of(texts, seed=None, max_tokens=1).steps_per_epoch == 1


def test_too_little_text_is_refused_with_the_numbers():
  with pytest.raises(ValueError, match=r"1 documents in 4 tokens .* less than one step .*=3 x .*=12 = 36"):
    plan_of([np.arange(3)])


def test_a_segment_that_the_alignment_does_not_divide_is_refused():
  with pytest.raises(ValueError, match="segment_len=12 is not a multiple of config.data.align_tokens=5"):
    plan_of(documents(), align_tokens=5)


def test_places_of_all_epochs_are_found_in_any_order():
  whole = [n for epoch in range(4) for n in packing.permutation(5, seed=3, epoch=epoch)]
  orders = packing.Orders(5, 3)
  places = [19, 0, 7, 4, 5, 12, 3]
  assert [orders.item(place) for place in places] == [whole[place] for place in places]
