"""Who may ask, and that no token shows."""
import pytest

from atlas_jax.language.serve.access import TOKENS, Access
from tests.language.serve import scripted

GOOD, OTHER = "a-token-of-enough-length", "another-one-of-enough-length"


def bearer(token):
  return {"Authorization": f"Bearer {token}"}


def test_a_request_needs_a_token_where_there_are_some():
  client = scripted.Client(scripted.service(tokens=(GOOD, OTHER)))
  for headers in ({}, bearer("wrong"), {"Authorization": GOOD}, {"Authorization": f"Basic {GOOD}"}):
    for path, method in (("/v1/models", "GET"), ("/v1/completions", "POST"), ("/metrics", "GET")):
      error = client.refused(path, status=401, headers=headers, method=method)
      assert error["code"] == "invalid_api_key"
  assert client.ask("/v1/models", headers=bearer(OTHER)).status_code == 200
  # What a load balancer and a browser ask first has no secrets.
  assert client.ask("/health").status_code == client.ask("/").status_code == 200


def test_tenants_share_no_state_and_no_conversation():
  made = scripted.service(tokens=(GOOD, OTHER))
  client = scripted.Client(made)
  for token in (GOOD, OTHER):
    answer = client.ask("/v1/completions", {"prompt": "x", "conversation": "c"}, headers=bearer(token))
    assert answer.status_code == 200
  first, second = made.scheduler.asked
  assert first.tenant != second.tenant
  assert first.prompt == second.prompt  # The second did not go on where the first one was.
  assert GOOD not in first.tenant


def test_a_user_of_a_token_is_a_tenant_too():
  made = scripted.service()
  client = scripted.Client(made)
  for user in ("a", "b"):
    client.post("/v1/completions", prompt="x", user=user)
  assert len({request.tenant for request in made.scheduler.asked}) == 2


def test_without_tokens_other_names_of_this_machine_are_refused():
  client = scripted.Client(scripted.service())
  for host in ("evil.example", "localhost.evil.example:8000", "", "[::2]:80"):
    client.refused("/v1/models", status=403, headers={"Host": host})
  for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"):
    assert client.ask("/v1/models", headers={"Host": host}).status_code == 200, host


def test_other_machines_need_tokens_and_short_ones_are_refused(monkeypatch):
  monkeypatch.delenv(TOKENS, raising=False)
  with pytest.raises(ValueError, match=TOKENS):
    Access.from_environment("0.0.0.0")
  assert not Access.from_environment("127.0.0.1").needs_token
  monkeypatch.setenv(TOKENS, f"{GOOD}, {OTHER}")
  assert Access.from_environment("0.0.0.0").needs_token
  monkeypatch.setenv(TOKENS, "short")
  with pytest.raises(ValueError, match="characters") as caught:
    Access.from_environment("127.0.0.1")
  assert "short" not in str(caught.value).split()
