"""A memory rule whose writes get no gradient; what is read from the memory still trains the queries.

In the original the loop that writes runs without gradients, so that keys, values and the gates of writing
stay as they were drawn. Where queries share the keys' projection, that one still learns, as queries.
"""
from collections.abc import Mapping

import jax

from atlas_jax.memory import rules
from atlas_jax.memory.types import Gates, LiftedToken, MemoryRule


def make(*, key_dim: int, value_dim: int, chunk_size: int, rule: str,
         options: Mapping | None = None) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim, chunk_size: as of every rule.
    rule, options: the rule whose gradients are cut, and its own options.
  """
  inner = rules.load(rule, key_dim=key_dim, value_dim=value_dim, chunk_size=chunk_size, **(options or {}))

  def step(slow, state, base, token, gates, place):
    return inner.step(slow, state, base, *cut(token, gates), place)

  def prepare(slow, tokens, gates, write_C, position_C):
    return inner.prepare(slow, *cut(tokens, gates), write_C, position_C)

  return inner._replace(step=step, prepare=prepare, kernel=None)


def cut(token, gates: Gates):
  """Returns the same token and gates, of which all that is written passes no gradient."""
  parts = {"k": token.k, "v": token.v} | ({"key": token.key} if isinstance(token, LiftedToken) else {})
  stopped, gates = jax.lax.stop_gradient((parts, gates))
  return token._replace(**stopped), gates
