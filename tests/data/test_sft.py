"""Examples in rows: what is learnt where, none lost, and the same batches after a restart."""
import json

import numpy as np
import pytest

from atlas_jax.data import sft, source, tokenizer
from atlas_jax.data.problems import Problem
from atlas_jax.data.sft import Example, SftSource

BYTES = tokenizer.ByteTokenizer()
PROBLEMS = [Problem(f"f:{n}", "q" * (n % 5 + 1), solution="a" * (n % 3 + 1)) for n in range(23)]


def tiny_source(problems=PROBLEMS, **more):
  examples = sft.encode(problems, BYTES, segment_len=16)
  return SftSource(examples, **{**dict(segment_len=16, batch_rows=4, doc_id=256, seed=2), **more})


def read_back(batch):
  """(where it stands in the list, ids, learnt ids) of every example in a batch."""
  found = []
  for tokens_T, targets_T, weight_T, doc_T, pos_T in zip(*(batch[f"{name}_BT"] for name in (
      "tokens", "targets", "weight", "doc", "pos"))):
    for item in np.unique(doc_T[doc_T >= 0]):
      here = doc_T == item
      np.testing.assert_array_equal(pos_T[here], np.arange(here.sum()))
      np.testing.assert_array_equal(tokens_T[here][1:], targets_T[here][:-1])
      ids = [*tokens_T[here][:1], *targets_T[here]]
      found.append((int(item), ids, targets_T[here][weight_T[here] > 0].tolist()))
    assert not weight_T[doc_T < 0].any() and (tokens_T[doc_T < 0] == 256).all()
  return found


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("align_tokens", [1, 4])
def test_an_epoch_shows_every_example_whole_and_once(packed, align_tokens):
  once = tiny_source(seed=None, packed=packed, align_tokens=align_tokens)
  found = sorted(one for step in range(once.steps_per_epoch) for one in read_back(once.batch(step)))
  expected = [(n, [256, *one.prompt.encode(), *one.solution.encode(), 256], [*one.solution.encode(), 256])
              for n, one in enumerate(PROBLEMS)]
  assert found == expected
  assert once.rows == len(PROBLEMS) if not packed else once.rows < 0.6 * len(PROBLEMS)


def test_examples_start_at_multiples_of_the_alignment():
  train = tiny_source(align_tokens=4)
  for step in range(3):
    batch = train.batch(step)
    starts = np.argwhere((batch["pos_BT"] == 0) & (batch["doc_BT"] >= 0))
    assert len(starts) and not (starts[:, 1] % 4).any()


def test_every_epoch_has_the_same_rows_in_another_order():
  train = tiny_source(batch_rows=1)
  rows = [train.provenance(step)[0] for step in range(2 * train.rows)]
  epochs = [rows[:train.rows], rows[train.rows:]]
  assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


def test_packing_wastes_little_and_splits_nothing():
  sizes = [1 + (7 * n) % 13 for n in range(200)]
  rows = sft.pack(sizes, 16)
  assert sorted(item for row in rows for item in row) == list(range(200))
  filled = [sum(sizes[item] for item in row) for row in rows]
  assert max(filled) <= 16 and len(rows) <= 1.05 * sum(sizes) / 16


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_read_the_batch_of_one(count):
  whole = tiny_source()
  parts = [tiny_source(process_index=index, process_count=count) for index in range(count)]
  for _ in range(4):
    batch, pieces = whole.next(), [part.next() for part in parts]
    for name in batch:
      np.testing.assert_array_equal(batch[name], np.concatenate([piece[name] for piece in pieces]))


def test_a_restored_source_goes_on_with_the_very_next_batch():
  unbroken, stopped, resumed = tiny_source(), tiny_source(), tiny_source()
  expected = [unbroken.next() for _ in range(6)]
  for _ in range(3):
    stopped.next()
  resumed.restore(json.loads(json.dumps(stopped.state())))
  for batch in expected[3:]:
    again = resumed.next()
    assert all(np.array_equal(again[name], batch[name]) for name in batch)


def test_a_place_in_other_examples_is_refused():
  with pytest.raises(ValueError, match="fingerprint="):
    tiny_source(PROBLEMS[1:]).restore(tiny_source().state())


def test_held_out_rows_end_and_the_last_batch_is_padded():
  once = tiny_source(seed=None, packed=False)
  batches = [once.next() for _ in range(6)]  # 23 rows in steps of 4.
  assert not batches[-1]["weight_BT"][-1].any() and once.provenance(5)[-1] == "past the end@0"
  with pytest.raises(StopIteration):
    once.next()


LONG = [Problem("f:1", "q", solution="a"), Problem("f:2", "qq", solution="a" * 30),
        Problem("f:3", "q" * 30, solution="a")]


def test_an_example_longer_than_a_row_is_named():
  with pytest.raises(ValueError, match="2 of 3 examples are longer than config.data.segment_len=16, the "
                                       "longest 33: f:2, f:3; set it to 33"):
    sft.encode(LONG, BYTES, segment_len=16)


def test_overlong_examples_can_be_skipped_or_cut():
  assert [one.where for one in sft.encode(LONG, BYTES, segment_len=16, overlong="skip")] == ["f:1"]
  cut = sft.encode(LONG, BYTES, segment_len=16, overlong="truncate")
  assert [(one.where, len(one.ids_T)) for one in cut] == [("f:1", 4), ("f:2", 17)]  # f:3 has no answer left.
  assert len(sft.encode(LONG, BYTES, segment_len=33)) == 3


@pytest.mark.parametrize("change, message", [
    (dict(process_count=3), "batch_rows=4 does not divide by the 3 processes"),
    (dict(align_tokens=5), "segment_len=16 is not a multiple of config.data.align_tokens=5"),
    (dict(segment_len=4), "an example has 9 tokens, config.data.segment_len=4"),
])
def test_sizes_that_do_not_fit_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    tiny_source(**change)


def test_no_example_and_unknown_settings_are_refused():
  with pytest.raises(ValueError, match="no example to learn from"):
    SftSource([], segment_len=4, batch_rows=1, doc_id=0)
  with pytest.raises(ValueError, match="config.data.turns='some' must be one of all, last, split"):
    sft.encode([], BYTES, segment_len=4, turns="some")


def test_a_task_gives_examples_by_name():
  train = source.load("sft", seed=1, name="arithmetic", segment_len=32, batch_rows=2, held_out_frac=0.1,
                      max_problems=50)
  batch = train.next()
  assert batch["tokens_BT"].shape == (2, 32) and batch["weight_BT"].sum() > 10
  with pytest.raises(ValueError, match="name='arithmetic' has no end; set config.data.max_problems"):
    source.load("sft", seed=1, name="arithmetic", segment_len=32, batch_rows=2, held_out_frac=0.1)


def test_a_file_of_chats_gives_examples_by_name(tmp_path):
  pytest.importorskip("jinja2"), pytest.importorskip("tokenizers")
  folder = "tests/fixtures/hf_models/byte_tokenizer"
  turns = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "3"}]
  lines = [json.dumps({"messages": turns * n}) for n in (1, 2, 3)]
  (tmp_path / "chats.jsonl").write_text("\n".join(lines))
  rows = {"all": 3, "split": 6}
  for turns_option, count in rows.items():
    train = source.load("sft", seed=1, name="files", files=str(tmp_path), segment_len=128, batch_rows=1,
                        held_out_frac=0.0, tokenizer=folder, chat_template=folder, turns=turns_option,
                        packed=False)
    learnt = sum(int(train.batch(step)["weight_BT"].sum()) for step in range(train.rows))
    assert train.rows == count and learnt == 2 * 6  # "3" and the end of the turn, six times.


def test_example_is_what_the_fingerprint_reads():
  one = Example("a/f:1", np.arange(4, dtype=np.int32), np.array([False, True, True, True]))
  moved, other = one._replace(where="b/f:1"), one._replace(learn_T=~one.learn_T)
  sources = [SftSource([each], segment_len=4, batch_rows=1, doc_id=0) for each in (one, moved, other)]
  marks = [each.state()["fingerprint"] for each in sources]
  assert marks[0] == marks[1] != marks[2]
