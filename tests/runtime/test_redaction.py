"""Redaction: what it replaces, what it leaves, and patterns that are tried before they are used."""
import re

import pytest

from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.redaction import PATTERNS, REDACTED, RedactionSettings, Redactor, SecretPattern


@pytest.mark.parametrize("pattern", PATTERNS, ids=range(len(PATTERNS)))
def test_every_pattern_takes_the_secret_out_of_its_examples(pattern):
  for text in pattern.examples:
    found = Redactor(RedactionSettings(patterns=(pattern,))).redacted(text)
    secret = re.search(pattern.expression, text)
    assert found.count == 1 and secret[secret.re.groups] not in found.value and REDACTED in found.value


@pytest.mark.parametrize("pattern, said", [
  (SecretPattern(r"\\bsk-\\w+", ("sk-abcdefgh",)), "does not match its example"),  # Escaped twice.
  (SecretPattern("(", ("(",)), "no regular expression"),
  (SecretPattern("a*", ("a",)), "matches the empty text"),
  (SecretPattern("abc", ()), "has no example"),
])
def test_a_pattern_that_protects_nothing_is_refused_at_the_start(pattern, said):
  with pytest.raises(ValueError, match=rf"redaction\.patterns\[0\].*{said}"):
    RedactionSettings(patterns=(pattern,))


@pytest.mark.parametrize("name", ["api_key", "apiKey", "OPENAI_API_KEY", "key", "token", "access-token",
                                  "secret", "client_secret_value", "password", "Authorization", "set-cookie"])
def test_values_under_secret_names_are_replaced(name):
  assert Redactor().redacted({"a": [{name: {"deep": "value"}}]}) == ({"a": [{name: REDACTED}]}, 1)


@pytest.mark.parametrize("value", [
  {"tokens": {"student": {"prompt": 3}}}, {"max_tokens": 5}, {"token_ids": [1, 2]}, {"session_key": "abc"},
  {"learning_key": "pumps"}, {"monkey": "banana"}, {"keys": ["a"]}, {"token": 5}, {"password": None},
  {"token": " the", "logprob": -0.5}, {"text": "the key to the secret is a password"}, {"tokenizer": "bytes"},
])
def test_counts_and_common_words_are_no_secrets(value):
  assert Redactor().redacted(value) == (value, 0)


def test_known_secrets_go_wherever_they_stand(monkeypatch):
  monkeypatch.setenv("MY_SECRET", "planted-value-1")
  redactor = Redactor(RedactionSettings(environment=("MY_SECRET",), keys=("pin",)),
                      known=("hunter2-long", "abc"))
  found = redactor.redacted({"x planted-value-1": ["say hunter2-long twice: hunter2-long"], "abc": "abc",
                             "pin": "1234"})
  assert found.value == {f"x {REDACTED}": [f"say {REDACTED} twice: {REDACTED}"], "abc": "abc",
                         "pin": REDACTED}
  assert found.count == 4


def test_an_event_is_the_same_but_for_its_secrets():
  made = []
  log = EventLog("s", made.append)
  log.emit("tool", "POINT", span=0, data={"arguments": '{"password": "opensesame"}', "n": 1})
  log.emit("tool", "POINT", span=0, data={"n": 1})
  clean = Redactor().event(made[0])
  assert "opensesame" not in str(clean) and clean.data["n"] == 1 and clean[:7] == made[0][:7]
  assert Redactor().event(made[1]) is made[1]
