"""Checkpoints that are checked, servers that are adopted, and the self-test."""
import asyncio
import json

import pytest

from atlas_jax.files import json_file
from atlas_jax.rollout import teaching
from atlas_jax.runtime import deploy
from atlas_jax.runtime.deploy import DeployError, ModelServer
from atlas_jax.runtime.settings import DeploySettings, ModelSettings
from tests.rollout.chat_server import Answer
from tests.runtime.checkpoints import sha, write_checkpoint

PLAIN = ModelSettings("function", "a:b", templates="plain", max_tokens=8)


def test_a_checkpoint_has_the_version_of_its_manifest(tmp_path):
  found = deploy.read_checkpoint(str(write_checkpoint(tmp_path)), "teacher", "plain")
  again = deploy.read_checkpoint(str(tmp_path / "rl_checkpoint"), "teacher", "plain")
  assert found == again and len(found.version) == 64 and found.form == "texts"


@pytest.mark.parametrize(("changes", "role", "templates", "words"), [
  ({}, "teacher", "chat", "set config.teacher.templates to those that it was trained with"),
  ({}, "student", "plain", "was trained as the teacher; deploy it with --as=teacher"),
  ({"protocol": None}, "teacher", "plain", "has no protocol"),
  ({"protocol": {"protocol": "other/9"}}, "teacher", "plain", "protocol is 'other/9'"),
  ({"chat_template_sha256": "0" * 64}, "teacher", "plain", "chat template has the SHA-256 None"),
  ({"format": "x/1"}, "teacher", "plain", "has the format 'x/1'"),
])
def test_what_does_not_fit_the_runtime_is_refused(tmp_path, changes, role, templates, words):
  write_checkpoint(tmp_path, **changes)
  with pytest.raises(DeployError, match=words):
    deploy.read_checkpoint(str(tmp_path), role, templates)


def test_a_chat_template_must_be_the_one_of_training(tmp_path):
  write_checkpoint(tmp_path, template="{{ messages }}")
  assert deploy.read_checkpoint(str(tmp_path), "teacher", "plain").form == "chat"
  write_checkpoint(tmp_path, template="{{ messages }}", trained_with="1" * 64)
  with pytest.raises(DeployError, match="trained with the chat template 1111"):
    deploy.read_checkpoint(str(tmp_path), "teacher", "plain")


def test_damage_is_named(tmp_path):
  folder = write_checkpoint(tmp_path) / "rl_checkpoint"
  (folder / "weights.bin").write_bytes(b"other")
  with pytest.raises(DeployError, match="weights.bin is missing, or has other contents"):
    deploy.read_checkpoint(str(tmp_path), "teacher", "plain")
  (folder / "manifest.json").write_text("{")
  with pytest.raises(DeployError, match="manifest.json cannot be used"):
    deploy.read_checkpoint(str(tmp_path), "teacher", "plain")
  with pytest.raises(DeployError, match="has no manifest.json"):
    deploy.read_checkpoint(str(tmp_path / "nowhere"), "teacher", "plain")


def test_a_checkpoint_without_weights_of_ours_asks_for_a_server(tmp_path):
  found = deploy.read_checkpoint(str(write_checkpoint(tmp_path)), "teacher", "plain")
  (tmp_path / "train").mkdir()  # A run beside it may have been trained further: it is no stand-in.
  with pytest.raises(DeployError, match="has no exported weights .* give --url"):
    deploy.start_server(found, DeploySettings(folder=str(tmp_path / "servers")))


def test_a_server_that_ends_is_told_with_its_last_line(tmp_path):
  files = {"model.safetensors": {"bytes": 0, "sha256": sha(b"")}}
  write_checkpoint(tmp_path, files=files)
  (tmp_path / "rl_checkpoint/model.safetensors").touch()
  found = deploy.read_checkpoint(str(tmp_path), "teacher", "plain")
  with pytest.raises(DeployError, match="the server of .*rl_checkpoint ended with 1: .*config.json"):
    deploy.start_server(found, DeploySettings(folder=str(tmp_path / "servers"), start_s=60))


@pytest.mark.parametrize("form", ["chat", "texts"])
def test_a_student_is_asked_in_its_form_and_as_the_config_s_agent_was(server, form):
  server.use(lambda number, body: Answer({"choices": [{"text": "7", "message": {"content": "7"}}]}))
  base = {"kind": "openai", "url": "http://127.0.0.1:9/v1", "model": "old", "version": "1",
          "temperature": 0.5, "max_tokens": 9}
  agent = deploy.student_of(ModelServer(server.url, "new"), form, "v2", base, "mine")
  assert (agent.name, agent.version) == ("mine", "v2")
  assert asyncio.run(deploy.answers_test(agent, 2)) == 1.0
  for asked in server.asked:
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("new", 0.5, 9)
    assert ("messages" in asked) == (form == "chat") and ("prompt" in asked) == (form == "texts")


def test_the_options_of_another_kind_of_agent_are_not_those_of_a_student(server):
  server.use(lambda number, body: Answer(status=400))
  base = {"kind": "python", "function": "a:b", "idempotent": False}
  agent = deploy.student_of(ModelServer(server.url, "new"), "chat", "v2", base, "mine", max_tokens=3)
  assert agent.idempotent and asyncio.run(deploy.answers_test(agent, 2)) == 0.0
  assert {asked["max_tokens"] for asked in server.asked} == {3}


def test_servers_are_adopted_by_address():
  with pytest.raises(DeployError, match="does not answer as a server does"):
    deploy.adopt_server("http://127.0.0.1:9/v1", None)


@pytest.mark.parametrize(("reply", "fraction"), [("c", 1.0), ("", 0.0), (None, 0.0)])
def test_the_self_test_counts_replies_that_can_be_read(server, reply, fraction):
  body = {"choices": [{"text": reply}]}
  server.use(lambda number, asked: Answer(status=400) if reply is None else Answer(body))
  endpoint = deploy.endpoint_of(ModelServer(server.url, "m"), "texts", PLAIN)
  assert asyncio.run(deploy.self_test(endpoint, PLAIN, 4)) == fraction
  asked = [teaching.teacher_messages(one, attempts=["0"],
                                     templates=teaching.PLAIN) for one in deploy.SELF_TEST[:4]]
  assert sorted(one["prompt"] for one in server.asked) == sorted(messages[0]["content"] for messages in asked)


def test_manifests_are_sealed(tmp_path):
  file = write_checkpoint(tmp_path) / "rl_checkpoint/manifest.json"
  content = json.loads(file.read_text())
  content["role"] = "student"
  file.write_text(json.dumps(content))
  with pytest.raises(ValueError):
    json_file.read_sealed(file)
  with pytest.raises(DeployError, match="cannot be used"):
    deploy.read_checkpoint(str(tmp_path), "student", "plain")
