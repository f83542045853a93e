"""Kimi Delta Attention: every channel of keys fades by its own number, retention ^ decay; token by token."""

import numpy as np

from tests.memory.oracles.fading import fading


def run(learned, tokens, gates, *, chunk_size, momentum=None, **grid):
  fades = gates["retention"][:, None] ** gates["decay"]
  rates = gates["write_rate"][:, None]
  erase, write = rates * np.ones(tokens[1].shape), rates * np.ones(tokens[2].shape)
  return fading(learned, tokens, fades, erase, write, **grid)
