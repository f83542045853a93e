"""Sending and fetching, against a server on this machine that answers as the Hub does."""

import logging
import re

import pytest

from atlas_jax.handover import hub
from tests import hub_server

ASKED = dict(token=hub_server.TOKEN, private=True, attempts=2, message="step 3")


@pytest.fixture
def server(monkeypatch, tmp_path):
  with hub_server.serving() as found:
    hub_server.reach(monkeypatch, found, tmp_path / "cache")
    yield found


@pytest.fixture
def folder(tmp_path):
  """A folder of two large files and two small ones."""
  made = tmp_path / "made"
  (made / "tokenizer").mkdir(parents=True)
  (made / "README.md").write_text("---\ntags: []\n---\nA model.\n")
  (made / "tokenizer" / "t.json").write_text("{}")
  (made / "a.safetensors").write_bytes(b"a" * 1000)
  (made / "b.safetensors").write_bytes(b"b" * 1000)
  return made


def contents(folder):
  return {file.relative_to(folder).as_posix(): file.read_bytes()
          for file in folder.rglob("*") if file.is_file()}


def test_a_folder_arrives_in_one_commit_of_a_private_repository_and_is_fetched_whole(server, folder):
  sent = hub.send(folder, hub.named("model", token=hub_server.TOKEN, attempts=1), **ASKED)
  repo = server.repos["alice/model"]
  assert sent == hub.SentCommit("alice/model", repo.sha, f"{server.url}/alice/model", True)
  assert repo.private and repo.files == contents(folder)
  assert [commit["summary"] for commit in repo.commits] == ["step 3"]
  assert contents(hub.fetch("alice/model")) == contents(folder)
  assert hub.fetch(f"hf:alice/model@{repo.sha}") == hub.fetch("alice/model")


def test_an_upload_that_broke_off_goes_on_and_sends_nothing_twice(server, folder):
  server.fail("PUT /lfs-store", 403, after=1)
  with pytest.raises(hub.HubError, match="has no right to do this"):
    hub.send(folder, "alice/model", **ASKED)
  assert len(server.stored) == 1 and not server.repos["alice/model"].files  # All files or none.
  hub.send(folder, "alice/model", **ASKED)
  assert server.repos["alice/model"].files == contents(folder)
  assert len(server.puts) == len(set(server.puts)) == 2  # Each file was taken once.


def test_what_has_not_changed_is_not_sent_again(server, folder):
  hub.send(folder, "alice/model", **ASKED)
  hub.send(folder, "alice/model", **ASKED)
  (folder / "a.safetensors").write_bytes(b"A" * 1000)
  hub.send(folder, "alice/model", **ASKED)
  assert len(server.puts) == 3 and len(server.repos["alice/model"].commits) == 2


def test_other_files_of_a_folder_that_is_replaced_go(server, folder):
  (folder / "checkpoints" / "2").mkdir(parents=True)
  (folder / "checkpoints" / "2" / "x.json").write_text("2")
  hub.send(folder, "alice/model", **ASKED, replaced="checkpoints")
  (folder / "checkpoints" / "2").rename(folder / "checkpoints" / "4")
  (folder / "tokenizer" / "t.json").rename(folder / "tokenizer" / "u.json")
  hub.send(folder, "alice/model", **ASKED, replaced="checkpoints")
  assert server.repos["alice/model"].files.keys() == contents(folder).keys() | {"tokenizer/t.json"}


@pytest.mark.parametrize(
  "where", ["repos/create", "models/alice/model$", "preupload", "lfs/objects", "PUT ", "/commit/"])
@pytest.mark.parametrize("status", [500, 503, 0], ids=["500", "503", "cut off"])
def test_a_request_that_fails_is_made_again(where, status, server, folder):
  server.fail(where, status)
  hub.send(folder, "alice/model", **ASKED)
  assert server.repos["alice/model"].files == contents(folder)


def test_a_hub_that_keeps_failing_ends_the_upload(server, folder):
  server.fail("repos/create", 500, times=99)
  with pytest.raises(hub.HubError, match="making the repository alice/model .* failed: the Hub answers 500"):
    hub.send(folder, "alice/model", **{**ASKED, "attempts": 3})
  assert server.requests.count("POST /api/repos/create") == 3


@pytest.mark.parametrize(
  ("repo", "token", "says"),
  [("alice/model", "hf_wrong", r"does not accept HF_TOKEN \(401\)"),
   ("bob/model", hub_server.TOKEN, r"no right to do this \(403\); it needs the right to write there, and "
                                   r"HF_USERNAME")],
)  # fmt: skip
def test_a_token_without_the_right_is_refused_at_once(repo, token, says, server, folder):
  with pytest.raises(hub.HubError, match=says):
    hub.send(folder, repo, **{**ASKED, "token": token})
  assert server.requests.count("POST /api/repos/create") == 1 and not server.repos and not server.puts


def test_nothing_private_is_sent_to_a_public_repository(server, folder):
  server.repos["alice/model"] = hub_server.Repo(private=False)
  with pytest.raises(hub.HubError, match="is public, and config.upload.private=True: nothing was sent"):
    hub.send(folder, "alice/model", **ASKED)
  assert not server.repos["alice/model"].files
  assert not hub.send(folder, "alice/model", **{**ASKED, "private": False}).private
  assert server.repos["alice/model"].files


def test_a_repository_is_public_where_that_is_asked(server, folder):
  hub.send(folder, "alice/model", **{**ASKED, "private": False})
  assert not server.repos["alice/model"].private


@pytest.mark.parametrize(
  ("source", "kind", "says"),
  [("alice/none", hub.HubError, "there is no such repository or revision|does not accept HF_TOKEN"),
   ("nowhere", ValueError, "is neither a folder nor OWNER/NAME"),
   ("../a/b", ValueError, "is neither a folder nor OWNER/NAME"),
   ("hf:a/..", ValueError, "is neither a folder nor OWNER/NAME")],
)  # fmt: skip
def test_what_cannot_be_fetched_is_said(source, kind, says, server):
  with pytest.raises(kind, match=says):
    hub.fetch(source)


def test_a_model_is_called_by_its_name_and_not_by_its_place_in_the_cache(tmp_path):
  (tmp_path / "mine").mkdir()
  assert hub.name_of(str(tmp_path / "mine")) == "mine"
  assert {hub.name_of(one) for one in ("alice/model", "hf:alice/model", "alice/model@main")} == {"model"}


def test_what_executes_is_not_fetched(server, folder):
  for name in ("evil.py", "pytorch_model.bin", "x.pkl"):
    (folder / name).write_text("boom")
  hub.send(folder, "alice/model", **ASKED)
  assert "evil.py" in server.repos["alice/model"].files
  fetched = contents(hub.fetch("alice/model"))
  assert not [name for name in fetched if re.search("evil|bin|pkl", name)] and "a.safetensors" in fetched


def test_no_error_and_no_log_holds_the_token(server, folder, caplog):
  caplog.set_level(logging.DEBUG)
  server.fail("repos/create", 500, times=99)
  # A name that holds it stands in every message.
  with pytest.raises(hub.HubError) as caught:
    hub.send(folder, f"alice/{hub_server.TOKEN}", **ASKED)
  ours = [record.getMessage() for record in caplog.records if record.name == "absl"]
  assert ours and hub_server.TOKEN not in str([str(caught.value), *ours])
  assert server.tokens == {hub_server.TOKEN}  # It was sent, where it belongs.
