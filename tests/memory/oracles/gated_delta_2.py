"""Gated delta rule 2: fades, erases and writes by numbers of each channel; token by token."""

from tests.memory.oracles.fading import fading


def run(learned, tokens, gates, *, chunk_size, momentum=None, erase_max=1.0, **grid):
  fades = gates["retention"][:, None] ** gates["decay"]
  return fading(learned, tokens, fades, gates["erase"], gates["write"], **grid)
