"""Where a run goes to, what it needs for that, and what must not go along."""

import pytest

from atlas_jax import config as configs
from atlas_jax.handover import place
from configs import memory_40m

TOKEN = "hf_" + "abcDEF123" * 4


def config(**upload):
  made = memory_40m.get_config("smoke")
  made.upload.update(upload)
  return configs.resolve(made)


@pytest.mark.parametrize(
  ("repo", "environ", "found"),
  [(None, {}, "atlas-40m-episodic"),
   (None, {"HF_REPO": "mine"}, "mine"),
   (None, {"HF_REPO": "mine", "HF_USERNAME": "bob"}, "bob/mine"),
   ("other", {"HF_REPO": "mine", "HF_USERNAME": "bob"}, "bob/other"),
   ("org/other", {"HF_REPO": "mine", "HF_USERNAME": "bob"}, "org/other")],
)  # fmt: skip
def test_the_config_names_the_repository_before_the_environment_does(repo, environ, found):
  assert place.repo_of(config(repo=repo), environ) == found


@pytest.mark.parametrize("repo", ["a/b/c", "", "a b", "../x", "a/", "-a", "a--b", "ä"])
def test_a_name_that_the_hub_would_not_take_is_refused(repo):
  with pytest.raises(ValueError, match="config.upload.repo"):
    config(repo=repo)


def test_a_training_without_upload_needs_nothing():
  place.refuse(config(), {})


def test_a_training_with_upload_needs_token_and_package(monkeypatch):
  place.refuse(config(when="end"), {"HF_TOKEN": TOKEN})
  with pytest.raises(ValueError, match="config.upload.when='end' needs a token .* HF_TOKEN is not set"):
    place.refuse(config(when="end"), {})
  with pytest.raises(ValueError, match="HF_TOKEN holds spaces") as caught:
    place.refuse(config(when="end"), {"HF_TOKEN": "hf_a b"})
  assert "hf_a b" not in str(caught.value)
  monkeypatch.setattr(place.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=r"needs the package huggingface_hub: pip install "
                                                r"'atlas_jax\[hf\]'"):
    place.refuse(config(when="always"), {"HF_TOKEN": TOKEN})


def test_secrets_are_found_by_the_names_of_variables_and_the_form_of_tokens():
  environ = {"HF_TOKEN": TOKEN, "MY_API_KEY": "0123456789", "TOKENIZERS_PARALLELISM": "notasecret",
             "HF_TOKEN_PATH": "/somewhere/else", "A_PASSWORD": "short"}
  assert place.secrets_of(environ) == {"HF_TOKEN": TOKEN, "MY_API_KEY": "0123456789"}
  text = f"x {TOKEN} y 0123456789 z notasecret hf_{'Q' * 34} hf_hub"
  assert place.redacted(text, environ) == "x [secret] y [secret] z notasecret [secret] hf_hub"
  assert place.secret_in(b"has 0123456789", environ) == "the value of MY_API_KEY"
  assert place.secret_in(b"has hf_" + b"Q" * 34, {}) == "a token of the Hugging Face Hub"
  assert place.secret_in(b"has hf_hub", environ) is None
