"""The server that clients are tried against, and what came of each check; needs Python alone."""
import dataclasses
import json
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

TOOL = {"name": "get_weather", "description": "Tells the weather of a place.", "parameters": {
    "type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"],
    "additionalProperties": False}}
SCHEMA = {"type": "object", "required": ["colour", "bright"], "additionalProperties": False,
          "properties": {"colour": {"enum": ["red", "blue"]}, "bright": {"type": "boolean"}}}
ASKED = "please tell me the weather in Oslo"


class DoesNotApply(Exception):
  """Raised by a check that this model or server cannot be asked, with the reason."""


@dataclasses.dataclass(frozen=True)
class Target:
  """A server and one of its models.

  Attributes:
    url: without /v1.
    token: that it knows; "" where it needs none.
    model: name in requests.
    described: what /v1/models says of it.
  """

  url: str
  token: str
  model: str
  described: Mapping[str, Any]

  @property
  def api(self) -> str:
    """Returns the URL that clients take."""
    return f"{self.url}/v1"

  def need_chat(self) -> None:
    """Ends a check that needs a chat template."""
    if not self.described["chat"]:
      raise DoesNotApply("the model has no chat template: it goes on from texts")

  def need_tools(self) -> None:
    """Ends a check that needs a chat template which shows tools."""
    self.need_chat()
    if not self.described["tools"]:
      raise DoesNotApply("the model's chat template shows no tools")

  def need_token(self) -> None:
    """Ends a check of tokens where the server has none."""
    if not self.token:
      raise DoesNotApply("the server was started without tokens")

  def busy_slots(self) -> int:
    """Returns how many completions the server writes now, by its metrics."""
    text = ask(self.url, "/metrics", self.token).decode()
    line = next(line for line in text.splitlines() if line.startswith("atlas_jax_scheduler_busy_slots "))
    return round(float(line.split()[1]))

  def wait_until_free(self, seconds: float = 5.0) -> float:
    """Waits until nothing is written any more, and returns how long that took."""
    began = time.monotonic()
    while self.busy_slots():
      assert time.monotonic() - began < seconds, f"slots are busy after {seconds} s"
      time.sleep(0.02)
    return time.monotonic() - began


def ask(url: str, path: str, token: str) -> bytes:
  """Returns the body of a GET."""
  headers = {"Authorization": f"Bearer {token}"} if token else {}
  request = urllib.request.Request(f"{url}{path}", headers=headers)
  with urllib.request.urlopen(request, timeout=30) as answer:
    return answer.read()


def find(url: str, token: str, model: str | None) -> Target:
  """Returns the target of a URL; the model is the server's first, where none is named."""
  listed = json.loads(ask(url, "/v1/models", token))["data"]
  found = next(one for one in listed if model in (None, one["id"]))
  return Target(url, token, found["id"], found)


def outcome(check: Callable[[Target], Any], target: Target) -> tuple[str, str]:
  """Returns (result, note) of a check; a note that it returns stands beside its pass."""
  try:
    note = check(target)
    return "pass", note or ""
  except DoesNotApply as reason:
    return "does not apply", str(reason)
  except Exception as error:
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())[:300]
    return "FAIL", f"{type(error).__name__}: {words} ({place.name}:{place.lineno})"
