"""A run that was uploaded writes the same text wherever it is fetched; an upload never fails a training."""

import json
import shutil

import pytest

from atlas_jax import trust
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.handover import upload
from tests import hub_server, program
from tests.program import refused

REPO = "alice/atlas-40m-episodic"
ASKED = ("--prompt=def ", "--tokens=12", "--temperature=0")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  with hub_server.serving() as found, pytest.MonkeyPatch.context() as patched:
    hub_server.reach(patched, found, tmp_path_factory.mktemp("hub_cache"))
    yield found


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
  """Flags of a training of six updates that is uploaded when it is finished."""
  texts = program.write_texts(tmp_path_factory.mktemp("corpus") / "texts")
  return program.tiny(texts, upload__when="end", upload__attempts=1)


@pytest.fixture(scope="module")
def trained(flags, server, tmp_path_factory):
  """The workdir of that training, what the program printed, and the files that the Hub has."""
  workdir = tmp_path_factory.mktemp("runs") / "trained"
  done = program.run(*flags, f"--workdir={workdir}")
  assert done.code == 0, done.err
  return workdir, done, dict(server.repos[REPO].files)


@pytest.fixture
def copied(trained, tmp_path):
  return shutil.copytree(trained[0], tmp_path / "copied")


def record(workdir):
  return json.loads((workdir / "upload.json").read_text())


def write(files, folder):
  for name, data in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
  return folder


def generated(*where):
  done = program.run("--mode=generate", *where, *ASKED)
  assert done.code == 0, done.err
  return done.out


def told(workdir) -> list[dict]:
  """Returns what the alerts of a run told of uploads."""
  lines = (workdir / "alerts.jsonl").read_text().splitlines()
  return [event for event in map(json.loads, lines) if event["rule"] == "upload"]


def test_a_finished_training_is_on_the_hub_with_card_and_curves_and_without_optimizer(trained, server):
  workdir, done, files = trained
  assert f"uploaded to {server.url}/{REPO}" in done.err
  assert json.loads(done.out[done.out.index("{"):])["steps"] == 6
  assert files.keys() == {"README.md", "config.json", "metrics.jsonl", "model.safetensors", "report.png",
                          "summary.json", "tokenizer/atlas_checksums.json", "tokenizer/atlas_tokenizer.json",
                          "weights.json"}
  assert f"--mode=generate --from={REPO} " in files["README.md"].decode()
  assert files["metrics.jsonl"] == (workdir / "metrics.jsonl").read_bytes()
  assert server.repos[REPO].private and not list(workdir.glob(".upload*"))
  found = record(workdir)
  assert (found["state"], found["repo"], found["step"], found["files"]) == ("done", REPO, 6, len(files))
  assert hub_server.TOKEN not in (workdir / "upload.json").read_text()
  [event] = told(workdir)
  assert event["text"].endswith(f": uploaded to {server.url}/{REPO}") and event["severity"] == "info"


def test_it_writes_the_same_text_from_hub_and_folder_as_from_its_workdir(trained, server, tmp_path):
  text = generated(f"--workdir={trained[0]}")
  folder = write(trained[2], tmp_path / "downloaded")
  before = sorted(folder.rglob("*"))
  assert len(text) > len("def ") and text == generated(f"--from={REPO}") == generated(f"--from={folder}")
  assert sorted(folder.rglob("*")) == before


def test_a_run_of_elsewhere_runs_no_code_that_it_names(trained, server, tmp_path, monkeypatch):
  monkeypatch.setattr(trust, "_given", [])
  monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
  line = refused(program.run("--mode=generate", f"--from={REPO}", *ASKED))
  assert "names what would be run or asked: config.data.source='tests.stopping'" in line and "--trust" in line


def test_a_run_that_was_handed_over_is_not_trained_on_in_place(trained, flags, tmp_path):
  folder = write(trained[2], tmp_path / "downloaded")
  line = refused(program.run(*flags, f"--workdir={folder}"))
  assert "cannot go on; train in another workdir" in line and f"--config.model.path={folder}" in line
  assert (folder / "metrics.jsonl").read_bytes() == trained[2]["metrics.jsonl"]


def test_the_same_command_uploads_nothing_that_has_arrived(flags, trained, server):
  asked = len(server.requests)
  done = program.run(*flags, f"--workdir={trained[0]}")
  assert done.code == 0 and "was uploaded before" in done.err and len(server.requests) == asked


def test_an_upload_that_fails_fails_no_training_and_can_be_made_again(flags, copied, server, monkeypatch):
  (copied / "upload.json").unlink()
  monkeypatch.setenv("HF_USERNAME", "bob")
  done = program.run(*flags, f"--workdir={copied}")
  assert done.code == 0 and json.loads(done.out)["steps"] == 6
  lines = [line for line in done.err.splitlines() if "the upload failed, which changes nothing else" in line]
  assert [event["severity"] for event in told(copied)][-1] == "warning"
  assert len(lines) == 1 and "HF_TOKEN has no right to do this (403)" in lines[0]
  found = record(copied)
  assert found["state"] == "failed" and found["repo"].startswith("bob/") and found["retry"] in lines[0]
  assert f"--mode=upload --workdir={copied}" in found["retry"] and hub_server.TOKEN not in done.err
  monkeypatch.setenv("HF_USERNAME", "alice")
  words = [word for word in found["retry"].split() if word.startswith("--")]
  done = program.run(*words)
  assert done.code == 0 and json.loads(done.out)["repo"] == REPO
  assert record(copied)["state"] == "done" and not list(copied.glob(".upload*"))
  commits = len(server.repos[REPO].commits)
  assert program.run(*words).code == 0 and len(server.repos[REPO].commits) == commits  # The same bytes.


def test_a_damaged_record_is_no_reason_to_fail_a_training(flags, copied, server):
  (copied / "upload.json").write_text("{")
  done = program.run(*flags, f"--workdir={copied}")
  assert done.code == 0 and f"{copied / 'upload.json'}" in done.err and record(copied)["state"] == "done"


def test_an_upload_that_takes_too_long_is_given_up(flags, copied, server):
  (copied / "upload.json").unlink()
  (copied / ".upload-left").mkdir()
  done = program.run(*flags, f"--workdir={copied}", "--config.upload.time_limit_s=0.05")
  assert done.code == 0 and "it took longer than 0.05 s (config.upload.time_limit_s)" in done.err
  assert record(copied)["state"] == "failed" and not list(copied.glob(".upload*"))


def test_a_training_without_token_is_refused_before_it_begins(flags, server, tmp_path, monkeypatch):
  monkeypatch.delenv("HF_TOKEN")
  line = refused(program.run(*flags, f"--workdir={tmp_path / 'run'}"))
  assert "config.upload.when='end' needs a token" in line and not (tmp_path / "run").exists()


def test_the_optimizer_goes_along_where_that_is_asked(copied, server, tmp_path):
  done = program.run("--mode=upload", f"--workdir={copied}", "--config.upload.with_optimizer=True",
                     "--config.upload.repo=whole")
  assert done.code == 0, done.err
  folder = write(server.repos["alice/whole"].files, tmp_path / "whole")
  saver = Checkpoints(folder, read_only=True)
  assert saver.newest_good() == folder / "checkpoints" / "6" and saver.shapes("opt_state")
  assert "`checkpoints/`" in (folder / "README.md").read_text()


def test_a_run_whose_files_hold_a_secret_is_not_sent(copied, server, monkeypatch):
  monkeypatch.setenv("MY_API_KEY", "config_of_mine")
  (copied / "summary.json").write_text(json.dumps({"steps": 6, "note": "config_of_mine"}))
  commits = len(server.repos[REPO].commits)
  line = refused(program.run("--mode=upload", f"--workdir={copied}"))
  assert "summary.json of the run holds the value of MY_API_KEY" in line and "config_of_mine" not in line
  assert len(server.repos[REPO].commits) == commits and record(copied)["state"] == "failed"


@pytest.mark.parametrize(
  ("words", "says"),
  [("--mode=upload --workdir=nowhere", "holds no run"),
   ("--mode=upload", "--workdir is missing"),
   ("--mode=upload --from=a/b", "--from=a/b is for --mode=eval, generate"),
   ("--mode=generate --from=a/b --workdir=x", "both name a run; give one"),
   ("--mode=generate --from=nowhere", "is neither a folder nor OWNER/NAME"),
   ("--mode=generate --from=a/b --config.upload.repo=x", "is read by --mode=upload alone")],
)  # fmt: skip
def test_commands_that_mean_nothing_are_refused(words, says, server):
  assert says in refused(program.run(*words.split()))


@pytest.mark.parametrize("field", ["upload.when=end", "optim.steps=7", "upload.time_limit_s=3"])
def test_an_upload_takes_a_run_as_it_is(field, copied, server):
  line = refused(program.run("--mode=upload", f"--workdir={copied}", f"--config.{field}"))
  assert f"--config.{field} is not read by --mode=upload" in line


def test_what_was_stopped_is_uploaded_only_if_asked(copied, server):
  config = upload.config_of(str(copied), {})
  (copied / "upload.json").unlink()
  upload.after_training(config, copied, finished=False)  # config.upload.when=end
  assert not (copied / "upload.json").exists()
