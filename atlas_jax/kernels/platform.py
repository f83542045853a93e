"""The platform that kernels are chosen for: that of the devices, or another that is compiled for."""
import contextlib
import contextvars
from collections.abc import Iterator

import jax

_OTHER: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def current() -> str:
  """Returns "cpu", "gpu" or "tpu"."""
  return _OTHER.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
  """Has kernels chosen for a platform whose devices need not be there, in what is traced inside."""
  token = _OTHER.set(platform)
  try:
    yield
  finally:
    _OTHER.reset(token)
