"""PyTorch's checkpoints are read to the bit, and nothing that they may ask for is run."""
import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.puzzles import torch_file
from tests import torch_files
from tests.torch_files import number, tensor, text

REAL = pathlib.Path(__file__).parents[1] / "fixtures" / "trm" / "torch_save.pt"
ARRAYS = {
  "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([1, -2], np.int64),
  "c": np.float64(2.5).reshape(()), "d": np.zeros((0, 3), np.float16), "e": np.array([True, False]),
  "f": np.array([1.5, -3], jnp.bfloat16),
}  # fmt: skip


def same(found, wanted):
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(found[name], array)


def test_tensors_of_all_types_are_read(tmp_path):
  same(torch_file.read(torch_files.write(tmp_path / "step_7", ARRAYS)), ARRAYS)


def test_a_file_that_pytorch_wrote_is_read():
  """Nested dicts, a transposed view, a part of a shared storage, a parameter, numbers and texts beside."""
  base = np.arange(12, dtype=np.float32).reshape(3, 4)
  wanted = {
    "model._orig_mod.weight": base, "model.turned": base.T, "model.row": base[1],
    "model.half": np.array([1.5, -3], jnp.bfloat16), "parameter": np.array([0.25, 8], np.float32),
    "scalar": np.int64(7).reshape(())}  # fmt: skip
  same(torch_file.read(REAL), wanted)


A = np.arange(4, dtype=np.float32)
HOSTILE = [
  (b"cos\nsystem\n(" + text("touch HERE") + b"tR", "it asks for os.system, and only tensors"),
  (b"cbuiltins\neval\n(" + text("1") + b"tR", "it asks for builtins.eval"),
  (b"cbuiltins\ngetattr\n.", "it asks for builtins.getattr"),
  (b"cnumpy\nload\n.", "it asks for numpy.load"),
  (b"ctorch\nload\n.", "it asks for torch.load"),
  (b"ctorch.storage\n_load_from_bytes\n.", "it asks for torch.storage._load_from_bytes"),
  (b"catlas_jax.puzzles.torch_file\n_rebuild\n.", "it asks for atlas_jax.puzzles.torch_file._rebuild"),
  (b"(" + text("module") + text("os") + text("0") + text("cpu") + number(1) + b"tQ", "no storage of numbers"),
  (b"}(" + text("x") + tensor("0", A, shape=(5,)) + b"u", "'x' reaches beyond its 4 numbers"),
  (b"}(" + text("x") + tensor("0", A, offset=1) + b"u", "'x' reaches beyond its 4 numbers"),
  (b"}(" + text("x") + tensor("0", A, offset=-1) + b"u", "has no sizes that can be"),
  (b"}(" + text("x") + tensor("0", A, strides=(-1,)) + b"u", "has no sizes that can be"),
  (b"}(" + text("x") + tensor("0", A, strides=(1, 1)) + b"u", "beyond its 4 numbers|has no sizes"),
  (b"}(" + text("x") + tensor("0", A, count=400, shape=(400,)) + b"u", "are 16 bytes, not 400 float32"),
  (b"}(" + text("a") + tensor("0", A) + text("x") + tensor("0", A, count=10**9, shape=(10**9,)) + b"u",
   "numbers of 'x' are 16 bytes, not 1000000000 float32"),
  (b"}(" + text("x") + tensor("0", A, shape=(2**20, 2**20), strides=(0, 0)) + b"u", "'x' of .* repeats its"),
  (b"}(" + text("a") + tensor("0", A) + text("x") + tensor("0", A.astype(np.float64)) + b"u",
   "numbers of 'x' are 16 bytes, not 4 float64"),
  (b"}" + b"".join(b"q%c0}(%sh%c%sh%cu" % (i, text("a"), i, text("b"), i) for i in range(60)),
   "more than 1000000 values"),
  (b"}(" + text("x") + tensor("9", A) + b"u", "no whole PyTorch checkpoint .KeyError"),
  (b"garbage", "no whole PyTorch checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize("content, words", HOSTILE)
def test_what_is_no_tensor_is_refused_and_never_run(content, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  file = torch_files.write(tmp_path / "step_7", {"a": A}, content=content)
  with pytest.raises(ValueError, match=rf"step_7 is .*{words}"):
    torch_file.read(file)
  assert [path.name for path in tmp_path.iterdir()] == ["step_7"]


def test_what_unpacks_to_far_more_than_it_is_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(torch_file, "LARGE", 2**10)
  array = np.zeros(2**12, np.float32)
  file = torch_files.write(tmp_path / "step_7", {"a": array})
  assert torch_file.read(file)["a"].shape == array.shape  # Not packed.
  with zipfile.ZipFile(file) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  with pytest.raises(ValueError, match="data/0 is .* bytes that unpack to 16384; save it again"):
    torch_file.read(tmp_path / "packed")


def test_files_of_other_kinds_are_named(tmp_path):
  old = tmp_path / "old.pt"
  old.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
  with pytest.raises(ValueError, match="old.pt is no whole PyTorch checkpoint .*before PyTorch 1.6 must"):
    torch_file.read(old)
  with pytest.raises(ValueError, match="gone cannot be read"):
    torch_file.read(tmp_path / "gone")
  with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
    archive.writestr("a.txt", "a")
  with pytest.raises(ValueError, match="it holds 0 files data.pkl"):
    torch_file.read(tmp_path / "some.zip")
  with pytest.raises(ValueError, match="big-endian"):
    torch_file.read(torch_files.write(tmp_path / "big", ARRAYS, byteorder="big"))
  whole = torch_files.write(tmp_path / "cut", ARRAYS).read_bytes()
  (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match="cut is no whole PyTorch checkpoint"):
    torch_file.read(tmp_path / "cut")
