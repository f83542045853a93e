"""The repository that a run is uploaded to, and the token for it, from the config and the environment."""
import importlib.util
import os
import re
from collections.abc import Mapping

TOKEN = "HF_TOKEN"
OWNER = "HF_USERNAME"
REPO = "HF_REPO"
DEFAULT_REPO = "atlas-40m-episodic"
HIDDEN = "[secret]"
EXTRA = "pip install 'atlas_jax[hf]'"
# Variables whose values must not be sent: a part of the name says so. Those that name a file hold no secret.
_SECRET = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_\d+)?$")
_SHORTEST = 8  # Characters; a shorter value stands in texts by chance.
_TOKEN_FORM = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b")


def refuse(config, environ: Mapping[str, str] = os.environ) -> None:
  """Refuses a training that is to be uploaded and could not be, before it begins.

  Raises:
    ValueError: says whether the package or the token is missing.
    ModuleNotFoundError: if the package is missing.
  """
  if config.upload.when != "never":
    needed(f"config.upload.when={config.upload.when!r}", environ)


def needed(what: str, environ: Mapping[str, str] = os.environ) -> str:
  """Returns the token that an upload needs.

  Args:
    what: asks for it, for the message.
    environ: the environment.

  Raises:
    ValueError: if there is none.
    ModuleNotFoundError: if the package that sends is missing.
  """
  if importlib.util.find_spec("huggingface_hub") is None:
    raise ModuleNotFoundError(f"{what} needs the package huggingface_hub: {EXTRA}")
  token = environ.get(TOKEN, "").strip()
  if not token:
    raise ValueError(f"{what} needs a token with the right to write, and {TOKEN} is not set in the "
                     "environment; make one at https://huggingface.co/settings/tokens and start with "
                     f"{TOKEN}=... set, or leave the upload out with --config.upload.when=never")
  if any(not 33 <= ord(sign) < 127 for sign in token):
    raise ValueError(f"{what}: {TOKEN} holds spaces or signs that no token has; copy it anew from "
                     "https://huggingface.co/settings/tokens")
  return token


def repo_of(config, environ: Mapping[str, str] = os.environ) -> str:
  """Returns the repository of a config and the environment: OWNER/NAME, or NAME of whose token it is."""
  name = config.upload.repo or environ.get(REPO, "").strip() or DEFAULT_REPO
  owner = environ.get(OWNER, "").strip()
  return f"{owner}/{name}" if owner and "/" not in name else name


def secrets_of(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
  """Returns the secrets of the environment, value by name, as far as names tell."""
  return {name: value for name, value in environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST}


def redacted(text: str, environ: Mapping[str, str] = os.environ) -> str:
  """Returns a text without the secrets of the environment, and without what looks like a token of the Hub."""
  for value in sorted(secrets_of(environ).values(), key=len, reverse=True):
    text = text.replace(value, HIDDEN)
  return _TOKEN_FORM.sub(HIDDEN, text)


def secret_in(data: bytes, environ: Mapping[str, str] = os.environ) -> str | None:
  """Returns which secret of the environment stands in some bytes, by its name; None if there is none."""
  for name, value in secrets_of(environ).items():
    if value.encode() in data:
      return f"the value of {name}"
  return "a token of the Hugging Face Hub" if _TOKEN_FORM.search(data.decode("utf-8", "replace")) else None
