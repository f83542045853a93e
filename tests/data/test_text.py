"""The text source: same batches on any number of processes and after a restart, and an honest split."""
import json
import sys

import numpy as np
import pytest

from atlas_jax.data import source
from tests.data.corpora import SMALL, assert_same, take, tiny_source, write_texts


@pytest.fixture
def folder(tmp_path):
  return write_texts(tmp_path / "texts")


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_read_the_batch_of_one(folder, count):
  whole = take(tiny_source(folder), 7)
  parts = [take(tiny_source(folder, process_index=i, process_count=count), 7) for i in range(count)]
  for step, batch in enumerate(whole):
    joined = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
    assert_same(joined, batch)


def test_any_step_can_be_read_without_moving(folder):
  train = tiny_source(folder, process_index=1, process_count=2)
  ahead = [train.batch(step) for step in (4, 0, 2)]
  batches = take(train, 5)
  for batch, step in zip(ahead, (4, 0, 2)):
    assert_same(batch, batches[step])
  with pytest.raises(IndexError, match="outside"):
    tiny_source(folder, split="held_out").batch(10**6)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(folder, threads):
  threaded = tiny_source(folder, threads=threads)
  for actual, expected in zip(take(threaded, 9), take(tiny_source(folder), 9)):
    assert_same(actual, expected)
  threaded.close()


def test_arrays_have_the_promised_types(folder):
  batch = tiny_source(folder).next(None)
  types = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
  ints = ["tokens_BT", "targets_BT", "doc_BT", "pos_BT", "bytes_BT"]
  assert types == {"weight_BT": ((4, 16), "float32"), **dict.fromkeys(ints, ((4, 16), "int32"))}


def test_a_restored_source_gives_the_very_next_batch(folder):
  running = tiny_source(folder, threads=2)
  take(running, 5)
  state = json.loads(json.dumps(running.state()))
  expected = take(running, 4)
  restored = tiny_source(folder, process_count=1)
  restored.next(None)
  restored.restore(state)
  for actual, batch in zip(take(restored, 4), expected):
    assert_same(actual, batch)
  assert restored.state() == running.state()
  running.close()


def test_the_place_does_not_depend_on_processes(folder):
  one, half = tiny_source(folder), tiny_source(folder, process_index=1, process_count=2)
  take(one, 3), take(half, 3)
  assert one.state() == half.state()


@pytest.mark.parametrize("field, value", [
  ("seed", 4), ("batch_rows", 2), ("segment_len", 8), ("align_tokens", 8), ("held_out_frac", 0.3),
  ("split", "held_out")])
def test_a_place_of_other_settings_is_refused_by_name(folder, field, value):
  state = tiny_source(folder).state()
  with pytest.raises(ValueError, match=f"{field}=.* then, {value!r} now"):
    tiny_source(folder, **{field: value}).restore(state)


def test_a_place_in_other_text_is_refused(folder):
  state = tiny_source(folder).state()
  (folder / "000.txt").write_text("something else")
  with pytest.raises(ValueError, match="sha256=.* then"):
    tiny_source(folder).restore(state)


def test_a_place_of_another_python_is_refused(folder):
  here = source.load(**{**SMALL, "name": "python_stdlib"})
  state = here.state()
  state["manifest"]["python"], state["fingerprint"] = "3.99.0", "?"
  with pytest.raises(ValueError, match=f"python='3.99.0' then, '{sys.version.split()[0]}' now"):
    here.restore(state)


def test_a_moved_folder_is_the_same_corpus(tmp_path):
  one, other = (tiny_source(write_texts(tmp_path / name)) for name in ("here", "there"))
  assert one.state() == other.state()


def documents_of(batches):
  """The documents that begin and end within the batches, by the rows' streams."""
  rows = {name: np.concatenate([batch[name] for batch in batches], axis=1) for name in batches[0]}
  found = set()
  for row in range(len(rows["doc_BT"])):
    for doc in set(rows["doc_BT"][row].tolist()) - {-1}:
      at = rows["doc_BT"][row] == doc
      inputs, targets = rows["tokens_BT"][row][at], rows["targets_BT"][row][at]
      if inputs[0] == 256 and targets[-1] == 256:
        found.add(bytes(targets[:-1].astype(np.uint8)))
  return found


def test_no_held_out_document_is_in_train(folder):
  train, held_out = tiny_source(folder), tiny_source(folder, split="held_out")
  seen = documents_of(take(train, 4 * train.steps_per_epoch))
  kept = documents_of(take(held_out, len(held_out)))
  files = {file.read_bytes() for file in folder.iterdir()}
  assert seen and kept and not seen & kept
  assert (seen | kept) <= files


def test_held_out_counts_every_byte_once_and_stops(folder):
  held_out = tiny_source(folder, split="held_out")
  batches = take(held_out, held_out.steps_per_epoch)
  with pytest.raises(StopIteration):
    held_out.next(None)
  assert sum(int(batch["bytes_BT"].sum()) for batch in batches) == len(held_out.text())


def test_held_out_text_is_whole_files_in_order(folder):
  train, held_out = tiny_source(folder), tiny_source(folder, split="held_out")
  files = [file.read_bytes() for file in sorted(folder.iterdir())]
  assert b"".join(text for text in files if text in held_out.text()) == held_out.text()
  assert len(train.text()) + len(held_out.text()) == sum(map(len, files))
  assert held_out.text(10) == held_out.text()[:10]


def test_max_tokens_ends_held_out_early(folder):
  assert len(tiny_source(folder, split="held_out", max_tokens=64)) == 1


def test_raising_the_share_only_moves_documents_out_of_train(folder):
  small, large = (tiny_source(folder, split="held_out", held_out_frac=frac) for frac in (0.2, 0.6))
  pieces = [file.read_bytes() for file in folder.iterdir() if file.read_bytes() in small.text()]
  assert pieces and all(piece in large.text() for piece in pieces)


def test_provenance_names_the_file_and_byte_of_each_row(folder):
  train = tiny_source(folder)
  for step, batch in enumerate(take(train, 6)):
    for row, place in enumerate(train.provenance(step)):
      name, offset = place.split("@")
      text = (folder / name).read_bytes()[int(offset):]
      inputs = batch["tokens_BT"][row]
      start = 1 if inputs[0] == 256 else 0
      length = min(len(text), 16 - start)
      assert bytes(inputs[start:start + length].astype(np.uint8)) == text[:length]


def test_an_unknown_source_lists_the_known():
  with pytest.raises(ValueError, match="config.data.source='texts' is unknown; known sources: .*text"):
    source.load(source="texts")


def test_fields_of_other_sources_are_left_to_them(folder):
  source = tiny_source(folder, group_size=3, turns="last")
  np.testing.assert_array_equal(source.next(None)["tokens_BT"], tiny_source(folder).next(None)["tokens_BT"])


@pytest.mark.parametrize("fields, message", [
  (dict(process_count=3), "batch_rows=4 does not divide by the 3 processes"),
  (dict(segment_len=1024), "lower either, or give more text"),
  (dict(held_out_frac=0.0, split="held_out"), "leaves no held_out document of the 24 .* set it above 0"),
  (dict(held_out_frac=1.5), "must be in"),
])
def test_a_setting_that_cannot_be_is_refused_with_the_remedy(folder, fields, message):
  with pytest.raises(ValueError, match=message):
    tiny_source(folder, **fields)


def test_the_standard_library_is_split_as_described():
  fields = {**SMALL, "name": "python_stdlib", "segment_len": 64, "align_tokens": 64, "held_out_frac": 0.05}
  train, held_out = (source.load(**fields, split=split) for split in ("train", "held_out"))
  assert train.manifest["bytes"] == len(train.text()) + len(held_out.text()) > 5_000_000
  assert 0.01 < len(held_out.text()) / train.manifest["bytes"] < 0.15
  assert set(train.manifest) >= {"corpus", "python", "files", "documents", "bytes", "sha256"}
  assert not any("test" in place.split("@")[0].split("/") for place in train.provenance(0))


def test_passages_name_the_documents_of_each_row_and_where_it_reads_on(folder):
  train = tiny_source(folder)
  read = set()
  for step in range(6):
    batch, passages = train.batch(step), train.passages(step)
    assert [row["origin"] for row in passages] == train.provenance(step)
    for number, row in enumerate(passages):
      parts = []
      for found in row["documents"]:
        assert found["byte"] == found["token"]  # Of bytes as tokens.
        text = (folder / found["document"]).read_bytes()
        parts.append(text[found["byte"]:found["byte"] + found["tokens"]])
        assert len(parts[-1]) == found["tokens"]
      tokens_T = batch["tokens_BT"][number]
      assert b"".join(parts) == bytes(tokens_T[(tokens_T < 256) & (batch["doc_BT"][number] >= 0)].tolist())
      read |= {found["document"] for found in row["documents"]}
  assert len(read) > 4
  assert train.passages(3, [2, 0]) == [train.passages(3)[2], train.passages(3)[0]]


def test_rows_past_the_end_of_a_split_have_no_document(folder):
  held_out = tiny_source(folder, split="held_out")
  rows = [row for step in range(len(held_out)) for row in held_out.passages(step)]
  empty = [row for row in rows if not row["documents"]]
  assert all(row["origin"] == "past the end@0" for row in empty) and len(empty) < len(rows)
  assert [row["origin"] for row in rows] == [origin for step in range(len(held_out))
                                             for origin in held_out.provenance(step)]
