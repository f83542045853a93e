"""Widths of keys and values at which all rules have states of one size, as near as their shapes permit."""
import functools
import math

import jax

from atlas_jax.memory import rules, scan

CHUNK = 32
FLOATS = 4_096  # per head: fast weights, momentum, and what else passes from token to token
# Rows and checkpoints that these keep are most of their state; the others have their own options.
OPTIONS = {"deep_transformer": {"reach_tokens": 32}, "dot": {"reach_tokens": 32},
           "memory_caching": {"segment": 128, "segments": 6}}


def floats(rule: str, width: int) -> int:
  """Counts the numbers of a head's state: all that changes while text is read, but the base of the chunk.

  Weights of the text's start, to which some rules fade, do not change and do not count.
  """
  made = rules.load(rule, key_dim=width, value_dim=width, chunk_size=CHUNK, **OPTIONS.get(rule, {}))
  memory = jax.eval_shape(lambda key: scan.start(made, made.init(key)).memory, jax.random.key(0))
  changing = (memory.fast, memory.momentum, memory.kept)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(changing))


@functools.cache
def width_of(rule: str) -> int:
  """Returns the width, a multiple of 4, at which a head's state comes nearest to `FLOATS`."""
  return min(range(8, 68, 4), key=lambda width: abs(floats(rule, width) / FLOATS - 1))
