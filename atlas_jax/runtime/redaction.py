"""Secrets out of events and records, before any sink sees them.

Three things are replaced: values under keys that are called like secrets, texts that fit a pattern, and
secrets that are known by their value. Each pattern has examples that it must match, which are tried when a
redactor is made: one that matches nothing protects nothing.
"""
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.runtime.events import SessionEvent

REDACTED = "[redacted]"
LEAST_KNOWN = 8  # Letters of a secret from which on it is looked for: a shorter one is part of many words.
# Words of keys whose values are secrets, whatever words stand around them; plurals, as `tokens`, count.
SECRET_WORDS = frozenset(("secret", "secrets", "password", "passwords", "passwd", "passphrase",
                          "authorization", "credential", "credentials", "cookie", "apikey", "bearer"))
LAST_WORDS = frozenset(("key", "token"))  # Secrets where they end a key, but for names of the runtime's own.
NO_SECRETS = frozenset(("session_key", "learning_key", "learning_key_override", "playbook_key"))
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


# A name, behind which a value stands.
_NAMED = r"(?i)\b(?:[a-z0-9]{1,40}[_-])?(?:api[_-]?key|access[_-]?token|secret|password|passwd)"


class SecretPattern(NamedTuple):
  """A pattern of secrets in texts; where it has a group, the group alone is replaced."""

  expression: str
  examples: tuple[str, ...]  # texts that it must match


PATTERNS = (
    SecretPattern(r"\b(?:sk|pk|rk|hf|gh[pousr]|github_pat|xox[abprs]|glpat)[-_][A-Za-z0-9_\-]{16,}",
                  ("sk-abcdefghijklmnop1234", "hf_abcdefghijklmnopqrstuv", "ghp_abcdefghijklmnopqrst12")),
    SecretPattern(r"(?i)\bbearer +([A-Za-z0-9._~+/\-]{8,}=*)", ("Authorization: Bearer abc.def-12345",)),
    SecretPattern(r"\bAKIA[0-9A-Z]{16}\b", ("AKIAABCDEFGHIJKLMNOP",)),
    SecretPattern(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}",
                  ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2QT4",)),
    SecretPattern(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?",
                  ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----",)),
    SecretPattern(r"\b[a-z][a-z0-9+.\-]{1,20}://[^\s/:@]{1,200}:([^\s/@]{1,200})@",
                  ("postgresql://atlas:opensesame@db/atlas",)),
    SecretPattern(_NAMED + r"\\?[\"']? ?[:=] ?([^\s\"',;}\\]{6,})",
                  ("API_KEY=abcdef123", "secret: s3cr3t-value")),
    SecretPattern(_NAMED + r"\\?[\"']? ?[:=] ?\\?[\"']([^\"'\\]{4,})\\?[\"']",
                  ('{"password": "open sesame"}', r'"{\"api_key\": \"abcd\"}"')),
)


@dataclasses.dataclass(frozen=True)
class RedactionSettings:
  """Secrets, and how they are known.

  Raises:
    ValueError: for a pattern that cannot be, that matches the empty text, has no example, or misses one.
  """

  patterns: tuple[SecretPattern, ...] = PATTERNS
  keys: tuple[str, ...] = ()         # more names of keys whose values are secrets
  environment: tuple[str, ...] = ()  # variables whose values are secrets

  def __post_init__(self):
    for number, one in enumerate(self.patterns):
      where = f"redaction.patterns[{number}]={one.expression!r}"
      try:
        compiled = re.compile(one.expression)
      except re.error as error:
        raise ValueError(f"{where} is no regular expression: {error}") from error
      if compiled.search(""):
        raise ValueError(f"{where} matches the empty text, and would replace all; write what a secret has")
      if not one.examples:
        raise ValueError(f"{where} has no example; give texts that it must match, on which it is tried")
      for text in one.examples:
        if not compiled.search(text):
          raise ValueError(f"{where} does not match its example {text!r}; it would let such a secret pass")


class Redacted(NamedTuple):
  """A value without its secrets."""

  value: Any
  count: int  # type: ignore[assignment]  # that were replaced


class Redactor:
  """Replaces secrets; see the module."""

  def __init__(self, settings: RedactionSettings | None = None, *, known: Sequence[str] = ()):
    """Takes what is a secret.

    Args:
      settings: patterns and keys.
      known: secrets by their value, such as the key of an endpoint.
    """
    chosen = settings or RedactionSettings()
    self._patterns = [re.compile(one.expression) for one in chosen.patterns]
    self._keys = frozenset(chosen.keys)
    of_environment = [os.environ.get(name, "") for name in chosen.environment]
    # Longest first: one may be a part of another.
    self._known = sorted({one for one in (*known, *of_environment) if len(one) >= LEAST_KNOWN},
                         key=len, reverse=True)

  def redacted(self, value: Any) -> Redacted:
    """Returns a JSON value without its secrets, and how many were replaced."""
    count = [0]
    return Redacted(self._value(value, count), count[0])

  def event(self, event: SessionEvent) -> SessionEvent:
    """Returns an event without secrets in its data."""
    found = self.redacted(event.data)
    return event._replace(data=found.value) if found.count else event

  def text(self, text: str) -> str:
    """Returns a text without its secrets."""
    return self._text(text, [0])

  def is_secret_name(self, name: str) -> bool:
    """Returns whether the value under a key is a secret; counts such as `tokens` are none."""
    if name in self._keys:
      return True
    if name.lower() in NO_SECRETS:
      return False
    words = [word.lower() for word in _WORDS.findall(name)]
    return bool(words) and (words[-1] in LAST_WORDS or not SECRET_WORDS.isdisjoint(words))

  def _value(self, value: Any, count: list[int]) -> Any:
    if isinstance(value, str):
      return self._text(value, count)
    if isinstance(value, Mapping):
      return {self._text(name, count): self._member(name, one, value, count) for name, one in value.items()}
    if isinstance(value, list | tuple):
      if value and isinstance(value[0], int | float):
        return list(value)  # Ids and log-probabilities, thousands of them.
      return [self._value(one, count) for one in value]
    return value

  def _member(self, name: str, value: Any, owner: Mapping[str, Any], count: list[int]) -> Any:
    if not self.is_secret_name(name):
      return self._value(value, count)
    # A piece of text with its log-probability is called token, too; numbers called so are ids.
    is_piece = name == "token" and "logprob" in owner
    is_number = isinstance(value, int | float) and name.lower() in LAST_WORDS
    if is_piece or is_number or value is None or isinstance(value, bool) or value in ("", [], {}):
      return self._value(value, count)
    count[0] += 1
    return REDACTED

  def _text(self, text: str, count: list[int]) -> str:
    for secret in self._known:
      if secret in text:
        count[0] += text.count(secret)
        text = text.replace(secret, REDACTED)

    def replaced(found: re.Match) -> str:
      group = found.re.groups and 1
      if REDACTED in found[group]:  # Redacting twice changes nothing more.
        return found[0]
      count[0] += 1
      begin, end = (place - found.start() for place in found.span(group))
      return found[0][:begin] + REDACTED + found[0][end:]

    for pattern in self._patterns:
      text = pattern.sub(replaced, text)
    return text
