"""Gated delta rule: fade by one number, then replace what the key recalls; token by token."""

import numpy as np

from tests.memory.oracles.fading import fading


def run(learned, tokens, gates, *, chunk_size, momentum=None, **grid):
  ones = np.ones(tokens[1].shape)
  fades = gates["retention"][:, None] * ones
  rates = gates["write_rate"][:, None]
  return fading(learned, tokens, fades, rates * ones, rates * np.ones(tokens[2].shape), **grid)
