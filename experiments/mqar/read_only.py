"""A memory rule with its write rate at 0: the same parameters and cost, but nothing read is remembered.

The rule that is switched off is an option, so that training and evaluation need no switch of their own.
"""
from collections.abc import Mapping

import jax.numpy as jnp

from atlas_jax.memory import rules
from atlas_jax.memory.types import MemoryRule


def make(*, key_dim: int, value_dim: int, chunk_size: int, rule: str, options: Mapping) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim, chunk_size: as of every rule.
    rule, options: the rule whose writes are switched off, and its own options.

  Raises:
    ValueError: if the rule writes with a gate of its own.
  """
  inner = rules.load(rule, key_dim=key_dim, value_dim=value_dim, chunk_size=chunk_size, **options)
  if "write_rate" not in inner.uses:
    raise ValueError(f"rule {rule!r} has no write rate that could be 0")
  shut = lambda gates: gates._replace(write_rate=jnp.zeros_like(gates.write_rate))

  def step(slow, state, base, token, gates, place):
    return inner.step(slow, state, base, token, shut(gates), place)

  def prepare(slow, tokens, gates, write_C, position_C):
    return inner.prepare(slow, tokens, shut(gates), write_C, position_C)

  return inner._replace(step=step, prepare=prepare)
