"""Run directories on object stores: here a folder stands for one, behind the same interface."""

import json
import re
import shutil
import time

import pytest
from etils import epath

from atlas_jax import remote
from atlas_jax.remote import Mirror, RemoteError
from atlas_jax.workdir import REMOTE_OWNER
from tests import program


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
  monkeypatch.setattr(remote, "EVERY_S", 0.3)
  monkeypatch.setattr(remote, "SILENT_S", 1.0)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A folder that gs://bucket/... stands for, as if its library were installed."""
  folder = tmp_path / "bucket"
  monkeypatch.setattr(remote, "LIBRARIES", {"gs": "json"})
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  place = lambda workdir: epath.Path(workdir.replace("gs://bucket", str(folder)))
  monkeypatch.setattr(remote, "store_of", place)
  return folder


def names_in(folder):
  return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
  ("workdir", "says"),
  [
    ("hdfs://a/b", "hdfs:// is no store that runs can lie on; known are gs://, s3://"),
    ("gs://bucket", "needs a bucket and a path in it, such as gs://BUCKET/RUN"),
    ("s3://bucket/run", "needs the library s3fs; pip install s3fs"),
  ],
)
def test_a_workdir_that_cannot_be_reached_is_refused_and_no_folder_is_made(
  workdir, says, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = program.ROOT / "configs" / "memory_40m.py"
  line = program.refused(program.run(f"--config={config}:smoke", f"--workdir={workdir}"))
  assert says in line and not list(tmp_path.iterdir())


def test_several_processes_need_a_directory_that_all_see(monkeypatch):
  monkeypatch.setattr(remote, "LIBRARIES", {"gs": "json"})
  with pytest.raises(ValueError, match="is for runs of one process"):
    remote.check("gs://bucket/run", processes=2)


def test_a_run_goes_on_on_another_machine(bucket, tmp_path):
  texts = program.write_texts(tmp_path / "texts")
  flags = [*program.tiny(texts, checkpoint__every_steps=2, monitor__report=True), "--workdir=gs://bucket/run"]
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("ATLAS_TEST_STOP", "3:SIGTERM:0")
    assert program.run(*flags).code == 75
  there = names_in(bucket / "run")
  assert {"config.json", "metrics.jsonl", "time.json", "checkpoints/4/files.json"} <= there
  assert not there & {"owner.json", REMOTE_OWNER}
  shutil.rmtree(tmp_path / "cache")  # Another machine has none of it.
  done = program.run(*flags)
  assert done.code == 0 and "resumed from step 4" in done.err, done.err
  assert {"summary.json", "report.png", "checkpoints/6/files.json"} <= names_in(bucket / "run")
  assert "checkpoints/2/files.json" not in names_in(bucket / "run")  # Removed there, too, by keep_last.
  shutil.rmtree(tmp_path / "cache")
  judged = program.run("--mode=eval", "--workdir=gs://bucket/run")
  assert json.loads(judged.out)["step"] == 6


def test_half_a_checkpoint_is_no_checkpoint(bucket, tmp_path):
  (bucket / "run/checkpoints/2/state").mkdir(parents=True)
  (bucket / "run/checkpoints/2/state/d").write_text("half of it")  # Its inventory comes last.
  (bucket / "run/metrics.jsonl").write_text('{"step": 1}\n')
  mirror = Mirror(epath.Path(str(bucket / "run")), tmp_path / "here")
  mirror.pull()
  assert names_in(tmp_path / "here") == {"metrics.jsonl"}


def test_what_changes_goes_there_and_what_is_gone_goes(bucket, tmp_path):
  mirror = Mirror(epath.Path(str(bucket / "run")), tmp_path / "here")
  mirror.pull()
  (tmp_path / "here/checkpoints/2").mkdir(parents=True)
  (tmp_path / "here/checkpoints/2/files.json").write_text("{}")
  (tmp_path / "here/checkpoints/4.orbax-checkpoint-tmp").mkdir()
  (tmp_path / "here/checkpoints/4.orbax-checkpoint-tmp/d").write_text("half")
  (tmp_path / "here/a").write_text("1")
  mirror.push()
  assert names_in(bucket / "run") == {"a", "checkpoints/2/files.json"}
  (tmp_path / "here/a").write_text("22")
  shutil.rmtree(tmp_path / "here/checkpoints")
  mirror.push()
  assert names_in(bucket / "run") == {"a"} and (bucket / "run/a").read_text() == "22"
  (tmp_path / "here/b").write_text("left by a start that was killed before it was uploaded")
  Mirror(mirror.there, tmp_path / "here").pull()
  assert names_in(tmp_path / "here") == {"a"}


def test_a_run_elsewhere_is_left_alone_and_a_dead_one_taken_over(bucket, tmp_path, caplog):
  first, second = (Mirror(epath.Path(str(bucket / "run")), tmp_path / name) for name in ("one", "two"))
  with (
    first.at_work(),
    first.pushing(),
    pytest.raises(RemoteError, match="is in use by process"),
    second.at_work(),
  ):
    pass
  owner = {"token": "t", "pid": 7, "host": "node7", "sees": "node7", "beat_s": 0.0}
  (bucket / "run" / REMOTE_OWNER).write_text(json.dumps(owner))
  with second.at_work():
    assert re.search(r"process 7 on node7, silent for \d+ s; this process takes the run over", caplog.text)


def test_a_store_that_fails_for_a_while_does_not_end_the_heartbeat(bucket, tmp_path, monkeypatch, caplog):
  mirror = Mirror(epath.Path(str(bucket / "run")), tmp_path / "here")
  mirror.pull()
  owner, calls = mirror._owner, []

  def fails_twice():
    calls.append(1)
    if len(calls) in (3, 4):  # After the claim: those of the thread.
      raise RuntimeError("503 of the store")
    return owner()

  monkeypatch.setattr(mirror, "_owner", fails_twice)
  with mirror.at_work(), mirror.pushing():
    time.sleep(1.6)
    beat = json.loads((bucket / "run" / REMOTE_OWNER).read_text())["beat_s"]
    assert time.time() - beat < 0.8
  assert "503 of the store" in caplog.text


def test_an_owner_that_sends_for_long_shows_life_meanwhile(bucket, tmp_path, monkeypatch):
  mirror = Mirror(epath.Path(str(bucket / "run")), tmp_path / "here")
  beats = []

  def slow_push(_):
    for _ in range(10):
      beats.append((bucket / "run" / REMOTE_OWNER).read_text())
      time.sleep(0.1)

  monkeypatch.setattr(Mirror, "push", slow_push)
  with mirror.at_work(), mirror.pushing():
    pass
  assert len(set(beats)) > 1


def test_a_store_that_fails_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  mirror = Mirror(epath.Path(str(tmp_path / "file" / "run")), tmp_path / "here")
  with pytest.raises(RemoteError, match="cannot be read or written .*credentials"), mirror.at_work():
    pass
