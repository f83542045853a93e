"""Files are put in place whole and durable, or not at all."""

import errno
import json
import os
import stat

import pytest

from atlas_jax.files import inside, inventory, json_file, json_lines, write
from atlas_jax.files.damage import Damaged


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
  write.whole(tmp_path / "a", "old")
  with pytest.raises(RuntimeError), write.opened(tmp_path / "a") as out:
    out.write(b"half")
    raise RuntimeError
  assert [file.name for file in tmp_path.iterdir()] == ["a"]
  assert (tmp_path / "a").read_text() == "old"


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
  write.whole(tmp_path / "a", "old")

  def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")
  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    write.whole(tmp_path / "a", "new")
  assert (tmp_path / "a").read_text() == "old"


def test_a_file_and_its_folder_are_brought_to_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
  done, sync, rename = [], os.fsync, os.replace

  def fsync(descriptor):
    done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
    sync(descriptor)
  monkeypatch.setattr(os, "fsync", fsync)
  monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), rename(*names)))
  write.json(tmp_path / "a.json", {"a": "\u2028"})
  assert done[0] == "file" and done[-2:] == ["rename", "folder"]
  assert json.loads((tmp_path / "a.json").read_text()) == {"a": "\u2028"}


def test_files_have_the_rights_that_the_umask_leaves(tmp_path):
  mask = os.umask(0o027)
  try:
    write.whole(tmp_path / "a", "x")
  finally:
    os.umask(mask)
  assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_folder_is_renamed_whole(tmp_path):
  (tmp_path / "part").mkdir()
  write.whole(tmp_path / "part" / "a", "x")
  write.folder(tmp_path / "part", tmp_path / "whole")
  assert (tmp_path / "whole" / "a").read_text() == "x"


def test_lines_end_at_line_feeds_alone(tmp_path):
  texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc\x1cd"]
  file = tmp_path / "a.jsonl"
  write.whole(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
  assert [row["text"] for row in json_lines.read(file)] == texts


def test_a_torn_last_line_is_dropped_where_asked_and_another_never(tmp_path):
  file = tmp_path / "a.jsonl"
  file.write_text('{"a": 1}\n{"a"')
  assert list(json_lines.read(file, torn="drop")) == [{"a": 1}]
  with pytest.raises(Damaged, match="a.jsonl:2: not JSON.*mend or delete that line"):
    list(json_lines.read(file))
  file.write_text('{"a"\n{"a": 1}\n')
  with pytest.raises(Damaged, match="a.jsonl:1: not JSON"):
    list(json_lines.read(file, torn="drop"))


def test_a_sealed_file_is_refused_when_changed_and_taken_without_its_seal(tmp_path):
  file = tmp_path / "a.json"
  write.json(file, json_file.sealed({"lr": 0.1}))
  assert json_file.read_sealed(file) == {"lr": 0.1}
  file.write_text(file.read_text().replace("0.1", "0.2"))
  with pytest.raises(Damaged, match="a.json: was changed since it was written"):
    json_file.read_sealed(file)
  file.write_text('{"lr": 0.2}')
  assert json_file.read_sealed(file) == {"lr": 0.2}
  with pytest.raises(Damaged, match="has no 'checksum'"):
    json_file.read_sealed(file, needed=True)


def test_a_sealed_folder_names_what_was_changed_lost_or_added(tmp_path):
  for name in "ab":
    write.whole(tmp_path / name, name * 10)
  inventory.check_sealed(tmp_path)  # Not sealed: nothing to compare with.
  inventory.seal(tmp_path)
  inventory.check_sealed(tmp_path)
  (tmp_path / "c").write_text("c")
  with pytest.raises(Damaged, match="/c: is not one of the files"):
    inventory.check_sealed(tmp_path)
  (tmp_path / "c").unlink()
  (tmp_path / "a").write_text("aaaaaaaaab")
  with pytest.raises(Damaged, match="/a: has other contents"):
    inventory.check_sealed(tmp_path)
  (tmp_path / "a").unlink()
  with pytest.raises(Damaged, match="/a: is missing"):
    inventory.check_sealed(tmp_path)


def test_an_inventory_sees_a_flipped_bit_in_any_piece(tmp_path, monkeypatch):
  monkeypatch.setattr(inventory, "PIECE_BYTES", 8)
  (tmp_path / "a").write_bytes(bytes(50))
  told = inventory.take(tmp_path, ["a"])
  inventory.check(tmp_path, told, named_by="x")
  for at in range(50):
    content = bytearray(50)
    content[at] = 16
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(Damaged, match="other contents"):
      inventory.check(tmp_path, told, named_by="x")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..", "", ".", "a//b", "c:\\x", "..\\x",
                                  "a\0b", None, 3, ["a"]])  # fmt: skip
def test_a_name_that_leaves_its_folder_is_refused(name, tmp_path):
  with pytest.raises(Damaged, match="index.json: names the file .* which is not in"):
    inside.path(tmp_path, name, named_by="index.json")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "a/b.bin", "..a", "a..b"])
def test_a_name_inside_is_a_path(name, tmp_path):
  assert inside.path(tmp_path, name, named_by="x") == tmp_path / name
