"""A message of an event, and texts from which secrets are taken out."""
import re
from collections.abc import Iterable
from typing import NamedTuple

MARKS = {"critical": "🔴", "warning": "🟠", "info": "🔵"}
MOST = 3_500  # Characters of a text: Telegram refuses more than 4,096.
HIDDEN = "[secret]"
# What looks like a token of the Bot API or a webhook's path, whoever holds it.
SHAPES = re.compile(r"(?<!\d)\d{5,}:[\w-]{20,}|hooks\.slack\.com/services/\S+|api/webhooks/\d+/\S+")


class Message(NamedTuple):
  """A message of one event."""

  run: str  # name of the run
  rule: str
  severity: str
  state: str
  step: int
  metric: str
  value: float | None
  text: str

  @property
  def title(self) -> str:
    """Returns the line above the text: how grave, which rule and state, of which run."""
    word = "RECOVERED" if self.state == "recovered" else self.severity.upper()
    return f"{word}: {self.rule} in {self.run} at step {self.step}"

  @property
  def mark(self) -> str:
    """Returns the sign that stands before the title."""
    return "🟢" if self.state == "recovered" else MARKS[self.severity]

  @property
  def body(self) -> str:
    """Returns the text, cut where it is longer than every receiver takes."""
    return self.text if len(self.text) <= MOST else self.text[:MOST - 1] + "…"

  @property
  def plain(self) -> str:
    """Returns title and text without any formatting."""
    return f"{self.mark} {self.title}\n{self.body}"


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
  """Returns a text without secrets, and without what looks like one."""
  for secret in sorted(filter(None, secrets), key=len, reverse=True):
    text = text.replace(secret, HIDDEN)
  return SHAPES.sub(HIDDEN, text)
