"""Settings of the upload to the Hugging Face Hub, behind a training or by --mode=upload."""
from ml_collections import config_dict

from atlas_jax.defaults.bounds import Bounded, above_zero, at_least, one_of

OPTIONAL = config_dict.placeholder


def group() -> dict:
  """Returns the fields of config.upload; the token is none, it stands in the environment as HF_TOKEN."""
  return {
      # When a run is sent: "end": once it is finished; "always": also where it was stopped, or failed.
      "when": one_of("never", "never end always"),
      # NAME or OWNER/NAME; None: HF_REPO of the environment, else atlas-40m-episodic. Without OWNER it is
      # HF_USERNAME, else whose token it is.
      "repo": Bounded(OPTIONAL(str), _is_repo, "NAME or OWNER/NAME of letters, digits, - _ and ."),
      # Whether others may not see it. True refuses a repository that is there and public.
      "private": True,
      # Whether the newest checkpoint is sent too, with the optimizer: a training may then go on from it.
      "with_optimizer": False,
      "attempts": at_least(1, 5),  # Of a request that the Hub fails or does not answer.
      # Seconds for an upload behind a training, which is then given up; --mode=upload takes any time.
      "time_limit_s": above_zero(1_800.0),
  }


def _is_repo(text: str) -> bool:
  parts = text.split("/")
  return len(parts) <= 2 and all(
      part and part.isascii() and part.strip("-.") == part and part.translate(_SIGNS).isalnum()
      for part in parts) and len(text) <= 96 and "--" not in text and ".." not in text


_SIGNS = {ord(sign): "a" for sign in "-_."}
