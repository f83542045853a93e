"""Settings of a client of endpoints, and its key."""
import dataclasses
import math
import os
from urllib.parse import urlsplit

from atlas_jax.rollout import chat_form


@dataclasses.dataclass(frozen=True)
class EndpointSettings:
  """An endpoint, and how patiently it is asked.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  url: str                         # up to the version, such as http://127.0.0.1:8000/v1
  model: str                       # its name there
  key_variable: str | None = None  # variable of the environment that has the key; None: no key is sent
  timeout_s: float = 60.0          # of one try
  deadline_s: float = 180.0        # of all tries, pauses among them
  tries: int = 3                   # requests at most for one reply
  backoff_s: float = 0.5           # bound of the first pause, which doubles; drawn from 0 on
  backoff_most_s: float = 20.0     # bound of any pause
  circuit_failures: int = 5        # in a row that open the circuit
  circuit_open_s: float = 30.0     # seconds for which nothing is asked then
  parallel_requests: int = 16      # at the same time, at most
  cache_dir: str | None = None     # folder of replies; None: none are saved
  response_format: str = "json_schema"  # what carries a schema: "json_schema", "json_object" or "none"
  form: str = "chat"  # "chat", or "texts" for models without a chat template: one message is a prompt

  def __post_init__(self):
    parts = urlsplit(self.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ValueError(f"the url of an endpoint is {_without_secrets(self.url)!r}; give http://HOST:PORT/v1 "
                       "or https://HOST/v1")
    if parts.username or parts.password or parts.query:
      raise ValueError(f"the url of the endpoint at {parts.hostname} holds a name, password or query; put "
                       "its key into a variable of the environment, and name that")
    if not self.model:
      raise ValueError("the model of an endpoint is missing; give its name there, as GET /v1/models lists it")
    for name in ("timeout_s", "deadline_s", "backoff_most_s", "circuit_open_s"):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(f"{name}={getattr(self, name)} of an endpoint must be above 0")
    if self.timeout_s > self.deadline_s:  # No try would end by itself, and the circuit count none.
      raise ValueError(f"timeout_s={self.timeout_s} of one try is more than deadline_s={self.deadline_s} "
                       "of all tries of an endpoint; lower it, or raise deadline_s")
    for name in ("tries", "circuit_failures", "parallel_requests"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} of an endpoint must be at least 1")
    if not 0 <= self.backoff_s < math.inf:
      raise ValueError(f"backoff_s={self.backoff_s} of an endpoint must be at least 0")
    if self.response_format not in chat_form.FORMATS:
      raise ValueError(f"response_format={self.response_format!r} must be one of "
                       f"{', '.join(chat_form.FORMATS)}")
    if self.form not in chat_form.ROUTES:
      raise ValueError(f"form={self.form!r} of an endpoint must be one of {', '.join(chat_form.ROUTES)}")


def read_key(variable: str | None) -> str | None:
  """Returns the key that a variable of the environment has, None without a variable.

  Raises:
    ValueError: if it is not set, or no key that a request can carry.
  """
  if variable is None:
    return None
  key = os.environ.get(variable, "").strip()
  if not key:
    raise ValueError(f"the key of an endpoint is to be in the environment's variable {variable}, which is "
                     "not set; set it, or name no variable where the endpoint needs no key")
  if not all("!" <= char <= "~" for char in key):  # No header of HTTP has others.
    raise ValueError(f"the key of an endpoint in the environment's variable {variable} has a blank, a line "
                     "end or a character beyond ASCII; set it again, as the service gave it")
  return key


def _without_secrets(url: str) -> str:
  return url.rpartition("@")[2] if "@" in url else url
