"""Bearer tokens from the environment say who may ask; without any, whoever is on this machine."""
import hashlib
import hmac
import os
from collections.abc import Mapping

from atlas_jax.language.serve.api_error import ApiError

TOKENS = "ATLAS_JAX_SERVE_TOKENS"  # Variable of the environment: tokens with commas between them.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LEAST_CHARS = 16  # Of a token; a shorter one can be guessed.


class Access:
  """Decides about requests by their headers, and keeps those of different tokens apart.

  Tokens are held as checksums alone, so that no error or dump of memory in use shows one in the clear.
  """

  def __init__(self, tokens: tuple[str, ...]):
    """Takes the tokens; none: everybody on this machine may ask.

    Raises:
      ValueError: if a token is too short; it is not shown.
    """
    if any(len(token) < LEAST_CHARS for token in tokens):
      raise ValueError(f"a token in {TOKENS} has fewer than {LEAST_CHARS} characters and could be guessed; "
                       "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'")
    self._digests = [_digest(token.encode()) for token in tokens]

  @classmethod
  def from_environment(cls, host: str) -> "Access":
    """Reads the tokens.

    Args:
      host: where the server listens.

    Raises:
      ValueError: if other machines can reach the server, and there is no token.
    """
    tokens = tuple(filter(None, (one.strip() for one in os.environ.get(TOKENS, "").split(","))))
    if not tokens and host not in LOOPBACK:
      raise ValueError(f"config.serve.host={host!r} is reached from other machines, and there is no token; "
                       f"set {TOKENS} in the environment, or config.serve.host='127.0.0.1'")
    return cls(tokens)

  @property
  def needs_token(self) -> bool:
    """Returns whether requests need a token."""
    return bool(self._digests)

  def tenant(self, headers: Mapping[str, str]) -> str:
    """Returns whose request it is: requests of different tokens share no state.

    Args:
      headers: by name in lower case.

    Raises:
      ApiError: status 401 without a token that is known, 403 for a host that is another's name.
    """
    if not self._digests:
      self._check_host(headers)
      return ""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = _digest(token.strip().encode("latin-1", "replace"))
    # All are compared, each in constant time, so that the time of an answer tells nothing.
    matches = [hmac.compare_digest(given, known) for known in self._digests]
    if scheme.lower() != "bearer" or not any(matches):
      raise ApiError(401, "the request has no token that this server knows; send the header "
                     "'Authorization: Bearer TOKEN'", headers={"WWW-Authenticate": "Bearer"})
    return given.hex()[:16]

  def _check_host(self, headers: Mapping[str, str]) -> None:
    """Refuses names of other hosts: a web page whose name points here could ask in a user's browser."""
    host = headers.get("host", "")
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name.lower() not in LOOPBACK:
      raise ApiError(403, f"the request is for another host than {', '.join(LOOPBACK)}; a server for other "
                     f"names needs tokens, see {TOKENS}")


def _digest(token: bytes) -> bytes:
  return hashlib.sha256(token).digest()
