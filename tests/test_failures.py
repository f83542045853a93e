"""True names of failures of disks, limits, permissions and memory."""

import errno
import json
import os
import re
import shutil
import subprocess

import pytest

from atlas_jax import failures
from atlas_jax.checkpoint import CheckpointError
from atlas_jax.explain import explain, report
from atlas_jax.files import write
from atlas_jax.monitor.writer import MetricsWriter
from tests import program


def raised(outer, inner):
  """An error that comes from another."""
  try:
    raise outer from inner
  except type(outer) as error:
    return error


@pytest.mark.parametrize(
  ("error", "name"),
  [
    (
      OSError(errno.ENOSPC, "No space left on device", "/tmp/x/metrics.jsonl"),
      "disk full at /tmp/x/metrics.jsonl, ",
    ),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "/tmp/x"), "disk full at /tmp/x, where .* GiB are free"),
    (OSError(errno.EMFILE, "Too many open files", "/tmp/x"), "too many open files at /tmp/x .*ulimit -n"),
    (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "no permission at /data/x "),
    (OSError(errno.EROFS, "Read-only file system", "/ro/x"), "read-only file system at /ro/x .*--mode=eval"),
    (MemoryError(), "out of memory of this host .*config.data.batch_rows"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory of this host"),
    (
      raised(
        CheckpointError("saving to /w/checkpoints failed"),
        ValueError(
          'RESOURCE_EXHAUSTED: Error writing "/w/checkpoints/4/d/x": [OS error 28: No space left on device]'
        ),
      ),
      "disk full at /w/checkpoints.*newest checkpoint",
    ),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), "out of device memory"),
  ],
)
def test_what_fails_outside_has_its_true_name(error, name):
  line = explain(error)
  assert re.match(name, line) and "\n" not in line, line


def test_a_full_disk_that_no_error_names_is_looked_for(small_disk, tmp_path):
  (small_disk / "filling").write_bytes(bytes(150 * 1024))
  line = explain(OSError(errno.ENOSPC, "No space left on device"), str(small_disk))
  assert line.startswith(f"disk full at {small_disk}, where 0.00 of 0.00 GiB are free"), line


def test_a_disk_with_room_is_not_called_full(tmp_path):
  assert shutil.disk_usage(tmp_path).free > failures.FULL_BYTES
  line = failures.true_name(OSError(errno.ENOSPC, "No space left on device"), [tmp_path])
  assert line.startswith("disk full (OSError")


def test_writing_to_an_open_file_names_it_when_the_disk_is_full(small_disk):
  with pytest.raises(OSError) as raised_here, write.opened(small_disk / "large.json") as out:
    out.write(bytes(2**20))
  assert raised_here.value.filename == str(small_disk / "large.json")
  metrics = MetricsWriter(small_disk, tensorboard=False)
  with pytest.raises(OSError) as raised_here:
    for step in range(1, 10_000):
      metrics.write(step, {"train/loss_nats": step, "perf/tokens_per_s": step})
  assert raised_here.value.filename == str(small_disk / "metrics.jsonl")


def test_other_errors_have_no_such_name():
  for error in (
    ValueError("config.optim.lr=0"),
    FileNotFoundError(errno.ENOENT, "No such file", "x"),
    KeyError("x"),
  ):
    assert failures.true_name(error) is None


@pytest.mark.parametrize(
  ("line", "traced", "shown"),
  [
    ("raise config.optim.lr", False, ["atlas_jax: raise config.optim.lr"]),
    ("raise config.optim.lr", True, ["Traceback", "RuntimeError: inner", "atlas_jax: raise config.optim.lr"]),
    (None, False, ["Traceback", "RuntimeError: inner"]),
  ],
)
def test_a_line_or_the_place_of_a_fault_is_shown(line, traced, shown, capsys):
  error = raised(RuntimeError("outer\nwords"), RuntimeError("inner"))
  assert report(error, line, traced=traced) == (line or "RuntimeError: outer words")
  said = capsys.readouterr()
  assert said.out == "" and [part for part in shown if part not in said.err] == []
  assert ("Traceback" in said.err) == ("Traceback" in shown)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """A folder of texts to train on."""
  return program.write_texts(tmp_path_factory.mktemp("corpus") / "texts")


def mounted(folder, *options) -> bool:
  """Mounts a file system of memory; False where this user may not."""
  folder.mkdir()
  if shutil.which("mount") is None or os.geteuid() != 0:
    return False
  command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
  return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 200 KiB."""
  folder = tmp_path / "small"
  if not mounted(folder, "size=200k"):
    pytest.skip("needs the right to mount file systems")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_says_so_and_where(texts, small_disk):
  done = program.run(*program.tiny(texts), f"--workdir={small_disk}/run")
  line = program.refused(done)
  assert f"disk full at {small_disk}/run" in line and "device memory" not in line


def test_a_run_on_a_read_only_file_system_is_evaluated(texts, small_disk, tmp_path):
  subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
  assert program.run(*program.tiny(texts), f"--workdir={small_disk}/run").code == 0
  subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
  done = program.run("--mode=eval", f"--workdir={small_disk}/run")
  assert done.code == 0 and "leaves no files there" in done.err, done.err
  assert json.loads(done.out)["step"] == 6
  again = program.run(*program.tiny(texts, optim__steps=8), f"--workdir={small_disk}/run")
  assert "cannot be written: Read-only file system" in program.refused(again)
