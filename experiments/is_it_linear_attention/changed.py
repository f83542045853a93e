"""A memory rule with one part of its inner training taken back or turned around.

The rule and the change are options, so that training and evaluation need no switch of their own:

  ascent: the write rate has the other sign, so that every write climbs the recall loss.
  no_momentum: momentum is 0; the write rate and its bound start higher by 1 / (1 - momentum), so that what a
    token writes in all stays the same.
  constant_rate: the write rate is a learned number of the head, the same for every token; it starts where
    the gate does, and has its bound.
  constant_gates: all common gates are such numbers, retention and momentum, too.
  keys_for_queries: a token reads with the key under which it writes; with the layer's shift this is the key
    of the token before.

Source of the claims: arXiv:2602.21204.
"""
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from atlas_jax.memory import rules
from atlas_jax.memory.gates import inverse_sigmoid, inverse_softplus
from atlas_jax.memory.types import Gates, LiftedToken, MemoryRule

CHANGES = ("none", "ascent", "no_momentum", "constant_rate", "constant_gates", "keys_for_queries")
SHUT = -40.0  # Log of a gate that is as good as 0, and finite.
CONSTANT = "constant_"  # Before the names of learned gates among a rule's slow parameters.


def make(*, key_dim: int, value_dim: int, chunk_size: int, rule: str, change: str,
         options: Mapping | None = None) -> MemoryRule:
  """Makes the changed rule for one head.

  Args:
    key_dim, value_dim, chunk_size: as of every rule.
    rule, options: the rule that is changed, and its own options.
    change: one of CHANGES; see the module.

  Raises:
    ValueError: if the change is unknown, or the rule has no such gate.
  """
  inner = rules.load(rule, key_dim=key_dim, value_dim=value_dim, chunk_size=chunk_size, **(options or {}))
  if change not in CHANGES:
    raise ValueError(f"change={change!r} is unknown; known are {', '.join(CHANGES)}")
  needed = {"no_momentum": "log_momentum", "ascent": "write_rate", "constant_rate": "write_rate"}
  if (gate := needed.get(change)) is not None and gate not in inner.uses:
    raise ValueError(f"change={change!r} needs a gate {gate} that rule {rule!r} with its options "
                     "does not use")
  changed = functools.partial(_gates, inner, change)

  def step(slow, state, base, token, gates, place):
    return inner.step(slow, state, base, _token(change, token), changed(slow, gates), place)

  def prepare(slow, tokens, gates, write_C, position_C):
    return inner.prepare(slow, _token(change, tokens), changed(slow, gates), write_C, position_C)

  made = inner._replace(step=step, prepare=prepare, kernel=None)
  if change == "no_momentum":
    return made._replace(uses=tuple(name for name in inner.uses if name != "log_momentum"),
                         starts=_raised(inner.starts))
  if learned := _constants(inner, change):
    return made._replace(uses=tuple(name for name in inner.uses if name not in learned),
                         init=lambda key: _with_constants(inner, learned, key))
  return made


def _constants(inner: MemoryRule, change: str) -> tuple[str, ...]:
  return {"constant_rate": ("write_rate",), "constant_gates": inner.uses}.get(change, ())


def _raised(starts):
  by = 1 / (1 - starts.momentum)
  return starts._replace(write_rate=by * starts.write_rate, write_rate_max=by * starts.write_rate_max)


def _with_constants(inner: MemoryRule, names, key):
  """Adds to what a head learns the gates that no token changes, before their squashing."""
  starts, learned = inner.starts, inner.init(key)
  of = {"log_retention": lambda: inverse_softplus(-math.log(starts.retention)),
        "log_momentum": lambda: inverse_sigmoid(starts.momentum),
        "write_rate": lambda: inverse_sigmoid(starts.write_rate / starts.write_rate_max)}
  more = {CONSTANT + name: jnp.asarray(of[name](), jnp.float32) for name in names}
  return learned._replace(slow=learned.slow | more)


def _gates(inner: MemoryRule, change: str, slow, gates: Gates) -> Gates:
  if change == "ascent":
    return gates._replace(write_rate=-gates.write_rate)
  if change == "no_momentum":
    return gates._replace(log_momentum=jnp.full_like(gates.log_momentum, SHUT))
  squash = {"log_retention": lambda z: -jax.nn.softplus(z), "log_momentum": jax.nn.log_sigmoid,
            "write_rate": lambda z: inner.starts.write_rate_max * jax.nn.sigmoid(z)}
  same = {name: jnp.broadcast_to(squash[name](slow[CONSTANT + name]), getattr(gates, name).shape)
          for name in _constants(inner, change)}
  return gates._replace(**{name: value.astype(gates.write_rate.dtype) for name, value in same.items()})


def _token(change: str, token):
  if change != "keys_for_queries":
    return token
  lifted = {"query": token.key} if isinstance(token, LiftedToken) else {}
  return token._replace(q=token.k, **lifted)
