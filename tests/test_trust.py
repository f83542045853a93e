"""A run that came from elsewhere runs no code that its config names, unless it is trusted."""

import json

import pytest

from atlas_jax import config as configs
from atlas_jax import trust
from atlas_jax.files import json_file, write

CODE = [("recipe", "mine.recipe"), ("data.source", "mine.source"), ("model.memory.rule", "mine.rule"),
        ("sampler.kind", "mine.sampler"),
        ("rewards", "correct=1,mine.py:short=0.1"), ("rewards", "mine.short"), ("vllm.command", "sh -c 'x'"),
        ("vllm.arguments", "--trust-remote-code"), ("vllm.url", "http://elsewhere:1"),
        ("server.url", "http://elsewhere:1"), ("server.token_variable", "SECRET"),
        ("server.weights_folder", "/elsewhere"), ("eval.grader", "mine.py:grade"),
        ("teacher.sampler", "mine.student"), ("teacher.grader", "mine.py:grade"),
        ("teacher.rewards", "mine.rewards.short"), ("teacher.endpoint.url", "http://elsewhere:1/v1"),
        ("teacher.endpoint.key_variable", "SECRET"), ("traces.lesson", "mine.lessons"),
        ("rim.script", "mine.py:judge"), ("rim.endpoint.url", "http://elsewhere:1/v1"),
        ("rim.endpoint.key_variable", "SECRET"), ("rim.large_endpoint.url", "http://elsewhere:1/v1"),
        ("rim.large_endpoint.key_variable", "SECRET")]  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """The home of a user who has trusted nothing."""
  monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
  monkeypatch.setattr(trust, "_given", [])
  return tmp_path / "home"


@pytest.fixture
def known(monkeypatch):
  """Lets configs name modules that are not there; what is checked here comes before they are looked for."""
  monkeypatch.setattr(configs, "check", lambda config: None)


def run(folder, **fields):
  """Leaves the config of a run, with some fields changed before it is written."""
  config = configs.default()
  for name, value in fields.items():
    group, _, last = name.rpartition(".")
    (configs.at(config, group) if group else config)[last] = value
  folder.mkdir(exist_ok=True)
  configs.save(config, folder)
  return folder


@pytest.mark.parametrize(("name", "value"), CODE)
def test_code_of_elsewhere_is_refused_and_ones_own_is_used(name, value, tmp_path, monkeypatch, known):
  workdir = run(tmp_path / "run", **{name: value})
  assert configs.at(configs.load(workdir), name) == value
  monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
  with pytest.raises(ValueError, match=rf"config.json was not written by this.*config\.{name}=.*--trust"):
    configs.load(workdir)
  assert configs.at(configs.load(workdir, given=[name]), name) == value  # As a flag gives it anew.
  trust.give()
  assert configs.at(configs.load(workdir), name) == value


def test_a_config_without_code_is_anybodys(tmp_path, monkeypatch, home):
  workdir = run(tmp_path / "run")
  assert not home.exists() and trust.SIGNATURE not in json.loads((workdir / "config.json").read_text())
  monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
  configs.load(workdir)


def test_a_signature_holds_for_the_code_it_was_made_of(tmp_path, known):
  workdir = run(tmp_path / "run", **{"vllm.command": "mine"})
  saved = json_file.read_sealed(workdir / "config.json")
  saved["vllm"]["command"] = "theirs"
  write.json(workdir / "config.json", json_file.sealed(saved))
  with pytest.raises(ValueError, match="config.vllm.command='theirs'"):
    configs.load(workdir)


def test_a_reward_in_a_file_is_signed_with_its_folder(tmp_path, monkeypatch, known):
  workdir = run(tmp_path / "run", rewards="mine.py:short")
  configs.load(workdir)
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  with pytest.raises(ValueError, match="config.rewards='mine.py:short'"):
    configs.load(workdir)


def test_without_a_place_for_the_key_nothing_is_signed(tmp_path, monkeypatch, known, caplog):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
  with caplog.at_level("WARNING"):
    workdir = run(tmp_path / "run", **{"vllm.command": "mine"})
  assert "cannot be signed" in caplog.text
  with pytest.raises(ValueError, match="--trust"):
    configs.load(workdir)


def test_the_key_is_the_users_alone(tmp_path, home, known):
  run(tmp_path / "run", **{"vllm.command": "mine"})
  assert (home / "atlas_jax" / "key").stat().st_mode & 0o077 == 0


def test_going_on_with_a_run_by_ones_own_config_needs_no_trust(tmp_path, monkeypatch, known):
  workdir = run(tmp_path / "run", **{"vllm.command": "mine"})
  monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
  config = configs.default()
  config.vllm.command = "mine"
  configs.check_same(configs.resolve(config), workdir)
