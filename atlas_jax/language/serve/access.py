"""Bearer tokens from the environment say who may ask; without any, whoever is on this machine."""
import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence

from atlas_jax.language.serve.api_error import ApiError

TOKENS = "ATLAS_JAX_SERVE_TOKENS"  # Variable of the environment: tokens with commas between them.
TRAINER_TOKENS = "ATLAS_JAX_SERVE_TRAINER_TOKENS"  # The same of who may also change weights.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LEAST_CHARS = 16  # Of a token; a shorter one can be guessed.


class Access:
  """Decides about requests by their headers, and keeps those of different tokens apart.

  Tokens are held as checksums alone, so that no error or dump of memory in use shows one in the clear.
  """

  def __init__(self, tokens: tuple[str, ...], trainer_tokens: tuple[str, ...] = ()):
    """Takes the tokens; without any of the first kind everybody on this machine may ask.

    Args:
      tokens: of those who ask.
      trainer_tokens: of those who ask and change weights.

    Raises:
      ValueError: if a token is too short, or of both kinds; it is not shown.
    """
    for variable, those in ((TOKENS, tokens), (TRAINER_TOKENS, trainer_tokens)):
      if any(len(token) < LEAST_CHARS for token in those):
        raise ValueError(f"a token in {variable} has fewer than {LEAST_CHARS} characters and could be "
                         "guessed; make one with: python -c 'import secrets; "
                         "print(secrets.token_urlsafe(32))'")
    if set(tokens) & set(trainer_tokens):
      raise ValueError(f"a token stands in {TOKENS} and in {TRAINER_TOKENS}: who asks with it could change "
                       "the weights; give trainers tokens of their own")
    self._digests = [_digest(token.encode()) for token in tokens]
    self._trainer_digests = [_digest(token.encode()) for token in trainer_tokens]

  @classmethod
  def from_environment(cls, host: str, *, takes_weights: bool = False) -> "Access":
    """Reads the tokens.

    Args:
      host: where the server listens.
      takes_weights: whether it takes weights, which needs tokens of their own.

    Raises:
      ValueError: if other machines can reach the server and there is no token, or weights could be changed
        without one.
    """
    tokens = _tokens(TOKENS)
    trainer_tokens = _tokens(TRAINER_TOKENS)
    if takes_weights and not trainer_tokens:
      raise ValueError("config.serve.weights_folder lets training change the weights, and there is no token "
                       f"for it; set {TRAINER_TOKENS} in the environment")
    if not tokens and host not in LOOPBACK:
      raise ValueError(f"config.serve.host={host!r} is reached from other machines, and there is no token; "
                       f"set {TOKENS} in the environment, or config.serve.host='127.0.0.1'")
    return cls(tokens, trainer_tokens)

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
    given = _matching(headers, (*self._digests, *self._trainer_digests))
    if given is None:
      raise ApiError(401, "the request has no token that this server knows; send the header "
                     "'Authorization: Bearer TOKEN'", headers={"WWW-Authenticate": "Bearer"})
    return given.hex()[:16]

  @property
  def has_trainers(self) -> bool:
    """Returns whether some who ask may change weights, and others not."""
    return bool(self._trainer_digests)

  def need_trainer(self, headers: Mapping[str, str]) -> None:
    """Refuses a request that may not change weights.

    Args:
      headers: as of `tenant`, which has let the request pass.

    Raises:
      ApiError: status 403.
    """
    if _matching(headers, self._trainer_digests) is None:
      raise ApiError(403, "the request has no token that may change weights; send the header 'Authorization: "
                     f"Bearer TOKEN' with one of the server's {TRAINER_TOKENS}")

  def _check_host(self, headers: Mapping[str, str]) -> None:
    """Refuses names of other hosts: a web page whose name points here could ask in a user's browser."""
    host = headers.get("host", "")
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name.lower() not in LOOPBACK:
      raise ApiError(403, f"the request is for another host than {', '.join(LOOPBACK)}; a server for other "
                     f"names needs tokens, see {TOKENS}")


def _digest(token: bytes) -> bytes:
  return hashlib.sha256(token).digest()


def _tokens(variable: str) -> tuple[str, ...]:
  return tuple(filter(None, (one.strip() for one in os.environ.get(variable, "").split(","))))


def _matching(headers: Mapping[str, str], digests: Sequence[bytes]) -> bytes | None:
  """Returns the checksum of a request's token if it is one of these."""
  scheme, _, token = headers.get("authorization", "").partition(" ")
  given = _digest(token.strip().encode("latin-1", "replace"))
  # All are compared, each in constant time, so that the time of an answer tells nothing.
  matches = [hmac.compare_digest(given, known) for known in digests]
  return given if scheme.lower() == "bearer" and any(matches) else None
